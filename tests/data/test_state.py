"""A changed, added or missing file is noticed by the state of a scan."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from mim_components.data.cases import Case
from mim_components.data.check.slices import SliceFolderChecker
from mim_components.data.prepare.cases import check_cases
from mim_components.data.state import files_in, is_unchanged, state_of, state_text


def test_folder_of_slices_and_several_channels_have_a_state(tmp_path: Path) -> None:
    folder = tmp_path / "slices"
    folder.mkdir()
    for name in ("1.png", "2.png"):
        (folder / name).write_bytes(b"slice")
    (tmp_path / "label.nii").write_bytes(b"label")
    every = [folder / "1.png", folder / "2.png", tmp_path / "label.nii"]
    item = {"image": [str(folder)], "label": str(tmp_path / "label.nii"), "state": state_text(state_of(every))}
    assert is_unchanged(item) and is_unchanged({"image": "x"})
    (folder / "3.png").write_bytes(b"slice")
    assert not is_unchanged(item)
    assert state_text(None) == "" and not is_unchanged({"image": str(folder / "none"), "state": "files=1"})


def test_state_of_a_folder_is_that_of_the_files_that_a_search_finds(tmp_path: Path) -> None:
    for name in ("b/series/1.dcm", "b/series/2.dcm", "a.dcm", "b/.DS_Store", ".old/3.dcm", "__MACOSX/4.dcm"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"slice")
    (tmp_path / "b" / "up").symlink_to(tmp_path)  # leads in a circle
    found = [tmp_path / name for name in ("a.dcm", "b/series/1.dcm", "b/series/2.dcm")]
    assert files_in([tmp_path]) == found
    state = state_of([tmp_path])
    (tmp_path / "b" / ".DS_Store").write_bytes(b"other")
    assert state_of([tmp_path]) == state is not None
    (tmp_path / "b" / "series" / "2.dcm").write_bytes(b"other")
    assert state_of([tmp_path]) != state


def test_state_of_a_folder_that_cannot_be_read_is_unknown(tmp_path: Path, lock: Callable[[str], None]) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "1.dcm").write_bytes(b"slice")
    lock("inner")
    assert state_of([tmp_path]) is None


def test_nested_series_that_changed_is_checked_again(
    tmp_path: Path, write_dicom: Callable[..., list[Path]], ct: np.ndarray
) -> None:
    case, checker = Case("a", (tmp_path / "a",), label=1), SliceFolderChecker(hu_window=(-1000, 400))
    checks = []
    for volume in (ct, ct[::-1]):
        write_dicom("a/patient/series", volume)
        checks.append(check_cases([case], checker, tmp_path / "cache"))
    before, after = checks
    assert before.facts["a"].digest != after.facts["a"].digest == checker(case).digest
    assert before.states != after.states
