"""Starting a fine-tuning: loaded weights, load report, and refusals."""

from __future__ import annotations

import logging
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.transforms import (
    NormalizeIntensityd,
    ScaleIntensityRange,
    ScaleIntensityRanged,
    ScaleIntensityRangePercentilesd,
)
from safetensors.torch import save_file

from mim_components.data.volumes import per_axis
from mim_components.networks import (
    HybridEncoder,
    MiM,
    ViTEncoder,
    classification_network,
    segmentation_network,
)
from mim_components.run.checkpoints import CheckpointStore
from mim_components.weights.contract import InputContract
from mim_components.weights.pretrained import PretrainedError, save_encoder
from mim_components.weights.transfer import start_from

CONTRACT = InputContract("hybrid", "nano", 1, 8, (32, 32, 32), ((32, 32, 32),), step=7)
ABDOMEN = ScaleIntensityRanged("image", a_min=-175.0, a_max=250.0, b_min=0.0, b_max=1.0, clip=True)


def network(preset: str = "nano", in_channels: int = 1) -> Any:
    return segmentation_network("hybrid_swin_unetr", in_channels, 3, (64, 32, 32), preset)


def unetr() -> Any:
    return segmentation_network("unetr", 1, 3, (32, 32, 32), "tiny")


@pytest.fixture(scope="module")
def pretrained() -> MiM:
    torch.manual_seed(0)
    return MiM(input_size=(32, 32, 32), preset="nano", projection_dim=16)


