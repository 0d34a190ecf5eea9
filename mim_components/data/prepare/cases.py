"""The phase before fine-tuning: check every case, list all bad ones together, split, and write list and report."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import ignite.distributed as idist

from mim_components.data.cases import NO_DATA, Case, CaseChecker, CheckResult, FoundCases
from mim_components.data.names import hide, is_anonymous
from mim_components.data.prepare.memory import CheckMemory, bad_volume
from mim_components.data.prepare.phase import check_options, note_copies, run_each
from mim_components.data.prepare.quarantine import MAX_BAD_FRACTION, settle_bad
from mim_components.data.prepare.report import count_rows, data_report, datalist_of
from mim_components.data.prepare.splits import Division, divide, take_share
from mim_components.data.prepare.team import Team
from mim_components.data.state import files_in, state_of, state_text
from mim_components.data.volumes import BadVolume, DataError
from mim_components.utils.files import text_digest, write_text_safely
from mim_components.utils.text import counted

logger = logging.getLogger(__name__)

DATALIST = "datalist.json"
REPORT = "data_report.md"
NO_DATASET = """\
Give the dataset in one way:
  --dataset_dir /path/to/dataset    the folder that its archive unpacks to; docs/README.md of the bundle has its layout
  --datalist list.json              {"training": [{"image": "a.nii.gz", "label": "a_label.nii.gz"}, ...]}; paths are
                                    relative to the list; for a classification, "label" is the number of a class
