"""Evaluation: scores by hand and against the losses, reproducible crops, and the bundle from weights to report."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import monai.bundle
import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import Compose

from mim_components.data import (
    EvaluationCrops,
    OpenPreparedd,
    find_sources,
    find_validation,
    prepare_volumes,
)
from mim_components.engines import EvaluationStep
from mim_components.handlers.reports.pretraining import (
    error_figures,
    level_rows,
    level_table,
    pair_rows,
    pair_table,
    volume_table,
)
from mim_components.losses import MiMLoss
from mim_components.metrics import CropScores, alignment_scores, mean_error, reconstruction_scores
from mim_components.networks import MiM
from mim_components.tokens import patchify, standardize_tokens
from mim_components.transforms.crop import MultiLevelCropMask, MultiLevelCropMaskd
from mim_components.transforms.intensity import IntensityScale
from mim_components.transforms.levels import level_batch
from mim_components.utils.text import root_cause
from mim_components.weights import WrongWeightsError, load_trained
from mim_components.weights.contract import InputContract
from mim_components.weights.pretrained import save_encoder
from tests.small import SMALL_PRETRAIN

CONFIGS = Path(__file__).resolve().parents[2] / "bundles" / "mim_pretrain" / "configs"
LEVELS = SMALL_PRETRAIN["level_sizes"]
OPTIONS = SMALL_PRETRAIN | {"batch_size": 2, "num_validation_crops": 2}


def write_scan(path: Path, seed: int) -> None:
    noise = np.random.RandomState(seed).randn(44, 42, 36) * 100
    x, y, _ = np.meshgrid(*(np.linspace(-1, 1, n) for n in noise.shape), indexing="ij")
    body = np.where(x**2 + y**2 < 0.7, 40.0, -1000.0)
    nib.save(nib.Nifti1Image((body + noise).astype(np.int16), np.diag([1.5, 1.5, 3.0, 1.0])), path)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scans for training and validation, and the products of a pre-training with random weights."""
    folder = tmp_path_factory.mktemp("evaluation")
    for name, seeds in (("scans", (0, 1)), ("validation", (2, 3, 4))):
        (folder / name).mkdir()
        for seed in seeds:
            write_scan(folder / name / f"{name}_{seed}.nii.gz", seed)
    (folder / "run" / "models").mkdir(parents=True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = MiM(input_size=(32, 32, 32), preset="nano", projection_dim=16)
    torch.save(network.state_dict(), folder / "run" / "models" / "model.pt")
    sizes = tuple(tuple(size) for size in LEVELS)
    contract = InputContract("hybrid", "nano", 1, 8, (32, 32, 32), sizes, step=7)
    save_encoder(network.encoder, folder / "run" / "models" / "encoder.safetensors", contract)
    (folder / "run" / "run.json").write_text('{"status": "finished"}')
    return folder


def evaluate(place: Path, output: str = "run", **options: Any) -> Path:
    """Run the bundle in this process; returns its results folder."""
    monai.bundle.run(
        config_file=[str(CONFIGS / "train.json"), str(CONFIGS / "evaluate.json")],
        logging_file=False,
        **{**OPTIONS, "output_dir": str(place / output), "cache_dir": str(place / "cache"), **options},
    )
    return place / output / "evaluation"


def refusal(place: Path, **options: Any) -> str:
    """Message of the error that a run ends with."""
    with pytest.raises(Exception) as caught:  # noqa: PT011, the cause is checked by the caller
        evaluate(place, **options)
    return str(root_cause(caught.value))


# scores


def test_reconstruction_scores_by_hand() -> None:
    image = torch.tensor([0.0, 0.2, 0.4, 0.6, 1.0, 1.0, 0.0, 0.0]).view(1, 1, 2, 2, 2)  # tokens of one voxel
    masked = torch.tensor([[False, False, False, False, True, True, True, True]])
    prediction = torch.tensor([0.5, 1.0, 0.0, 0.0]).view(1, 4, 1)
    scores = reconstruction_scores(prediction, image, masked, patch_size=1)
    assert scores["mse"].item() == pytest.approx(0.25 / 4)  # one of four voxels is off by 0.5
    # mean of the visible voxels is 0.3: errors 0.7, 0.7, 0.3, 0.3
    assert scores["mse_visible_mean"].item() == pytest.approx((2 * 0.49 + 2 * 0.09) / 4)
    assert scores.keys() == {"mse", "mse_visible_mean"}


def test_standardized_predictions_are_measured_in_intensities() -> None:
    image = torch.zeros(1, 1, 4, 2, 2)
    image[0, 0, 2] = 1.0  # the second of two tokens holds 0 and 1 in equal numbers: mean 0.5, variance 0.25
    masked = torch.tensor([[False, True]])
    nothing = reconstruction_scores(torch.zeros(1, 1, 8), image, masked, patch_size=2, standardized=True)
    assert nothing["mse"].item() == pytest.approx(0.25)
    assert nothing["mse_token_mean"].item() == pytest.approx(0.25)
    assert nothing["mse_visible_mean"].item() == pytest.approx(0.5)
    target = standardize_tokens(patchify(image, 2)[:, 1:])
    perfect = reconstruction_scores(target, image, masked, patch_size=2, standardized=True)
    assert perfect["mse"].item() == pytest.approx(0, abs=1e-12)


def test_alignment_scores_by_hand() -> None:
    context = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    patches = torch.tensor([[[3.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]]])
    token = torch.tensor([0, 0])
    overlap = torch.tensor([[True, False, False, False], [True, True, False, False]])
    scores = alignment_scores(context, patches, token, overlap, temperature=0.5)
    # the second child is most similar to token 1, which it overlaps but was not drawn for
    assert scores["accuracy"].tolist() == [1.0, 0.0]
    assert scores["overlap_accuracy"].tolist() == [1.0, 1.0]
    assert scores["overlap_chance"].tolist() == [1 / 4, 2 / 4]
    # first child: cosines 1, 0, -1, 0; second: 0, (1, left out), 0, -1; exponents of cosine / 0.5
    first = -np.log(np.exp(2) / (np.exp(2) + 1 + np.exp(-2) + 1))
    second = -np.log(1 / (1 + 1 + np.exp(-2)))
    assert scores["infonce"].tolist() == pytest.approx([first, second])


def test_step_gives_the_terms_of_the_loss() -> None:
    torch.manual_seed(0)
    network = MiM(input_size=(32, 32, 32), preset="nano", projection_dim=16)
    crop = MultiLevelCropMask(LEVELS, (32, 32, 32), patch_size=8)
    samples = [crop.set_random_state(seed)(torch.rand(1, 40, 40, 36)) for seed in (0, 1)]
    batch = {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}
    engine = SimpleNamespace(network=network, state=SimpleNamespace(device=torch.device("cpu")))
    output = EvaluationStep(3, 8)(engine, {**batch, "name": ["a", "b"], "crop": torch.tensor([0, 5])})
    assert (output["names"], output["crops"]) == (["a", "b"], [0, 5])
    levels = level_batch(batch, 3)
    with torch.no_grad():
        terms = MiMLoss(patch_size=8)(network(levels.images, levels.masked), levels)
    rows = output["scores"]
    for level in (1, 2, 3):
        mean = sum(row[f"mse_level{level}"] for row in rows) / 2
        assert mean == pytest.approx(float(terms[f"reconstruction_level{level}"]), rel=1e-5)
    for pair in ("1_2", "2_3"):
        mean = sum(row[f"infonce_level{pair}"] for row in rows) / 2
        assert mean == pytest.approx(float(terms[f"alignment_level{pair}"]), rel=1e-5)


def test_scores_of_children_with_content() -> None:
    """Two samples of one parent and four children; of the second none has content."""
    torch.manual_seed(0)
    network = MiM(input_size=(32, 32, 32), preset="nano", num_levels=2, projection_dim=16)
    crop = MultiLevelCropMask(LEVELS[:2], (32, 32, 32), patch_size=8)
    samples = [crop.set_random_state(seed)(torch.rand(1, 40, 40, 36)) for seed in (0, 1)]
    batch = {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}
    batch["content_level2"] = torch.tensor([[True, False, True, True], [False] * 4])
    engine = SimpleNamespace(network=network, state=SimpleNamespace(device=torch.device("cpu")))
    step = EvaluationStep(2, 8)
    first, second = step(engine, {**batch, "name": ["a", "b"], "crop": torch.zeros(2)})["scores"]
    assert (first["empty_children_level2"], second["empty_children_level2"]) == (0.25, 1.0)
    names = [name for name in first if "content" in name]
    place = ("mse_content_level2", "mse_visible_mean_content_level2")
    pair = ("accuracy", "overlap_accuracy", "overlap_chance", "infonce")
    assert names == [*place, *(f"{name}_content_level1_2" for name in pair)]
    assert all(second[name] is None for name in names) and second["mse_level2"] > 0
    # the mean over all is that over the three with content and the one without
    only = {**batch, "content_level2": ~batch["content_level2"]}
    other = step(engine, {**only, "name": ["a", "b"], "crop": torch.zeros(2)})["scores"][0]
    for name in names:
        everything = first[name.replace("_content", "")]
        assert (3 * first[name] + other[name]) / 4 == pytest.approx(everything), name


def test_report_without_content_has_no_numbers() -> None:
    means = {f"{name}_level{level}": 0.01 for name in ("mse", "mse_visible_mean") for level in (1, 2)}
    pair = ("accuracy", "overlap_accuracy", "overlap_chance", "infonce")
    means |= {f"{name}_level1_2": 0.5 for name in pair} | {"empty_children_level2": 1.0}
    levels, pairs = level_rows(means, 2), pair_rows(means, 2)
    assert levels[1]["content"] is None and pairs[0]["content"] is None and "content" not in levels[0]
    for row in levels:
        row |= {"native_size": [8, 8, 8], "volumes_per_crop": 4}
    lines = level_table({"modality": "ct", "levels": levels}).splitlines()
    assert [cell.strip() for cell in lines[-1].split("|")[1:-1]] == ["2, with content", "8x8x8", "0.0", *"-----"]
    pairs[0] |= {"children_per_crop": 4, "chance": 0.1, "candidate_chance": 0.2}
    assert [cell.strip() for cell in pair_table({"pairs": pairs}).splitlines()[-1].split("|")[1:-1]] == [
        "1, 2, with content", "0.0", *"------"
    ]  # fmt: skip
    rows = [{"volume": name, "crop": 0, **means, "mse_content_level2": None} for name in "ab"]
    rows[1] |= {"mse_content_level2": 0.02, "mse_visible_mean_content_level2": 0.03}
    rows[0] |= {"mse_visible_mean_content_level2": None}
    lines = list(csv.DictReader(volume_table(rows, 2).splitlines()))
    assert [line["content_mse_level2"] for line in lines] == ["", "0.02"]
    assert [line["empty_children_level2"] for line in lines] == ["1.0", "1.0"]


def test_mean_over_crops() -> None:
    scores = CropScores()
    key = mean_error(scores)
    first = [
        {"mse_level1": 0.1, "mse_level2": 0.3, "mse_content_level2": 0.4, "mse_content_level3": None},
        {"mse_level1": 0.3, "mse_level2": 0.5, "mse_content_level2": None, "mse_content_level3": None},
    ]
    scores.update((["a", "a"], [0, 1], first))
    last = {"mse_level1": 0.2, "mse_level2": 0.1, "mse_content_level2": 0.2, "mse_content_level3": None}
    scores.update((["b"], [0], [last]))
    means = scores.compute()
    assert means["mse_level1"] == pytest.approx(0.2)  # (0.1 + 0.3 + 0.2) / 3: a last batch of one counts once
    assert means["mse_level2"] == pytest.approx(0.3)
    assert means["mse"] == pytest.approx(0.25), "the mean of the levels, without what is about some of their volumes"
    assert means["mse_content_level2"] == pytest.approx(0.3)  # of the two crops that have it
    assert "mse_content_level3" not in means
    assert key.compute() == means["mse"]


def test_scores_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="scan_3, crop 1: mse_level2 is not finite"):
        CropScores().update((["scan_3"], [1], [{"mse_level1": 0.1, "mse_level2": float("nan")}]))


