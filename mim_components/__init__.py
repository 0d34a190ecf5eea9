"""Components of the MiM bundles: what self-supervised pre-training with Mask in Mask needs and MONAI lacks."""

__version__ = "0.1.0"
