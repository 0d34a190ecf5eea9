"""Overlay pictures: sides, planes, visible part of the volume, outlines and differences, checked by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mim_components.visualize.overlay import (
    LegendEntry,
    difference,
    display_limits,
    fullest_voxel,
    overlay_figure,
    overlay_picture,
)
from mim_components.visualize.sheet import save_figure

LEGEND = [LegendEntry("spleen", (255, 0, 0), "Dice 91.2 %"), LegendEntry("liver", (0, 0, 255), "not in the label")]
SHAPE = (20, 24, 16)
AFFINE = np.array([[2.0, 0, 0, -10], [0, 3, 0, 20], [0, 0, 5, 100], [0, 0, 0, 1]])  # RAS
Rendered = Callable[[Axes], np.ndarray]


def case() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """An image, a label of one box that is largest in one slice per plane, and a prediction one voxel to the right."""
    image = np.random.default_rng(0).random((1, *SHAPE)).astype(np.float32)
    label = np.zeros((1, *SHAPE), dtype=np.uint8)
    label[0, 4:9, 6:12, 3:6] = 1
    label[0, 7, 5:13, 3:6] = label[0, 4:9, 10, 2:7] = label[0, 3:10, 6:12, 4] = 1  # fullest: 7, 10, 4
    return image, label, np.roll(label, 1, axis=1)


def panels(figure: Figure) -> dict[str, Axes]:
    return {axes.get_label(): axes for axes in figure.axes}


def test_planes_pass_where_the_label_is_largest() -> None:
    picture = overlay_picture(*case(), AFFINE)
    # voxel (7, 10, 4): x = 2 * 7 - 10, y = 3 * 10 + 20, z = 5 * 4 + 100
    assert {part.plane.name: part.position for part in picture.slices} == {"axial": 120, "coronal": 50, "sagittal": 4}
    label = case()[1][0]
    axial, coronal, sagittal = (part.label for part in picture.slices)
    assert (axial.sum(), coronal.sum(), sagittal.sum()) == (label[..., 4].sum(), label[:, 10].sum(), label[7].sum())


def test_small_target_counts_as_much_as_a_large_one() -> None:
    masks = np.zeros((1, 30, 30, 30), dtype=np.uint8)
    masks[0, 2:20, 2:20, 2:12] = 1  # equal areas in all its slices, 2 to 11
    masks[0, 22:24, 22:24, 9] = 2
    assert fullest_voxel(masks)[2] == 9


@pytest.mark.parametrize("axes", ["LPS", "PIR", "SAL"])
def test_orientation_of_the_file_does_not_matter(axes: str) -> None:
    turn = nib.orientations.ornt_transform(
        nib.orientations.io_orientation(AFFINE), nib.orientations.axcodes2ornt(tuple(axes))
    )
    affine = AFFINE @ nib.orientations.inv_ornt_aff(turn, SHAPE)
    turned = [nib.orientations.apply_orientation(volume[0], turn)[None] for volume in case()]
    expected, found = overlay_picture(*case(), AFFINE), overlay_picture(*turned, affine)
    assert found.spacing == expected.spacing == (2.0, 3.0, 5.0)
    for one, other in zip(expected.slices, found.slices, strict=True):
        assert one.position == pytest.approx(other.position)
        for name in ("grey", "label", "pred"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_part_that_holds_label_and_prediction_is_shown() -> None:
    shape = (100, 200, 300)  # 1 mm voxels
    label, pred = np.zeros((2, 1, *shape), dtype=np.uint8)
    label[0, 50, 100:110, 10] = 1
    pred[0, 50, 100, 10:250] = 1  # 240 mm long
    picture = overlay_picture(np.zeros((1, *shape)), label, pred, np.eye(4))
    # x: 160 mm do not fit, all 100; y: 10 mm grow to 160; z: 240 and 20 on each side, of which there are 10 below
    assert picture.size_mm.tolist() == [100, 160, 270]
    nothing = np.zeros_like(label)
    everything = overlay_picture(np.zeros((1, *shape)), nothing, nothing, np.eye(4))
    assert everything.size_mm.tolist() == list(shape)
    assert [part.position for part in everything.slices] == [150, 100, 50]  # the middle
    predicted = overlay_picture(np.zeros((1, *shape)), nothing, pred, np.eye(4))
    assert predicted.slices[2].position == 50  # the prediction, where there is no label


def test_difference_of_classes_and_of_regions() -> None:
    label = np.array([[[0, 1, 1, 1, 0]]], dtype=np.uint8)
    pred = np.array([[[0, 1, 0, 2, 2]]], dtype=np.uint8)
    assert difference(label, pred).tolist() == [[0, 0, 1, 3, 2]]
    # outer and inner region: equal; inner missed; inner added; all missed; outer missed and inner added
    outer, inner = ([[[1, 1, 1, 1, 1]], [[1, 1, 0, 1, 0]]], [[[1, 1, 1, 0, 0]], [[1, 0, 1, 0, 1]]])
    assert difference(np.array(outer, np.uint8), np.array(inner, np.uint8)).tolist() == [[0, 1, 2, 1, 3]]


def test_limits_of_scaled_ct_and_of_mr() -> None:
    assert display_limits(np.array([0.2, 0.8])) == (0.0, 1.0)
    mr = np.concatenate([np.zeros(1000), np.arange(1.0, 1002.0)])  # the zeros outside of the head do not count
    assert display_limits(mr) == pytest.approx((11.0, 996.0))
    assert display_limits(np.array([0.0, 7.0])) == (7.0, 8.0)  # constant: still a range


def test_mr_background_is_black() -> None:
    image, label, pred = case()
    image = image - 0.5  # 0 becomes a middle grey
    image[:, :3] = 0
    channels = np.concatenate([image, image + 9])  # the second is not shown
    picture = overlay_picture(channels, label, pred, AFFINE)
    axial = picture.slices[0].grey[0]
    assert (axial[:3] == 0).all() and axial[3:].max() == 255


def test_right_of_the_patient_is_left_in_the_picture(rendered: Rendered) -> None:
    """The prediction is one voxel further to the patient's right, so its added voxels are left of the missed ones."""
    figure = overlay_figure(overlay_picture(*case(), AFFINE), "case", LEGEND)
    assert [text.get_text() for text in panels(figure)["axial-difference"].texts] == ["R", "L", "A", "P"]
    pixels = rendered(panels(figure)["axial-difference"])
    blue = (pixels[..., 2] - pixels[..., 0] > 100).nonzero()[1]
    orange = (pixels[..., 0] - pixels[..., 2] > 100).nonzero()
    letters = np.isin(orange[1], range(25)) | np.isin(orange[0], range(25)) | (orange[0] > len(pixels) - 25)
    assert orange[1][~letters].mean() < blue.mean()


