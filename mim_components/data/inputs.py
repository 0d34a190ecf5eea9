"""Which volumes an inference works on, under which names it writes, and how it reads them."""

from __future__ import annotations

import logging
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import Dataset, MetaTensor
from monai.transforms import MapTransform

from mim_components.data.check.volume import MAX_VOXELS
from mim_components.data.find.walk import find_volumes
from mim_components.data.prepare.quarantine import ON_BAD
from mim_components.data.read.volume import as_source, cause_of, inspect_source, load_volume
from mim_components.data.resample import as_spacing
from mim_components.data.volumes import BadVolume, BadVolumesError, DataError, NoVolumesError, VolumeSource
from mim_components.utils.files import shorten_name
from mim_components.utils.text import root_cause

logger = logging.getLogger(__name__)

# "report": leave bad scans out, do the others, and fail at the end
ON_BAD_SCAN = ("report", *ON_BAD)


def inference_items(
    dataset_dir: str | Path | None, output_dir: str | Path, on_bad: str = "stop", max_voxels: int = MAX_VOXELS
) -> list[dict[str, Any]]:
    """Find the volumes and check all headers.

    Args:
        dataset_dir: folder to search, or one file.
        output_dir: where results go; volumes inside it are results of an earlier run and are passed over.
        on_bad: "stop" raises when headers are bad, naming all; "exclude" leaves those volumes out; "report" hands them
            on with their cause.
        max_voxels: larger headers are refused.

    Returns:
        Per volume `image` (where it lies), `source` (the same, as text), `name` (for files, no two alike) and `cause`
        (why it is bad, else "").

    Raises:
        DataError: nothing is given, no volume was found, or headers are bad.
    """
    root = given_path(dataset_dir, on_bad)
    sources = list(find_volumes(root)) if root.is_dir() else [as_source(root)]
    return items_of(sources, root, output_dir, lambda source: inspect_source(source, max_voxels), on_bad)


def given_path(dataset_dir: str | Path | None, on_bad: str) -> Path:
    """Where the volumes are, once the settings are known to be right.

    Raises:
        DataError: nothing is given, or `on_bad` is none of its values.
    """
    if on_bad not in ON_BAD_SCAN:
        raise DataError(f"on_bad must be one of {', '.join(ON_BAD_SCAN)}, got {on_bad!r}.")
    if not dataset_dir:
        raise DataError("Give the volumes: --dataset_dir, a folder with volumes or one file.")
    return Path(dataset_dir)


def items_of(
    sources: Sequence[VolumeSource],
    root: Path,
    output_dir: str | Path,
    check: Callable[[VolumeSource], object],
    on_bad: str,
) -> list[dict[str, Any]]:
    """Check the headers of volumes that were found, and name the volumes; see `inference_items`.

    Args:
        sources: the volumes.
        root: where they were searched.
        output_dir: volumes inside it are passed over.
        check: raises `DataError` or `OSError` for a volume that is unfit.
        on_bad: "report", "stop" or "exclude".
    """
    results = Path(output_dir).resolve()
    kept = [source for source in sources if results not in source.path.resolve().parents]
    if passed := len(sources) - len(kept):
        logger.info("%d volumes in %s are results of an earlier run and are passed over.", passed, results)
    if not kept:
        raise NoVolumesError(f"{root}: holds no volumes but the results in {results}.")
    bad = [BadVolume(str(source), cause) for source in kept if (cause := _cause(source, check))]
    if bad and (on_bad == "stop" or len(bad) == len(kept)):
        raise BadVolumesError(bad, len(kept))
    for item in bad:
        logger.warning("left out: %s", item)
    causes = {item.path: item.cause for item in bad}
    if on_bad == "exclude":
        kept = [source for source in kept if str(source) not in causes]
    names = unique_names(kept, root)
    return [
        {"image": source, "source": str(source), "name": name, "cause": causes.get(str(source), "")}
        for source, name in zip(kept, names, strict=True)
    ]


def _cause(source: VolumeSource, check: Callable[[VolumeSource], object]) -> str:
    try:
        check(source)
    except (DataError, OSError) as error:
        return cause_of(error)
    return ""


