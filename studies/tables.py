"""Sections of the report on one study, in Markdown. An arm without results appears only in the table of cells."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.report import markdown_table
from studies.evidence import NOT_RUN, Evidence, direction
from studies.results import FAILED
from studies.statistics import Interval, paired_interval


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
    return ["### Scores", *parts]


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
    parts = [head, markdown_table(rows), *_by_seed(evidence, labels, references)]
    return [*parts, "Dice of each class:", markdown_table(organs)]


def _by_seed(evidence: Evidence, labels: int, references: Sequence[str]) -> list[str]:
    """The differences of the primary arm, seed by seed."""
    arm = evidence.study.content["report"]["primary"]["arm"]
    found = {other: evidence.by_seed(arm, other, labels) for other in references if other != arm}
    texts = [
        f"against `{other}` {', '.join(f'{100 * value:+.1f}' for value in of.values())}"
        for other, of in found.items()
        if of
    ]
    return [f"`{arm}` seed by seed: {'; '.join(texts)}."] if texts else []


def probes(evidence: Evidence, earlier: Sequence[Evidence] = ()) -> list[str]:
    """Table of the frozen features of every arm, and of random weights and intensity with position.

    Args:
        evidence: evidence of the study.
        earlier: evidence of earlier rounds, latest first. A pre-training that one of them defines identically is
            shown too if it came out differently; one that is defined differently is the subject of a column. Probes
            of unlike numbers of draws are not compared.
    """
    rows, again = [], []
    primary = evidence.study.content["report"]["primary"]["arm"]
    for arm in evidence.arms:
        if not evidence.probe(arm):
            continue
        row = _probe_row(f"`{arm}`", evidence, arm)
        rows.append(row)
        for other in earlier:
            if not other.probe(arm) or other.probe_draws(arm) != evidence.probe_draws(arm):
                continue
            if other.digests(arm) == evidence.digests(arm):
                points = evidence.probe(arm)["dice"] - other.probe(arm)["dice"]
                again.append((arm, points))
                if points:
                    rows.append(_probe_row(f"`{arm}`, run of `{other.study.name}`", other, arm))
            elif found := paired_interval(evidence.probe_scores(arm), other.probe_scores(arm)):
                row["Dice against an earlier round"] = f"{signed(found)} (`{other.study.name}`)"
                break
    if not rows:
        return []
    for kind in evidence.probe_kinds(primary):
        rows.append(_probe_row(f"{kind}, network of `{primary}`", evidence, primary, kind))
    columns = list(dict.fromkeys(name for row in rows for name in row))
    table = markdown_table([{name: row.get(name, "") for name in columns} for row in rows])
    draws = [evidence.probe_draws(arm) for arm in evidence.arms if evidence.probe(arm)]
    fewest, most = min(draws), max(draws)
    number = str(most) if fewest == most else f"{fewest} to {most}"
    return ["### Probe", table, f"Draws of the probe's voxels, of which these are means: {number}.", *_compared(again)]


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
    machines = sorted({line["machine"] for line in evidence.done if "machine" in line})
    text = f"Per cell, the least and the most; {total:.1f} CPU hours in all. Not all cells ran on equally fast machines"
    text += f" (those that are recorded: {', '.join(machines)})." if machines else "."
    return ["### Cost", text, markdown_table(rows)] if rows else []


def cells(evidence: Evidence) -> list[str]:
    """Numbers of finished cells of every arm, and why others failed."""
    columns = {"pre-training": None, **{f"{labels} patients": labels for labels in evidence.labels}}
    rows = [
        {"arm": f"`{arm}`", **{name: _count(evidence, arm, of) for name, of in columns.items()}}
        for arm in evidence.arms
    ]
    failed = [line for line in evidence.results.values() if line["state"] == FAILED]
    causes = "\n".join(f"- `{line['cell']}` failed: {line['cause']}" for line in failed)
    text = (
        "Cells done of those planned, and the commits that ran them; an empty field was not planned, "
        f"'{NOT_RUN}' has no result yet."
    )
    name = evidence.study.name
    taken = [f"`{line['cell']}` of `{line['study']}`" for line in evidence.done if line["study"] != name]
    shared = f"Run in an earlier round that defines them identically: {', '.join(taken)}."
    parts = ["### Cells", text, markdown_table(rows), *([shared] if taken else []), *([causes] if causes else [])]
    return [*parts, *_unlike_encoders(evidence)]


def _count(evidence: Evidence, arm: str, labels: int | None) -> str:
    planned, done, failed = evidence.counts(arm, labels)
    if not planned:
        return ""
    if not done and not failed:
        return NOT_RUN if planned == 1 else f"{NOT_RUN} ({planned})"
    commits = ", ".join(sorted({line["commit"][:7] for line in evidence.lines(arm, labels)}))
    return f"{done} of {planned}" + (f", {failed} failed" if failed else "") + (f" ({commits})" if commits else "")


def _unlike_encoders(evidence: Evidence) -> list[str]:
    """A sentence per pre-training that was run more than once with unlike results."""
    found = []
    for name, cell in evidence.study.cells.items():
        if cell.phase != "pretraining":
            continue
        lines = [evidence.results.get(name, {}), *evidence.needing(name)]
        if len(encoders := {line["encoder"] for line in lines if line.get("encoder")}) > 1:
            found.append(f"The pre-training `{name}` was run more than once, with {len(encoders)} different encoders.")
    return found


def made_by(evidence: Evidence) -> str:
    """Versions behind the results, and attempts whose cost is unknown."""
    if not evidence.done:
        return "Nothing was run yet."
    versions = sorted({f"{name} {number}" for line in evidence.done for name, number in line["versions"].items()})
    lost = sum(line["attempts_lost"] for line in evidence.done)
    text = f"Versions: {', '.join(versions)}."
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
    hours = [f"{bound(line['cpu_seconds'] for line in lines) / 3600:.2f}" for bound in (min, max)] if lines else []
    return " to ".join(dict.fromkeys(hours))


def _number(lines: Iterable[Mapping[str, Any]], key: str) -> str:
    return ", ".join(f"{value:,}" for value in sorted({line[key] for line in lines}))
