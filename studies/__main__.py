"""Studies: `python -m studies {collect,data,picture,report,run,status} STUDY.json`; a guide is in studies/README.md.

`run` prepares the data and runs every cell that is not done; it can be interrupted and restarted at any time. It reads
the source data from `--data`, works in `--output` and adds a line per cell to the results. `picture` draws a test scan
as segmented by the networks of several arms. `report` writes `docs/evidence.md`, and the README's table, from study
files and results alone. `collect` adds to the results what a later version of this program records of a cell.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from mim_components.utils.text import counted
from studies.attempts import read_again
from studies.data import prepare_data
from studies.definition import ROOT, SCHEMA, Study, StudyError
from studies.evidence import Evidence
from studies.pictures import write_picture
from studies.report import scan_picture, write_report
from studies.results import DONE, FAILED, commit_of_tree, read_results, results_file
from studies.run import Runner, chosen, default_jobs, is_running

OK, INCOMPLETE, USAGE, STOPPED = 0, 1, 2, 143


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns 0 on success, 1 if cells failed or remain, 2 for invalid input, 143 if interrupted."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    try:
        return int(options.command(options))
    except (StudyError, OSError) as error:
        print(f"ERROR {error}", file=sys.stderr)
        return USAGE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m studies", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, command: object, text: str, output: str) -> argparse.ArgumentParser:
        own = commands.add_parser(name, help=text, description=text)
        own.set_defaults(command=command)
        several = {"status": "*", "report": "*"}
        files = "study file (JSON)" if name not in several else "study files (default: all of this repository)"
        own.add_argument("study", type=Path, nargs=several.get(name), help=files)
        own.add_argument("--output", type=Path, help=output)
        own.add_argument("--results", type=Path, help="folder of NAME.jsonl (default: results beside the study file)")
        return own

    work = "working folder (default: study_output/NAME)"
    run = add("run", _run, "prepare the data and run every cell that is not done", work)
    run.add_argument("--data", type=Path, required=True, help="folder of the source data")
    run.add_argument("--jobs", type=int, help="number of concurrent cells (default: one per GPU, or per usable core)")
    run.add_argument("--only", metavar="PATTERN", help="only matching cells, such as 'mim/8/*', and those they need")
    run.add_argument("--nice", type=int, default=19, help="niceness of the processes (default: 19, lowest priority)")
    run.add_argument("--retry", action="store_true", help="run failed cells again")
    run.add_argument("--allow_dirty", action="store_true", help="run with uncommitted changes")
    data = add("data", _data, "write label maps and lists", work)
    data.add_argument("--data", type=Path, required=True, help="folder of the source data")
    picture = add("picture", _picture, "draw a test scan as segmented by several networks", work)
    picture.add_argument("--data", type=Path, required=True, help="folder of the source data")
    picture.add_argument("--scan", help="name of a test scan (default: that of the study file)")
    picture.add_argument("--cells", nargs="+", metavar="CELL", help="such as scratch/8/seed0 (default: likewise)")
    picture.add_argument("--file", type=Path, help="PNG to write (default: docs/images/evidence_NAME_scan.png)")
    add("status", _status, "show the state of every cell", work)
    add("collect", _collect, "read the folders of finished cells again", work)
    report = add("report", _report, "write the report on one or more studies, latest round first", "folder of the page")
    report.add_argument(
        "--readme", type=Path, help="page that contains the table (default: README.md if the page goes to docs)"
    )
    report.add_argument("--check", action="store_true", help="write nothing; fail if a page is out of date")
    return parser


def _work(options: argparse.Namespace, study: Study) -> Path:
    return Path(options.output or ROOT / "study_output" / study.name)


def _data(options: argparse.Namespace) -> int:
    study = Study(options.study)
    found = prepare_data(study, options.data, _work(options, study))
    print(", ".join(f"{name}: {count}" for name, count in found.items()))
    return OK


def _run(options: argparse.Namespace) -> int:
    study = Study(options.study)
    cells, results = chosen(study, options.only), results_file(study, options.results)
    jobs = default_jobs(study.threads) if options.jobs is None else options.jobs
    if jobs < 1:
        raise StudyError(f"--jobs must be at least 1, got {jobs}.")
    commit, dirty = commit_of_tree(study, results)
    if dirty and not options.allow_dirty:
        raise StudyError("the code differs from its commit, or is not in git; commit it, or give --allow_dirty.")
    work = _work(options, study)
    prepare_data(study, options.data, work)
    runner = Runner(
        study, cells, options.data, work, results, commit + ("+changes" if dirty else ""), options.retry, options.nice
    )
    states = Counter(runner.run(jobs).values())
    print(f"{study.name}: {states[DONE]} of {len(cells)} cells done", end="")
    print("".join(f", {count} {state}" for state, count in states.items() if state != DONE))
    if runner.elsewhere:
        print(f"run by other processes: {', '.join(runner.elsewhere)}")
    if runner.stopping:
        return STOPPED
    return OK if states[DONE] == len(cells) else INCOMPLETE


def _picture(options: argparse.Namespace) -> int:
    study = Study(options.study)
    known = {name: cell for name, cell in study.cells.items() if cell.phase == "fine_tuning"}
    settings = study.content["report"].get("picture", {})
    scan, names = options.scan or settings.get("scan"), options.cells or settings.get("cells")
    if not scan or not names:
        raise study.fault("'report.picture'", "is missing; give --scan and --cells.")
    if unknown := [name for name in names if name not in known]:
        raise StudyError(f"--cells names {', '.join(unknown)}; the fine-tunings are {', '.join(known)}.")
    results = read_results(results_file(study, options.results), study)
    cells = [known[name] for name in names]
    file = options.file or ROOT / "docs" / scan_picture(study)
    print(write_picture(study, results, cells, scan, options.data, _work(options, study), file))
    return OK


def _status(options: argparse.Namespace) -> int:
    for path in options.study or own_studies():
        _print_status(options, Study(path))
    return OK


def _print_status(options: argparse.Namespace, study: Study) -> None:
    results = read_results(results_file(study, options.results), study)
    work = _work(options, study)
    states = {name: results.get(name, {}).get("state", "not run") for name in study.cells}
    for name, cell in study.cells.items():
        if states[name] != DONE and is_running(work, cell):
            states[name] = "running"
        cost = f"  {results[name]['cpu_seconds'] / 60:.0f} CPU minutes" if name in results else ""
        cause = f"  {results[name]['cause']}" if states[name] == FAILED else ""
        print(f"{states[name]:<10}{name}{cost}{cause}")
    print(f"{study.name}: {', '.join(f'{count} {state}' for state, count in Counter(states.values()).items())}")


def _collect(options: argparse.Namespace) -> int:
    study = Study(options.study)
    changed = read_again(study, results_file(study, options.results), _work(options, study))
    print(f"{study.name}: new lines for {counted(len(changed), 'cell')}{': ' if changed else ''}{', '.join(changed)}")
    return OK


def own_studies() -> list[Path]:
    """Study files of this repository, latest round first."""
    return sorted(set((ROOT / "studies").glob("*.json")) - {SCHEMA}, reverse=True)


def _report(options: argparse.Namespace) -> int:
    files = options.study or own_studies()
    if not options.output and (options.study or options.results):
        raise StudyError(
            "--output is needed: docs/evidence.md is the page on all studies and results of this repository."
        )
    studies = [Study(path) for path in files]
    evidence = [Evidence(study, read_results(results_file(study, options.results), study)) for study in studies]
    folder = Path(options.output or ROOT / "docs")
    readme = options.readme or (None if options.output else ROOT / "README.md")
    for path in write_report(evidence, folder, readme, options.check):
        print(path)
    return OK


if __name__ == "__main__":
    sys.exit(main())
