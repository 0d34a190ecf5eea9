"""Synthetic CT of a trunk and MRI of a brain, with labels, for demos and tests; marked as synthetic, no patients."""

from mim_tools.synthetic.dataset import write_synthetic_dataset
from mim_tools.synthetic.generate import DESCRIPTION, SYNTHETIC_VERSION, SyntheticCT, synthetic_ct
from mim_tools.synthetic.layouts import write_synthetic_layout
from mim_tools.synthetic.tissue import SYNTHETIC_LABELS

__all__ = [
    "DESCRIPTION",
    "SYNTHETIC_LABELS",
    "SYNTHETIC_VERSION",
    "SyntheticCT",
    "synthetic_ct",
    "write_synthetic_dataset",
    "write_synthetic_layout",
]