def test_error_figures() -> None:
    figures = error_figures(0.0025)
    # square root 0.05 of 2000 HU; 20 log10(1 / 0.05)
    assert figures == {"mse": 0.0025, "rmse_hu": pytest.approx(100.0), "psnr_db": pytest.approx(26.0206, abs=1e-4)}
    assert error_figures(0.0)["psnr_db"] is None
    row = {"level": 1, "native_size": [8, 8, 8], "volumes_per_crop": 1, **error_figures(0.0)}
    row |= {f"visible_mean_{name}": value for name, value in error_figures(0.01).items()}
    assert "no error" in level_table({"modality": "ct", "levels": [row]})
    mr = IntensityScale("mr")
    row = {"level": 1, "native_size": [8, 8, 8], "volumes_per_crop": 1, **error_figures(0.0025, mr)}
    row |= {f"visible_mean_{name}": value for name, value in error_figures(0.01, mr).items()}
    table = level_table({"modality": "mr", "levels": [row]})
    assert "RMSE (‰)" in table and " 50.0 " in table and " 100.0 " in table and "HU" not in table


# crops


def test_crops_follow_from_the_volume_alone(place: Path) -> None:
    prepared = prepare_volumes(find_sources(place / "validation"), place / "cache", progress=False)
    items = prepared.items

    def crops(data: list[dict[str, Any]], **options: Any) -> EvaluationCrops:
        crop = MultiLevelCropMaskd("image", [(24, 24, 24)], (32, 32, 32), patch_size=8)
        return EvaluationCrops(data, Compose([OpenPreparedd("image"), crop]), **options)

    every, last = crops(items, num_crops=2), crops(items[2:], num_crops=3)
    assert (len(every), len(last)) == (6, 3)
    # crops 0 and 1 of the last volume, whatever stands before it and in whatever order they are drawn
    for number in (1, 0):
        a, b = every[4 + number], last[number]
        assert (a["crop"], b["crop"]) == (number, number)
        assert torch.equal(a["image_level1"], b["image_level1"]) and torch.equal(a["masked_level1"], b["masked_level1"])
    assert not torch.equal(last[0]["masked_level1"], last[1]["masked_level1"])
    assert not torch.equal(crops(items, seed=1)[0]["masked_level1"], every[0]["masked_level1"])
    with pytest.raises(ValueError, match="num_validation_crops must be at least 1, got 0"):
        crops(items, num_crops=0)


