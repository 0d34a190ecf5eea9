"""Pictures: sides, proportions, slice numbers, boxes and error figures, checked by hand."""

import math
import struct
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from mim_components import visualize
from mim_components.transforms import hu_to_unit, unit_to_hu, window_to_grey
from mim_components.transforms.intensity import IntensityScale, window_text
from mim_components.visualize import (
    LevelPicture,
    boxes_figure,
    reconstruction_figure,
    save_figure,
    save_reconstruction_pictures,
)
from mim_components.visualize.boxes import CHILD_COLOURS
from mim_components.visualize.sheet import PLANES, bar_length, native_slice, panel_of, resized_slice

AXIAL, CORONAL, SAGITTAL = PLANES
SHAPE, GRID, SPACING = (8, 12, 6), (2, 3, 3), (1.0, 2.0, 5.0)  # 8 x 24 x 30 mm, tokens of 4 x 4 x 2 voxels


def picture(level: int = 1, shape=SHAPE, grid=GRID, spacing=SPACING, **changes) -> LevelPicture:
    image = np.random.default_rng(level).normal(0.0, 100.0, shape).astype(np.float32)
    masked = np.ones(grid, dtype=bool)
    masked[0, 0, 0] = False
    fields = dict(image=image, reconstruction=image + 10, masked=masked, spacing=spacing, start=(10, 20, 30))
    return LevelPicture(level=level, **{**fields, "native_size": tuple(4 * n for n in shape), **changes})


def panels(figure: Figure) -> dict[str, Axes]:
    return {axes.get_label(): axes for axes in figure.axes}


def rectangle(axes: Axes, name: str) -> Rectangle:
    return next(patch for patch in axes.patches if patch.get_gid() == name)


# --- intensities


def test_hu_and_unit_range_are_inverse():
    hu = np.array([-1000.0, -500.0, 0.0, 1000.0])
    assert hu_to_unit(hu).tolist() == [0.0, 0.25, 0.5, 1.0]
    assert unit_to_hu(hu_to_unit(hu)).tolist() == hu.tolist()
    assert hu_to_unit(np.array([40.0]), (-160.0, 240.0)).tolist() == [0.5]


def test_window_clips_and_is_named_by_width_and_level():
    assert window_to_grey(np.array([-2000, -160, -60, 240, 3000])).tolist() == [0.0, 0.0, 0.25, 1.0, 1.0]
    assert window_text((-160, 240)) == "W 400 L 40 HU"  # 240 + 160 wide, middle 40
    assert window_text((-1350, 150)) == "W 1500 L -600 HU"


@pytest.mark.parametrize("window", [(240, -160), (0, 0), (0, math.nan)])
def test_reversed_window_is_refused(window):
    with pytest.raises(ValueError, match="window must go from low to high HU, got"):
        window_to_grey(np.zeros(1), window)


# --- planes


@pytest.mark.parametrize(
    ("plane", "up", "across"),
    [(AXIAL, "anterior", "right"), (CORONAL, "superior", "right"), (SAGITTAL, "superior", "anterior")],
)
def test_panel_shows_the_named_sides_at_top_and_left(plane, up, across):
    shape = (3, 4, 5)
    axes = {"right": 0, "anterior": 1, "superior": 2}  # RAS: the index of each axis grows towards this side
    position = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
    shown_up, shown_across = (panel_of(position[axes[side]], plane, 1) for side in (up, across))
    assert shown_up[0, 0] == shape[axes[up]] - 1 and shown_up[-1, 0] == 0  # highest index on top
    assert shown_across[0, 0] == shape[axes[across]] - 1 and shown_across[0, -1] == 0  # highest index on the left
    assert (plane.top, plane.left) == (up[0].upper(), across[0].upper())


def test_slice_numbers_of_a_resized_volume():
    # 384 voxels in 96: voxel k covers 4k to 4k + 3, its centre is the edge between 4k + 1 and 4k + 2
    assert [native_slice(k, 96, 384) for k in (0, 20, 95)] == [2, 82, 382]
    # 16 voxels in 96: native voxel j holds the centres of 6j to 6j + 5
    assert [native_slice(k, 96, 16, start=100) for k in (0, 5, 6, 95)] == [100, 100, 101, 115]
    assert [native_slice(k, 96, 96) for k in (0, 95)] == [0, 95]
    assert [resized_slice(j, 96, 384) for j in (0, 3, 4, 383)] == [0, 0, 1, 95]
    assert resized_slice(1, 96, 16) == 9  # native voxel 1 covers 6 to 12, centre at 9.0


