"""From an evaluator's output to rows, files and pictures."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ignite.distributed as idist
import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor
from monai.engines import SupervisedEvaluator

from mim_components.data.prepare.cases import PreparedCases
from mim_components.handlers import EvaluationReport
from mim_components.handlers.reports.frame import why_not_comparable
from mim_components.handlers.reports.segmentation import choose_cases, published_text
from mim_components.labels import LabelSet
from mim_components.metrics import CaseScores
from mim_components.metrics.segmentation import CaseResult, TargetScore
from mim_components.weights import TrainedNetwork
from mim_components.weights.contract import write_training_volumes

LABELS = LabelSet(("background", "spleen", "liver"), {}, {})
TOLERANCE = {"spleen": 3.0, "liver": 7.0, "of another label set": 1.0}
PUBLISHED = {
    "source": "paper, Table 4",
    "label_set": "default",
    "dice": {"MiM 10k": 85.41, "scratch": 80.53},
    "nsd": {"MiM 10k": 82.11},
    "per_class": {"MiM 10k": {"spleen": 96.37}},
    "note": "A note.",
}
FACTS = {"dataset": "BTCV", "fold": 0, "label_ratio": 1.0, "weights": Path("models/model.pt"), "step": 7}


def meta(volume: np.ndarray, shift: float = 0.0) -> MetaTensor:
    affine = torch.diag(torch.tensor([1.0, 2.0, 5.0, 1.0], dtype=torch.float64))
    affine[0, 3] = shift
    return MetaTensor(torch.as_tensor(volume), affine=affine)


def case(name: str, missed: int, liver: bool = True, **changes: Any) -> dict[str, Any]:
    """A spleen of 10x4x4 voxels of 10 mm³ without its first `missed` planes in the prediction, and a correct liver."""
    label = np.zeros((1, 16, 8, 6), dtype=np.uint8)
    label[0, 2:12, 2:6, 1:5] = 1
    if liver:
        label[0, 14, 2:6, 1:5] = 2
    pred = label.copy()
    pred[0, 2 : 2 + missed] = 0
    image = np.random.default_rng(0).random(label.shape).astype(np.float32)
    tensors = {"image": meta(image), "label": meta(label), "pred": meta(pred), "picture": meta(image)}
    return {**tensors, "name": name, **changes}


class Network(torch.nn.Module):
    """Returns the image; the prediction comes from the post-processing."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return the image."""
        return image


def post(item: dict[str, Any]) -> dict[str, Any]:
    return {**item, "pred": item["made"]}


def run(cases: list[dict[str, Any]], scores: CaseScores, *handlers: Any) -> None:
    """Evaluate as a bundle does: batches of one, scored after the post-processing."""
    items = [{**each, "made": each["pred"]} for each in cases]
    loader = DataLoader(Dataset(items), batch_size=1, num_workers=0)
    evaluator = SupervisedEvaluator(
        torch.device("cpu"), loader, Network(), postprocessing=post, val_handlers=[scores, *handlers], decollate=True
    )
    evaluator.run()