def test_validation_volumes(place: Path, tmp_path: Path) -> None:
    listed = tmp_path / "list.json"
    listed.write_text(json.dumps({"validation": [{"image": "validation_3.nii.gz"}]}))
    training = place / "scans"
    assert len(find_validation(place / "validation", dataset_dir=training)) == 3
    assert len(find_validation(place / "validation", listed, dataset_dir=training)) == 1
    assert len(find_validation(dataset_dir=training)) == 2
    with pytest.raises(ValueError, match="--validation_dir"):
        find_validation()


# weights


def contract(**changes: Any) -> InputContract:
    values = {"encoder": "hybrid", "preset": "nano", "in_channels": 1, "patch_size": 8, "input_size": [32, 32, 32]}
    return InputContract(**{**values, "level_sizes": LEVELS, **changes})


def test_weights_of_the_run(place: Path) -> None:
    network = MiM(input_size=(32, 32, 32), preset="nano", projection_dim=16)
    trained = load_trained(network, None, [place / "nowhere", place / "run"], contract())
    saved = torch.load(place / "run" / "models" / "model.pt", weights_only=True)
    assert trained.network is network and not network.training
    assert all(torch.equal(value, saved[name]) for name, value in network.state_dict().items())
    assert trained.contract is not None and trained.contract.step == 7
    assert trained.origin.endswith("model.pt, step 7")


