from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from studies import tables
from studies.definition import Study
from studies.evidence import Evidence
from studies.results import DONE
from tests.studies.lines import pretrained, tuned

Write = Callable[[dict[str, Any]], Path]


def test_cells_of_an_earlier_round_are_named(small: dict[str, Any], write: Write) -> None:
    study = Study(write(small))
    line = tuned(study, study.cells["scratch/1/seed0"], [0.5, 0.5], [0.5, 0.5])
    named = "Run in an earlier round that defines them identically: `scratch/1/seed0` of `first`."
    assert tables.cells(Evidence(study, {line["cell"]: line | {"study": "first"}}))[-1] == named
    assert named not in tables.cells(Evidence(study, {line["cell"]: line}))


def test_counts_of_cells(small: dict[str, Any], write: Write) -> None:
    small["seeds"] = [0, 1]
    small["pretraining_seed"] = 0
    study = Study(write(small))
    done = tuned(study, study.cells["scratch/1/seed0"], [0.5, 0.5], [0.5, 0.5])
    failed = {**pretrained(study, "mim", 0.5), "state": "failed", "cause": "train: exit status 1"}
    text = tables.cells(Evidence(study, {line["cell"]: line for line in (done, failed)}))
    assert text[2].splitlines()[2:] == [
        "| `scratch` |  | 1 of 2 (0123456) |",
        "| `mim` | 0 of 1, 1 failed | not run (2) |",
    ]
    assert text[3] == "- `mim/pretraining/seed0` failed: train: exit status 1"
    assert done["state"] == DONE


def test_probes_of_several_pretrainings(small: dict[str, Any], write: Write) -> None:
    small |= {"seeds": [0, 1]}  # and a pre-training of each
    study = Study(write(small))
    lines = [pretrained(study, "mim", 0.5, 0.5), pretrained(study, "mim", 0.25, 0.25, seed=1)]
    text = tables.probes(Evidence(study, {line["cell"]: line for line in lines}))
    assert "| `mim` | 37.5 [25.0, 50.0] | 50.0 |" in text[1]


def test_a_longer_pretraining_beside_the_earlier_round(small: dict[str, Any], write: Write) -> None:
    first = Study(write(small))
    small["pretraining"]["options"] |= {"max_steps": 8}
    second = Study(write(small | {"name": "longer"}))
    before, after = pretrained(first, "mim", 0.25, 0.25), pretrained(second, "mim", 0.5, 0.5)
    rounds = [Evidence(study, {line["cell"]: line}) for study, line in ((second, after), (first, before))]
    table = tables.probes(rounds[0], rounds[1:])[1]
    assert "| `mim` | 50.0 [50.0, 50.0] | 50.0 | +25.0 [+25.0, +25.0] (`small`) |" in table
    after["probe"]["encoder"]["draw_dice"] = [0.25, 0.5, 0.75]  # of more draws than before: not comparable
    text = tables.probes(rounds[0], rounds[1:])
    assert "| `mim` | 50.0 [50.0, 50.0] | 50.0 |" in text[1] and "+25.0" not in text[1]
    assert text[2] == "Draws of the probe's voxels, of which these are means: 3."


def test_unlike_encoders_of_one_pretraining(small: dict[str, Any], write: Write) -> None:
    study = Study(write(small))
    made = {**pretrained(study, "mim", 0.5), "encoder": "a"}
    used = {**tuned(study, study.cells["mim/1/seed0"], [0.5, 0.5], [0.5, 0.5]), "encoder": "a"}
    text = "The pre-training `mim/pretraining/seed0` was run more than once, with 2 different encoders."
    assert text not in tables.cells(Evidence(study, {line["cell"]: line for line in (made, used)}))
    used["encoder"] = "b"
    assert text in tables.cells(Evidence(study, {line["cell"]: line for line in (made, used)}))


def test_differences_seed_by_seed(small: dict[str, Any], write: Write) -> None:
    study = Study(write(small | {"seeds": [0, 1]}))
    lines = [
        tuned(study, study.cells[name], *scores)
        for name, scores in {
            "scratch/1/seed0": ([0.5, 0.5], [0.5, 0.5]),
            "scratch/1/seed1": ([0.25, 0.25], [0.25, 0.25]),
            "mim/1/seed0": ([0.5, 0.5], [0.25, 0.25]),
            "mim/1/seed1": ([0.5, 0.5], [0.5, 0.5]),
        }.items()
    ]
    text = tables.scores(Evidence(study, {line["cell"]: line for line in lines}))
    assert text[3] == "`mim` seed by seed: against `scratch` -12.5, +25.0."
