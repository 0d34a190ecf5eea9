"""All ways to specify data: folders, lists and collections of volumes, labelled cases, labelled scans."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mim_components.data.cases import NO_DATA, Case, FoundCases
from mim_components.data.find.collections import list_collection
from mim_components.data.find.datalist import load_cases, load_datalist
from mim_components.data.find.layouts import LAYOUTS, Folder, Layout, all_layouts
from mim_components.data.find.scan_lists import ListedScan, read_scan_list
from mim_components.data.find.walk import describe_files, find_volumes, walk
from mim_components.data.names import PATIENT, digest_name, path_name
from mim_components.data.volumes import (
    BadVolume,
    BadVolumesError,
    DataError,
    FoundVolumes,
    NoVolumesError,
    VolumeSource,
)
from mim_components.transforms.intensity import check_modality
from mim_components.utils.text import counted, shorten

logger = logging.getLogger(__name__)

# keys of an entry in a bundle's metadata besides the arguments of the layout
_OWN_KEYS = ("name", "label_set", "num_cases")


def find_cases(
    dataset_dir: str | Path | None,
    datalist: str | Path | None = None,
    layouts: Sequence[Mapping[str, Any]] = (),
    allow_outside: bool = False,
) -> FoundCases:
    """Find the cases of a dataset; opens no images. Without folder and list there are none.

    Args:
        dataset_dir: folder of the dataset, or one up to two levels above it; with `datalist` the folder its paths are
            relative to.
        datalist: JSON list in the Decathlon's form, which is used instead of a layout.
        layouts: section `dataset.layouts` of a bundle's metadata: `name` of a layout, options of it, and optionally
            `label_set`, the label set of its files, and `num_cases`, its number of cases when complete. The
            first that recognises the folder is used.
        allow_outside: accept paths in the list that lead out of the folder.

    Raises:
        DataError: the list is wrong, a folder cannot be read, or no layout recognises the folder; says what was
            expected and which dataset it looks like.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     for place in ("imagesTr", "labelsTr"):
        ...         Path(folder, place).mkdir()
        ...         Path(folder, place, "spleen_2.nii.gz").touch()
        ...     found = find_cases(folder, layouts=[{"name": "decathlon", "task": "Task09_Spleen"}])
        >>> [(case.name, case.image[0].parent.name, case.label.parent.name) for case in found.cases]
        [('spleen_2', 'imagesTr', 'labelsTr')]
    """
    if datalist:
        return load_cases(datalist, dataset_dir or None, allow_outside)
    if not dataset_dir:  # a workflow can be built without data; whatever needs the cases reports that
        return FoundCases(Path(), NO_DATA, [])
    path = Path(dataset_dir).absolute()
    made = [(entry, _make(entry)) for entry in layouts]
    wanted = ", or ".join(f"{layout.dataset}: {layout.expected}" for _, layout in made)
    if not path.is_dir():
        is_what = "is a file" if path.exists() else "there is no such folder"
        raise NoVolumesError(f"{path}: {is_what}, expected the folder of {wanted}.")
    folder = Folder(path)
    for entry, layout in made:
        if layout.recognises(folder):
            if folder.unreadable:  # its cases would be missing
                advice = "make readable, or give a dataset_dir without it or a datalist"
                raise DataError(f"{path}: {folder.unreadable}; {advice}.")
            found = layout.find(folder)
            found.layout, found.label_set = entry["name"], entry.get("label_set")
            found.num_cases = entry.get("num_cases")
            return found
    raise NoVolumesError(f"{path}: expected {wanted}; found {_what_is(folder)}.")


def _make(entry: Mapping[str, Any]) -> Layout:
    if entry["name"] not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, got {entry['name']!r}.")
    return LAYOUTS[entry["name"]](**{key: value for key, value in entry.items() if key not in _OWN_KEYS})


def _what_is(folder: Folder) -> str:
    seen = describe_files([folder.path / path for path in folder.files])
    seen = f"{seen}; {folder.unreadable}" if folder.unreadable else seen
    likely = [layout for layout in all_layouts() if layout.recognises(folder)]
    if not likely:
        return seen
    names = " and ".join(layout.dataset for layout in likely)
    bundles = " or ".join(layout.bundle for layout in likely if layout.bundle)
    advice = f"; use the bundle {bundles}" if bundles else ", for which there is no bundle"
    return f"{seen}. It looks like {names}{advice}"


def path_of_name(name: str, root: str | Path) -> str:
    """The path, or folder and series, that a digest represents.

    Args:
        name: `scan-`, `file-` or `patient-` and 12 digits.
        root: data folder of the run.

    Raises:
        NoVolumesError: the folder is missing, or nothing in it has this digest.
    """
    root = Path(root)
    tree = walk(root)
    prefix = name[: name.find("-") + 1]
    folders = {parent for path in tree.files for parent in path.parents if root in parent.parents}
    for path in [*tree.files, *sorted(folders)]:
        own = digest_name(path.name, PATIENT) if prefix == PATIENT else path_name(path, root, prefix)
        if own == name:
            return str(path)
    for source in find_volumes(root):
        if path_name(source.path, root, prefix, source.series_uid) == name:
            return str(source)
    raise NoVolumesError(f"{root}: nothing in it is called {name}; give the dataset_dir (or data_root) of the run.")


WAYS = """\
  --dataset_dir /path/to/cts               a folder with CT volumes, at any depth
  --datalist list.json                     {"training": [{"image": "a.nii.gz"}, ...]}; paths are relative to the list,
                                           or to --dataset_dir
  --collection 1k --data_root /path        the paper's sets BTCV and TCIA Covid19; 10k for all eight
