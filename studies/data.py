"""The data of a study: label maps of only the study's organs, and lists of patients in the bundles' format.

The source has a folder per part, with one scan and one label map per patient. An organ without voxels was not
contoured rather than absent: patients that lack an organ are used neither for training nor for testing. All scans of
the training part, labelled or not, are used for pre-training.

The labelled patients depend only on names and seed: they are the first n in the order of the sha256 of "SEED:NAME", so
that the first 4 are among the first 8, and these among the first 16. The patient after the largest set is listed as the
validation of every training, which can then report a score; test patients appear only in the lists of the evaluation.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from filelock import FileLock

from mim_tools.bundle_files.copies import update_bundle
from studies.definition import Study, StudyError

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
    scans = {part: _patients(data / settings[part], settings) for part in ("train", "test")}
    complete: dict[str, dict[str, dict[str, str]]] = {}
    for part, patients in scans.items():
        complete[part] = {}
        for name, (image, label) in patients.items():
            target = work / "labels" / f"{name}.nii.gz"
            if label is not None and _write_label(label, target, settings["classes"]):
                complete[part][name] = {"name": name, "image": str(image), "label": str(target)}
    found = {
        "pretraining": len(scans["train"]),
        "train": len(complete["train"]),
        "test": len(complete["test"]),
    }
    if found != settings["expected"]:
        raise StudyError(
            f"{data}: found {_counts(found)}; {study.path} expects {_counts(settings['expected'])}. Patients count as "
            f"labelled if all {len(settings['classes'])} organs have voxels."
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
    names = [path.name.removeprefix(before).removesuffix(after) for path in folder.glob(f"{before}*{after}")]
    if not names:
        raise StudyError(f"{folder}: has no scan {settings['image'].format(name='NAME')}; set --data.")
    patients: dict[str, tuple[Path, Path | None]] = {}
    for name in sorted(names, key=lambda text: [int(part) if part.isdigit() else part for part in _parts(text)]):
        label = folder / settings["label"].format(name=name)
        patients[name] = (folder / settings["image"].format(name=name), label if label.exists() else None)
    return patients


def _parts(name: str) -> list[str]:
    return re.split(r"(\d+)", name)


def _write_label(source: Path, target: Path, classes: Mapping[str, int]) -> bool:
    """Write only the organs in `classes` (class by value in the file); returns False if one has no voxels."""
    volume = nib.load(source)
    values = np.asanyarray(volume.dataobj)
    wanted = {int(value): number for value, number in classes.items()}
    if not set(wanted) <= set(np.unique(values).tolist()):
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
    _write(folder / "pretraining.json", {"training": [{"image": str(image)} for image, _ in scans.values()]})
    for seed in study.seeds:
        names = order_of(list(train), seed)
        for labels in study.labels:
            chosen = [train[name] for name in names[:labels]]
            lists = {"train": [train[names[most]]], "test": test}
            for kind, validation in lists.items():
                _write(folder / f"{kind}_{labels}_seed{seed}.json", {"training": chosen, "validation": validation})


def _write_bundle(study: Study, folder: Path) -> None:
    """Write the fine-tuning bundle: the study's metadata, and the files that all bundles share."""
    (folder / "configs").mkdir(parents=True, exist_ok=True)
    shutil.copyfile(study.bundle / "metadata.json", folder / "configs" / "metadata.json")
    update_bundle(folder)


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)
