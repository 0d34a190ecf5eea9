"""Synthetic sets in the folder layout, names, label values and modality of the datasets that bundles are made for."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from mim_tools.synthetic.generate import check_grid
from mim_tools.synthetic.layouts.amos22 import write_amos22
from mim_tools.synthetic.layouts.brats2021 import write_brats2021
from mim_tools.synthetic.layouts.btcv import write_btcv
from mim_tools.synthetic.layouts.ccccii import write_ccccii
from mim_tools.synthetic.layouts.covid19 import write_covid19
from mim_tools.synthetic.layouts.decathlon import TASKS, decathlon_writer
from mim_tools.synthetic.layouts.flare22 import write_flare22
from mim_tools.synthetic.layouts.mmwhs import write_mmwhs
from mim_tools.synthetic.layouts.writer import CaseWriter

LAYOUTS: dict[str, Callable[[CaseWriter, Path, int], Path]] = {
    "btcv": write_btcv,
    "mmwhs": write_mmwhs,
    "amos22": write_amos22,
    "flare22": write_flare22,
    "covid19": write_covid19,
    "brats2021": write_brats2021,
    "ccccii": write_ccccii,
    **{name: decathlon_writer(name) for name in TASKS},
}

__all__ = ["LAYOUTS", "write_synthetic_layout"]


def write_synthetic_layout(
    output_dir: str | os.PathLike[str],
    layout: str,
    num_cases: int = 5,
    seed: int = 0,
    spatial_size: Sequence[int] = (96, 80, 72),
    spacing: Sequence[float] | None = None,
    progress: bool = False,
) -> Path:
    """Write a small synthetic dataset as one of the public datasets comes from its archive.

    The ids are the first of the dataset on both sides of the usual split, so that 5 cases or more have one for
    validation at least. Images without labels, and files that do not belong to the task, are there as in the dataset.
    A file that is whole and was made by the same recipe is kept.

    Args:
        output_dir: folder to write to, made if missing; the dataset's own folder goes below.
        layout: one of `LAYOUTS`.
        num_cases: labelled cases, 2 or more; patients for ccccii, CT for amos22.
        seed: decides all cases; a case is the same however many are asked for.
        spatial_size: (H, W, D) in voxels, before the axes are turned; orientations vary from case to case.
        spacing: voxel size in mm; None spreads the voxels over the part of the body that the dataset shows.
        progress: log one line per case at level INFO.

    Returns:
        The dataset's folder, below `output_dir`.

    Raises:
        ValueError: an argument is not as above.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(sorted(LAYOUTS))}, got {layout=}.")
    if seed < 0:
        raise ValueError(f"seed must be 0 or more, got {seed=}.")
    size, steps = check_grid(spatial_size, (1.0, 1.0, 1.0) if spacing is None else spacing)
    writer = CaseWriter(layout, seed, size, None if spacing is None else steps, progress)
    return LAYOUTS[layout](writer, Path(output_dir), num_cases)