def test_other_levels_matter_where_they_are_used(place: Path) -> None:
    network = MiM(input_size=(32, 32, 32), preset="nano", projection_dim=16)
    other = contract(level_sizes=[[32, 32, 32], [16, 16, 16], [8, 8, 8]])
    load_trained(network, None, [place / "run"], other, same_levels=False)
    with pytest.raises(WrongWeightsError, match=r"level_sizes: \[\[40, 40, 32\].* in the file, \[\[32, 32, 32\]"):
        load_trained(network, None, [place / "run"], other)


def test_standardised_tokens_must_be_those_of_the_training(place: Path) -> None:
    network = MiM(input_size=(32, 32, 32), preset="nano", projection_dim=16)
    text = r"normalize_target: false in the file, true here\n.*--normalize_target false"
    with pytest.raises(WrongWeightsError, match=text):
        load_trained(network, None, [place / "run"], contract(normalize_target=True))


@pytest.fixture
def resampled(place: Path, tmp_path: Path) -> Path:
    """The run, with weights that were trained at 3 mm."""
    shutil.copytree(place / "run" / "models", tmp_path / "models")
    (tmp_path / "models" / "encoder.safetensors").unlink()
    encoder = MiM(input_size=(32, 32, 32), preset="nano", projection_dim=16).encoder
    save_encoder(encoder, tmp_path / "models" / "encoder.safetensors", contract(spacing=(3.0, 3.0, 3.0), step=7))
    return tmp_path


