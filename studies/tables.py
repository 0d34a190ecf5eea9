"""Sections of the report on a study, in Markdown. An arm without results appears only in the table of cells."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.report import markdown_table
from studies.evidence import NOT_RUN, Evidence, direction, verdict
from studies.results import FAILED
from studies.statistics import DRAWS, Interval


def answer(evidence: Evidence) -> str:
    """The primary comparison, and the outcome of the decision rule."""
    primary = evidence.study.content["report"]["primary"]
    arm, other, labels = primary["arm"], primary["against"], primary["labels"]
    seeds, planned = evidence.common_seeds(arm, other, labels), len(evidence.study.seeds)
    what = f"`{arm}` against `{other}` with {labels} labelled patients"
    if seeds < planned:
        return f"The primary comparison, {what}, has {seeds} of {planned} seeds: no answer yet."
    found = evidence.difference(arm, other, labels)
    assert found is not None
    word = direction(found) or "neither better nor worse"
    return f"Primary comparison: {what} is {word}, {signed(found)} points of Dice."


def scores(evidence: Evidence) -> list[str]:
    """A table of arms and a table of classes for every number of labelled patients that has results."""
    parts = [part for labels in evidence.labels for part in _of_labels(evidence, labels)]
    if not parts:
        return []
    text = (
        "Dice in %, mean over classes, then over test scans and seeds; in brackets the 95 % interval of a bootstrap "
        f"over scans and seeds ({DRAWS:,} draws). Differences are paired by scan and seed, in points of Dice, over the "
        "seeds that both arms have."
    )
    return ["### Scores", text, *parts]


def _of_labels(evidence: Evidence, labels: int) -> list[str]:
    arms = [arm for arm in evidence.arms if evidence.lines(arm, labels)]
    if not arms:
        return []
    references = [arm for arm in evidence.study.content["report"]["references"] if arm in arms]
    rows, organs = [], []
    for arm in arms:
        row = {"arm": f"`{arm}`", "": evidence.study.arms[arm]["title"]}
        row["seeds"] = str(len(evidence.scores(arm, labels)))
        row["Dice"] = plain(evidence.interval(arm, labels))
        for other in references:
            row[f"against `{other}`"] = "" if arm == other else difference(evidence, arm, other, labels)
        row["NSD"] = plain(evidence.interval(arm, labels, "nsd"))
        rows.append(row)
        organs.append(
            {"arm": f"`{arm}`", **{name: plain(evidence.interval(arm, labels, name=name)) for name in evidence.classes}}
        )
    head = f"#### {labels} labelled patients"
    return [head, markdown_table(rows), "Dice of each class:", markdown_table(organs)]


def probes(evidence: Evidence, earlier: Sequence[Evidence] = ()) -> list[str]:
    """Table of the frozen features of every pre-training, and of random weights and intensity with position.

    Args:
        evidence: evidence of the study.
        earlier: evidence of earlier rounds, whose runs of identically defined pre-trainings are shown too.
    """
    rows, again = [], []
    primary = evidence.study.content["report"]["primary"]["arm"]
    for arm in evidence.arms:
        if not evidence.probe(arm):
            continue
        rows.append(_probe_row(f"`{arm}`", evidence, arm))
        for other in earlier:
            if other.probe(arm) and other.lines(arm, None)[0]["digest"] == evidence.lines(arm, None)[0]["digest"]:
                points = evidence.probe(arm)["dice"] - other.probe(arm)["dice"]
                again.append((arm, points))
                if points:
                    rows.append(_probe_row(f"`{arm}`, run of `{other.study.name}`", other, arm))
    if not rows:
        return []
    if primary_probe := evidence.lines(primary, None):
        kinds = [kind for kind in primary_probe[0].get("probe", {}) if kind != "encoder"]
        rows += [_probe_row(f"{kind}, network of `{primary}`", evidence, primary, kind) for kind in kinds]
    text = (
        "Frozen encoder, on the test scans. Dice: mean Dice in % of a linear classifier of single voxels, with the "
        f"95 % interval of a bootstrap over scans ({DRAWS:,} draws) if the scores of single scans were kept. kNN: "
        "share of voxels in %, averaged over classes, whose nearest neighbours in other patients give their class. "
        "There is one pre-training per arm, so that no interval covers the effect of its seed."
    )
    return ["### Probe", text, markdown_table(rows), *_compared(again)]


def _probe_row(name: str, evidence: Evidence, arm: str, kind: str = "encoder") -> dict[str, str]:
    figures, found = evidence.probe(arm, kind), evidence.probe_interval(arm, kind)
    dice = plain(found) if found else f"{100 * figures['dice']:.1f}"
    return {"features": name, "Dice": dice, "kNN": f"{100 * figures['knn']:.1f}"}


def _compared(again: Sequence[tuple[str, float]]) -> list[str]:
    """Comparison of pre-trainings that two studies define identically, from arm and difference of the probe's Dice."""
    if not again:
        return []
    names = ", ".join(f"`{arm}`" for arm in dict.fromkeys(arm for arm, _ in again))
    most = max(abs(points) for _, points in again)
    came = "the same Dice" if most == 0 else f"Dice that differs by at most {100 * most:.1f} points"
    return [f"An earlier round ran the same pre-training (equal digest) of {names}, with {came}."]


