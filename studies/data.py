"""The data of a study: label maps of only the study's organs, and lists of patients in the bundles' format.

The source has a folder per part, with one scan and one label map per patient. By default an organ without voxels was
not contoured rather than absent: patients that lack an organ are used neither for training nor for testing
(`"require_all": false` takes them). All scans of the training part, labelled or not, are used for pre-training.

The labelled patients depend only on names and seed: they are the first n in the order of the sha256 of "SEED:NAME", so
that the first 4 are among the first 8, and these among the first 16. The patient after the largest set is listed as the
validation of every training, which can then report a score; test patients appear only in the lists of the evaluation.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from filelock import FileLock

from mim_components.utils.files import write_text_safely
from mim_tools.bundle_files.copies import update_bundle
from studies.definition import PARTS, PRETRAINING_LIST, Study, StudyError, list_name

READY = "data.json"  # what was found; written last


def order_of(names: Sequence[str], seed: int) -> list[str]:
    """Names in the order in which a seed draws them.

    Example:
        >>> order_of(["pt_1", "pt_2", "pt_3"], 0) == order_of(["pt_3", "pt_1", "pt_2"], 0)
        True
    """
    return sorted(names, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).hexdigest())


def prepare_data(study: Study, data: Path, work: Path) -> dict[str, Any]:
    """Write label maps, lists and the fine-tuning bundle to `work`, once; returns the numbers of patients.

    Args:
        study: study, with its section `data`.
        data: folder of the source data.
        work: working folder of the study.

    Raises:
        StudyError: files are missing, or the numbers of patients differ from those that the study expects.
    """
    wanted = {"data": study.data, "seeds": study.seeds, "labels": study.labels, "folder": str(data.absolute())}
    work.mkdir(parents=True, exist_ok=True)
    with FileLock(work / ".data.lock"):
        _write_bundle(study, work / "bundle")
        ready = work / READY
        if ready.exists() and (found := json.loads(ready.read_text()))["wanted"] == wanted:
            return dict(found["found"])
        found = _prepare(study, data.absolute(), work.absolute())
        _write(ready, {"wanted": wanted, "found": found})
        return found


def _prepare(study: Study, data: Path, work: Path) -> dict[str, Any]:
    settings = study.data
    scans = {part: _patients(data / settings[part], settings) for part in PARTS}
    if both := scans["train"].keys() & scans["test"].keys():
        raise StudyError(
            f"{data}: {len(both)} patients have the same name in {settings['train']} and {settings['test']}, such as "
            f"{min(both)}. Nobody may train and test: rename other patients, remove copies."
        )
    complete: dict[str, dict[str, dict[str, str]]] = {}
    for part, patients in scans.items():
        complete[part] = {}
        for name, (image, label) in patients.items():
            target = label_path(work, name)
            if label is not None and _write_label(label, target, settings):
                complete[part][name] = {"name": name, "image": str(image), "label": str(target)}
    found = {
        "pretraining": len(scans["train"]),
        "train": len(complete["train"]),
        "test": len(complete["test"]),
    }
    if found != settings["expected"]:
        raise StudyError(
            f"{data}: found {_counts(found)}; {study.path} expects {_counts(settings['expected'])}. Patients count as "
            f"labelled if {'all' if settings.get('require_all', True) else 'any'} of {len(settings['classes'])} organs "
            f"have voxels."
        )
    _write_lists(study, scans["train"], complete, work / "lists")
    return found


def _counts(found: Mapping[str, int]) -> str:
    return (
        f"{found['pretraining']} scans for pre-training, {found['train']} labelled patients for training and "
        f"{found['test']} for testing"
    )


def _patients(folder: Path, settings: Mapping[str, Any]) -> dict[str, tuple[Path, Path | None]]:
    """Scan and label map (None if missing) of every patient in a folder, in natural order of the names."""
    before, after = settings["image"].split("{name}")
    paths = [path.relative_to(folder).as_posix() for path in folder.glob(f"{before}*{after}")]
    names = [path.removeprefix(before).removesuffix(after) for path in paths]
    if not names:
        raise StudyError(f"{folder}: has no scan {settings['image'].format(name='NAME')}; set --data.")
    patients: dict[str, tuple[Path, Path | None]] = {}
    for name in sorted(names, key=lambda text: [int(part) if part.isdigit() else part for part in _parts(text)]):
        label = folder / settings["label"].format(name=name)
        patients[name] = (folder / settings["image"].format(name=name), label if label.exists() else None)
    return patients


def _parts(name: str) -> list[str]:
    return re.split(r"(\d+)", name)


def label_path(work: Path, name: str) -> Path:
    """Label map of a patient in the working folder."""
    return work / "labels" / f"{name}.nii.gz"


def _write_label(source: Path, target: Path, settings: Mapping[str, Any]) -> bool:
    """Write only the organs in `classes` (class by value in the file); returns False if the patient does not count."""
    volume = nib.load(source)
    values = np.asanyarray(volume.dataobj)
    wanted = {int(value): number for value, number in settings["classes"].items()}
    there = wanted.keys() & set(np.unique(values).tolist())
    if not there or (settings.get("require_all", True) and there != wanted.keys()):
        return False
    label = np.zeros(values.shape, np.uint8)
    for value, number in wanted.items():
        label[values == value] = number
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial.nii.gz")
    nib.save(nib.Nifti1Image(label, volume.affine), partial)
    partial.replace(target)
    return True


def _write_lists(
    study: Study,
    scans: Mapping[str, tuple[Path, Path | None]],
    complete: Mapping[str, Mapping[str, dict[str, str]]],
    folder: Path,
) -> None:
    """Write `pretraining.json`, `train_LABELS_seedN.json` and `test_LABELS_seedN.json`."""
    train, test = complete["train"], list(complete["test"].values())
    most = max(study.labels)
    if most >= len(train):
        raise study.fault("'labels'", f"asks for {most} of {len(train)} labelled patients; one more must validate.")
    _write(folder / f"{PRETRAINING_LIST}.json", {"training": [{"image": str(image)} for image, _ in scans.values()]})
    for seed in study.seeds:
        names = order_of(list(train), seed)
        for labels in study.labels:
            chosen = [train[name] for name in names[:labels]]
            lists = {"train": [train[names[most]]], "test": test}
            for kind, validation in lists.items():
                _write(folder / f"{list_name(kind, labels, seed)}.json", {"training": chosen, "validation": validation})


def _write_bundle(study: Study, folder: Path) -> None:
    """Write the fine-tuning bundle: the study's metadata, and the files that all bundles share."""
    (folder / "configs").mkdir(parents=True, exist_ok=True)
    shutil.copyfile(study.bundle / "metadata.json", folder / "configs" / "metadata.json")
    update_bundle(folder)


def _write(path: Path, content: Mapping[str, Any]) -> None:
    write_text_safely(path, json.dumps(content, indent=1) + "\n")
