from __future__ import annotations

import csv
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib.image
import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.engines import SupervisedEvaluator
from monai.transforms import Activationsd

from mim_components.data.prepare.cases import PreparedCases
from mim_components.handlers import ClassReport, SavePredictions
from mim_components.handlers.reports.classification import evaluation_figures, markdown
from mim_components.metrics import ClassScores, one_figure
from mim_components.metrics.classification import ScoredScan
from mim_components.visualize.confusion import confusion_figure
from mim_components.weights import TrainedNetwork
from mim_components.weights.contract import write_training_volumes

NAMES = ("Normal", "CP", "NCP")
ROWS = {  # label and probabilities
    "b": (0, (0.6, 0.3, 0.1)),
    "a": (0, (0.3, 0.6, 0.1)),
    "d": (1, (0.4, 0.5, 0.1)),
    "c": (2, (0.2, 0.1, 0.7)),
}
PUBLISHED = {"source": "paper, Table 8", "accuracy": {"MiM 10k": 94.26}, "auc": {"MiM 10k": 99.69}, "note": "No split."}


def batch_of(*names: str) -> SimpleNamespace:
    """State of an evaluator after a batch: the loaded items beside the output."""
    batch = [{"name": name, "group": f"patient_{name in 'ab'}", "source": f"/data/{name}"} for name in names]
    output = [{"label": torch.tensor(ROWS[name][0]), "pred": torch.tensor(ROWS[name][1])} for name in names]
    return SimpleNamespace(batch=batch, output=output, metrics={})


def engine_of(*names: str) -> Any:
    return SimpleNamespace(state=batch_of(*names))


@pytest.fixture
def scores() -> ClassScores:
    scores = ClassScores()
    for names in ("ba", "dc"):
        scores.iteration_completed(engine_of(*names))
    return scores


def test_scores_of_all_batches(scores):
    assert scores.compute() == pytest.approx({"accuracy": 3 / 4, "auc_macro": 29 / 36, "auc_micro": 28 / 32})
    assert [scan.name for scan in scores.scans] == ["a", "b", "c", "d"]
    assert [scan.predicted for scan in scores.scans] == [1, 0, 2, 1]
    scores.reset()
    assert scores.scans == []


def test_output_that_is_not_finite_names_the_scan(scores):
    engine = engine_of("a")
    engine.state.output[0]["pred"] = torch.tensor([float("nan"), 0.5, 0.5])
    with pytest.raises(ValueError, match="a: the network's output is not finite"):
        scores.iteration_completed(engine)


def test_processes_put_their_scans_together(scores, monkeypatch):
    other = [ScoredScan("e", "p", "/data/e", 2, (0.0, 0.0, 1.0)), *scores._own]  # few scans: every process has all
    monkeypatch.setattr("ignite.distributed.get_world_size", lambda: 2)
    monkeypatch.setattr("ignite.distributed.all_gather", lambda own: [own, other])
    assert scores.compute()["accuracy"] == 4 / 5
    assert len(scores.scans) == 5


def test_works_with_monais_evaluator(tmp_path):
    """Names are passed on, the softmax is applied, and the figures are in the state."""
    logits = torch.tensor([ROWS[name][1] for name in ROWS]).log()
    items = {"image": logits, "label": torch.tensor([row[0] for row in ROWS.values()])}
    items |= {key: [f"{key}_{name}" for name in ROWS] for key in ("name", "group", "source")}
    scores = ClassScores()
    report = ClassReport(scores, NAMES, tmp_path)
    evaluator = SupervisedEvaluator(
        torch.device("cpu"),
        [items],
        torch.nn.Identity(),
        postprocessing=Activationsd("pred", softmax=True),
        key_val_metric={"val_accuracy": one_figure(scores, "accuracy")},
        val_handlers=[report],
    )
    evaluator.run()
    assert evaluator.state.metrics == {"val_accuracy": 0.75}
    assert scores.scans[0].probabilities == pytest.approx((0.3, 0.6, 0.1))
    assert json.loads((tmp_path / "metrics.json").read_text())["accuracy"] == 0.75


def test_report_files(scores, tmp_path):
    scores.compute()
    ClassReport(scores, NAMES, tmp_path, PUBLISHED, {"dataset": "CC-CCII", "fold": 0})(
        Engine(lambda engine, batch: None)
    )
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert (metrics["cases"], metrics["patients"], metrics["accuracy"]) == (4, 2, 0.75)
    assert metrics["confusion"] == [[1, 1, 0], [0, 1, 0], [0, 0, 1]]
    assert metrics["classes"]["CP"] == {
        "cases": 1,
        "auc": pytest.approx(2 / 3),
        "sensitivity": 1.0,
        "precision": 0.5,
        "f1": pytest.approx(2 / 3),
    }
    assert metrics["undefined"] == []
    rows = list(csv.DictReader((tmp_path / "cases.csv").read_text().splitlines()))
    assert [row["case"] for row in rows] == ["a", "b", "c", "d"]
    assert rows[0] == {
        "case": "a",
        "patient": "patient_True",
        "label": "Normal",
        "prediction": "CP",
        "p_Normal": "0.300000",
        "p_CP": "0.600000",
        "p_NCP": "0.100000",
        "source": "/data/a",
    }
    text = (tmp_path / "report.md").read_text()
    lines = [line.replace(" ", "") for line in text.splitlines()]
    assert "|accuracy|75.00|94.26|" in lines
    assert "not measured here. No split." in text
    assert "|Normal|1|1|0|" in lines
    assert matplotlib.image.imread(tmp_path / "confusion.png").shape[2] == 4


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"fold": 3}, "the fold is 3, theirs 0"),
        ({"label_ratio": 0.1}, "the training used 0.1 of the labels, theirs all"),
        ({"datalist": "own.json"}, "the cases are those of a list of your own"),
    ],
)
def test_published_figures_only_where_comparable(
    scores: ClassScores, tmp_path: Path, facts: dict[str, Any], reason: str
) -> None:
    scores.compute()
    ClassReport(scores, NAMES, tmp_path, PUBLISHED, facts)(Engine(lambda engine, batch: None))
    text = (tmp_path / "report.md").read_text()
    assert f"not shown, since they are not comparable: {reason}." in text and "94.26" not in text


