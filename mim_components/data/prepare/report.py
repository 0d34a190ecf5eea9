"""What a run writes about its data: the report, and the list by which another run divides the same cases alike."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mim_components.data.cases import Case, FoundCases
from mim_components.data.prepare.splits import Division
from mim_components.data.volumes import BadVolume
from mim_components.utils.text import markdown_table


def data_report(
    name: str,
    found: FoundCases,
    division: Division,
    training: Sequence[Case],
    counts: Sequence[tuple[str, int]],
    bad: Sequence[BadVolume],
    notes: Sequence[str],
) -> str:
    """Data report in Markdown: counts, notes, what was left out, and the names in both parts.

    Args:
        name: name of the dataset.
        found: all cases found.
        division: split of the usable cases.
        training: training cases that the label ratio leaves.
        counts: rows of the table.
        bad: cases that failed their check.
        notes: oddities.
    """
    lines = [f"# Data of {name}", "", f"Layout `{found.layout}`, divided by {division.how}.", ""]
    lines.append(markdown_table(["cases", "number"], counts))
    if notes:
        lines += ["", "## Notes", "", *(f"- {_one_line(note)}" for note in notes)]
    if bad:
        rows = [(relative_to(item.path, found.root), item.cause) for item in bad]
        lines += ["", "## Left out", "", markdown_table(["file", "cause"], rows)]
    for title, cases in (("Training", training), ("Validation", division.validation)):
        lines += ["", f"## {title}", "", _one_line(", ".join(case.title for case in cases))]
    return "\n".join(lines) + "\n"


def relative_to(path: str, root: Path) -> str:
    """A path without the folder of the dataset."""
    return path.removeprefix(f"{root}/")


def count_rows(
    found: FoundCases, division: Division, training: Sequence[Case], bad: int, expected: int | None
) -> Iterator[tuple[str, int]]:
    """Rows of the report's table.

    Args:
        found: all cases found.
        division: split of the usable cases.
        training: training cases that the label ratio leaves.
        bad: number of cases left out.
        expected: number of labelled cases in the complete dataset.
    """
    if expected is not None:
        yield "labelled in the complete dataset", expected
    yield "labelled and found", len(found.cases)
    yield "unfit and left out", bad
    yield "training", len(training)
    if unused := len(division.training) - len(training):
        yield "not used because of the label ratio", unused
    yield "validation", len(division.validation)
    yield "without label", len(found.unlabelled)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def datalist_of(found: FoundCases, division: Division, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a list that reproduces the same division of the same cases.

    Args:
        found: location of the cases, and those without labels.
        division: the cases and their folds.
        facts: further entries of the list, such as name, modality and labels.
    """
    by_fold = division.folds is not None
    cases = [*division.training, *division.validation] if by_fold else division.training
    content: dict[str, Any] = {
        **facts,
        "numTraining": len(division.training) + len(division.validation),
        "numTest": len(found.unlabelled),
        "training": [_item_of(case, found.root, division.folds or {}) for case in cases],
    }
    if not by_fold:
        content["validation"] = [_item_of(case, found.root, {}) for case in division.validation]
    content["test"] = [{"name": case.name, "image": _relative(case.image, found.root)} for case in found.unlabelled]
    if found.label_set is not None:
        content["label_set"] = found.label_set
    return content


def _item_of(case: Case, root: Path, folds: Mapping[str, int]) -> dict[str, Any]:
    item: dict[str, Any] = {"fold": folds[case.name]} if case.name in folds else {}
    item |= {"name": case.name, "image": _relative(case.image, root)}
    item["label"] = _relative((case.label,), root) if isinstance(case.label, Path) else case.label
    return item | ({"group": case.group} if case.group != case.name else {})


def _relative(files: tuple[Path, ...], root: Path) -> str | list[str]:
    paths = [(file.relative_to(root) if file.is_relative_to(root) else file).as_posix() for file in files]
    return paths[0] if len(paths) == 1 else paths
