"""The probe on scans whose intensities are the classes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mim_components.data.volumes import BadVolumesError, DataError
from mim_components.engines import ProbedEncoder, load_probed, run_probe
from mim_components.handlers.reports.probe import ProbeReport
from mim_components.metrics import FeatureProbe
from mim_components.metrics.probe.cases import LabelValues, LabelValuesReader, probe_labels, probe_transform
from mim_components.metrics.probe.grids import nearest_on_grid
from mim_components.networks import HybridEncoder
from mim_components.run import RunFolder
from mim_components.weights.contract import InputContract
from mim_components.weights.pretrained import save_encoder

CONTRACT = InputContract("hybrid", "nano", 1, 8, (16, 16, 16), ((16, 16, 16),))
HU = {0: -900, 3: 0, 5: 800}  # by value of a label map


class Identity(nn.Module):
    """The image at three thresholds: one feature per voxel and class."""

    def forward(self, image: Tensor) -> list[Tensor]:
        return [torch.cat([(image < 0.3), (image > 0.3) & (image < 0.7), (image > 0.7)], 1).float()]


class Nothing(nn.Module):
    """The same feature everywhere."""

    def forward(self, image: Tensor) -> list[Tensor]:
        return [torch.ones_like(image)]


class Noise(nn.Module):
    """Features unrelated to the image."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(0)

    def forward(self, image: Tensor) -> list[Tensor]:
        return [torch.randn(len(image), 8, *image.shape[2:], generator=self.generator)]


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write scans with two cubes, and the list of them; axes LPS, so that labels must be turned with the image."""

    def make(training: int = 3, validation: int = 2, without: int | None = None, **changes: Any) -> Path:
        random = np.random.default_rng(0)
        items = []
        for number in range(training + validation):
            label = np.zeros((20, 18, 16), dtype=np.uint8)
            label[2 + number : 8 + number, 3:9, 4:10] = 3
            label[10:16, 10:16, 2 + number : 8 + number] = 5
            image = np.vectorize(HU.get)(label) + random.integers(-50, 50, label.shape)
            if without is not None:
                label[label == without] = 0
            affine = np.diag([-2.0, -2.0, 3.0, 1.0])
            nib.save(nib.Nifti1Image(image.astype(np.int16), affine), tmp_path / f"s{number}.nii")
            nib.save(nib.Nifti1Image(label, affine), tmp_path / f"l{number}.nii")
            items.append({"image": f"s{number}.nii", "label": f"l{number}.nii"})
        content = {"training": items[:training], "validation": items[training:], **changes}
        path = tmp_path / "list.json"
        path.write_text(json.dumps({name: part for name, part in content.items() if part is not None}))
        return path

    return make


def probe(datalist: Path | None, cache: Path, **options: Any) -> FeatureProbe:
    return FeatureProbe(datalist, CONTRACT, cache, **{"voxels_per_class": 20, **options})


def test_features_that_are_the_classes_give_all(write: Callable[..., Path], tmp_path: Path) -> None:
    result = probe(write(), tmp_path / "cache", labels={"cube": 3, "block": 5})(Identity(), pictures=True)
    assert result.class_dice == {"cube": 1.0, "block": 1.0} and result.dice == 1.0
    assert result.retrieval == {"background": 1.0, "cube": 1.0, "block": 1.0} and result.knn == 1.0
    assert [case.name for case in result.cases] == ["s3", "s4"] == list(result.pictures)
    # 6 x 6 x 6 voxels of 12 mm^3
    assert result.cases[0].scores["cube"].label_ml == pytest.approx(216 * 0.012)
    assert result.cases[0].scores["cube"].pred_ml == pytest.approx(216 * 0.012)


def test_features_that_tell_nothing_give_chance(write: Callable[..., Path], tmp_path: Path) -> None:
    made = probe(write(), tmp_path / "cache")
    nothing = made(Nothing())
    # one class is predicted everywhere: the last class has 216 of 5760 voxels, the other one scores nothing
    assert nothing.class_dice == {"value 3": 0.0, "value 5": pytest.approx(2 * 216 / (5760 + 216))}
    assert nothing.knn == pytest.approx(1 / 3)  # one class for all, of three
    noise = made(Noise())
    # the background has 8 of 10 voxels in the bank and wins nearly all votes: 1, 0 and 0
    assert noise.dice < 0.1 and noise.knn == pytest.approx(1 / 3, abs=0.05)


def test_part_of_the_classes_and_values_that_are_found(write: Callable[..., Path], tmp_path: Path) -> None:
    datalist = write()
    found = probe(datalist, tmp_path / "cache")
    assert found.labels.names == ("background", "value 3", "value 5")
    one = probe(datalist, tmp_path / "cache", labels={"block": 5})
    assert one.labels.names == ("background", "block")
    assert one(Identity()).class_dice == {"block": 1.0}  # the cube is background


def test_same_seed_same_figures_and_the_encoder_stays(write: Callable[..., Path], tmp_path: Path) -> None:
    datalist = write()
    encoder = HybridEncoder(preset="nano")
    encoder.train()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    state = torch.get_rng_state()
    first, second = (probe(datalist, tmp_path / "cache")(encoder) for _ in range(2))
    assert first.class_dice == second.class_dice and first.retrieval == second.retrieval
    assert torch.equal(torch.get_rng_state(), state) and encoder.training
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    assert all(each.grad is None for each in encoder.parameters())


def test_figures_are_means_over_draws(write: Callable[..., Path], tmp_path: Path, caplog: Any) -> None:
    caplog.set_level("INFO")
    datalist, encoder = write(), HybridEncoder(preset="nano")
    made = probe(datalist, tmp_path / "cache")
    result = made(encoder, title="encoder")
    assert len(set(result.draw_dice)) == len(result.draw_dice) == 3  # the default
    assert result.dice == pytest.approx(sum(result.draw_dice) / 3)
    low, high = min(result.draw_dice), max(result.draw_dice)
    assert f"probe of encoder: Dice {result.dice:.4f} ({low:.4f} to {high:.4f} over 3 draws)" in caplog.text
    # the first draw does not depend on how many there are
    alone = probe(datalist, tmp_path / "cache", draws=1)(encoder)
    assert alone.draw_dice == [pytest.approx(result.draw_dice[0])] == [alone.dice] and alone.spread == ""
    facts = ProbeReport({"encoder": result, "one": alone}, {}, made).metrics()["features"]
    assert facts["encoder"]["dice"] == result.dice and facts["encoder"]["draw_dice"] == result.draw_dice
    table = ProbeReport({"encoder": result, "one": alone}, {}, made).table().splitlines()[-1]
    assert table.startswith("| draws") and f"{100 * low:.1f} to {100 * high:.1f}" in table


def test_several_draws_need_no_further_pass(write: Callable[..., Path], tmp_path: Path) -> None:
    class Counting(Identity):
        windows = 0

        def forward(self, image: Tensor) -> list[Tensor]:
            self.windows += len(image)
            return super().forward(image)

    seen = []
    for draws in (1, 4):
        encoder = Counting()
        probe(write(), tmp_path / "cache", draws=draws, voxels_per_class=400)(encoder)
        seen.append(encoder.windows)
    assert seen[0] == seen[1]


def test_order_of_the_list_of_classes_changes_nothing(write: Callable[..., Path], tmp_path: Path) -> None:
    datalist, encoder = write(), HybridEncoder(preset="nano")
    first, second = (
        probe(datalist, tmp_path / "cache", labels=labels, draws=1)(encoder)
        for labels in ({"cube": 3, "block": 5}, {"block": 5, "cube": 3})
    )
    assert first.class_dice == second.class_dice and first.retrieval == second.retrieval


def test_scans_are_resampled_where_the_contract_says_so(write: Callable[..., Path], tmp_path: Path) -> None:
    contract = InputContract("hybrid", "nano", 1, 8, (16, 16, 16), ((16, 16, 16),), spacing=(1.0, 1.0, 3.0))
    made = FeatureProbe(write(), contract, tmp_path / "cache", voxels_per_class=20)
    loaded = made.load(dict(made.prepared.validation[0]))
    assert loaded["image"].shape == loaded["label"].shape != loaded["own_label"].shape
    assert loaded["own_label"].shape == (1, 20, 18, 16)
    back = nearest_on_grid(loaded["label"].as_tensor(), loaded["label"].affine, loaded["own_label"])
    assert torch.equal(back, loaded["own_label"].as_tensor())  # on the scan's own voxels the faces come back
    result = made(Identity(), pictures=True)
    # between background and block are interpolated intensities like those of the cube
    assert result.dice > 0.8 and result.cases[0].scores["value 3"].label_ml == pytest.approx(216 * 0.012)


def test_image_is_resampled_as_in_the_pre_training(tmp_path: Path) -> None:
    row = np.array([0, 100, 200, 400, 0, 1000, 0, 1000], dtype=np.int16).reshape(8, 1, 1)
    for name, values in (("image", row), ("label", (row > 300).astype(np.uint8))):
        nib.save(nib.Nifti1Image(values, np.eye(4)), tmp_path / f"{name}.nii")
    contract = InputContract("hybrid", "nano", 1, 8, (16,) * 3, ((16,) * 3,), hu_window=(0, 1000), spacing=(2, 1, 1))
    labels = probe_labels(LabelValues({"a": {0, 1}}, {"training": ["a"], "validation": ["a"]}, []))
    loaded = probe_transform(contract, labels)({"image": tmp_path / "image.nii", "label": tmp_path / "label.nii"})
    assert loaded["image"].flatten().tolist() == pytest.approx([0.05, 0.3, 0.5, 0.5])  # means of two, not one of two
    assert loaded["label"].shape == loaded["image"].shape and loaded["own_label"].shape == (1, 8, 1, 1)


def test_raw_intensity_and_position(write: Callable[..., Path], tmp_path: Path) -> None:
    result = probe(write(), tmp_path / "cache")(None)
    assert 1 / 3 < result.knn <= 1 and 0 < result.dice < 1  # cells of 2^3 voxels know the faces only roughly


def test_patient_in_both_sections_is_refused(write: Callable[..., Path], tmp_path: Path) -> None:
    datalist = write()
    content = json.loads(datalist.read_text())
    for section in ("training", "validation"):
        content[section][0]["group"] = "patient_a"
    datalist.write_text(json.dumps(content))
    with pytest.raises(DataError, match="patient_a"):
        probe(datalist, tmp_path / "cache")


def test_class_that_validation_does_not_have_is_not_counted(write: Callable[..., Path], tmp_path: Path) -> None:
    datalist = write()
    empty = nib.load(tmp_path / "l3.nii")
    label = np.asarray(empty.dataobj).copy()
    label[label == 3] = 0
    nib.save(nib.Nifti1Image(label, empty.affine), tmp_path / "l3.nii")
    result = probe(datalist, tmp_path / "cache")(Nothing())
    assert math.isnan(result.cases[0].scores["value 3"].dice) and result.cases[1].scores["value 3"].dice == 0


@pytest.mark.parametrize(
    ("options", "labels", "message"),
    [
        ({"validation": 0}, None, "list.json: has no section 'validation' with scans to score"),
        ({}, {"cube": 3, "lung": 9}, r"'lung' \(value 9\) is in no label map of section 'training'; its values: 3, 5"),
        ({"without": 5}, {"block": 5}, r"'block' \(value 5\) is in no label map of section 'training'; its values: 3"),
        ({"validation_label": True}, None, "no value of the label maps is in both sections"),
    ],
)  # fmt: skip
def test_refused_lists(
    options: dict[str, Any], labels: Any, message: str, write: Callable[..., Path], tmp_path: Path
) -> None:
    empty = options.pop("validation_label", False)
    datalist = write(**options)
    if empty:
        for number in (3, 4):
            nib.save(nib.Nifti1Image(np.zeros((20, 18, 16), np.uint8), np.eye(4)), tmp_path / f"l{number}.nii")
    with pytest.raises(DataError, match=message):
        probe(datalist, tmp_path / "cache", labels=labels)


def test_list_of_a_dataset_elsewhere(write: Callable[..., Path], tmp_path: Path) -> None:
    elsewhere = tmp_path / "run" / "datalist.json"
    elsewhere.parent.mkdir()
    write().rename(elsewhere)
    made = probe(elsewhere, tmp_path / "cache", dataset_dir=tmp_path)
    assert [item["image"] for item in made.prepared.validation] == [str(tmp_path / f"s{n}.nii") for n in (3, 4)]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"liver": 3, "spleen": 3}, "probe::labels: classes 'liver' and 'spleen' have the same value, 3"),
        ({"background": 0, "liver": 3}, "probe::labels: a class cannot be named 'background'"),
        ({"background": 1}, "probe::labels: a class cannot be named 'background'"),
        ({"liver": "3"}, "probe::labels: class 'liver' needs a whole number of at least 1, got '3'"),
        ({"liver": True}, "'liver' needs a whole number of at least 1, got True"),
        ({"liver": 0}, "'liver' needs a whole number of at least 1, got 0"),
        ({3: 3}, "a class cannot be named 3"),
        ({}, r"probe::labels must be names and values of classes.*got \{\}"),
        ([3], r"probe::labels must be names and values of classes.*got \[3\]"),
    ],
)  # fmt: skip
def test_refused_classes(labels: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        probe(tmp_path / "none.json", tmp_path, labels=labels)  # before any file is read


def test_class_of_a_scan_that_is_left_out(write: Callable[..., Path], tmp_path: Path) -> None:
    datalist = write()
    for number in (1, 2):
        kept = nib.load(tmp_path / f"l{number}.nii")
        label = np.asarray(kept.dataobj).copy()
        label[label == 5] = 0
        nib.save(nib.Nifti1Image(label, kept.affine), tmp_path / f"l{number}.nii")
    (tmp_path / "s0.nii").unlink()
    message = r"class 'block' \(value 5\) is in no label map of section 'training'; .*not counted: .*s0.nii"
    with pytest.raises(DataError, match=message):
        probe(datalist, tmp_path / "cache", labels={"block": 5}, on_bad="exclude", max_bad_fraction=0.5)


def test_class_that_resampling_loses(write: Callable[..., Path], tmp_path: Path) -> None:
    datalist = write()
    for number in range(5):
        full = nib.load(tmp_path / f"l{number}.nii")
        label = np.asarray(full.dataobj).copy()
        label[label == 5] = 0
        label[1, 1, 1] = 5  # a single voxel, between those that are kept
        nib.save(nib.Nifti1Image(label, full.affine), tmp_path / f"l{number}.nii")
    contract = InputContract("hybrid", "nano", 1, 8, (16, 16, 16), ((16, 16, 16),), spacing=(8.0, 8.0, 12.0))
    made = FeatureProbe(datalist, contract, tmp_path / "cache", labels={"dot": 5, "cube": 3}, voxels_per_class=20)
    assert made.labels.names == ("background", "cube", "dot")  # by value
    message = "probe::labels: class 'dot' has no voxel in the training scans resampled to 8 x 8 x 12 mm"
    with pytest.raises(DataError, match=message):
        made(Identity())


def test_label_maps_that_cannot_be_read_are_named(write: Callable[..., Path], tmp_path: Path) -> None:
    datalist = write()
    (tmp_path / "l3.nii").unlink()
    (tmp_path / "l4.nii").write_bytes(b"")
    cause = r"none in 'validation'; not counted: .*s3.nii: .*l3.nii: .*[Nn]o such file.*; .*s4.nii: .*l4.nii: .*empty"
    with pytest.raises(DataError, match=cause):
        probe(datalist, tmp_path / "cache")
    with pytest.raises(DataError, match=r"'cube' \(value 3\) is in no label map of section 'validation'.*l3.nii"):
        probe(datalist, tmp_path / "cache", labels={"cube": 3})
    with pytest.raises(DataError) as caught:
        probe(datalist, tmp_path / "cache", anonymous_paths=True)
    assert "scan-" in str(caught.value) and "l3" not in str(caught.value)


def test_label_maps_are_read_once(
    write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    datalist = write()
    caplog.set_level("INFO")
    first = probe(datalist, tmp_path / "cache")
    assert "label values of 5 cases: 5 to check, 0 checked before" in caplog.text
    with monkeypatch.context() as patch:
        patch.setattr(LabelValuesReader, "__call__", lambda self, case: pytest.fail(f"{case.name} is read again"))
        assert probe(datalist, tmp_path / "cache").labels == first.labels
    changed = np.full((20, 18, 16), 3, np.uint8)
    nib.save(nib.Nifti1Image(changed, np.diag([-2.0, -2.0, 3.0, 1.0])), tmp_path / "l3.nii")
    probe(datalist, tmp_path / "cache")
    assert "label values of 5 cases: 1 to check, 4 checked before" in caplog.text


def test_no_list(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--probe::datalist"):
        probe(None, tmp_path)
    with pytest.raises(ValueError, match="voxels_per_class must be at least 1, got 0"):
        probe(None, tmp_path, voxels_per_class=0)
    with pytest.raises(ValueError, match="draws must be at least 1, got 0"):
        probe(None, tmp_path, draws=0)


def test_pairs_are_checked_as_in_fine_tuning(write: Callable[..., Path], tmp_path: Path) -> None:
    datalist = write()
    content = json.loads(datalist.read_text())
    del content["training"][0]["label"]
    datalist.write_text(json.dumps(content))
    with pytest.raises(DataError, match="training item 0: has no key 'label'"):
        probe(datalist, tmp_path / "cache")
    datalist = write()
    (tmp_path / "l1.nii").unlink()
    with pytest.raises(BadVolumesError, match=r"l1.nii"):
        probe(datalist, tmp_path / "cache")


# weights


def test_encoder_follows_from_the_contract_of_its_file(tmp_path: Path) -> None:
    trained = HybridEncoder(preset="nano")
    path = save_encoder(trained, tmp_path / "encoder.safetensors", CONTRACT)
    expected = InputContract("vit", "tiny", 1, 16, (48, 48, 48), ((48, 48, 48),))  # ignored
    state = torch.get_rng_state()
    probed = load_probed(path, [], expected)
    assert torch.equal(torch.get_rng_state(), state)
    assert probed.contract == CONTRACT and probed.origin == f"{path}, step 0"
    loaded, random = probed.network.state_dict(), probed.untrained.state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in trained.state_dict().items())
    assert not torch.equal(loaded["embeddings.0.conv.weight"], random["embeddings.0.conv.weight"])
    again = load_probed(path, [], expected).untrained.state_dict()
    assert all(torch.equal(value, again[name]) for name, value in random.items())


def test_probe_that_fails_is_marked_and_frees_its_folder(tmp_path: Path) -> None:
    closed: list[str] = []
    tracker: Any = SimpleNamespace(start=lambda engine: None, close=closed.append)

    class Broken:
        prepared = SimpleNamespace(digest="digest", contents={}, training=[], validation=[])
        settings: ClassVar[dict[str, Any]] = {}

        def __call__(self, *args: Any, **options: Any) -> None:
            raise ValueError("no voxel of class 1 was sampled")

    broken: Any = Broken()
    probed = ProbedEncoder(nn.Identity(), nn.Identity(), CONTRACT, "weights")
    with pytest.raises(ValueError, match="no voxel of class 1 was sampled"):
        run_probe(broken, probed, RunFolder(tmp_path / "probe"), tracker)
    assert closed == ["FAILED"]
    assert json.loads((tmp_path / "probe" / "run.json").read_text())["status"] == "failed"
    RunFolder(tmp_path / "probe").release()