To try it without data, in two minutes, in the folder of the bundle:
  python -m monai.bundle run --config_file "['configs/train.json','configs/demo.json']\""""


def find_sources(
    dataset_dir: str | Path | None = None,
    datalist: str | Path | None = None,
    collection: str | None = None,
    data_root: str | Path | None = None,
    datalist_key: str = "training",
    allow_outside: bool = False,
    modality: str = "ct",
) -> FoundVolumes:
    """Find the volumes in the one way that is given.

    Args:
        dataset_dir: folder to search; with `datalist` the folder that its paths are relative to.
        datalist: JSON list of volumes.
        collection: "1k" or "10k", the paper's sets.
        data_root: folder with the sets of the collection.
        datalist_key: section of the list.
        allow_outside: accept paths in the list that lead out of its folder.
        modality: "ct" or "mr".

    Raises:
        DataError: no way or more than one is given, nothing was found, or a collection, which is CT, is given for MR.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     Path(folder, "scan.nii.gz").touch()
        ...     [volume.name for volume in find_sources(folder).sources]
        ['scan']
    """
    if bool(collection) != bool(data_root):
        raise DataError(f"collection and data_root belong together, got {collection=}, {data_root=}.")
    ways = [bool(collection), bool(datalist), bool(dataset_dir) and not datalist]
    if sum(ways) != 1:
        given = f"; got {dataset_dir=}, {datalist=}, {collection=}" if any(ways) else ""
        raise DataError(f"Give the data in exactly one way{given}:\n{WAYS}")
    check_modality(modality)
    if collection and modality != "ct":
        raise DataError(
            f"collection {collection} is CT, got modality {modality}; give MR as --dataset_dir or --datalist."
        )
    if collection and data_root:
        found = list_collection(collection, data_root)
        logger.info("Collection %s in %s:\n%s", collection, data_root, found.table())
        return found
    if datalist:
        return load_datalist(datalist, dataset_dir or None, datalist_key, allow_outside, modality)
    return find_volumes(Path(str(dataset_dir)), modality)


def as_source(source: VolumeSource | str | Path, modality: str = "ct") -> VolumeSource:
    """Convert a path to a source; a folder must hold exactly one DICOM series of the modality."""
    if isinstance(source, VolumeSource):
        return source
    path = Path(source)
    if not path.is_dir():
        return VolumeSource(path, (path,))
    found = find_volumes(path, modality).sources
    if len(found) != 1:
        raise BadVolumesError([BadVolume(str(path), f"holds {len(found)} volumes, expected one")], 1)
    return found[0]


def find_validation(
    validation_dir: str | Path | None = None,
    validation_datalist: str | Path | None = None,
    validation_key: str = "validation",
    dataset_dir: str | Path | None = None,
    datalist: str | Path | None = None,
    datalist_key: str = "training",
    collection: str | None = None,
    data_root: str | Path | None = None,
    allow_outside: bool = False,
    modality: str = "ct",
) -> FoundVolumes:
    """Find the validation volumes, or those of the training if neither folder nor list of validation volumes is given.

    Args:
        validation_dir: folder to search; with `validation_datalist` the folder its paths are relative to.
        validation_datalist: JSON list of volumes.
        validation_key: section of that list.
        dataset_dir: this and the following are those of the training, see `mim_components.data.find_sources`.
        datalist: list of the training.
        datalist_key: section of that list.
        collection: collection of the training.
        data_root: folder of the collection.
        allow_outside: accept paths in a list that lead out of its folder.
        modality: "ct" or "mr".

    Raises:
        DataError: nothing was found, or nothing is given.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as training, TemporaryDirectory() as validation:
        ...     Path(training, "a.nii.gz").touch()
        ...     Path(validation, "b.nii.gz").touch()
        ...     [source.name for source in find_validation(validation, dataset_dir=training)]
        ...     [source.name for source in find_validation(dataset_dir=training)]
        ['b']
        ['a']
    """
    if validation_datalist or validation_dir:
        return find_sources(
            validation_dir,
            validation_datalist,
            datalist_key=validation_key,
            allow_outside=allow_outside,
            modality=modality,
        )
    if not any((dataset_dir, datalist, collection, data_root)):
        raise DataError(
            "Give the volumes to evaluate on: --validation_dir (a folder) or --validation_datalist (a JSON list); or "
            "--dataset_dir as in the training, to evaluate on its data."
        )
    return find_sources(dataset_dir, datalist, collection, data_root, datalist_key, allow_outside, modality)