def test_label_and_prediction_are_tinted_where_they_are(rendered: Rendered) -> None:
    image, label, pred = case()
    label[label == 1] = 2
    figure = overlay_figure(overlay_picture(np.zeros_like(image), label, pred, AFFINE), "case", LEGEND)
    for name, channel in (("label", 2), ("prediction", 0)):  # label blue, prediction red
        axes = panels(figure)[f"axial-{name}"]
        pixels = rendered(axes)
        coloured = pixels[..., channel] - pixels[..., 2 - channel] > 30
        letters = pixels.min(-1) + pixels.max(-1) > 255  # yellow letters and their rims
        rows, columns = (coloured & ~letters)[25:-25, 25:-25].nonzero()
        assert len(rows) > 50
        # the slice z = 4 of the masks, in mm from the lower right of the panel
        mask = (label if name == "label" else pred)[0, :, :, 4] > 0
        centre = (np.argwhere(mask).mean(0) + 0.5) * (2.0, 3.0)
        share = (np.array([columns.mean(), rows.mean()]) + 25) / (pixels.shape[1], pixels.shape[0])
        assert (1 - share) * (40.0, 72.0) == pytest.approx(centre, abs=1.5)  # 20 x 2 mm, 24 x 3 mm


def test_outlines_do_not_change_the_panel() -> None:
    figure = overlay_figure(overlay_picture(*case(), AFFINE), "case", LEGEND)
    for name, axes in panels(figure).items():
        other = panels(figure)[f"{name.split('-')[0]}-image"]
        assert axes.get_xlim() == other.get_xlim() and axes.get_ylim() == other.get_ylim()
    assert panels(figure)["axial-image"].get_xlim() == (40.0, 0.0)  # 20 voxels of 2 mm, right on the left


def test_names_scores_and_position_are_written(tmp_path: Path) -> None:
    figure = overlay_figure(overlay_picture(*case(), AFFINE), "0035: mean Dice 91.2 %", LEGEND)
    written = {text.get_text() for text in figure.texts}
    assert {"0035: mean Dice 91.2 %", "spleen: Dice 91.2 %", "liver: not in the label", "another class"} <= written
    assert panels(figure)["sagittal-image"].get_title("left") == "sagittal, x = 4.0 mm"
    one = overlay_figure(overlay_picture(*case(), AFFINE), "0035", LEGEND[:1])
    assert "another class" not in {text.get_text() for text in one.texts}
    path = save_figure(figure, tmp_path / "best_0035.png")
    assert path.read_bytes() == save_figure(figure, tmp_path / "again.png").read_bytes()


@pytest.mark.parametrize("count", [1, 4, 13, 15])
@pytest.mark.parametrize("scores", ["Dice 91.2 %, NSD 80.0 %", "not in the label, 1234.25 ml predicted"])
def test_legend_of_many_classes_does_not_overlap(count: int, scores: str) -> None:
    legend = [LegendEntry(f"portal and splenic veins {number}", (9, 9, 9), scores) for number in range(count)]
    check_texts(overlay_figure(overlay_picture(*case(), AFFINE), "case", legend))


def test_name_that_is_wider_than_the_figure_is_wrapped() -> None:
    legend = [LegendEntry("structure " * 40, (9, 9, 9), "Dice 91.2 %"), LegendEntry("liver", (9, 9, 9), "Dice 1 %")]
    check_texts(overlay_figure(overlay_picture(*case(), AFFINE), "case", legend))


def check_texts(figure: Figure) -> None:
    """No text of the figure leaves it or covers another."""
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in figure.texts]
    width, height = figure.bbox.size
    for number, box in enumerate(boxes):
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height, figure.texts[number].get_text()
        for other in boxes[:number]:
            apart = box.x1 <= other.x0 or other.x1 <= box.x0 or box.y1 <= other.y0 + 2 or other.y1 <= box.y0 + 2
            assert apart, figure.texts[number].get_text()