def test_spacing_is_that_of_the_weights(place: Path, resampled: Path) -> None:
    network = MiM(input_size=(32, 32, 32), preset="nano", projection_dim=16)
    assert load_trained(network, None, [place / "run"], contract()).spacing is None
    assert load_trained(network, None, [resampled], contract()).spacing == (3.0, 3.0, 3.0)
    assert load_trained(network, None, [resampled], contract(spacing=[3, 3, 3])).spacing == (3.0, 3.0, 3.0)
    text = r'spacing: \[3.0, 3.0, 3.0\] in the file, \[1, 1, 1\] here\n.*--spacing "\[3.0,3.0,3.0\]"'
    with pytest.raises(WrongWeightsError, match=text):
        load_trained(network, None, [resampled], contract(spacing=[1, 1, 1]))
    with pytest.raises(WrongWeightsError, match=r"spacing: null in the file, \[1, 1, 1\] here\n.*--spacing None"):
        load_trained(network, None, [place / "run"], contract(spacing=[1, 1, 1]))
    checkpoint = resampled / "checkpoints" / "step_00000003.pt"
    checkpoint.parent.mkdir()
    shutil.copy(resampled / "models" / "model.pt", checkpoint)
    trained = load_trained(network, checkpoint, [], contract())
    assert trained.spacing == (3.0, 3.0, 3.0) and trained.origin == f"{checkpoint}, step 3"
    (resampled / "models" / "encoder.safetensors").unlink()  # nothing is recorded: as the configuration says
    assert load_trained(network, None, [resampled], contract(spacing=[1, 1, 1])).spacing == (1.0, 1.0, 1.0)
    assert load_trained(network, None, [resampled], contract()).spacing is None


# the bundle


def test_evaluation_resamples_as_the_training_did(place: Path, resampled: Path) -> None:
    folder = evaluate(place, validation_dir=str(place / "validation"), output=str(resampled))
    report = json.loads((folder / "metrics.json").read_text())
    assert report["data"]["spacing"] == [3.0, 3.0, 3.0]
    text = (folder / "report.md").read_text()
    assert "Volumes were resampled to 3 x 3 x 3 mm, as in the training" in text
    # 44 x 42 x 36 voxels of 1.5 x 1.5 x 3 mm are 22 x 21 x 36: smaller than level 1, which the scans are not
    assert "3 of 3 volumes are smaller than level 1 and were padded with air" in text


def test_report_on_validation_data(place: Path) -> None:
    before = (place / "run" / "run.json").read_bytes()
    folder = evaluate(place, validation_dir=str(place / "validation"))
    assert sorted(path.name for path in folder.iterdir()) == ["metrics.csv", "metrics.json", "report.md"]
    # the training's own files are not touched, and no others are created
    assert sorted(path.name for path in (place / "run").iterdir()) == ["evaluation", "models", "run.json"]
    assert (place / "run" / "run.json").read_bytes() == before
    report = json.loads((folder / "metrics.json").read_text())
    assert report["data"]["origin"] == f"validation data {place / 'validation'}"
    assert (report["data"]["volumes"], report["step"], report["tokens"], report["masked_tokens"]) == (3, 7, 64, 39)
    assert [row["volumes_per_crop"] for row in report["levels"]] == [1, 4, 16]
    assert [row["children_per_crop"] for row in report["pairs"]] == [4, 16]
    for row in report["levels"]:
        assert row["rmse_hu"] == pytest.approx(2000 * row["mse"] ** 0.5)
        assert 0 < row["visible_mean_mse"] < row["mse"]  # random weights are worse than a constant
    for row in report["pairs"]:
        assert (row["chance"], row["candidate_chance"]) == (1 / 64, 1 / 39)
        assert 0 <= row["accuracy"] <= row["overlap_accuracy"] <= 1
    # levels 2 and 3: tokens of 4 voxels, children of 8. A child overlaps 3 tokens along an axis, or 2 where it was
    # shifted in from the border
    assert report["pairs"][1]["overlap_chance"] >= 2**3 / 64
    assert report["pairs"][1]["overlap_chance"] <= 3**3 / 64
    text = (folder / "report.md").read_text()
    assert "3 volumes, 2 crops each" in text and "training volumes" not in text
    lines = list(csv.DictReader((folder / "metrics.csv").read_text().splitlines()))
    assert [Path(line["volume"]).name for line in lines] == [f"validation_{n}.nii.gz" for n in (2, 3, 4)]
    assert [line["crops"] for line in lines] == ["2", "2", "2"]
    for row in (*report["levels"][1:], *report["pairs"]):
        assert 0 <= row["empty_children"] < 1 and row["content"].keys() <= row.keys()
    assert "3, with content" in text and "1, 2, with content" in text and "spans more than 50 HU" in text
    mean = sum(float(line["mse_level2"]) for line in lines) / 3
    assert mean == pytest.approx(report["levels"][1]["mse"])