# --- numbers of a level


def test_error_counts_hidden_voxels_only():
    image = np.zeros((4, 2, 2))
    reconstruction = image.copy()
    reconstruction[:2] = 300.0  # hidden token, 8 voxels
    reconstruction[0, 0, 0] = 100.0
    reconstruction[2:] = 5000.0  # visible token: must not count
    masked = np.array([True, False]).reshape(2, 1, 1)
    level = picture(shape=(4, 2, 2), image=image, reconstruction=reconstruction, masked=masked)
    mse = (7 * 300**2 + 100**2) / 8  # 80 000 HU²
    assert level.masked_rmse() == pytest.approx(math.sqrt(mse))
    assert level.masked_psnr() == pytest.approx(10 * math.log10(2000**2 / mse))  # 17.0 dB
    assert any("RMSE 282.8 HU, PSNR 17.0 dB" in text.get_text() for text in reconstruction_figure([level], "").texts)

    soft = picture(
        shape=(4, 2, 2),
        image=image,
        reconstruction=reconstruction,
        masked=masked,
        scale=IntensityScale(hu_window=(-160.0, 240.0)),
    )
    assert soft.masked_psnr() == pytest.approx(10 * math.log10(400**2 / mse))  # 3.0 dB
    assert any("PSNR 3.0 dB (peak 400 HU)" in text.get_text() for text in reconstruction_figure([soft], "").texts)

    scan = picture(
        shape=(4, 2, 2), image=image, reconstruction=reconstruction, masked=masked, scale=IntensityScale("mr")
    )
    figure = reconstruction_figure([scan], "", window=(0.0, 1000.0))
    texts = [text.get_text() for text in figure.texts] + [axes.get_ylabel() for axes in figure.axes]
    assert any("RMSE 282.8 ‰, PSNR 11.0 dB (peak 1000 ‰). Grey window: W 1000 L 500 ‰" in text for text in texts)
    assert "Absolute error (‰)" in texts and "error (‰)" in texts and not any("HU" in text for text in texts)


def test_perfect_and_broken_reconstructions_have_a_picture_too(rendered):
    perfect = picture(reconstruction=picture().image)
    assert perfect.masked_rmse() == 0 and perfect.masked_psnr() == math.inf
    broken = picture(reconstruction=np.full(SHAPE, np.nan))
    assert math.isnan(broken.masked_rmse()) and math.isnan(broken.masked_psnr())
    axes = panels(reconstruction_figure([broken], ""))["level1-axial-reconstruction"]
    assert ([255, 0, 255] == rendered(axes)).all(-1).mean() > 0.8  # magenta, apart from the letters
    infinite = picture(reconstruction=np.full(SHAPE, np.inf))
    assert infinite.masked_rmse() == math.inf and math.isnan(infinite.masked_psnr())


def test_planes_go_through_the_central_hidden_token_with_tissue():
    image = np.full((6, 6, 6), -1000.0)
    image[4:, 2:4, 2:4] = 40.0  # token (2, 1, 1)
    image[:2, :2, :2] = 40.0  # token (0, 0, 0), farther from the centre
    masked = np.zeros((3, 3, 3), dtype=bool)
    masked[1, 1, 1] = masked[2, 1, 1] = masked[0, 0, 0] = True  # (1, 1, 1) is nearest, but air
    level = picture(shape=(6, 6, 6), image=image, reconstruction=image, masked=masked)
    assert level.central_masked_token() == (2, 1, 1)
    level.image, level.scale = np.maximum(image, -160.0), IntensityScale(hu_window=(-160.0, 240.0))
    assert level.central_masked_token() == (2, 1, 1)  # air is where the window begins
    level.image = np.full((6, 6, 6), -1000.0)
    assert level.central_masked_token() == (1, 1, 1)  # nothing but air: the nearest


