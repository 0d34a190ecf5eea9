"""The head of the report: the result, how to read it, and the rounds."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.report import markdown_table
from studies import tables
from studies.evidence import Evidence
from studies.statistics import DRAWS


def latest(evidence: Sequence[Evidence]) -> Evidence:
    """The latest round that has scores, otherwise the latest.

    Args:
        evidence: evidence of every study, latest round first.
    """
    return next((each for each in evidence if each.classes), evidence[0])


def summary(evidence: Sequence[Evidence]) -> list[str]:
    """The result of the latest round, a guide for readers, and a table of all rounds."""
    rounds = markdown_table([_round(each) for each in evidence])
    return [*_result(latest(evidence)), *_guide(evidence), "## Rounds", rounds]


def _result(evidence: Evidence) -> list[str]:
    study, report = evidence.study, evidence.study.content["report"]
    arm = report["primary"]["arm"]
    points = [f"- {tables.answer(evidence)}"]
    for other in report["references"]:
        found = [
            f"{labels} patients {tables.difference(evidence, arm, other, labels)}"
            for labels in evidence.labels
            if evidence.common_seeds(arm, other, labels)
        ]
        if found and other != arm:
            points.append(f"- Fine-tuned, `{arm}` against `{other}`, points of Dice: {'; '.join(found)}.")
    features = {f"`{name}`": evidence.probe(name) for name in [arm, *report["references"]]}
    features |= {kind: evidence.probe(arm, kind) for kind in evidence.probe_kinds(arm)}
    probed = {name: figures for name, figures in features.items() if figures}
    for score, name in (("dice", "Dice of a linear classifier"), ("knn", "kNN")):
        if probed:
            listed = ", ".join(f"{each} {100 * figures[score]:.1f}" for each, figures in probed.items())
            points.append(f"- Frozen features, {name} in %: {listed}.")
    return [f"## Result\n\nOf the latest round with scores, [`{study.name}`](#{study.name}):", "\n".join(points)]


def _guide(evidence: Sequence[Evidence]) -> list[str]:
    several = max(each.most_pretrainings() for each in evidence) > 1
    points = [
        "Dice in %: mean over classes, then over test scans and seeds. A seed chooses the labelled patients and the "
        "randomness of a fine-tuning. NSD: normalised surface Dice, in %; its tolerances are in the `metadata.json` of "
        "the study.",
        f"In brackets: 95 % interval of a bootstrap over scans and seeds ({DRAWS:,} draws). With few seeds it is too "
        "narrow: in a simulation with 15 scans, and a spread as in `openkbp_3`, it held the truth in 88 % of the "
        "cases with three seeds and in 81 % with two (`tests/studies/test_statistics.py`). An interval that barely "
        "excludes 0 is weak evidence.",
        "Differences are paired by scan and seed, in points of Dice, over the seeds that both arms have. 'Better' and "
        "'worse' need an interval without 0.",
        "Probe: the encoder is frozen. Dice is that of a linear classifier of single voxels; kNN is the share of "
        "voxels in %, averaged over the classes with background, whose nearest neighbours in other patients give their "
        "class. "
        + (
            "Intervals are over pre-trainings and scans."
            if several
            else "There is one pre-training per arm, so no interval covers the effect of its seed."
        ),
        "Cost: a network volume is one input of the network in the pre-training, whatever its level.",
    ]
    return ["## How to read this page", "\n".join(f"- {point}" for point in points)]


def _round(evidence: Evidence) -> dict[str, str]:
    study = evidence.study
    options = {phase: study.phases[phase].get("options", {}) for phase in ("pretraining", "fine_tuning")}
    tuning = options["fine_tuning"]
    hours = sum(line["cpu_seconds"] for line in evidence.done) / 3600
    return {
        "round": f"[`{study.name}`](#{study.name})",
        "": study.content["title"],
        "steps of pre-training": _number(options["pretraining"].get("max_steps")),
        "steps of fine-tuning": _number(tuning.get("max_steps")),
        "its learning rate": str(tuning.get("learning_rate", "")),
        "CPU hours": f"{hours:.1f}",
        "answer": tables.answer(evidence),
    }


def _number(value: int | None) -> str:
    return "" if value is None else f"{value:,}"