@pytest.fixture(scope="module")
def models(pretrained: MiM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the two files of a finished pre-training, beside that of an unfinished one."""
    folder = tmp_path_factory.mktemp("run") / "models"
    save_encoder(pretrained.encoder, folder / "encoder.safetensors", CONTRACT)
    torch.save(pretrained.state_dict(), folder / "model.pt")
    store = CheckpointStore(folder.parent / "checkpoints")
    store.save(4, {"step": 4, "network": pretrained.state_dict(), "optimizer": {"state": {}, "param_groups": []}})
    return folder


# --- what is loaded ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["encoder.safetensors", "model.pt", "../checkpoints/step_00000004.pt"])
def test_every_product_starts_every_hybrid_network(name: str, models: Path, pretrained: MiM) -> None:
    weights = pretrained.encoder.state_dict()
    own_grids = {"(8, 4, 4)": network(), "(2, 2, 2)": classification_network("hybrid", 1, 3, (16, 16, 16), "nano")}
    for grid, target in own_grids.items():
        report = start_from(target, str(models / name), "RAS", ABDOMEN)
        assert report is not None and report.share == 1.0 and report.new == ()
        assert report.adapted == (("positions", f"of the grid {grid} rescaled to (4, 4, 4)"),)
        own = target.encoder.state_dict()
        assert set(report.loaded) == own.keys()
        assert all(torch.equal(own[each], weights[each]) for each in own)


def test_the_log_is_a_load_report(models: Path, caplog: pytest.LogCaptureFixture) -> None:
    target = network()
    with caplog.at_level(logging.INFO, "mim_components"):
        report = start_from(target, models / "model.pt", "RAS", ABDOMEN)
    (record,) = caplog.records
    first, *lines = record.getMessage().splitlines()
    count = len(target.encoder.state_dict())
    path = models / "model.pt"
    assert first == f"Pre-trained weights from {path}: {count} tensors loaded, 100.0% of the encoder's parameters"
    assert lines[0] == (
        "  input contract, from encoder.safetensors: hybrid encoder, preset nano, in_channels 1, tokens of 8 voxels, "
        "RAS, HU window [-1000.0, 1000.0], 7 steps; the window here is [-175.0, 250.0], the same in kind"
    )
    # `down` has a convolution and a norm, `out` a convolution; every block three kernels at most, no norm has weights
    counts = {"down": 4, "bottleneck": 2, "skips": 3 + 2 + 2, "ups": 4 * 4, "out": 2}
    assert lines.pop(1) == "  adapted: positions (of the grid (8, 4, 4) rescaled to (4, 4, 4))"
    assert lines[1:6] == [f"  new: {part}: {counts[part]} tensors" for part in counts]
    assert report is not None and dict(report.outside) == counts
    ignored = lines[6:]
    assert "  ignored: stage_outputs: 4 tensors (only used with masked input)" in ignored
    assert "  ignored: prediction_head.weight (not part of the encoder)" in ignored
    assert any(line.startswith("  ignored: decoder: ") for line in ignored)
    assert len(ignored) < 12


def test_a_checkpoint_has_the_contract_of_its_run_and_none_alone(models: Path, tmp_path: Path) -> None:
    checkpoint = models.parent / "checkpoints" / "step_00000004.pt"
    report = start_from(network(), checkpoint, "RAS", ABDOMEN)
    assert report is not None and "RAS, HU window [-1000.0, 1000.0], 4 steps" in report.notes[0]
    with pytest.raises(PretrainedError, match="orientation: RAS in the contract of the weights, LPS here"):
        start_from(network(), checkpoint, "LPS", ABDOMEN)
    alone = Path(shutil.copy(checkpoint, tmp_path))
    report = start_from(network(), alone, "LPS", ABDOMEN)
    assert report is not None
    assert report.notes == (
        "input contract unknown: neither in the file nor in an encoder.safetensors beside it; not compared",
    )


def test_safetensors_without_contract(tmp_path: Path, pretrained: MiM) -> None:
    weights = {name: value.contiguous() for name, value in pretrained.encoder.state_dict().items()}
    save_file(weights, tmp_path / "other.safetensors", {"format": "pt"})
    report = start_from(network(), tmp_path / "other.safetensors", "RAS", ABDOMEN)
    assert report is not None and report.notes[0].startswith("input contract unknown") and report.share == 1.0


def test_vit_weights_start_unetr(tmp_path: Path) -> None:
    vit = ViTEncoder(preset="tiny", input_size=(48, 48, 48))
    contract = replace(CONTRACT, encoder="vit", preset="tiny", patch_size=16, input_size=(48, 48, 48))
    path = save_encoder(vit, tmp_path / "encoder.safetensors", contract)
    target = unetr()
    report = start_from(target, path, "RAS", ABDOMEN)
    assert report is not None and report.share == 1.0
    how = "fixed positions computed for the grid (2, 2, 2), rescaled to (3, 3, 3)"
    assert report.adapted == (("patch_embedding.position_embeddings", how),)
    image = torch.rand(1, 1, 32, 32, 32)
    with torch.no_grad():
        tokens = target.vit.eval()(image)[0].transpose(1, 2).unflatten(2, (2, 2, 2))
        torch.testing.assert_close(tokens, vit.eval()(image)[-1], rtol=1e-4, atol=1e-5)


def test_one_channel_weights_into_four_channels_keep_the_scale(models: Path) -> None:
    one, four = (classification_network("hybrid", channels, 3, (16, 16, 16), "nano").double() for channels in (1, 4))
    four.norm, four.head = one.norm, one.head
    start_from(one, models / "model.pt", "RAS", ABDOMEN)
    report = start_from(four, models / "model.pt", "RAS", ABDOMEN)
    assert report is not None
    how = "1 input channel repeated 4 times and divided by 4"
    assert report.adapted[1:] == (("embeddings.0.conv.weight", how),)
    image = torch.rand(2, 1, 16, 16, 16, dtype=torch.float64)
    with torch.no_grad():
        same = image.expand(-1, 4, -1, -1, -1)  # each channel gives a quarter
        torch.testing.assert_close(four(same), one(image), rtol=1e-12, atol=1e-12)
        parts = torch.cat([4 * image, torch.zeros(2, 3, 16, 16, 16)], 1)  # and one of four times the size all
        torch.testing.assert_close(four(parts), one(image), rtol=1e-12, atol=1e-12)


def test_from_scratch_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    target = network()
    before = {name: value.clone() for name, value in target.state_dict().items()}
    with caplog.at_level(logging.INFO, "mim_components"):
        assert start_from(target, "none", "LPS", NormalizeIntensityd("image")) is None
    assert all(torch.equal(value, before[name]) for name, value in target.state_dict().items())
    assert "Training from scratch: the weights of HybridSwinUNETR are random." in caplog.text


@pytest.mark.parametrize("name", ["swin_unetr", "swin_vit"])
def test_baselines_start_from_scratch_only(name: str, models: Path) -> None:
    make = segmentation_network if name == "swin_unetr" else classification_network
    target = make(name, 1, 3, (64, 32, 32), "nano")
    assert start_from(target, "none", "RAS", ABDOMEN) is None
    text = f"model.pt: {type(target).__name__} has no encoder that MiM pre-trains and can only start from scratch"
    with pytest.raises(PretrainedError, match=text):
        start_from(target, models / "model.pt", "RAS", ABDOMEN)


@pytest.mark.parametrize(
    ("spacing", "orientation", "warned"),
    [
        ([3.0, 0.75, 4.0], "RAS", False),  # exactly twice and half
        ([3.01, 1.5, 2.0], "RAS", True),
        ([1.5, 0.74, 2.0], "RAS", True),
        ([4.0, 1.5, 1.5], "SRA", False),  # along S, R and A
        ([4.0, 1.5, 1.5], "RAS", True),
        ([-1, 1.5, 2.0], "RAS", False),  # R as it is
        (None, "RAS", False),
    ],
)
def test_other_spacing_is_warned_of(
    spacing: list[float] | None, orientation: str, warned: bool, tmp_path: Path, pretrained: MiM,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    contract = replace(CONTRACT, spacing=(1.5, 1.5, 2.0), orientation=orientation)
    path = save_encoder(pretrained.encoder, tmp_path / "e.safetensors", contract)
    with caplog.at_level(logging.WARNING, "mim_components"):
        start_from(network(), path, orientation, ABDOMEN, spacing=spacing)
    text = f"{path}: trained on voxels of 1.5 x 1.5 x 2 mm, here they are {per_axis(spacing or [])} mm: more than twice"
    assert (text in caplog.text) == warned and (caplog.text != "") == warned


def test_native_weights_say_nothing_of_spacing(models: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "mim_components"):
        start_from(network(), models / "model.pt", "RAS", ABDOMEN, spacing=[9.0, 9.0, 9.0])
    assert caplog.text == ""


# --- what is refused --------------------------------------------------------------------------------------------------


def test_nothing_given_says_what_to_give() -> None:
    with pytest.raises(ValueError, match="--pretrained PATH .encoder.safetensors.*--pretrained none to train from"):
        start_from(network(), None, "RAS", ABDOMEN)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(PretrainedError, match=f"{tmp_path / 'gone.pt'}: no such file, seen from"):
        start_from(network(), tmp_path / "gone.pt", "RAS", ABDOMEN)
    with pytest.raises(PretrainedError, match=f"{tmp_path}: is a folder; give a file in it"):
        start_from(network(), tmp_path, "RAS", ABDOMEN)


def test_text_instead_of_weights(tmp_path: Path) -> None:
    for name in ("model.pt", "encoder.safetensors"):
        (tmp_path / name).write_text("<html>")
        with pytest.raises(ValueError, match=f"{tmp_path / name}: not a readable .*an HTML page"):
            start_from(network(), tmp_path / name, "RAS", ABDOMEN)


def test_orientation(models: Path) -> None:
    path = models / "model.pt"
    text = (
        f"{path}: trained on other input. orientation: RAS in the contract of the weights, LPS here. If that is "
        "intended, add --started::ignore \"['orientation']\"."
    )
    with pytest.raises(PretrainedError) as caught:
        start_from(network(), path, "LPS", ABDOMEN)
    assert str(caught.value) == text
    report = start_from(network(), path, "LPS", ABDOMEN, ignore=["orientation"])
    assert report is not None
    assert report.notes[1] == ("conflict ignored as asked: orientation: RAS in the contract of the weights, LPS here")


RANGE = {"keys": "image", "a_min": -175, "a_max": 250, "b_min": 0.0, "b_max": 1.0, "clip": True}


@pytest.mark.parametrize(
    ("intensity", "said"),
    [
        (ABDOMEN, "; the window here is [-175.0, 250.0], the same in kind"),
        ({"_target_": "ScaleIntensityRanged", **RANGE}, "; the window here is [-175, 250], the same in kind"),
        ({"_target_": "monai.transforms.ScaleIntensityRangeDict", **RANGE}, "the same in kind"),
        (ScaleIntensityRange(-1000, 1000, 0.0, 1.0, clip=True), "RAS, HU window [-1000.0, 1000.0], 7 steps"),
    ],
)
def test_a_window_of_hu_scaled_to_0_and_1_is_the_same_kind(intensity: object, said: str, models: Path) -> None:
    report = start_from(network(), models / "encoder.safetensors", "RAS", intensity)
    assert report is not None
    (note,) = report.notes
    assert note.endswith(said)


@pytest.mark.parametrize(
    ("intensity", "found"),
    [
        (NormalizeIntensityd("image", nonzero=True), "NormalizeIntensityd here"),
        ({"_target_": "ScaleIntensityd", "keys": "image"}, "ScaleIntensityd here"),
        (
            ScaleIntensityRangePercentilesd("image", 1, 99, 0, 1, clip=True),
            "percentiles 1 to 99 of each volume, clipped and scaled to .* here",
        ),
        ({"_target_": "ScaleIntensityRanged", **RANGE, "b_min": -1.0}, r"to \[-1.0, 1.0\], clipped here"),
        ({"_target_": "ScaleIntensityRanged", **RANGE, "clip": False}, r"to \[0.0, 1.0\], not clipped here"),
        ({"keys": "image"}, "a dictionary without _target_ here"),
    ],
)
def test_intensities_of_another_kind(intensity: object, found: str, models: Path) -> None:
    path = models / "encoder.safetensors"
    text = rf"{path}: .*intensity: an HU window, clipped and scaled to \[0, 1\], in the contract of the weights, "
    with pytest.raises(PretrainedError, match=rf"{text}.*{found}.*--started::ignore \"\['intensity'\]\""):
        start_from(network(), path, "RAS", intensity)
    report = start_from(network(), path, "RAS", intensity, ["intensity"])
    assert report is not None and "conflict ignored as asked: intensity" in report.notes[1]
    assert "conflict ignored as asked: intensity" in str(report)


def test_the_override_names_all_conflicts_at_once(models: Path) -> None:
    path, other = models / "model.pt", NormalizeIntensityd("image")
    with pytest.raises(PretrainedError, match=r"orientation: .*; intensity: .*\"\['intensity', 'orientation'\]\""):
        start_from(network(), path, "LPS", other)
    with pytest.raises(PretrainedError, match=r"input. intensity: .*\"\['intensity', 'orientation'\]\""):
        start_from(network(), path, "LPS", other, ["orientation"])
    assert start_from(network(), path, "LPS", other, ["orientation", "intensity"]) is not None


@pytest.mark.parametrize("ignore", [["patch_size"], ["orientation", "window"], "orientation"])
def test_what_cannot_be_ignored(ignore: Any) -> None:
    with pytest.raises(ValueError, match="must be a list of 'orientation' and 'intensity', got .*cannot be ignored"):
        start_from(network(), "none", "RAS", ABDOMEN, ignore)


def test_weights_of_another_preset(models: Path) -> None:
    text = r"encoder.safetensors: does not fit the network. preset: nano in the file, tiny in the network; token size "
    with pytest.raises(PretrainedError, match=text + r".*: 8 in the file, 16 in the network. Set --preset"):
        start_from(network("tiny"), models / "encoder.safetensors", "RAS", ABDOMEN)


def test_weights_of_another_preset_without_contract(models: Path, tmp_path: Path) -> None:
    alone = shutil.copy(models.parent / "checkpoints" / "step_00000004.pt", tmp_path)
    with pytest.raises(PretrainedError, match="step_00000004.pt: .*another preset or patch size"):
        start_from(network("tiny"), alone, "RAS", ABDOMEN)


def test_token_size_of_the_contract(tmp_path: Path, pretrained: MiM) -> None:
    path = save_encoder(pretrained.encoder, tmp_path / "e.safetensors", replace(CONTRACT, patch_size=16))
    with pytest.raises(PretrainedError, match=r"network. token size in voxels \(patch_size\): 16 in the file, 8 in"):
        start_from(network(), path, "RAS", ABDOMEN)


def test_weights_of_another_kind_of_encoder(models: Path, tmp_path: Path) -> None:
    text = "does not fit the network. encoder: hybrid in the file, vit in the network. Set --architecture"
    with pytest.raises(PretrainedError, match=f"model.pt: {text}"):
        start_from(unetr(), models / "model.pt", "RAS", ABDOMEN)
    contract = replace(CONTRACT, encoder="vit", preset="tiny", patch_size=16)
    path = save_encoder(ViTEncoder(preset="tiny", input_size=(32, 32, 32)), tmp_path / "vit.safetensors", contract)
    with pytest.raises(PretrainedError, match="vit.safetensors: .*encoder: vit in the file, hybrid in the network"):
        start_from(network("tiny"), path, "RAS", ABDOMEN)


def test_weights_that_match_nothing(tmp_path: Path) -> None:
    torch.save({"module.encoder.blocks.0": torch.ones(1)}, tmp_path / "model.pt")
    with pytest.raises(PretrainedError, match="model.pt: 0 of 1 tensors fit the network's encoder"):
        start_from(network(), tmp_path / "model.pt", "RAS", ABDOMEN)


def test_contract_that_is_cut_short(tmp_path: Path, pretrained: MiM) -> None:
    weights = {name: value.contiguous() for name, value in pretrained.encoder.state_dict().items()}
    save_file(weights, tmp_path / "cut.safetensors", {"encoder": '"hybrid"', "contract_version": "2"})
    with pytest.raises(ValueError, match="cut.safetensors: no input contract in its metadata, missing: preset"):
        start_from(network(), tmp_path / "cut.safetensors", "RAS", ABDOMEN)


def test_an_encoder_of_sizes_without_name(tmp_path: Path, pretrained: MiM) -> None:
    path = save_encoder(pretrained.encoder, tmp_path / "e.safetensors", replace(CONTRACT, preset="own"))
    encoder = HybridEncoder(preset="nano", dense_only=True)
    encoder.channels = (8, 16, 47)  # no preset has these
    assert start_from(encoder, path, "RAS", ABDOMEN) is not None


def percentiles(lower: float = 0.5, upper: float = 99.5, **options: Any) -> ScaleIntensityRangePercentilesd:
    return ScaleIntensityRangePercentilesd("image", lower, upper, 0.0, 1.0, clip=True, **options)


def test_weights_of_mr_start_on_the_same_percentiles_only(tmp_path: Path, pretrained: MiM) -> None:
    contract = replace(CONTRACT, modality="mr", hu_window=None, percentiles=(0.5, 99.5))
    path = save_encoder(pretrained.encoder, tmp_path / "encoder.safetensors", contract)
    report = start_from(network(), path, "RAS", percentiles())
    assert report is not None and "RAS, MR from percentile 0.5 to 99.5, 7 steps" in report.notes[0]
    trained = "intensity: percentiles 0.5 to 99.5 of each volume, clipped and scaled to [0, 1], in the contract"
    others = {
        "an HU window, clipped": ABDOMEN,
        "percentiles 1 to 99 of each volume": percentiles(1, 99),
        "relative percentiles 0.5 to 99.5": percentiles(relative=True),
        "NormalizeIntensityd here": NormalizeIntensityd("image"),
    }
    for text, transform in others.items():
        with pytest.raises(PretrainedError, match=f"{re.escape(trained)} of the weights, {text}"):
            start_from(network(), path, "RAS", transform)
    assert start_from(network(), path, "RAS", ABDOMEN, ignore=["intensity"]) is not None
