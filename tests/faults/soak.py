"""Kill runs of a bundle at random, restart them with other numbers of workers, and compare with an undisturbed run.

    python -m tests.faults.soak --kills 30 --bundle pretrain --seed 0 --json soak.json

Half of the signals are SIGKILL, half SIGTERM; half go to the main process only, half to its workers too. Runs are
started until the requested number of kills is reached; a signal too late to end a run does not count. The exit code is
0 if every number of every iteration and the final weights equal those of the undisturbed run bit for bit, else 1.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from mim_tools.synthetic import write_synthetic_layout
from tests.faults.runs import PRETRAIN, SEGMENTATION, Bundle, Run, losses, server, start, weights_digest

BUNDLES = {"pretrain": PRETRAIN, "segmentation": SEGMENTATION}
SIGNALS = (signal.SIGKILL, signal.SIGTERM)
ENDS = {-signal.SIGKILL, -signal.SIGTERM, 128 + signal.SIGTERM}  # 143: finished its step and saved
WORKERS = (0, 1, 2, 3)
HOUR = 3600  # seconds; other work on the machine is no fault
LONG = {"max_steps": 24, "checkpoint_interval": 3, "train::progress": None}
OWN: dict[str, dict[str, Any]] = {
    "pretrain": {"num_children": 2, "train::pictures": None},
    "segmentation": {"validation_steps": 3},
}


@dataclass(frozen=True)
class Kill:
    """A signal that ended a run.

    Attributes:
        signal: name of the signal.
        group: whether the workers got it too.
        workers: number of workers.
        seconds: time of the signal after the start.
        place: what the run was doing.
        code: exit code of the run.
    """

    signal: str
    group: bool
    workers: int
    seconds: float
    place: str
    code: int


@dataclass
class Soak:
    """Kills, and results of the comparison."""

    bundle: str
    seed: int
    steps: int
    kills: list[Kill] = field(default_factory=list)
    runs: int = 0
    iterations: int = 0
    differing: int = 0
    other_weights: int = 0
    seconds: float = 0.0

    @property
    def good(self) -> bool:
        """Whether all runs are equal."""
        return not self.differing and not self.other_weights

    def __str__(self) -> str:
        signals, places = (Counter(getattr(kill, name) for kill in self.kills) for name in ("signal", "place"))
        weights = (
            f"final weights differ in {self.other_weights} runs" if self.other_weights else "final weights identical"
        )
        return (
            f"{len(self.kills)} random kills ({signals['SIGKILL']} SIGKILL, {signals['SIGTERM']} SIGTERM), "
            f"{self.differing} iterations differ, {weights}\n"
            f"{self.bundle}: {self.runs} runs of {self.steps} steps, {self.iterations} iterations compared, "
            f"{self.seconds:.0f} s; killed in {', '.join(f'{place} {count}' for place, count in places.most_common())}"
        )


def write_data(bundle: Bundle, folder: Path) -> dict[str, str]:
    """Small scans for a bundle, as its options."""
    options = {"cache_dir": str(folder / "cache"), "tracking_uri": f"sqlite:///{folder / 'mlruns.db'}"}
    if bundle is SEGMENTATION:
        data = write_synthetic_layout(folder / "data", "msd_spleen", 5, spatial_size=(40, 40, 36))
        return {**options, "dataset_dir": str(data)}
    (folder / "data").mkdir()
    for number in range(3):
        noise = np.random.default_rng(number).normal(0, 20, (44, 42, 36))
        noise[8:36, 8:34] += 1000  # a body in air
        scan = nib.Nifti1Image((noise - 1000).astype(np.int16), np.diag([1.5, 1.5, 3.0, 1.0]))
        nib.save(scan, folder / "data" / f"scan_{number}.nii.gz")
    return {**options, "dataset_dir": str(folder / "data")}


def place_of(run: Run, began: float, steps: int) -> str:
    """What a run was doing when it was killed."""
    if any(path.stat().st_mtime >= began for path in run.output.glob("*/.*.partial")):
        return "saving"
    metrics = run.output / "metrics.jsonl"
    if not metrics.exists() or metrics.stat().st_mtime < began:  # written at the first step, also of a continued run
        return "start-up"
    return "finishing" if f'"step": {steps},' in metrics.read_text() else "training"


def kill_once(
    bundle: Bundle, output: Path, options: dict[str, Any], longest: float, chance: random.Random
) -> Kill | None:
    """Start a run and send a signal at a random time; None if the run succeeded before or in spite of it."""
    workers, moment, number, group = (
        chance.choice(WORKERS), chance.uniform(0, longest), chance.choice(SIGNALS), chance.random() < 0.5
    )  # fmt: skip
    began = time.time()
    run = start(bundle, output, **options, num_workers=workers)
    while run.code is None and time.time() < began + moment:
        time.sleep(0.01)
    if run.code is None:
        run.kill(number) if group else run.send(number)
    code = run.wait(HOUR)
    if code == 0:
        return None
    assert code in ENDS, f"exit code {code} after {number.name}:\n{run.text[-4000:]}"
    place = place_of(run, began, options["max_steps"])
    return Kill(number.name, group, workers, round(time.time() - began, 2), place, code)


def finish(run: Run) -> Path:
    """Output of a run that must succeed."""
    assert run.wait(HOUR) == 0, run.text[-4000:]
    return run.output


def compare(soak: Soak, output: Path, reference: Path) -> None:
    """Count what differs."""
    rows, expected = losses(output), losses(reference)
    soak.runs += 1
    soak.iterations += soak.steps
    soak.differing += sum(a != b for a, b in zip(rows, expected, strict=False)) + abs(len(rows) - len(expected))
    soak.other_weights += weights_digest(output) != weights_digest(reference)


def run_soak(name: str, kills: int, seed: int, folder: Path, **options: Any) -> Soak:
    """Kill runs until the requested number of kills is counted."""
    bundle, chance, began = BUNDLES[name], random.Random(seed), time.monotonic()
    given = {**LONG, **OWN[name], **write_data(bundle, folder), **options}
    soak = Soak(name, seed, given["max_steps"])
    finish(start(bundle, folder / "first", **given))  # fills the caches
    once = time.monotonic()
    reference = finish(start(bundle, folder / "reference", **given))
    longest = time.monotonic() - once
    while len(soak.kills) < kills:
        output = folder / f"run_{soak.runs}"
        while len(soak.kills) < kills and (kill := kill_once(bundle, output, given, longest, chance)) is not None:
            soak.kills.append(kill)
            print(f"{len(soak.kills)}: {kill}", flush=True)
        finish(start(bundle, output, **given))  # reports if it is finished already
        compare(soak, output, reference)
    soak.seconds = round(time.monotonic() - began, 1)
    return soak


def main(argv: Sequence[str] | None = None) -> int:
    """Run, print and write the result; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak", description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--bundle", choices=BUNDLES, default="pretrain")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="file for the result")
    given = parser.parse_args(argv)
    folder = Path(tempfile.mkdtemp(prefix="soak_"))
    soak = run_soak(given.bundle, given.kills, given.seed, folder)
    print(soak)
    if given.json:
        given.json.write_text(json.dumps({**asdict(soak), "good": soak.good}, indent=1))
    if soak.good:
        shutil.rmtree(folder)
    else:
        print(f"The runs are in {folder}.")
    server().close()
    return 0 if soak.good else 1


if __name__ == "__main__":
    sys.exit(main())
