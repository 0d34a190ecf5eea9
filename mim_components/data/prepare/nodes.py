"""Prepare volumes in a run of several processes, each its share, with the same result or error in all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import ignite.distributed as idist

from mim_components.data.names import is_anonymous, name_sources
from mim_components.data.prepare.quarantine import MAX_BAD_FRACTION
from mim_components.data.prepare.team import Team
from mim_components.data.prepare.volumes import prepare_volumes
from mim_components.data.volumes import FoundVolumes, PreparedDataset


def prepare_on_nodes(
    found: FoundVolumes,
    cache_dir: str | Path,
    on_bad: str = "stop",
    max_bad_fraction: float = MAX_BAD_FRACTION,
    num_workers: int = 0,
    max_voxels: int = 2**31,
    verify: str = "auto",
    output_dir: str | Path | None = None,
    anonymous_paths: bool = False,
    spacing: Sequence[float] | None = None,
    modality: str = "ct",
) -> PreparedDataset:
    """`prepare_volumes`, with its work divided among the processes of a run.

    All processes share the work if they share a cache; with a cache per machine, those of each machine do.

    Args:
        found: volumes, the same in all processes.
        cache_dir: cache folder, on this machine or shared.
        on_bad: "stop" or "exclude".
        max_bad_fraction: largest share of the volumes that "exclude" may leave out.
        num_workers: number of decoding processes, for each process of the run.
        max_voxels: larger headers are refused.
        verify: see `prepare_volumes`.
        output_dir: folder in which the first process lists bad volumes, see `write_quarantine`.
        anonymous_paths: name volumes by digests, see `mim_components.data.names`.
        spacing: spacing that volumes are resampled to, mm along R, A and S; None = native voxels.
        modality: "ct" or "mr".

    Raises:
        DataError: one failed, or they found different volumes; in all processes.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> import nibabel as nib
        >>> import numpy as np
        >>> from mim_components.data import find_sources
        >>> with TemporaryDirectory() as folder:
        ...     voxels = np.arange(-500, 500, dtype=np.int16).reshape(10, 10, 10)
        ...     nib.Nifti1Image(voxels, np.diag([2, 2, 2, 1])).to_filename(Path(folder, "ct.nii"))
        ...     prepared = prepare_on_nodes(find_sources(folder), Path(folder, "cache"))
        >>> [(volume.name, volume.shape, volume.spacing, volume.intensity_range) for volume in prepared.volumes]
        [('ct', (10, 10, 10), (2.0, 2.0, 2.0), (-500, 499))]
    """
    named = name_sources(found) if is_anonymous(anonymous_paths) else found
    team = Team("\n".join(map(str, named)), Path(cache_dir))
    first = idist.get_rank() == 0
    prepared = prepare_volumes(
        named, cache_dir, on_bad=on_bad, max_bad_fraction=max_bad_fraction, num_workers=num_workers, progress=first,
        max_voxels=max_voxels, verify=verify, output_dir=output_dir if first else None, spacing=spacing, team=team,
        modality=modality,
    )  # fmt: skip
    team.check_same(prepared.digest, prepared.contents)
    return prepared
