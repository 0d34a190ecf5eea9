"""The scans of an inference, the names of its output files, and a dataset that survives bad scans."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from monai.data import Dataset

from mim_components.data.load.scans import Scans
from mim_components.data.names import unique_names
from mim_components.data.prepare.quarantine import ON_BAD
from mim_components.data.read.volume import cause_of
from mim_components.data.volumes import BadVolume, BadVolumesError, DataError, NoVolumesError, VolumeSource
from mim_components.utils.text import counted, root_cause

logger = logging.getLogger(__name__)

# "report": leave bad scans out, do the others, and fail at the end
ON_BAD_SCAN = ("report", *ON_BAD)


def scan_items(
    dataset_dir: str | Path | None, scans: Scans, output_dir: str | Path | None = None, on_bad: str = "stop"
) -> list[dict[str, Any]]:
    """Find the scans and check them all before the first is read.

    Args:
        dataset_dir: folder to search recursively, or one scan.
        scans: what a scan is, see `CheckedLoadImaged`.
        output_dir: folder of the results; scans in it are results of an earlier run and are skipped.
        on_bad: "stop" raises if scans are bad, naming all; "exclude" leaves them out; "report" passes them on with
            their cause.

    Returns:
        Per scan `image` (a `VolumeSource`), `source` (its path, as text), `name` (for files, unique) and `cause`
        (why it is bad, else "").

    Raises:
        DataError: no folder is given, no scan was found, or scans are bad.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> import nibabel as nib
        >>> import numpy as np
        >>> from mim_components.data import CTScans
        >>> with TemporaryDirectory() as folder:
        ...     nib.Nifti1Image(np.zeros((8, 8, 8), np.int16), np.eye(4)).to_filename(Path(folder, "a.nii"))
        ...     Path(folder, "b.nii").touch()
        ...     [(item["name"], item["cause"]) for item in scan_items(folder, CTScans(), on_bad="report")]
        [('a', ''), ('b', 'the file is empty (0 bytes)')]
    """
    if on_bad not in ON_BAD_SCAN:
        raise DataError(f"on_bad must be one of {', '.join(ON_BAD_SCAN)}, got {on_bad!r}.")
    if not dataset_dir:
        raise DataError("Give the scans: --dataset_dir, a folder with scans or one scan.")
    root = Path(dataset_dir)
    found = _without_results(scans.find(root), root, output_dir)
    causes = {str(source): _cause(source, scans) for source in found}
    bad = [BadVolume(name, cause) for name, cause in causes.items() if cause]
    if bad and (on_bad == "stop" or len(bad) == len(found)):
        raise BadVolumesError(bad, len(found))
    for each in bad:
        logger.warning("left out: %s", each)
    kept = [source for source in found if on_bad == "report" or not causes[str(source)]]
    names = unique_names(kept, root)
    return [
        {"image": source, "source": str(source), "name": name, "cause": causes[str(source)]}
        for source, name in zip(kept, names, strict=True)
    ]


def _without_results(found: Sequence[VolumeSource], root: Path, output_dir: str | Path | None) -> list[VolumeSource]:
    if output_dir is None:
        return list(found)
    results = Path(output_dir).resolve()
    kept = [source for source in found if results not in source.path.resolve().parents]
    if passed := len(found) - len(kept):
        logger.info("%s in %s skipped: results of an earlier run.", counted(passed, "volume"), results)
    if not kept:
        raise NoVolumesError(f"{root}: holds no volumes except the results in {results}.")
    return kept


def _cause(source: VolumeSource, scans: Scans) -> str:
    try:
        for note in scans.check(source):
            logger.warning("%s: %s", source, note)
    except (DataError, OSError) as error:
        return cause_of(error)
    return ""


class ScanDataset(Dataset):
    """MONAI's `Dataset` of scans that tolerates scans that cannot be read or resampled.

    Such an item goes through the transform again with `cause`, for which `CheckedLoadImaged` returns one voxel.

    Args:
        data: items of `scan_items`.
        transform: transform that begins with `CheckedLoadImaged`.
        on_bad: "stop" raises instead.

    Example:
        >>> from mim_components.data import CTScans, CheckedLoadImaged
        >>> item = {"image": "absent.nii.gz", "source": "absent.nii.gz", "cause": ""}
        >>> ScanDataset([item], CheckedLoadImaged("image", CTScans()))[0]["cause"]
        'no such file'
    """

    def __init__(self, data: Sequence[Any], transform: Callable[..., Any], on_bad: str = "report") -> None:
        super().__init__(data, transform)
        self.on_bad = on_bad

    def _transform(self, index: int) -> Any:
        try:
            return super()._transform(index)
        except Exception as error:  # a bad file may cause any: out of memory, errors of MONAI or a library
            if self.on_bad == "stop":
                raise
            logger.debug("%s", self.data[index]["source"], exc_info=error)
            cause = root_cause(error)
        # only the single entry of the list: its heading and advice are for runs that stop
        text = cause.bad[0].cause if isinstance(cause, BadVolumesError) else cause_of(cause)
        assert self.transform is not None
        return self.transform({**self.data[index], "cause": text})