def ablations(evidence: Evidence) -> list[str]:
    """Rows of the paper beside our differences, with the verdict of the declared rule."""
    settings = evidence.study.content["report"].get("ablations")
    if not settings:
        return []
    against, labels = settings["against"], settings["labels"]
    rows, missing = [], []
    for row in settings["rows"]:
        tuned = evidence.difference(row["arm"], against, labels)
        if tuned or (evidence.probe(row["arm"]) and evidence.probe(against)):
            rows.append(_ablation_row(evidence, row, against, labels))
        else:
            missing.append(f"`{row['arm']}`")
    if not rows:
        return []
    text = (
        f"Each arm minus `{against}`, in points of Dice: the probe, paired by scan, and fine-tunings with {labels} "
        "labelled patients, paired by scan and seed. Our difference has a direction if its 95 % interval excludes 0, "
        "and then agrees or disagrees with the paper's; otherwise, or while seeds are missing, it cannot tell "
        f"({plan_link(evidence)}). Intervals of the probe are over scans, not over pre-trainings, of which there is "
        "one per arm. The paper's figures are Dice in % of the arm and of MiM, fine-tuned on all labelled scans."
    )
    parts = ["### Ablations of the paper", text, markdown_table(rows)]
    parts += [f"{NOT_RUN.capitalize()}: {', '.join(missing)}."] if missing else []
    return [*parts, f"The study has no arm for {settings['without']}."]


def _ablation_row(evidence: Evidence, row: Mapping[str, Any], against: str, labels: int) -> dict[str, str]:
    arm, published = row["arm"], row["direction"]
    seeds = evidence.common_seeds(arm, against, labels)
    tuned = evidence.difference(arm, against, labels) if seeds == len(evidence.study.seeds) else None
    figures = [f"{name} {ours:.2f} / {mim:.2f}" for name, (ours, mim) in row.get("figures", {}).items()]
    probed, shown = evidence.probe_difference(arm, against), NOT_RUN
    if probed:
        shown = signed(probed)
    elif evidence.probe(arm) and evidence.probe(against):
        shown = f"{100 * (evidence.probe(arm)['dice'] - evidence.probe(against)['dice']):+.1f}, no interval"
    return {
        "arm": f"`{arm}`",
        "what differs": row["change"],
        "the paper's row": row["where"],
        "its Dice": ", ".join(figures),
        "its direction": published or "",
        "probe": shown,
        "verdict": "" if shown == NOT_RUN else verdict(probed, published),
        "fine-tuning": difference(evidence, arm, against, labels),
        "verdict ": verdict(tuned, published) if seeds else "",
    }