def unique_names(sources: Sequence[VolumeSource], root: Path) -> list[str]:
    """A file name for every volume, no two alike, also where upper and lower case are one.

    It is the volume's own name; where that occurs more than once, the folders below `root` come before it, and where
    that does not help either, a number follows.

    Example:
        >>> paths = [Path("in/a/ct.nii.gz"), Path("in/b/ct.nii.gz"), Path("in/b/ct.mha"), Path("in/x.nii")]
        >>> unique_names([VolumeSource(path, (path,)) for path in paths], Path("in"))
        ['a_ct', 'b_ct', 'b_ct_2', 'x']
    """
    short = [_as_file_name(source.name) for source in sources]
    counts = Counter(name.casefold() for name in short)
    taken = set(counts)  # also a name that only one has: it is not given to another
    numbers: defaultdict[str, int] = defaultdict(lambda: 1)  # the last that was tried
    names: list[str] = []
    for source, name in zip(sources, short, strict=True):
        if counts[name.casefold()] > 1:
            name = long = _as_file_name("_".join([*_folders(source, root), name]))
            while name.casefold() in taken:
                numbers[long] += 1
                name = f"{long}_{numbers[long]}"
        taken.add(name.casefold())
        names.append(name)
    return names


def _folders(source: VolumeSource, root: Path) -> tuple[str, ...]:
    """Names of the folders between `root` and the volume."""
    folder = source.path if source.series_uid is not None else source.path.parent
    try:
        return folder.relative_to(root).parts
    except ValueError:
        return ()


def _as_file_name(text: str) -> str:
    # a SeriesInstanceUID is whatever the file says, and may hold "../"
    return shorten_name(re.sub(r"[^\w .+-]", "_", text).lstrip(". ")) or "volume"


class ScanDataset(Dataset):
    """MONAI's `Dataset` of scans, which a scan that cannot be read, or not resampled, does not end.

    Its item goes through the transform again with `cause`, which makes the loader give one voxel instead.

    Args:
        data: items of `inference_items` or `segmentation_items`.
        transform: begins with a loader that knows `cause`.
        on_bad: "stop" raises instead.
    """

    def __init__(self, data: Sequence[Any], transform: Callable[..., Any], on_bad: str = "report") -> None:
        super().__init__(data, transform)
        self.on_bad = on_bad

    def _transform(self, index: int) -> Any:
        try:
            return super()._transform(index)
        except Exception as error:  # whatever a file brings about: memory, a transform of MONAI, a library
            if self.on_bad == "stop":
                raise
            logger.debug("%s", self.data[index]["source"], exc_info=error)
            cause = cause_of(root_cause(error))
        assert self.transform is not None
        return self.transform({**self.data[index], "cause": cause})


class LoadVolumed(MapTransform):
    """Read volumes in HU: a MetaTensor `(1, H, W, D)` int16, RAS, with its affine in mm.

    Adds `cause`: why the volume could not be read, unless `on_bad="stop"`; else "". An item that has one is not read.

    Args:
        keys: items that are a `VolumeSource` or a path.
        on_bad: "stop" raises for a volume that cannot be read; else it is made one voxel, and `cause` says why.
        max_voxels: larger headers are refused, and volumes that would be larger after resampling.
        spacing: that volumes are resampled to, mm along R, A and S; None = native voxels. The affine says where the
            new voxels lie.

    Raises:
        BadVolumesError: names the file and the cause.
        DataError: `spacing` is none.
    """

    def __init__(
        self,
        keys: KeysCollection,
        on_bad: str = "stop",
        max_voxels: int = MAX_VOXELS,
        spacing: Sequence[float] | None = None,
    ) -> None:
        super().__init__(keys)
        self.on_bad = on_bad
        self.max_voxels = max_voxels
        self.spacing = as_spacing(spacing)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Read the volumes."""
        out = {**data, "cause": data.get("cause", "")}
        for key in self.key_iterator(out):
            if out["cause"]:
                out[key] = MetaTensor(torch.zeros(1, 1, 1, 1, dtype=torch.int16))
                continue
            try:
                voxels, affine = load_volume(out[key], self.max_voxels, self.spacing)
            except BadVolumesError as error:
                if self.on_bad == "stop":
                    raise
                out[key], out["cause"] = MetaTensor(torch.zeros(1, 1, 1, 1, dtype=torch.int16)), error.bad[0].cause
            else:
                out[key] = MetaTensor(torch.from_numpy(voxels).unsqueeze(0), affine=torch.as_tensor(affine))
        return out