def test_nearest_is_meant_in_mm():
    masked = np.zeros((3, 3, 3), dtype=bool)
    masked[1, 1, 0] = masked[0, 1, 1] = True  # 2 voxels below, or 2 voxels to the left
    level = picture(shape=(6, 6, 6), masked=masked, spacing=(4.0, 1.0, 2.0))
    assert level.central_masked_token() == (1, 1, 0)  # 4 mm against 8 mm
    level.spacing = (2.0, 1.0, 4.0)
    assert level.central_masked_token() == (0, 1, 1)


# --- reconstruction figure


def test_every_panel_has_the_proportions_of_the_body():
    figure = reconstruction_figure([picture()], "anisotropic")
    expected = {"axial": (8, 24), "coronal": (8, 30), "sagittal": (24, 30)}  # mm wide, mm high
    for plane, (width, height) in expected.items():
        for column in ("input", "masked", "reconstruction", "error"):
            axes = panels(figure)[f"level1-{plane}-{column}"]
            assert axes.get_xlim() == (width, 0) and axes.get_ylim() == (0, height)
            assert axes.images[0].get_extent() == [width, 0, 0, height]
            axes.apply_aspect()
            inches = axes.get_window_extent()
            assert inches.width / inches.height == pytest.approx(width / height, rel=1e-6)