To try it without data, write a synthetic dataset: python -m mim_tools.synthetic --help"""
# Headers with their voxels in another file, which may be repaired while the header stays the same.
_DETACHED = (".mhd", ".nhdr")


@dataclass
class PreparedCases:
    """Usable cases, divided into training and validation.

    Attributes:
        training: items `image` (path, or a list of one per channel), `label` (path or class), `name`, `group`
            (patient), `source` (path for messages), `digest` (sha256 of the files) and `state` (by which
            `TransformCache` notices that a file has changed).
        validation: the same.
        unlabelled: items without `label`, `digest` and `state`, which are not checked.
        bad: what was left out.
        notes: lines for log and report.
        digest: sha256 over the content of all cases used and the split.
        counts: rows of the report's table.
        images: content of the image of every case by name, see `CheckResult`.
    """

    training: list[dict[str, Any]]
    validation: list[dict[str, Any]]
    unlabelled: list[dict[str, Any]] = field(default_factory=list)
    bad: list[BadVolume] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    digest: str = ""
    counts: list[tuple[str, int]] = field(default_factory=list)
    images: dict[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.training)

    @property
    def contents(self) -> dict[str, str]:
        """Part and digest of every case by name, which `digest` covers."""
        parts = {"training": self.training, "validation": self.validation}
        return {item["name"]: f"{part} {item['digest']}" for part, items in parts.items() for item in items}

    def summary(self) -> str:
        """Text of a few lines: number of cases in each part, and what was left out."""
        lines = [", ".join(f"{row}: {count}" for row, count in self.counts)]
        return "\n".join([*lines, *(f"left out: {item}" for item in self.bad)])


@dataclass
class CheckedCases:
    """Results of checks.

    Attributes:
        facts: results of the usable cases by name.
        states: states of the files before they were read, by name.
        bad: the other cases.
    """

    facts: dict[str, CheckResult] = field(default_factory=dict)
    states: dict[str, dict[str, int] | None] = field(default_factory=dict)
    bad: list[BadVolume] = field(default_factory=list)


def prepare_cases(
    found: FoundCases,
    checker: CaseChecker,
    split: Mapping[str, Any],
    fold: int = 0,
    label_ratio: float = 1.0,
    num_cases: int | None = None,
    *,
    cache_dir: str | Path,
    on_bad: str = "stop",
    max_bad_fraction: float = MAX_BAD_FRACTION,
    num_workers: int = 0,
    output_dir: str | Path | None = None,
    name: str = "dataset",
    anonymous_paths: bool = False,
) -> PreparedCases:
    """Check every labelled case, divide them, and write `datalist.json`, `data_report.md` and `quarantine.jsonl`.

    The split is made of all cases found, so that leaving one out moves no other. The processes of a run share the
    checks, and the first writes the files.

    Args:
        found: the cases.
        checker: check of a case.
        split: section `dataset.split` of a bundle's metadata.
        fold: the fold that validates.
        label_ratio: share of the training cases to use, in (0, 1].
        num_cases: number of labelled cases in the complete dataset, for the report; the layout's takes precedence.
        cache_dir: folder that caches results of checks.
        on_bad: "stop" raises if a case is bad, after all were checked; "exclude" leaves it out.
        max_bad_fraction: largest share of the labelled cases that "exclude" may leave out.
        num_workers: number of checking processes, for each process of the run.
        output_dir: folder for the files; None = not written.
        name: name of the dataset, for list and report.
        anonymous_paths: name cases by digests, see `mim_components.data.names`; `datalist.json`, which is made of
            paths, is not written.

    Raises:
        BadVolumesError: cases are bad and `on_bad` is "stop", or more than may be left out.
        DataError: no data is given, there is no such fold or share, or a part is empty; in all processes.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     cases = [Case(f"{number}", (Path(folder, f"{number}.nii"),), label=0) for number in range(1, 6)]
        ...     for case in cases:
        ...         case.image[0].touch()
        ...     found = FoundCases(Path(folder), "datalist", cases)
        ...     check = lambda case: CheckResult(digest=case.name)
        ...     prepared = prepare_cases(found, check, {"rule": "fifths"}, cache_dir=folder)
        >>> [[item["name"] for item in part] for part in (prepared.training, prepared.validation)]
        [['2', '3', '4', '5'], ['1']]
    """
    check_options(on_bad, max_bad_fraction, num_workers)
    if found.layout == NO_DATA:
        raise DataError(NO_DATASET)
    if is_anonymous(anonymous_paths):
        found = found.named_by_digests()
    # wrong settings fail here, before hours of checks
    planned = divide(found, split, fold)
    take_share(planned.training, split, fold, label_ratio)
    expected = num_cases if found.num_cases is None else found.num_cases
    folder = Path(output_dir) if output_dir is not None and idist.get_rank() == 0 else None

    team = _team(found.cases)
    checked = check_cases(found.cases, checker, cache_dir, num_workers, team)
    _find_copies(checked, planned, lambda training: take_share(training, split, fold, label_ratio))
    settle_bad(checked.bad, len(found.cases), on_bad, max_bad_fraction, folder)
    division = _without_bad(planned, checked)
    training = take_share(division.training, split, fold, label_ratio)
    prepared = _prepared(found, division, training, checked, expected)
    if folder is not None:
        facts = {"name": name, **getattr(checker, "datalist_facts", dict)()}
        _write(folder, found, division, training, prepared, facts, with_list=not anonymous_paths)
    team.check_same(prepared.digest, prepared.contents)
    if idist.get_rank() == 0:
        logger.info("%s (%s, %s): %s", name, found.layout, planned.how, prepared.summary())
        for note in prepared.notes:
            logger.warning("%s", note)
    return prepared


def _write(
    folder: Path,
    found: FoundCases,
    division: Division,
    training: list[Case],
    prepared: PreparedCases,
    facts: dict[str, Any],
    with_list: bool,
) -> None:
    report = data_report(facts["name"], found, division, training, prepared.counts, prepared.bad, prepared.notes)
    if with_list:
        write_text_safely(folder / DATALIST, json.dumps(datalist_of(found, division, facts), indent=1) + "\n")
    write_text_safely(folder / REPORT, report)


def _team(cases: Sequence[Case]) -> Team:
    """Processes that see the same files: copies on the disks of other machines have other times."""
    if idist.get_world_size() == 1:
        return Team()
    return Team("\n".join(f"{case.name} {case.label!r} {state_text(state_of(case.files))}" for case in cases))


def check_cases(
    cases: Sequence[Case],
    checker: CaseChecker,
    cache_dir: str | Path,
    num_workers: int = 0,
    team: Team | None = None,
    what: str = "",
) -> CheckedCases:
    """Check every case, unless the result is cached; the processes of a run share the work.

    Args:
        cases: the cases.
        checker: check of a case.
        cache_dir: folder that caches results of checks.
        num_workers: number of checking processes, for each process of the run.
        team: processes that share the work; None = those that see the same files.
        what: part of the cases that is checked, for the log, such as "label values of "; "" = everything.
    """
    memory, team = CheckMemory(cache_dir, checker), team or _team(cases)
    start, shown = perf_counter(), idist.get_rank() == 0
    share = team.share(cases)
    known = [memory.recall(repr(case.label), case.source, case.files) for case in share]
    to_check = sum(team.exchange(lambda: sum(each is None for each in known)))
    number = counted(len(cases), "case")
    logger.info("%s%s: %d to check, %d checked before", what, number, to_check, len(cases) - to_check)

    def check(share: Sequence[Case]) -> list[tuple[dict[str, int] | None, CheckResult | BadVolume]]:
        tasks = [case for case, result in zip(share, known, strict=True) if result is None]
        results = run_each(partial(_check_one, checker), tasks, num_workers, "check", "case", shown and bool(tasks))
        done = []
        for case, result in zip(share, known, strict=True):
            state, outcome = next(results) if result is None else (state_of(case.files), result)
            detached = any(path.suffix.lower() in _DETACHED for path in case.files)
            if result is None and not (isinstance(outcome, BadVolume) and detached):
                memory.keep(repr(case.label), case.source, case.files, state, outcome)
            done.append((state, outcome))
        return done

    everything = dict(zip([case.name for case in cases], team.divide(check, cases), strict=True))
    outcomes = {name: outcome for name, (_, outcome) in everything.items()}
    states = {name: state for name, (state, _) in everything.items()}
    if to_check:
        logger.info("checks took %.1f s", perf_counter() - start)
    checked = CheckedCases(states=states)
    for case in cases:
        outcome = outcomes[case.name]
        if isinstance(outcome, BadVolume):
            checked.bad.append(outcome)
        else:
            # cached results may come from a run that names files
            checked.facts[case.name] = replace(outcome, notes=tuple(hide(note, case.hidden) for note in outcome.notes))
    return checked


def _check_one(checker: CaseChecker, case: Case) -> tuple[dict[str, int] | None, CheckResult | BadVolume]:
    state = state_of(case.files)
    try:
        return state, checker(case)
    except Exception as error:
        files = [] if state is None else files_in(case.files)
        return state, bad_volume(case.source, error, files, case.hidden)


def _find_copies(checked: CheckedCases, division: Division, take: Callable[[list[Case]], list[Case]]) -> None:
    """Mark cases of the share that trains with the image of a validation case as bad: they make the score meaningless.

    Others follow into the share in their place, so it is taken again until it has none.
    """
    contents = {
        _content(checked.facts[case.name]): case.title for case in division.validation if case.name in checked.facts
    }
    while usable := [case for case in division.training if case.name in checked.facts]:
        try:
            copies = [case for case in take(usable) if _content(checked.facts[case.name]) in contents]
        except DataError:  # too few are left; the bad ones are reported first
            return
        if not copies:
            return
        for case in copies:
            facts = checked.facts.pop(case.name)
            copy = contents[_content(facts)]
            cause = f"the same image as validation case {copy}, and case {case.title} is for training"
            checked.bad.append(BadVolume(case.source, cause, facts.digest, state_of(case.files)))


def _without_bad(planned: Division, checked: CheckedCases) -> Division:
    training = [case for case in planned.training if case.name in checked.facts]
    validation = [case for case in planned.validation if case.name in checked.facts]
    for part, cases in (("training", training), ("validation", validation)):
        if not cases:
            left_out = "\n".join(f"  {item}" for item in checked.bad)
            raise DataError(f"no usable case is left for {part}; left out:\n{left_out}")
    return replace(planned, training=training, validation=validation)


def _prepared(
    found: FoundCases, division: Division, training: list[Case], checked: CheckedCases, num_cases: int | None
) -> PreparedCases:
    notes = [*found.notes, *division.notes]
    if num_cases is not None and len(found.cases) != num_cases:
        notes.append(f"{num_cases} labelled cases expected, {len(found.cases)} found")
    facts = checked.facts
    notes += [f"{case.title}: {note}" for case in found.cases if case.name in facts for note in facts[case.name].notes]
    used = [*division.training, *division.validation]
    notes += note_copies(((case.title, _content(facts[case.name])) for case in used), "image")
    parts = {"training": training, "validation": division.validation}
    lines = sorted(f"{part} {case.name} {facts[case.name].digest}" for part, cases in parts.items() for case in cases)
    return PreparedCases(
        training=[_checked_item(case, checked) for case in training],
        validation=[_checked_item(case, checked) for case in division.validation],
        unlabelled=[_item(case) for case in found.unlabelled],
        bad=checked.bad,
        notes=notes,
        digest=text_digest("\n".join(lines)),
        counts=list(count_rows(found, division, training, len(checked.bad), num_cases)),
        images={case.title: _content(facts[case.name]) for cases in parts.values() for case in cases},
    )


def _content(facts: CheckResult) -> str:
    return facts.content or facts.digest


def _item(case: Case) -> dict[str, Any]:
    files = [str(path) for path in case.image]
    image = files[0] if len(files) == 1 else files
    return {"image": image, "name": case.title, "group": case.patient, "source": case.source}


def _checked_item(case: Case, checked: CheckedCases) -> dict[str, Any]:
    label = str(case.label) if isinstance(case.label, Path) else case.label
    facts = {"digest": checked.facts[case.name].digest, "state": state_text(checked.states[case.name])}
    return {**_item(case), "label": label, **facts}