def test_scans_of_the_training_are_named(scores: ClassScores, tmp_path: Path) -> None:
    scores.compute()
    write_training_volumes(tmp_path, ["1"])
    trained = TrainedNetwork(torch.nn.Identity(), tmp_path / "model.pt")
    prepared = PreparedCases([], [{"name": name} for name in "abcd"], images={"a": "1", "b": "2", "c": "1"})
    ClassReport(scores, NAMES, tmp_path, PUBLISHED, {}, trained, prepared)(Engine(lambda engine, batch: None))
    text = (tmp_path / "report.md").read_text()
    assert "2 of 4 scans were in the training" in text and "what it has seen: a, c." in text and "94.26" not in text


def test_only_the_first_process_writes(scores, tmp_path, monkeypatch):
    monkeypatch.setattr("ignite.distributed.get_rank", lambda: 1)
    ClassReport(scores, NAMES, tmp_path / "none")(Engine(lambda engine, batch: None))
    assert not (tmp_path / "none").exists()


def test_undefined_figures_are_named_and_no_paper_is_no_column():
    scans = [ScoredScan(str(number), str(number), "", 0, (0.9, 0.1, 0.0)) for number in range(2)]
    figures = evaluation_figures(scans, NAMES)
    assert figures["accuracy"] == 1.0 and figures["auc_macro"] is None
    assert figures["classes"]["NCP"] == {"cases": 0, "auc": None, "sensitivity": None, "precision": None, "f1": None}
    text = markdown({"facts": {}, **figures, "published": {}})
    assert "paper" not in text.partition("## Notes")[0]
    assert "- Not defined: auc_macro, auc of Normal, auc of CP" in text
    assert "| CP     | 0     | undefined | undefined       | undefined     | undefined |" in text


def test_confusion_figure_shows_counts_and_shares():
    figure = confusion_figure(np.array([[3, 1, 0], [0, 0, 0], [0, 0, 5]]), NAMES, "Title")
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts[:3] == ["3\n75.0 %", "1\n25.0 %", "0\n0.0 %"]
    assert texts[3:6] == ["0\n–"] * 3  # no scan of this class
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == [
        "Normal\nn = 4",
        "CP\nn = 0",
        "NCP\nn = 5",
    ]
    colours = [text.get_color() for text in figure.axes[0].texts]
    assert (colours[0], colours[1]) == ("white", "black")


def test_confusion_figure_needs_a_row_per_class():
    with pytest.raises(ValueError, match=r"counts must be 3 x 3, one row per class, got shape \(2, 2\)"):
        confusion_figure(np.zeros((2, 2), int), NAMES, "")


def test_predictions_grow_with_every_batch(tmp_path):
    saver = SavePredictions(NAMES, tmp_path)
    saver(engine_of("b", "c"))
    saver(engine_of("a"))
    saver.summarize(engine_of())
    assert (tmp_path / "predictions.csv").read_text().splitlines() == [
        "source,prediction,p_Normal,p_CP,p_NCP",
        "/data/b,Normal,0.600000,0.300000,0.100000",
        "/data/c,NCP,0.200000,0.100000,0.700000",
        "/data/a,CP,0.300000,0.600000,0.100000",
    ]
    bad = engine_of("a")
    bad.state.output[0]["pred"] = torch.tensor([1.0, float("inf"), 0.0])
    saver(bad)
    saver(engine_of("d"))
    assert len((tmp_path / "predictions.csv").read_text().splitlines()) == 5
    assert [each.path for each in saver.results.bad] == ["/data/a"]
    with pytest.raises(ValueError, match="/data/a: the network's output is not finite"):
        SavePredictions(NAMES, tmp_path, on_bad="stop")(bad)


def test_source_with_commas_and_newlines_stays_one_field(tmp_path: Path):
    engine = engine_of("a")
    engine.state.batch[0]["source"] = 'odd, "name"\nü'
    SavePredictions(NAMES, tmp_path)(engine)
    with (tmp_path / "predictions.csv").open(newline="") as file:
        assert [row["source"] for row in csv.DictReader(file)] == ['odd, "name"\nü']