def report(scores: CaseScores, folder: Path, **changes: Any) -> EvaluationReport:
    return EvaluationReport(scores, folder, **{"published": PUBLISHED, "facts": FACTS, **changes})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of an evaluation of four cases: spleens with 0, 5, 2 and 10 of 10 planes missed; one without liver."""
    folder = tmp_path_factory.mktemp("evaluation") / "new"
    folder.mkdir()
    (folder / "best_old.png").write_bytes(b"of an evaluation before")
    (folder / "notes.png").write_bytes(b"of the user")
    scores = CaseScores(LABELS, TOLERANCE)
    cases = [case("b/10", 0), case("b/9", 5, liver=False), case("a", 2), case("c", 10)]
    cases[1]["pred"][0, 15, 0, 0] = 2  # a voxel of liver where there is none
    run(cases[:1], scores)  # the next run starts empty
    run(cases, scores, report(scores, folder))
    return folder


def test_metrics_by_hand(folder: Path) -> None:
    metrics = json.loads((folder / "metrics.json").read_text())
    spleen, liver = metrics["targets"]
    # Dice of k missed planes of 10: 2 (10 - k) / (20 - k)
    dice = [1.0, 10 / 15, 16 / 18, 0.0]
    assert (spleen["name"], spleen["cases"], spleen["dice"]) == ("spleen", 4, pytest.approx(sum(dice) / 4))
    assert (liver["dice"], liver["nsd"], liver["cases"], liver["predicted_elsewhere"]) == (1.0, 1.0, 3, 1)
    # with liver the mean of a case is (Dice + 1) / 2, without it the spleen alone
    means = [1.0, dice[1], (dice[2] + 1) / 2, 0.5]
    assert metrics["mean"]["dice"] == pytest.approx(sum(means) / 4) and metrics["mean"]["cases"] == 4
    assert [row["case"] for row in metrics["per_case"]] == ["a", "b/9", "b/10", "c"]
    expected = {"dataset": "BTCV", "label_set": "default", "space": "resampled", "cases": 4}
    assert expected.items() <= metrics["settings"].items() and metrics["settings"]["weights"] == "models/model.pt"
    assert any("Predicted in cases whose label lacks it" in note for note in metrics["notes"])
    assert [row["tolerance_mm"] for row in metrics["targets"]] == [3.0, 7.0]


def test_table_of_cases(folder: Path) -> None:
    rows = {row["case"]: row for row in csv.DictReader((folder / "cases.csv").read_text().splitlines())}
    assert list(rows) == ["a", "b/9", "b/10", "c"]
    assert list(rows["a"])[:6] == ["case", "mean_dice", "mean_nsd", "dice_spleen", "dice_liver", "nsd_spleen"]
    assert rows["b/9"]["dice_liver"] == rows["b/9"]["nsd_liver"] == ""  # not counted
    assert rows["c"]["dice_spleen"] == rows["c"]["nsd_spleen"] == "0"
    # 160 voxels of 10 mm³; 5 of 10 planes are predicted, and a voxel of liver
    volumes = [rows["b/9"][f"{kind}_ml_{target}"] for kind in ("label", "pred") for target in ("spleen", "liver")]
    assert [float(volume) for volume in volumes] == pytest.approx([1.6, 0.0, 0.8, 0.01])


def test_report_says_how_to_read_it(folder: Path) -> None:
    page = (folder / "report.md").read_text()
    for text in (
        "| liver           | 100.00   | 100.00  | 7                  | 3             |",
        "## The paper's figures (not ours)",
        "| mean NSD       | ",
        "the paper's: MiM 10k",
        "No test labels of this dataset are public",
        "NSD is MONAI's: the share of the voxels at the edges",
        "is not counted there, even where it is predicted",
        "liver (1).",
        "![worst case](worst_c.png)",
    ):
        assert text in page


def test_pictures_of_best_median_and_worst_case(folder: Path) -> None:
    # means 1, 0.667, 0.944, 0.5
    found = sorted(path.name for path in folder.glob("*.png"))
    assert found == ["best_b_10.png", "median_b_9.png", "notes.png", "worst_c.png"]


def test_few_cases_have_few_pictures() -> None:
    def result(name: str, dice: float) -> CaseResult:
        return CaseResult(name, {"spleen": TargetScore(dice, dice, 1.0, 1.0)})

    a, b, c, empty = result("a", 0.5), result("b", 0.9), result("c", 0.5), result("d", math.nan)
    assert choose_cases([a, empty]) == {"best": a}
    assert choose_cases([a, b]) == {"best": b, "worst": a}
    assert choose_cases([c, a, empty, b]) == {"best": b, "median": a, "worst": c}  # equal ones in order of their names
    assert choose_cases([empty]) == {}


def test_regions_and_nothing_in_any_label(tmp_path: Path) -> None:
    labels = LabelSet(("background", "edema", "core"), {}, {"WT": (1, 2), "TC": (2,)}, name="two")
    scores = CaseScores(labels, {"WT": 1.0, "TC": 1.0})
    masks = np.zeros((2, 6, 6, 6), dtype=np.uint8)
    volumes = {key: meta(masks) for key in ("label", "pred")}
    image = meta(np.random.default_rng(0).normal(size=(4, 6, 6, 6)).astype(np.float32))
    run([{"name": "x", "image": image, "picture": image, **volumes}], scores, report(scores, tmp_path, published={}))
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["mean"] == {"dice": None, "nsd": None, "cases": 0} and metrics["pictures"] == {}
    assert "None are known for this dataset." in (tmp_path / "report.md").read_text()
    assert "| mean            | -        | -       |" in (tmp_path / "report.md").read_text()


def test_published_figures_only_where_comparable() -> None:
    assert why_not_comparable(PUBLISHED, FACTS) == []
    own = {**FACTS, "datalist": "own.json"}
    assert why_not_comparable(PUBLISHED, own) == ["the cases are those of a list of your own"]
    assert why_not_comparable(PUBLISHED, {"fold": 2, "label_ratio": 0.25}, ["a"], "organ_only", "original") == [
        "the label set is 'organ_only', theirs 'default'",
        "the scores are in original space, theirs in resampled space",
        "the fold is 2, theirs 0",
        "the training used 0.25 of the labels, theirs all",
        "scans of the training are among the evaluated",
    ]
    figures = {
        "mean": {"dice": 0.5, "nsd": None},
        "targets": [{"name": "spleen", "dice": 0.25}],
        "published": PUBLISHED,
        "not_comparable": [],
    }
    assert published_text(figures).splitlines()[:5] == [
        "| in %           | this run | the paper's: MiM 10k | the paper's: scratch |",
        "| -------------- | -------- | -------------------- | -------------------- |",
        "| mean Dice      | 50.00    | 85.41                | 80.53                |",
        "| mean NSD       | -        | 82.11                | -                    |",
        "| Dice of spleen | 25.00    | 96.37                | -                    |",
    ]
    assert "Source: paper, Table 4. A note. Their trainings" in published_text(figures)
    dice_only = {**figures, "published": {**PUBLISHED, "nsd": {}, "per_class": {}}}
    assert len(published_text(dice_only).split("\n\n")[0].splitlines()) == 3
    hidden = published_text({**figures, "not_comparable": ["the fold is 2, theirs 0"]})
    assert hidden == "Not shown, since they are not comparable: the fold is 2, theirs 0."


def test_scans_of_the_training_are_named_and_the_paper_is_not_shown(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_training_volumes(tmp_path / "models", ["content of a", "content of x"])
    trained = TrainedNetwork(
        torch.nn.Identity(), tmp_path / "models" / "model.pt", facts={"training": {"fold": 1, "label_ratio": 0.5}}
    )
    cases = [case("a", 0), case("b", 5)]
    prepared = PreparedCases([], [{"name": each["name"]} for each in cases], images={"a": "content of a", "b": "new"})
    scores = CaseScores(LABELS, TOLERANCE)
    for each in cases:
        scores.add(each)
    report(scores, tmp_path, trained=trained, prepared=prepared)(SimpleNamespace())  # type: ignore[arg-type]
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["in_training"] == ["a"] and metrics["published"] == {} and metrics["settings"]["label_ratio"] == 0.5
    text = (tmp_path / "report.md").read_text()
    assert "1 of 2 scans were in the training" in text and "what it has seen: a." in text
    assert "1 of 2 scans were in the training" in caplog.text
    assert "scans of the training are among the evaluated" in text and "85.41" not in text
    other = TrainedNetwork(torch.nn.Identity(), tmp_path / "elsewhere" / "model.pt")
    report(scores, tmp_path, trained=other, prepared=prepared)(SimpleNamespace())  # type: ignore[arg-type]
    assert json.loads((tmp_path / "metrics.json").read_text())["in_training"] == []


def test_cases_of_two_processes_count_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = CaseScores(LABELS, TOLERANCE), CaseScores(LABELS, TOLERANCE)
    for each in (case("a", 0), case("b", 5)):
        first.add(each)
    for each in (case("c", 2), case("a", 0)):  # the sampler filled up with "a"
        second.add(each)
    monkeypatch.setattr(idist, "get_world_size", lambda: 2)
    monkeypatch.setattr(idist, "all_gather", lambda own: [first.results, second.results])
    assert [result.name for result in first.gather()] == [result.name for result in second.gather()] == ["a", "b", "c"]
    monkeypatch.setattr(idist, "get_rank", lambda: 1)
    report(second, tmp_path)(SimpleNamespace())  # type: ignore[arg-type]
    # the second process draws pictures of its cases, and writes nothing else
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best_a.png", "median_c.png"]
    monkeypatch.setattr(idist, "get_rank", lambda: 0)
    report(first, tmp_path)(SimpleNamespace())  # type: ignore[arg-type]
    names = {"best_a.png", "median_c.png", "worst_b.png", "cases.csv", "metrics.json", "report.md"}
    assert {path.name for path in tmp_path.iterdir()} == names


def test_masks_that_do_not_fit_are_named() -> None:
    scores = CaseScores(LABELS, TOLERANCE)
    small, masks = np.zeros((1, 2, 2, 2), np.uint8), np.zeros((1, 16, 8, 6), np.uint8)
    wrong: dict[str, tuple[dict[str, Any], str]] = {
        "shape": ({"pred": meta(small)}, r"0035: pred is \(2, 2, 2\), but label is \(16, 8, 6\) voxels"),
        "picture": ({"picture": meta(small)}, r"0035: picture is \(2, 2, 2\)"),
        "affine": (
            {"pred": meta(masks, shift=1.5)},
            "0035: pred does not lie on the label, its position differs by 1.5 x 0 x 0 mm",
        ),
        "plain": ({"label": torch.zeros(1, 16, 8, 6)}, "0035: label must be a MetaTensor, for its affine, got Tensor"),
        "channels": (
            {"pred": meta(np.zeros((3, 16, 8, 6)))},
            r"0035: pred must be \(1, H, W, D\), got \(3, 16, 8, 6\)",
        ),
        "fraction": ({"pred": meta(masks + 0.5)}, "0035: pred must hold whole numbers from 0 to 255, got 0.5 to 0.5"),
    }
    for changes, message in wrong.values():
        with pytest.raises(ValueError, match=message):
            scores.add(case("0035", 0, **changes))
    assert scores.results == [] and scores.pictures == {}
    scores.add(case("0035", 0, pred=meta(masks.astype(np.float32))))  # whole numbers of any type
    assert scores.results[0].dice == 0.0


def test_missing_and_wrong_tolerances_are_named() -> None:
    with pytest.raises(
        ValueError, match="nsd_tolerance_mm has none for 'liver' of label set 'default', only for 'spleen'"
    ):
        CaseScores(LABELS, {"spleen": 3.0})
    with pytest.raises(ValueError, match="only for nothing"):
        CaseScores(LABELS, {})
    with pytest.raises(ValueError, match="nsd_tolerance_mm of 'liver' must be 0 mm or more, got -1.0"):
        CaseScores(LABELS, {"spleen": 3.0, "liver": -1})


def test_unknown_space_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="space must be one of resampled, original, got 'native'"):
        report(CaseScores(LABELS, TOLERANCE), tmp_path, space="native")


def test_rounded_positions_are_one_grid() -> None:
    masks = np.zeros((1, 16, 8, 6), np.uint8)
    scores = CaseScores(LABELS, TOLERANCE)
    scores.add(case("0035", 0, pred=meta(masks, shift=0.003), picture=meta(masks.astype(np.float32), shift=0.003)))
    assert len(scores.results) == 1