def find_scans(
    dataset_dir: str | Path | None,
    datalist: str | Path | None = None,
    layouts: Sequence[Mapping[str, Any]] = (),
    class_names: Sequence[str] = (),
    min_slices: int = 16,
    train_csv: str | Path | None = None,
    valid_csv: str | Path | None = None,
    allow_outside: bool = False,
) -> FoundCases:
    """Find the scans of a dataset; opens no pictures.

    Args:
        dataset_dir: folder of the dataset; with `datalist` the folder its paths are relative to.
        datalist: JSON list in the Decathlon's form, which is used instead of a layout.
        layouts: section `dataset.layouts` of a bundle's metadata.
        class_names: the label of a scan is the index of its class here.
        min_slices: scans with fewer slices are left out.
        train_csv: list of the training scans, with columns label, patient_id and scan_id, and optionally target.
        valid_csv: list of the validation scans.
        allow_outside: accept paths in the `datalist` that lead out of the folder.

    Raises:
        DataError: nothing is given or found; a list is wrong, or names no existing scan; only one CSV list is given,
            or they are given with a `datalist`; a patient is in both lists.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     for path in ("NCP/7/1/0.png", "NCP/7/1/1.png", "Normal/8/2/0.png"):
        ...         Path(folder, path).parent.mkdir(parents=True, exist_ok=True)
        ...         Path(folder, path).touch()
        ...     found = find_scans(folder, layouts=[{"name": "ccccii"}], class_names=["Normal", "NCP"], min_slices=2)
        >>> [(case.name, case.label, case.group) for case in found.cases], found.notes
        ([('NCP_7_1', 1, '7')], ['1 scan with fewer than 2 slices left out'])
    """
    if bool(train_csv) != bool(valid_csv) or (train_csv and datalist):
        raise DataError(
            "train_csv and valid_csv belong together, and replace a datalist; "
            f"got {train_csv=}, {valid_csv=}, {datalist=}."
        )
    options = {"class_names": tuple(class_names), "min_slices": min_slices}
    found = find_cases(dataset_dir, datalist, [{**layout, **options} for layout in layouts], allow_outside)
    if train_csv and valid_csv:
        _take_sections(found, {"training": Path(train_csv), "validation": Path(valid_csv)}, class_names)
    return found


def _take_sections(found: FoundCases, paths: Mapping[str, Path], class_names: Sequence[str]) -> None:
    """Keep the scans that the lists name, and note those missing."""
    lists = {section: read_scan_list(path) for section, path in paths.items()}
    both = {each.patient for each in lists["training"]} & {each.patient for each in lists["validation"]}
    if both:
        raise DataError(f"{' and '.join(map(str, paths.values()))}: patients in both lists: {shorten(sorted(both))}")
    cases = {_key(case): case for case in found.cases}
    kept: list[Case] = []
    for section, listed in lists.items():
        for each in listed:
            _check_label(paths[section], each, class_names)
        there = [cases[each.patient, each.scan] for each in listed if (each.patient, each.scan) in cases]
        absent = [f"{each.patient}/{each.scan}" for each in listed if (each.patient, each.scan) not in cases]
        if not there:
            raise DataError(
                f"{paths[section]}: none of its {len(listed)} scans is in {found.root}: {shorten(sorted(absent))}"
            )
        if absent:
            found.notes.append(
                f"{paths[section]}: {counted(len(absent), 'scan')} not in {found.root}: {shorten(sorted(absent))}"
            )
        kept += [replace(case, section=section) for case in there]
    if unlisted := len(found.cases) - len(kept):
        found.notes.append(f"{counted(unlisted, 'scan')} in neither list left out")
    found.cases = kept


def _key(case: Case) -> tuple[str, str]:
    """Patient and scan of a case found by the layout."""
    return case.group, case.image[0].name


def _check_label(path: Path, listed: ListedScan, class_names: Sequence[str]) -> None:
    if listed.label not in class_names:
        raise DataError(f"{path}: label {listed.label!r} of scan {listed.scan} is none of {', '.join(class_names)}")
    if listed.target is not None and listed.target != list(class_names).index(listed.label):
        raise DataError(
            f"{path}: {listed.label} is class {listed.target} in the list and "
            f"{list(class_names).index(listed.label)} here; set --class_names in the order of the list."
        )