def test_scans_of_the_training_are_named(place: Path) -> None:
    (place / "mixed").mkdir()
    write_scan(place / "mixed" / "other_name.nii", 0)  # the voxels of scans/scans_0.nii.gz
    write_scan(place / "mixed" / "new.nii.gz", 9)
    shutil.copytree(place / "run" / "models", place / "known" / "models")
    prepared = prepare_volumes(find_sources(place / "scans"), place / "cache", progress=False)
    contents = "".join(f"{volume.content}\n" for volume in prepared.volumes)
    (place / "known" / "models" / "training_volumes.txt").write_text(contents)
    text = (evaluate(place, "known", validation_dir=str(place / "mixed")) / "report.md").read_text()
    assert "1 of 2 volumes were in the training, with the same voxels" in text and ": other_name." in text


def test_figures_do_not_depend_on_workers_and_batches(place: Path) -> None:
    options = {"validation_dir": str(place / "validation")}
    first = json.loads((evaluate(place, **options) / "metrics.json").read_text())
    assert (
        json.loads((evaluate(place, num_workers=1, prepare_workers=0, **options) / "metrics.json").read_text()) == first
    )
    other = json.loads((evaluate(place, batch_size=3, **options) / "metrics.json").read_text())
    for a, b in zip(first["levels"], other["levels"], strict=True):
        assert a["mse"] == pytest.approx(b["mse"], rel=1e-5)
    assert json.loads((evaluate(place, seed=1, **options) / "metrics.json").read_text())["levels"] != first["levels"]


def test_report_says_when_it_is_about_training_data(place: Path) -> None:
    shutil.copytree(place / "run" / "models", place / "standardised" / "models")
    encoder = MiM(input_size=(32, 32, 32), preset="nano", projection_dim=16).encoder
    file = place / "standardised" / "models" / "encoder.safetensors"
    save_encoder(encoder, file, contract(step=7, normalize_target=True))
    options: dict[str, Any] = {"dataset_dir": str(place / "scans"), "alignment_weights": [0.1, 0]}
    shown = evaluate(place, "standardised", normalize_target=True, **options)
    text = (shown / "report.md").read_text()
    assert "Data: the training data, 2 volumes" in text
    assert "These are the training volumes" in text
    assert "token mean: RMSE (HU)" in text and "standardised tokens" in text
    assert "The alignment of levels 2 and 3 had weight 0" in text


def test_one_level_has_no_alignment(place: Path) -> None:
    models = place / "one" / "models"
    models.mkdir(parents=True)
    torch.save(MiM(input_size=(32, 32, 32), preset="nano", num_levels=1).state_dict(), models / "model.pt")
    shown = evaluate(place, "one", level_sizes=[[48, 48, 40]], validation_dir=str(place / "validation"))
    text = (shown / "report.md").read_text()
    assert "Alignment" not in text
    assert "3 of 3 volumes are smaller than level 1 and were padded with air" in text
    assert json.loads((shown / "metrics.json").read_text())["step"] is None  # no encoder.safetensors beside it


def test_missing_weights_are_named(place: Path) -> None:
    message = refusal(place, output="empty", validation_dir=str(place / "validation"))
    assert str(place / "empty" / "models" / "model.pt") in message and "configs/train.json --dataset_dir" in message


def test_weights_of_another_preset_are_named(place: Path, tmp_path: Path) -> None:
    scans = str(place / "validation")
    message = refusal(place, preset="tiny", validation_dir=scans)
    assert "encoder.safetensors was trained with different settings" in message
    assert "preset: 'nano' in the file, 'tiny' here" in message and "set --preset nano" in message
    alone = tmp_path / "model.pt"  # no contract beside it
    alone.write_bytes((place / "run" / "models" / "model.pt").read_bytes())
    message = refusal(place, preset="tiny", validation_dir=scans, checkpoint=str(alone))
    assert message.startswith(f"{alone} does not fit preset 'tiny' with encoder 'hybrid' and 3 levels: ")
    assert "(32, 48) in the file, (64, 96) in the network" in message and "--preset" in message
    alone.write_bytes(b"version https://git-lfs.github.com/spec/v1")
    assert f"{alone}: not a readable checkpoint" in refusal(place, validation_dir=scans, checkpoint=str(alone))


def test_misspelt_option_is_refused(place: Path) -> None:
    assert "--validation_dir" in refusal(place, validaton_dir="x")
