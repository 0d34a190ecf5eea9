"""The paper's ablations beside our differences, from all rounds, with the verdict of the declared rule."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.report import markdown_table
from studies.evidence import NOT_RUN, Evidence, verdict
from studies.tables import difference, plan_link, signed

VERDICTS = ("agrees", "disagrees", "cannot tell")


def ablations(evidence: Sequence[Evidence]) -> list[str]:
    """A table with a row for every row of the paper and round that has results, and what is missing.

    Args:
        evidence: evidence of every study, latest round first.
    """
    chosen = [each for each in evidence if "ablations" in each.study.content["report"]]
    if not chosen:
        return []
    settings = chosen[0].study.content["report"]["ablations"]
    rows, missing = [], []
    for row in settings["rows"]:
        found = [_row(each, row) for each in chosen if _has_results(each, row["arm"])]
        rows += found
        if not found:
            missing.append(f"`{row['arm']}`")
    if not rows:
        return []
    against, labels = settings["against"], settings["labels"]
    text = (
        f"Each arm minus `{against}` of the same round, in points of Dice: on frozen features, paired by scan, and "
        f"fine-tuned with {labels} labelled patients, paired by scan and seed. A verdict needs a 95 % interval without "
        f"0 and, when fine-tuned, all seeds ({plan_link(chosen[0])}); intervals on frozen features are over scans, not "
        "over pre-trainings. The paper's figures are Dice in %, of the arm and of MiM, fine-tuned on all labelled "
        "scans."
    )
    counts = Counter(row["verdict"] for row in rows if row["its direction"])
    total = f"On frozen features {', '.join(f'{name} {counts[name]}' for name in VERDICTS)} of {counts.total()}."
    parts = ["## Ablations of the paper", text, total, markdown_table(rows)]
    parts += [f"{NOT_RUN.capitalize()}: {', '.join(missing)}."] if missing else []
    return [*parts, *([f"No study has an arm for {settings['without']}."] if "without" in settings else [])]


def _has_results(evidence: Evidence, arm: str) -> bool:
    against, labels = _compared_with(evidence)
    return bool(evidence.difference(arm, against, labels) or (evidence.probe(arm) and evidence.probe(against)))


def _compared_with(evidence: Evidence) -> tuple[str, int]:
    settings = evidence.study.content["report"]["ablations"]
    return settings["against"], settings["labels"]


def _row(evidence: Evidence, row: Mapping[str, Any]) -> dict[str, str]:
    arm, published = row["arm"], row["direction"]
    against, labels = _compared_with(evidence)
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
        "round": f"`{evidence.study.name}`",
        "frozen features": shown,
        "verdict": "" if shown == NOT_RUN else verdict(probed, published),
        "fine-tuned": difference(evidence, arm, against, labels),
        "verdict ": verdict(tuned, published) if seeds else "",
    }
