"""Synthetic CT of a trunk with labels, for demos, tests and studies; not a patient, and it says so everywhere."""

from mim_components.synthetic.dataset import write_synthetic_dataset
from mim_components.synthetic.generate import DESCRIPTION, SYNTHETIC_VERSION, SyntheticCT, synthetic_ct
from mim_components.synthetic.labels import SYNTHETIC_LABELS

__all__ = [
    "DESCRIPTION",
    "SYNTHETIC_LABELS",
    "SYNTHETIC_VERSION",
    "SyntheticCT",
    "synthetic_ct",
    "write_synthetic_dataset",
]