def cost(evidence: Evidence) -> list[str]:
    """CPU hours, steps and network volumes of the arms that have results."""
    rows = []
    for arm in evidence.arms:
        pretraining = evidence.lines(arm, None)
        tuning = [line for labels in evidence.labels for line in evidence.lines(arm, labels)]
        if pretraining or tuning:
            rows.append(
                {
                    "arm": f"`{arm}`",
                    "pre-training: CPU hours": _hours(pretraining),
                    "steps": _number(pretraining, "steps"),
                    "network volumes": _number(pretraining, "network_volumes"),
                    "fine-tuning and evaluation: CPU hours": _hours(tuning),
                    "steps ": _number(tuning, "steps"),
                }
            )
    total = sum(line["cpu_seconds"] for line in evidence.done) / 3600
    text = (
        f"Means per cell; {total:.1f} CPU hours in all; cells may have run on different machines. A network volume "
        "is one input of the network in the pre-training, whatever its level."
    )
    return ["### Cost", text, markdown_table(rows)] if rows else []


def cells(evidence: Evidence) -> list[str]:
    """Numbers of finished cells of every arm, and why others failed."""
    columns = {"pre-training": None, **{f"{labels} patients": labels for labels in evidence.labels}}
    rows = [
        {"arm": f"`{arm}`", **{name: _count(*evidence.counts(arm, labels)) for name, labels in columns.items()}}
        for arm in evidence.arms
    ]
    failed = [line for line in evidence.results.values() if line["state"] == FAILED]
    causes = "\n".join(f"- `{line['cell']}` failed: {line['cause']}" for line in failed)
    text = f"Cells done of those planned; an empty field was not planned, '{NOT_RUN}' has no result yet."
    name = evidence.study.name
    taken = [f"`{line['cell']}` of `{line['study']}`" for line in evidence.done if line["study"] != name]
    shared = f"Run in an earlier round that defines them identically: {', '.join(taken)}."
    return ["### Cells", text, markdown_table(rows), *([shared] if taken else []), *([causes] if causes else [])]


def _count(planned: int, done: int, failed: int) -> str:
    if not planned:
        return ""
    if not done and not failed:
        return NOT_RUN if planned == 1 else f"{NOT_RUN} ({planned})"
    return f"{done} of {planned}" + (f", {failed} failed" if failed else "")


def made_by(evidence: Evidence) -> str:
    """Commits and versions behind the results."""
    if not evidence.done:
        return "Nothing was run yet."
    commits = sorted({line["commit"][:10] for line in evidence.done})
    versions = sorted({f"{name} {number}" for line in evidence.done for name, number in line["versions"].items()})
    lost = sum(line["attempts_lost"] for line in evidence.done)
    text = f"Commits: {', '.join(commits)}. Versions: {', '.join(versions)}."
    return text + (f" The cost excludes {lost} attempts whose end was not recorded." if lost else "")


def plan_link(evidence: Evidence) -> str:
    """Link to the plan of a study, from a page in `docs`."""
    name = evidence.study.plan.name
    return f"[{name}](../studies/{name})"


def plain(found: Interval | None) -> str:
    """A mean with its interval, in percent.

    Example:
        >>> plain(Interval(0.5, 0.25, 0.625)), plain(None)
        ('50.0 [25.0, 62.5]', 'not run')
    """
    return NOT_RUN if found is None else f"{100 * found.mean:.1f} [{100 * found.low:.1f}, {100 * found.high:.1f}]"


def signed(found: Interval | None) -> str:
    """A difference with its interval, in points.

    Example:
        >>> signed(Interval(0.02, -0.01, 0.05))
        '+2.0 [-1.0, +5.0]'
    """
    return NOT_RUN if found is None else f"{100 * found.mean:+.1f} [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"


def difference(evidence: Evidence, arm: str, other: str, labels: int) -> str:
    """Mean Dice of an arm minus that of another, with the number of common seeds if some are missing."""
    seeds, planned = evidence.common_seeds(arm, other, labels), len(evidence.study.seeds)
    text = signed(evidence.difference(arm, other, labels))
    return f"{text}, {seeds} of {planned} seeds" if 0 < seeds < planned else text


def _hours(lines: Sequence[Mapping[str, Any]]) -> str:
    return f"{statistics.mean(line['cpu_seconds'] for line in lines) / 3600:.2f}" if lines else ""


def _number(lines: Iterable[Mapping[str, Any]], key: str) -> str:
    return ", ".join(f"{value:,}" for value in sorted({line[key] for line in lines}))
