"""A changed, added or missing file is noticed by the state of a scan."""

from pathlib import Path

from mim_components.data.state import is_unchanged, state_of, state_text


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
