"""Two processes prepare cases (gloo on the CPU): they share the checks, and get the same parts or the same error.

The file is its own program: the fixture starts it twice, as torchrun does, and each process records its observations.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

pytestmark = pytest.mark.slow
TwoProcesses = Callable[[str, Path, int], list[dict[str, Any]]]


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory, in_two_processes: TwoProcesses) -> list[dict[str, Any]]:
    """Observations of process 0 and process 1."""
    folder = tmp_path_factory.mktemp("processes")
    for name in ("good", "bad"):
        for number in range(1, 5):
            voxels = np.random.default_rng(number).integers(-1000, 1000, (3, 4, 5)).astype(np.int16)
            for kind, array in (("img", voxels), ("label", (voxels > 0).astype(np.uint8))):
                path = folder / name / kind / f"{kind}{number:04d}.nii.gz"
                path.parent.mkdir(parents=True, exist_ok=True)
                nib.save(nib.Nifti1Image(array, np.eye(4)), path)
    damaged = folder / "bad" / "label" / "label0003.nii.gz"
    damaged.write_bytes(damaged.read_bytes()[:-4])
    return in_two_processes(__file__, folder, 180)


def test_checks_are_divided_and_both_have_the_same(seen: list[dict[str, Any]]) -> None:
    assert [each["checked"] for each in seen] == [2, 2]
    assert seen[0]["parts"] == seen[1]["parts"] == [["0002", "0003", "0004"], ["0001"]]


def test_only_the_first_process_writes(seen: list[dict[str, Any]]) -> None:
    assert [each["wrote"] for each in seen] == [["datalist.json", "data_report.md"], []]


def test_copies_on_the_disks_of_two_machines_are_checked_by_both(seen: list[dict[str, Any]]) -> None:
    assert [each["copies"] for each in seen] == [4, 4]


def test_bad_case_is_an_error_in_both(seen: list[dict[str, Any]]) -> None:
    assert seen[0]["bad"].startswith("1 of 4 volumes cannot be used:\n")
    assert seen[1]["bad"] == seen[0]["bad"]
    assert "img0003.nii.gz: label/label0003.nii.gz: truncated" in seen[1]["bad"]


def test_bad_case_is_left_out_by_both(seen: list[dict[str, Any]]) -> None:
    assert seen[0]["left"] == seen[1]["left"] == ["0002", "0004"]


def main(folder: Path) -> None:
    """Run one process."""
    from mim_components.data import DataError, SegmentationChecker, find_cases, prepare_cases
    from mim_components.data.check import segmentation
    from mim_components.data.prepare import cases as prepare
    from mim_components.labels import LabelSet
    from mim_components.run import start_processes, stop_processes

    start_processes("gloo")
    rank = int(os.environ["RANK"])
    read, written = [], []
    count_labels, write = segmentation.count_labels, prepare.write_text_safely
    segmentation.count_labels = lambda *task: (read.append(task), count_labels(*task))[1]  # type: ignore[func-returns-value]
    prepare.write_text_safely = lambda path, text: (written.append(path.name), write(path, text))[1]  # type: ignore
    checker = SegmentationChecker(LabelSet(("background", "organ"), {}, {}))
    options: Any = {"split": {"rule": "fifths"}, "cache_dir": folder / "cache"}
    good, bad = (find_cases(folder / name, None, [{"name": "btcv"}]) for name in ("good", "bad"))
    prepared = prepare_cases(good, checker, output_dir=folder / "out", **options)
    out: dict[str, Any] = {"checked": len(read), "wrote": written}
    out["parts"] = [[item["name"] for item in part] for part in (prepared.training, prepared.validation)]
    try:
        prepare_cases(bad, checker, **options)
    except DataError as error:
        out["bad"] = str(error)
    out["left"] = [
        item["name"] for item in prepare_cases(bad, checker, on_bad="exclude", max_bad_fraction=1, **options).training
    ]
    read.clear()
    copies = find_cases(shutil.copytree(folder / "good", folder / f"disk_{rank}" / "good"), None, [{"name": "btcv"}])
    prepare_cases(copies, checker, **options)
    out["copies"] = len(read)
    (folder / f"{rank}.json").write_text(json.dumps(out))
    stop_processes()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