@pytest.mark.parametrize("plane", PLANES, ids=lambda plane: plane.name)
def test_marker_at_right_anterior_superior_is_drawn_top_left(plane, rendered):
    image = np.full((6, 6, 6), -1000.0)
    image[3:, 3:, 3:] = 1000.0  # the right, anterior, superior eighth, one token
    masked = np.zeros((2, 2, 2), dtype=bool)
    masked[1, 1, 1] = True
    level = picture(shape=(6, 6, 6), image=image, reconstruction=image, masked=masked)
    axes = panels(reconstruction_figure([level], ""))
    pixels = rendered(axes[f"level1-{plane.name}-input"])
    rows, columns = len(pixels) // 2, pixels.shape[1] // 2
    corner = pixels[rows // 2, columns // 2], pixels[rows // 2, -columns // 2], pixels[-rows // 2, columns // 2]
    assert [int(colour.sum()) for colour in corner] == [3 * 255, 0, 0]  # top left white; top right, bottom left black
    hidden = rendered(axes[f"level1-{plane.name}-masked"])
    assert not (hidden[rows // 4, columns // 4] == hidden[rows // 4, columns // 4][0]).all()  # a colour, not a grey
    assert (hidden[-rows // 2, -columns // 2] == 0).all()  # air that the network saw stays black


def test_letters_stand_at_their_edges():
    figure = reconstruction_figure([picture()], "")
    figure.canvas.draw()
    for plane, letters in {"axial": "RLAP", "coronal": "RLSI", "sagittal": "APSI"}.items():
        for column in ("input", "masked", "reconstruction", "error"):
            axes = panels(figure)[f"level1-{plane}-{column}"]
            found = {text.get_text(): text.get_window_extent() for text in axes.texts}
            box = axes.get_window_extent()
            left, right, top, bottom = (found[letter] for letter in letters)
            assert 0 < left.x0 - box.x0 < 8 and 0 < box.x1 - right.x1 < 8  # pixels
            assert 0 < box.y1 - top.y1 < 8 and 0 <= bottom.y0 - box.y0 < 8


def test_titles_state_slice_size_window_and_share():
    masked = np.zeros(GRID, dtype=bool)
    masked[1, 2, 0] = True  # tokens of 4 x 4 x 2 voxels: centre voxel (4 + 2, 8 + 2, 0 + 1)
    figure = reconstruction_figure([picture(masked=masked)], "scan $7, epoch 3", window=(-1350, 150))
    titles = {name: axes.get_title(loc="left") for name, axes in panels(figure).items()}
    # native voxels are a quarter: voxel k is centred on 4k + 2; the volume starts at (10, 20, 30)
    assert titles["level1-sagittal-input"] == "sagittal, slice 36 of scan"  # 10 + 4 * 6 + 2
    assert titles["level1-coronal-input"] == "coronal, slice 62 of scan"  # 20 + 4 * 10 + 2
    assert titles["level1-axial-input"] == "axial, slice 36 of scan"  # 30 + 4 * 1 + 2
    shown = "\n".join(text.get_text() for text in figure.texts)
    assert "scan $7, epoch 3" in shown
    assert "Level 1: 32 × 48 × 24 voxels of the scan = 8.0 × 24.0 × 30.0 mm (R-L × A-P × S-I)" in shown
    assert "Hidden: 1 of 18 tokens" in shown and "W 1500 L -600 HU" in shown


def test_slices_beyond_the_scan_have_no_number():
    masked = np.zeros(GRID, dtype=bool)
    masked[1, 2, 0] = True  # slices 36, 62 and 36 of the scan, as above
    figure = reconstruction_figure([picture(masked=masked, scan_size=(36, 63, 37))], "scan")
    titles = {name: axes.get_title(loc="left") for name, axes in panels(figure).items()}
    assert titles["level1-sagittal-input"] == "sagittal, padding outside the scan"
    assert titles["level1-coronal-input"] == "coronal, slice 62 of scan"
    assert titles["level1-axial-input"] == "axial, slice 36 of scan"


def test_hidden_tokens_are_covered_where_they_are():
    masked = np.zeros(GRID, dtype=bool)
    masked[1, 0, 2] = masked[0, 2, 2] = True
    figure = reconstruction_figure([picture(masked=masked)], "")
    patches = panels(figure)["level1-axial-masked"].patches
    found = sorted((*patch.get_xy(), patch.get_width(), patch.get_height()) for patch in patches)
    assert found == [(0.0, 16.0, 4.0, 8.0), (4.0, 0.0, 4.0, 8.0)]  # tokens of 4 x 8 mm at (0, 2) and (1, 0)
    assert all(patch.get_hatch() for patch in patches)


def test_error_panel_is_absolute_error_in_hu():
    level = picture()
    level.reconstruction = level.image - 25.0
    axes = panels(reconstruction_figure([level], "", error_range=50.0))["level1-coronal-error"]
    np.testing.assert_allclose(axes.images[0].get_array(), 25.0, atol=1e-4)
    assert axes.images[0].get_clim() == (0.0, 50.0)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_one_block_per_level(count):
    shapes = [(SHAPE, GRID), ((4, 4, 4), (2, 2, 2)), ((6, 4, 2), (3, 2, 1)), (SHAPE, (4, 4, 2))][:count]
    figure = reconstruction_figure([picture(i + 1, shape, grid) for i, (shape, grid) in enumerate(shapes)], "all")
    names = [name for name in panels(figure) if name.startswith("level")]
    assert len(names) == count * 12 and {name[:6] for name in names} == {f"level{i + 1}" for i in range(count)}


def test_one_file_per_level(tmp_path):
    levels = [picture(2), picture(1, shape=(4, 4, 4), grid=(2, 2, 2))]
    paths = save_reconstruction_pictures(levels, tmp_path / "new" / "epoch.3", "each")
    assert [path.name for path in paths] == ["epoch.3_level2.png", "epoch.3_level1.png"]
    assert sorted((tmp_path / "new").iterdir()) == sorted(paths)
    for path in paths:
        width, height = struct.unpack(">II", path.read_bytes()[16:24])  # PNG: size follows the first 16 bytes
        assert width > 1000 and height > 800


def test_no_text_leaves_the_figure_and_none_covers_another():
    figure = reconstruction_figure([picture(), picture(2, shape=(4, 4, 4), grid=(2, 2, 2))], "LONG-NAME_" * 25)
    _check_texts(figure)
    boxes = {2: np.array([[[0, 0, 0], [16, 16, 16]], [[16, 16, 8], [16, 16, 16]]])}
    _check_texts(boxes_figure(np.zeros(SHAPE), SPACING, (32, 48, 24), boxes, title="LONG-NAME_" * 25))


def _check_texts(figure: Figure) -> None:
    figure.canvas.draw()
    titles = [axes._left_title for axes in figure.axes if axes.get_title(loc="left")]
    extents = [text.get_window_extent() for text in [*figure.texts, *titles]]
    for number, extent in enumerate(extents):
        assert extent.x0 >= 0 and extent.y0 >= 0
        assert extent.x1 <= figure.bbox.width and extent.y1 <= figure.bbox.height
        assert not any(extent.overlaps(other) for other in extents[:number])


def test_same_input_same_bytes_and_no_software_in_the_file(tmp_path):
    first, second = (
        save_reconstruction_pictures([picture()], tmp_path / name, "same")[0].read_bytes() for name in "ab"
    )
    assert first == second
    assert b"tEXt" not in first and b"iTXt" not in first and b"tIME" not in first


def test_half_a_picture_is_never_left(tmp_path, monkeypatch):
    path = save_figure(reconstruction_figure([picture()], "old"), tmp_path / "a.png")
    old = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(type(path), "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        save_figure(reconstruction_figure([picture()], "new"), path)
    assert path.read_bytes() == old and list(tmp_path.iterdir()) == [path]


def test_pyplot_is_not_used():
    sources = list(Path(visualize.__file__).parent.glob("*.py"))
    assert sources and not any(
        "import matplotlib.pyplot" in s or "import pyplot" in s for s in map(Path.read_text, sources)
    )


# --- errors


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"image": np.zeros((1, *SHAPE))},
            r"image of level 1 must be \(H, W, D\) and not empty, got shape \(1, 8, 12, 6\)",
        ),
        (
            {"reconstruction": np.zeros((8, 12, 5))},
            r"one shape, got image \(8, 12, 6\) and reconstruction \(8, 12, 5\)",
        ),
        ({"masked": np.ones((3, 3, 3), bool)}, r"that divides \(8, 12, 6\), got \(3, 3, 3\)"),
        ({"masked": np.ones(18, bool)}, r"grid \(h, w, d\) that divides \(8, 12, 6\), got \(18,\)"),
        ({"masked": np.ones(GRID)}, "must be bool, True is hidden, got float64"),
        ({"masked": np.zeros(GRID, bool)}, "must hide at least one token, got none of 18"),
        (
            {"spacing": (1.0, 0.0, 1.0)},
            r"spacing of level 1 in mm must be three positive numbers, got \(1.0, 0.0, 1.0\)",
        ),
        ({"start": (0, 0)}, r"start of level 1 in voxels must be three finite numbers, got \(0, 0\)"),
        ({"native_size": (8, 12, -6)}, r"native_size of level 1 in voxels must be three positive numbers"),
    ],
)
def test_level_that_does_not_fit_together_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        picture(**changes)


def test_bad_arguments_of_the_figures_are_refused(tmp_path):
    with pytest.raises(ValueError, match="levels must hold at least one LevelPicture, got none"):
        reconstruction_figure([], "")
    with pytest.raises(ValueError, match="error_range must be above 0, got 0"):
        reconstruction_figure([picture()], "", error_range=0)
    with pytest.raises(ValueError, match="window must go from low to high HU"):
        reconstruction_figure([picture()], "", window=(10, 0))
    with pytest.raises(ValueError, match=r"one LevelPicture per level and at least one, got levels \[1, 1\]"):
        save_reconstruction_pictures([picture(), picture()], tmp_path / "a", "")
    with pytest.raises(ValueError, match=r"at least one, got levels \[\]"):
        save_reconstruction_pictures([], tmp_path / "a", "")


# --- boxes
# Level 1: 32 x 48 x 24 native voxels in 8 x 12 x 6, so a native voxel is 0.25 x 0.5 x 1.25 mm.

NATIVE = (32, 48, 24)
LEVEL2 = np.array([[[12, 16, 4], [8, 16, 16]], [[0, 0, 0], [8, 16, 16]]])
LEVEL3 = np.array([[[14, 20, 8], [4, 8, 4]], [[12, 16, 4], [4, 8, 4]], [[0, 0, 0], [4, 8, 4]], [[4, 8, 12], [4, 8, 4]]])


def nested(boxes: dict[int, np.ndarray], **changes) -> Figure:
    return boxes_figure(np.zeros(SHAPE), SPACING, NATIVE, boxes, start=(100, 200, 300), **changes)


def test_boxes_stand_at_their_place_in_mm():
    axes = panels(nested({2: LEVEL2, 3: LEVEL3}))
    first = rectangle(axes["level1-axial"], "level2-box0")
    assert first.get_xy() == (3.0, 8.0) and (first.get_width(), first.get_height()) == (2.0, 8.0)
    first = rectangle(axes["level1-coronal"], "level2-box0")
    assert first.get_xy() == (3.0, 5.0) and (first.get_width(), first.get_height()) == (2.0, 20.0)
    first = rectangle(axes["level1-sagittal"], "level2-box0")
    assert first.get_xy() == (8.0, 5.0) and (first.get_width(), first.get_height()) == (8.0, 20.0)
    inner = rectangle(axes["level1-axial"], "level3-box0")
    assert inner.get_xy() == (3.5, 10.0) and (inner.get_width(), inner.get_height()) == (1.0, 4.0)


def test_box_is_drawn_on_the_side_of_the_patient_where_it_was_cut():
    right = {2: np.array([[[24, 32, 16], [8, 16, 8]]])}  # the right, anterior, superior corner
    axes = panels(nested(right))["level1-axial"]
    axes.figure.canvas.draw()
    drawn, panel = rectangle(axes, "level2-box0").get_window_extent(), axes.get_window_extent()
    assert drawn.x0 == pytest.approx(panel.x0) and drawn.x1 < panel.x0 + panel.width / 2  # left half of the picture
    assert drawn.y1 == pytest.approx(panel.y1) and drawn.y0 > panel.y0 + panel.height / 2  # upper half


def test_solid_means_that_the_slice_passes_through():
    figure = nested({2: LEVEL2, 3: LEVEL3})
    axes = panels(figure)
    # planes through the centre of box 0 of level 2, native voxel (12 + 4, 16 + 8, 4 + 8) = (16, 24, 12)
    assert axes["level1-sagittal"].get_title(loc="left") == "sagittal, slice 116 of scan"
    assert axes["level1-coronal"].get_title(loc="left") == "coronal, slice 224 of scan"
    assert axes["level1-axial"].get_title(loc="left") == "axial, slice 312 of scan"

    def solid(plane: str) -> set[str]:
        return {p.get_gid() for p in axes[f"level1-{plane}"].patches if p.get_gid() and p.get_linestyle() == "solid"}

    assert solid("axial") == {"level2-box0", "level2-box1", "level3-box3"}  # z = 12: in [4, 20), [0, 16), [12, 16)
    assert solid("coronal") == {"level2-box0", "level3-box0"}  # y = 24: in [16, 32), [20, 28)
    assert solid("sagittal") == {"level2-box0", "level3-box0"}  # x = 16: in [12, 20), [14, 18)


def test_children_share_the_colour_of_their_level_2_box():
    axes = panels(nested({2: LEVEL2, 3: LEVEL3}))["level1-axial"]
    colours = [rectangle(axes, name).get_edgecolor() for name in ("level2-box0", "level3-box0", "level3-box1")]
    others = [rectangle(axes, name).get_edgecolor() for name in ("level2-box1", "level3-box2", "level3-box3")]
    assert len(set(colours)) == len(set(others)) == 1 and colours[0] != others[0]
    assert len(set(CHILD_COLOURS)) == len(CHILD_COLOURS)


def test_magnified_child_fills_its_panels_and_shows_its_own_boxes():
    axes = panels(nested({2: LEVEL2, 3: LEVEL3}))
    zoom = axes["level2-axial"]
    assert zoom.get_xlim() == (5.0, 3.0) and zoom.get_ylim() == (8.0, 16.0)  # x 12..20 * 0.25, y 16..32 * 0.5
    assert {patch.get_gid() for patch in zoom.patches if patch.get_gid()} == {"level3-box0", "level3-box1"}
    assert zoom.get_title(loc="left") == "axial, slice 310 of scan"  # centre of level-3 box 0: 8 + 4 // 2 = 10
    shown = [text.get_text() for text in zoom.figure.texts]
    assert any("Level 2, box 1, magnified: 8 × 16 × 16 voxels of the scan = 2.0 × 8.0 × 20.0 mm" in t for t in shown)


def test_boxes_with_most_tissue_are_shown():
    image = np.full(SHAPE, -1000.0)
    image[0, 0, 0] = image[3:5, 4:8, 1:5] = (
        40.0  # voxels of 4: native 0 to 3; all of box 0, x 12..20, y 16..32, z 4..20
    )
    axes = panels(boxes_figure(image, SPACING, NATIVE, {2: LEVEL2[::-1], 3: LEVEL3[::-1]}))
    assert axes["level1-axial"].get_title(loc="left") == "axial, slice 12 of scan"  # 4 + 16 // 2
    image[3:5, 4:8, 1:5] = -1000.0
    axes = panels(boxes_figure(image, SPACING, NATIVE, {2: LEVEL2, 3: LEVEL3}))
    assert axes["level1-axial"].get_title(loc="left") == "axial, slice 8 of scan"  # box 1 of level 2: 0 + 16 // 2
    assert axes["level2-axial"].get_title(loc="left") == "axial, slice 2 of scan"  # box 2 of level 3: 0 + 4 // 2
    image[1, 2:4, 3] = 40.0  # both voxels of box 3 of level 3, against one of the two of box 2
    axes = panels(boxes_figure(image, SPACING, NATIVE, {2: LEVEL2, 3: LEVEL3}))
    assert axes["level2-axial"].get_title(loc="left") == "axial, slice 14 of scan"  # 12 + 4 // 2


def test_nothing_to_list_leaves_out_the_legend():
    assert not nested({}).legends and nested({2: LEVEL2}).legends


@pytest.mark.parametrize(
    ("levels", "expected"), [((), 3), ((2,), 3), ((2, 3), 6), ((2, 3, 4), 6)], ids=["1", "2", "3", "4"]
)
def test_any_number_of_levels(levels, expected, tmp_path):
    all_boxes = {2: LEVEL2, 3: LEVEL3, 4: np.concatenate([LEVEL3[:, :1], LEVEL3[:, 1:] // 2], axis=1)}
    figure = nested({level: all_boxes[level] for level in levels}, masked=np.ones(GRID, dtype=bool))
    assert len(panels(figure)) == expected
    assert len(panels(figure)["level1-axial"].patches) == 6 + sum(len(all_boxes[level]) for level in levels)
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend[-1] == "masked token of level 1"
    assert ("level 2, box 2" in legend) == (2 in levels) and ("its 2 boxes of level 4" in legend) == (4 in levels)
    assert save_figure(figure, tmp_path / "boxes.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        ({3: LEVEL3}, r"must have the levels 2, 3, ... without a gap, got \[3\]"),
        ({2: LEVEL2[0]}, r"boxes of level 2 must be \(V, 2, 3\), start and size, V a multiple of 1, got \(2, 3\)"),
        ({2: LEVEL2, 3: LEVEL3[:3]}, r"boxes of level 3 must be .* V a multiple of 2, got \(3, 2, 3\)"),
        ({2: LEVEL2 + [[0, 0, 5], [0, 0, 0]]}, r"box 0 of level 2 must lie inside level 1, \(32, 48, 24\) voxels, got"),
        ({2: -LEVEL2}, "box 0 of level 2 must lie inside level 1"),
    ],
)
def test_boxes_that_do_not_fit_are_refused(boxes, message):
    with pytest.raises(ValueError, match=message):
        nested(boxes)


def test_shapes_of_level_1_are_checked():
    with pytest.raises(ValueError, match=r"image of level 1 must be \(H, W, D\)"):
        boxes_figure(np.zeros((4, 4)), SPACING, NATIVE, {})
    with pytest.raises(ValueError, match=r"masked of level 1 must be a grid \(h, w, d\) that divides \(8, 12, 6\)"):
        nested({}, masked=np.ones((5, 3, 3), dtype=bool))


@pytest.mark.parametrize(("mm", "bar"), [(309, 50), (400, 100), (25, 5), (12.8, 2), (4, 1), (1, 0.2)])
def test_scale_bar_is_a_round_number(mm, bar):
    assert bar_length(mm) == pytest.approx(bar)


def test_scale_bar_is_as_long_as_it_says():
    axes = panels(reconstruction_figure([picture()], ""))["level1-sagittal-input"]  # 24 mm wide: a bar of 5 mm
    axes.figure.canvas.draw()
    line = next(line for line in axes.lines if line.get_gid() == "scale-bar")
    pixels = np.ptp(line.get_transform().transform(line.get_xydata())[:, 0])
    assert pixels == pytest.approx(axes.get_window_extent().width * 5 / 24)
    assert "5 mm" in [text.get_text() for text in axes.texts]
