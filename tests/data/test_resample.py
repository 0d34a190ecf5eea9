"""Resampling: means by hand, positions of voxels in the world, the cache, and refusals."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from mim_components.data import BadVolumesError, DataError, open_cached, prepare_on_nodes, prepare_volumes
from mim_components.data import resample as resample_module
from mim_components.data.cache.volumes import VolumeCache, open_or_remake
from mim_components.data.find.walk import find_volumes
from mim_components.data.load.scans import load_volume
from mim_components.data.prepare import volumes as prepare_module
from mim_components.data.resample import as_spacing, axis_weights, resample
from mim_components.data.volumes import VolumeSource
from mim_tools.prepare import main

MANY = 10**9
TILT = np.array([[1, 0, 0], [0, np.cos(0.2), -np.sin(0.2)], [0, np.sin(0.2), np.cos(0.2)]])


def resampled(voxels: object, spacing: tuple[float, float, float], affine: np.ndarray | None = None) -> np.ndarray:
    return resample(np.asarray(voxels, dtype=np.int16), np.eye(4) if affine is None else affine, spacing, MANY)[0]


# means


@pytest.mark.parametrize("value", [-1024, 7, 32767, -32768])
@pytest.mark.parametrize("spacing", [(0.3, 1.7, 2.9), (3.1, 0.7, 1.0)])
def test_constant_stays_constant(value: int, spacing: tuple[float, float, float]) -> None:
    out = resampled(np.full((9, 11, 13), value), spacing)
    assert out.dtype == np.int16 and out.flags.c_contiguous and (out == value).all()


def test_down_by_two_is_the_mean_of_two_cubed(ct: np.ndarray) -> None:
    blocks = ct.astype(np.float64).reshape(5, 2, 6, 2, 7, 2).mean((1, 3, 5))
    np.testing.assert_array_equal(resampled(ct, (2, 2, 2)), np.rint(blocks))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_step_edge_is_averaged_by_area(axis: int) -> None:
    # 5 voxels of 1 mm become round(5 / 1.5) = 3 of 5/3 mm; the middle one covers a third of voxel 1, voxel 2 whole,
    # and a third of voxel 3: (100 + 300) / 5 = 80 of a step that ends with voxel 2
    row = np.moveaxis(np.array([100, 100, 100, 0, 0]).reshape(5, 1, 1), 0, axis)
    spacing = [1.0, 1.0, 1.0]
    spacing[axis] = 1.5
    assert resampled(row, tuple(spacing)).ravel().tolist() == [100, 80, 0]


def test_lines_between_the_new_centres_are_not_lost() -> None:
    # one bright voxel of four: interpolation at the centres, as MONAI's Spacing does, gives all or nothing
    row = np.array([400, 0, 0, 0] * 4).reshape(16, 1, 1)
    assert resampled(row, (4, 1, 1)).ravel().tolist() == [100] * 4


def test_growing_is_linear_between_centres() -> None:
    # centres of the new voxels are 1/4 and 3/4 into the old ones; beyond the outer centres the value is held
    assert resampled(np.array([0, 100, 300]).reshape(1, 1, 3), (1, 1, 0.5)).ravel().tolist() == [
        0, 25, 75, 150, 250, 300,
    ]  # fmt: skip


def test_one_axis_of_each_kind() -> None:
    voxels = np.array([[[0, 100]], [[200, 500]]])  # (2, 1, 2)
    # means along R: 100, 300; then a quarter and three quarters between them along S
    assert resampled(voxels, (2, 1, 0.5)).ravel().tolist() == [100, 150, 250, 300]


def test_same_spacing_changes_nothing(ct: np.ndarray) -> None:
    affine = np.diag([0.7, 0.7, 5.0, 1.0])
    voxels, same = resample(ct, affine, (0.7, 0.7, 5.0), MANY)
    assert voxels is ct and same is affine


@pytest.mark.parametrize("have, wanted", [(1, 1), (1, 5), (5, 1), (7, 3), (3, 7), (800, 533), (533, 800)])
def test_weights_add_up_and_none_is_lost(have: int, wanted: int) -> None:
    matrix = np.zeros((wanted, have))
    for new, weights in enumerate(axis_weights(have, wanted)):
        for old, weight in weights:
            matrix[new, old] = weight
    np.testing.assert_allclose(matrix.sum(1), 1, rtol=0, atol=1e-12)
    if wanted <= have:  # every old voxel counts alike
        np.testing.assert_allclose(matrix.sum(0), wanted / have, rtol=0, atol=1e-12)


@pytest.mark.parametrize("spacing", [(2.3, 0.8, 1.4), (0.6, 1.5, 1.0), (1.0, 1.2, 0.9)])
def test_slabs_leave_no_seams(spacing: tuple[float, float, float], monkeypatch: pytest.MonkeyPatch) -> None:
    voxels = np.random.default_rng(0).integers(-1000, 1000, (23, 8, 9)).astype(np.int16)
    whole = resampled(voxels, spacing)
    monkeypatch.setattr(resample_module, "_SLAB", 1)  # one row at a time
    np.testing.assert_array_equal(resampled(voxels, spacing), whole)


# place in the world


def test_voxels_lie_where_the_scan_does() -> None:
    """A linear field of world coordinates gives, after resampling, the coordinates of the new voxel centres."""
    affine = np.eye(4)
    affine[:3, :3] = TILT @ np.diag([0.8, 1.5, 5.0])
    affine[:3, 3] = (-100.0, 40.0, -310.0)
    shape = (20, 15, 12)
    for axis in range(3):
        world = nib.affines.apply_affine(affine, np.stack(np.indices(shape), -1))[..., axis]
        new, moved = resample(np.rint(world * 100).astype(np.int16), affine, (1.6, 1.0, 2.0), MANY)
        assert new.shape == (10, 23, 30)  # 20 * 0.8 / 1.6; 15 * 1.5 / 1 = 22.5, half rounds up; 12 * 5 / 2
        where = nib.affines.apply_affine(moved, np.stack(np.indices(new.shape), -1))[..., axis]
        # beyond the centres of the outer old voxels there is nothing to interpolate: A and S grow
        inside = (slice(None), slice(1, -1), slice(2, -2))
        np.testing.assert_allclose(new[inside] / 100, where[inside], rtol=0, atol=0.011)


def test_edges_and_direction_stay() -> None:
    affine = np.eye(4)
    affine[:3, :3] = TILT @ np.diag([0.8, 1.5, 5.0])
    affine[:3, 3] = (1.0, 2.0, 3.0)
    new, moved = resample(np.zeros((20, 15, 12), dtype=np.int16), affine, (1.5, 1.5, 2.1), MANY)
    assert new.shape == (11, 15, 29)  # 10.67, 15, 28.57
    corners = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 1], [1, 1, 1]])
    old_corners = nib.affines.apply_affine(affine, corners * (20, 15, 12) - 0.5)
    np.testing.assert_allclose(nib.affines.apply_affine(moved, corners * new.shape - 0.5), old_corners, atol=1e-9)
    steps = nib.affines.voxel_sizes(moved)
    np.testing.assert_allclose(steps, [0.8 * 20 / 11, 1.5, 5.0 * 12 / 29])
    np.testing.assert_allclose(moved[:3, :3] / steps, TILT, atol=1e-12)


def test_spacing_counts_along_the_turned_axes(write_nifti: Callable[..., Path]) -> None:
    # the file's axes are S (5 mm, downwards), R (1 mm) and A (2 mm)
    affine = np.array([[0, 1, 0, 3], [0, 0, 2, 4], [-5, 0, 0, 5], [0, 0, 0, 1]], dtype=np.float64)
    path = write_nifti("a.nii.gz", affine=affine)  # 10 x 12 x 14: (R, A, S) = 12 x 14 x 10
    voxels, turned = load_volume(path, spacing=(2.0, 2.0, 1.0))
    assert voxels.shape == (6, 14, 50)
    native, its_affine = load_volume(path)
    np.testing.assert_array_equal(voxels[0, :, 2], np.rint(native[:2, :, 0].mean(0)))  # centre of the first slice
    np.testing.assert_allclose(turned @ [0, 0, 2, 1], its_affine @ [0.5, 0, 0, 1])


# refusals


@pytest.mark.parametrize(
    "spacing", [1.5, "1.5", [1.5, 1.5], [1, 1, 1, 1], [1.5, 1.5, 0], [1, 1, -2], [1, 1, math.nan], [1, 1, math.inf],
                [1, 1, "2"], [1, 1, True], [1, 1, None]]
)  # fmt: skip
def test_nonsense_is_refused(spacing: object, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="spacing must be three positive numbers, mm along R, A and S.*got"):
        prepare_volumes([], tmp_path, spacing=spacing)  # type: ignore[arg-type]


def test_integers_are_the_same_spacing(tmp_path: Path) -> None:
    assert as_spacing([1, 2, 3]) == (1.0, 2.0, 3.0) and as_spacing(None) is None


@pytest.mark.parametrize("name", ["data/a.nii.gz", "data/a.mha"])
def test_volume_that_would_vanish_is_named_with_numbers(
    name: str, write_nifti: Callable[..., Path], ct: np.ndarray, tmp_path: Path
) -> None:
    path = tmp_path / name
    if name.endswith("mha"):  # its spacing is only known once ITK reads it
        import itk

        path.parent.mkdir()
        image = itk.image_from_array(np.ascontiguousarray(ct.T))
        image.SetSpacing([2.0, 3.0, 4.0])
        itk.imwrite(image, str(path))
    else:
        write_nifti(name)
    why = r"10 x 12 x 14 voxels of 2 x 3 x 4 mm, resampled to 50 x 3 x 4 mm, would be 0.4 voxels along R"
    with pytest.raises(BadVolumesError, match=f"{path}: {why}, expected at least 1; lower --spacing"):
        prepare_volumes(find_volumes(tmp_path / "data"), tmp_path / "cache", progress=False, spacing=(50, 3, 4))
    # 20 mm in voxels of 40 mm is half a voxel, which rounds to one; and the refusal was not cached for the file
    volume = prepare_volumes(find_volumes(tmp_path / "data"), tmp_path / "cache", progress=False, spacing=(40, 3, 4))
    assert volume.volumes[0].shape == (1, 12, 14) and volume.volumes[0].spacing == (20.0, 3.0, 4.0)


def test_volume_that_would_be_too_large_is_named_with_numbers(
    write_nifti: Callable[..., Path], tmp_path: Path
) -> None:  # fmt: skip
    path = write_nifti("data/a.nii.gz")
    why = r"resampled to 1 x 1 x 1 mm, would be 20 x 36 x 56 = 40,320 voxels, more than max_voxels=40,000"
    with pytest.raises(BadVolumesError, match=f"{path}: .*{why}; raise --spacing"):
        prepare_volumes(find_volumes(tmp_path / "data"), tmp_path / "cache", spacing=(1, 1, 1), max_voxels=40_000)


def test_room_is_counted_in_resampled_voxels(
    write_nifti: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_nifti("data/a.nii.gz")
    needed: list[int] = []
    monkeypatch.setattr(VolumeCache, "check_space", lambda self, size: needed.append(size))
    for spacing in (None, (1, 1, 1)):
        prepare_volumes(find_volumes(tmp_path / "data"), tmp_path / "cache", progress=False, spacing=spacing)
    assert needed == [2 * 10 * 12 * 14 + 8192, 2 * 20 * 36 * 56 + 8192]


# cache


def test_cache_keeps_every_spacing_apart(tmp_path: Path) -> None:
    source = VolumeSource(tmp_path / "a", ())
    spacings = [None, (1.5, 1.5, 2.0), (1.5, 2.0, 1.5), (1.0, 1.0, 1.0)]
    assert len({VolumeCache(tmp_path, spacing).voxel_file(source) for spacing in spacings}) == 4
    # native voxels have no spacing in their key
    key = hashlib.sha256(f"2\n{tmp_path / 'a'}\n".encode()).hexdigest()[:32]
    assert VolumeCache(tmp_path).voxel_file(source) == tmp_path / key[:2] / f"{key}.npy"


def test_prepared_once_and_read_from_the_cache(
    write_nifti: Callable[..., Path], ct: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_nifti("data/a.nii.gz")  # 2 x 3 x 4 mm
    names: list[str] = []
    decode = prepare_module.decode_volume
    monkeypatch.setattr(prepare_module, "decode_volume", lambda s, *rest: (names.append(s.name), decode(s, *rest))[1])
    found = find_volumes(tmp_path / "data")
    native = prepare_volumes(found, tmp_path / "cache", progress=False)
    first = prepare_on_nodes(found, tmp_path / "cache", spacing=[4, 3, 2])
    again = prepare_volumes(found, tmp_path / "cache", progress=False, spacing=[4.0, 3.0, 2.0])
    assert names == ["a", "a"]
    one, two = first.volumes[0], again.volumes[0]
    assert {**vars(one), "affine": 0} == {**vars(two), "affine": 0} and (one.affine == two.affine).all()
    assert (one.shape, one.spacing, one.resampled_to) == ((5, 12, 28), (4.0, 3.0, 2.0), (4.0, 3.0, 2.0))
    np.testing.assert_array_equal(open_cached(one)[..., 0], np.rint(ct[..., 0].reshape(5, 2, 12).mean(1)))
    # the first voxel's edge stays at -1 mm along R and at -2 mm along S
    assert one.affine.tolist() == [[4, 0, 0, 1], [0, 3, 0, 0], [0, 0, 2, -1], [0, 0, 0, 1]]
    assert one.intensity_range == (open_cached(one).min(), open_cached(one).max())
    assert native.volumes[0].cache_file != one.cache_file and native.volumes[0].resampled_to is None
    np.testing.assert_array_equal(open_cached(native.volumes[0]), ct)
    assert first.digest == native.digest  # the data are the same
    assert "to 4.00 x 3.00 x 2.00, resampled to 4 x 3 x 2 mm" in first.summary()
    assert "resampled" not in native.summary()


def test_lost_cache_file_is_resampled_again(write_nifti: Callable[..., Path], tmp_path: Path) -> None:
    write_nifti("data/a.nii.gz")
    found = find_volumes(tmp_path / "data")
    for spacing in ((8.0, 9.0, 8.0), (1.0, 1.0, 1.0)):  # fewer and more voxels than the file has
        (volume,) = prepare_volumes(found, tmp_path / "cache", progress=False, spacing=spacing).volumes
        before = volume.cache_file.read_bytes()
        volume.cache_file.unlink()
        open_or_remake(volume)
        assert volume.cache_file.read_bytes() == before


def test_command_resamples(write_nifti: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write_nifti("data/a.nii.gz")
    command = [str(tmp_path / "data"), "--cache_dir", str(tmp_path / "cache")]
    assert main([*command, "--spacing", "[4,3,2]"]) == 0
    assert "median 5 x 12 x 28 voxels" in capsys.readouterr().out
    assert main([*command, "--spacing", "[4,3]"]) == 2
    assert "spacing must be three positive numbers" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main([*command, "--spacing", "4 mm"])
    assert "argument --spacing: expected numbers such as [1.5,1.5,2], got '4 mm'" in capsys.readouterr().err
