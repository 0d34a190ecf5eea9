"""A study file: what is compared, and the cells that it consists of.

A study is arms x label counts x seeds. A cell is a few bundle commands: the pre-training of an arm and seed, or the
fine-tuning and evaluation of an arm, number of labelled patients and seed. A fine-tuning needs the pre-training of its
arm, if the arm has one: that of the same seed, or, to save time, that of the study's `pretraining_seed`.

A later round `extends` the file of an earlier one: it states the keys that differ and inherits the rest. Cells that
stay the same are not run again: their results are those of the earlier round. All keys: `schema.json`.

Placeholders in options and configuration files: `{data}`, `{work}`, `{cell}` (folder of the cell), `{seed}`,
`{labels}` (fine-tuning only), `{pretrained}` (encoder of the arm's pre-training, `none` from scratch). An option that
consists of `{seed}` or `{labels}` alone is a number. In `docs/evidence.md` and the digest of a cell `{data}`, `{work}`
and `{cell}` remain placeholders, because neither may depend on where a study runs.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match

ROOT = Path(__file__).resolve().parents[1]
PHASES = ("pretraining", "fine_tuning")
SCHEMA = Path(__file__).with_name("schema.json")
ENCODER = "models/encoder.safetensors"  # of a pre-training, in the folder of its cell
PRETRAINING_LIST = "pretraining"  # names of the lists that `data.py` writes to `{work}/lists`
PARTS = ("train", "test")
SIZES = ("level_sizes", "num_children", "global_batch_size", "max_steps")  # options behind `network_volumes`
_LATE = ("data", "work", "cell")  # filled in when a cell runs


class StudyError(ValueError):
    """Invalid study file, data or results; says where, what was found and what was expected."""


@dataclass(frozen=True)
class Command:
    """One call of MONAI's bundle runner."""

    name: str
    config_files: tuple[str, ...]
    options: Mapping[str, Any]

    def filled(self, places: Mapping[str, str]) -> list[str]:
        """Arguments of `python`, with `{data}`, `{work}` and `{cell}` filled in."""
        files = [_fill(file, places) for file in self.config_files]
        listed = "[" + ",".join(f"'{file}'" for file in files) + "]" if len(files) > 1 else files[0]
        words = ["-m", "monai.bundle", "run", "--config_file", listed]
        for key, value in self.options.items():
            filled = _fill(value, places)
            words += [f"--{key}", json.dumps(filled) if isinstance(filled, (list, dict)) else str(filled)]
        return words


@dataclass(frozen=True)
class Cell:
    """The smallest part of a study that is run by itself.

    Attributes:
        name: `ARM/pretraining/seedN`, or `ARM/LABELS/seedN` of a fine-tuning.
        phase: one of `PHASES`.
        labels: number of labelled patients; None for a pre-training.
        needs: name of the cell that must be done first; None if there is none.
        digest: hash of everything that determines the result, including the digest of `needs`.
    """

    name: str
    phase: str
    arm: str
    seed: int
    labels: int | None
    commands: tuple[Command, ...]
    needs: str | None
    digest: str

    @property
    def folder(self) -> str:
        """Path below the folder of all cells; a changed definition gets another folder."""
        return f"{self.name}-{self.digest[:8]}"

    def folder_in(self, work: Path) -> Path:
        """The folder of the cell in the working folder of a study."""
        return work / "cells" / self.folder

    @property
    def options(self) -> dict[str, Any]:
        """Options of the first command, the training."""
        return dict(self.commands[0].options)


class Study:
    """A validated study file.

    Args:
        path: JSON file; a folder of the same name beside it, or beside the first file that it extends, holds the
            metadata of the fine-tuning bundle.

    Attributes:
        cells: cells by name, in the order in which they run.
        earlier: names of the studies that it extends, latest first.

    Raises:
        StudyError: the file is invalid; names the key, its value and what was expected.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        rounds = _rounds(self.path)
        self.bundle = rounds[-1][0].with_suffix("")  # folder with the metadata of the fine-tuning bundle
        self.earlier = [str(content.get("name")) for _, content in rounds[1:]]
        self.content = reduce(lambda base, own: _extended(base, own[1]), reversed(rounds), {})
        self._check_schema()
        self.name: str = self.content["name"]
        self.seeds: list[int] = self.content["seeds"]
        self.labels: list[int] = self.content["labels"]
        self.data: dict[str, Any] = self.content["data"]
        self.arms = {name: _inherit(self.path, self.content["arms"], name) for name in self.content["arms"]}
        self.phases = {phase: self.content[phase] for phase in PHASES}
        self.pretraining_seed: int | None = self.content.get("pretraining_seed")
        self.threads: int = self.content.get("threads", 1)
        self.prune: list[str] = self.content.get("prune", [])
        self.cells: dict[str, Cell] = {}
        for entry in self.content["order"]:
            self._add(entry)
        self._check_report()

    @cached_property
    def metadata(self) -> bytes:
        """Content of the fine-tuning bundle's `metadata.json`."""
        try:
            return (self.bundle / "metadata.json").read_bytes()
        except OSError as error:
            raise StudyError(f"{self.bundle / 'metadata.json'}: cannot be read ({error.strerror}).") from error

    @property
    def plan(self) -> Path:
        """The plan, committed before the first run; later rounds are declared in the plan of the first."""
        return self.bundle.with_suffix(".md")

    def fault(self, key: str, text: str) -> StudyError:
        """An error about a key of the file."""
        return StudyError(f"{self.path}: {key} {text}")

    def _check_schema(self) -> None:
        fault = best_match(Draft202012Validator(json.loads(SCHEMA.read_text())).iter_errors(self.content))
        if fault is not None:
            key = ".".join(str(part) for part in fault.absolute_path)
            raise self.fault(repr(key) if key else "the study:", f"{fault.message} (see {SCHEMA.name}).")

    def _check_report(self) -> None:
        """Check that the section `report` names only arms and labels that exist."""
        report = self.content["report"]
        ablations = report.get("ablations", {"rows": []})
        arms = [("primary.arm", report["primary"]["arm"]), ("primary.against", report["primary"]["against"])]
        arms += [("references", arm) for arm in report["references"]]
        arms += [("ablations", row["arm"]) for row in ablations["rows"]]
        labels = [("primary.labels", report["primary"]["labels"])]
        if "against" in ablations:
            arms.append(("ablations.against", ablations["against"]))
            labels.append(("ablations.labels", ablations["labels"]))
        for wanted, known in ((arms, list(self.arms)), (labels, self.labels)):
            for key, name in wanted:
                if name not in known:
                    raise self.fault(f"'report.{key}'", f"names {name!r}; there are {', '.join(map(str, known))}.")

    def _add(self, entry: Mapping[str, Any]) -> None:
        """Add the cells of an entry of `order`, seed by seed, so that early results already compare arms.

        An empty list of labels adds only the pre-trainings.
        """
        known = {"arms": list(self.arms), "labels": self.labels, "seeds": self.seeds}
        chosen: dict[str, Sequence[Any]] = {key: entry.get(key, values) for key, values in known.items()}
        for key, values in chosen.items():
            if unknown := [value for value in values if value not in known[key]]:
                raise self.fault("'order'", f"names unknown {key} {unknown}; there are {known[key]}.")
        for seed in chosen["seeds"]:
            for labels in chosen["labels"] or [None]:
                for arm in chosen["arms"]:
                    self._add_cells(arm, labels, seed)

    def _add_cells(self, arm: str, labels: int | None, seed: int) -> None:
        needs = None
        if self.arms[arm].get("pretraining") is not None:
            own = seed if self.pretraining_seed is None else self.pretraining_seed
            needs = self._cell("pretraining", arm, own, None, None)
        if labels is not None:
            self._cell("fine_tuning", arm, seed, labels, needs)

    def _cell(self, phase: str, arm: str, seed: int, labels: int | None, needs: Cell | None) -> Cell:
        name = f"{arm}/{labels or phase}/seed{seed}"
        if name in self.cells:
            return self.cells[name]
        values: dict[str, Any] = {"seed": seed}
        if phase == "fine_tuning":
            encoder = f"{{work}}/cells/{needs.folder}/{ENCODER}" if needs else "none"
            values |= {"labels": labels, "pretrained": encoder}
        commands = tuple(self._commands(phase, arm, values))
        facts = {
            "commands": [[command.config_files, dict(command.options)] for command in commands],
            "data": self.data,
            "metadata": hashlib.sha256(self.metadata).hexdigest() if phase == "fine_tuning" else None,
            "needs": needs.digest if needs else None,
        }
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
        cell = Cell(name, phase, arm, seed, labels, commands, needs.name if needs else None, digest)
        return self.cells.setdefault(name, cell)

    def _commands(self, phase: str, arm: str, values: Mapping[str, Any]) -> list[Command]:
        """Commands of a phase; options of the arm override those of the command, which override those of the phase."""
        template = self.phases[phase]
        commands = []
        for name, command in template["commands"].items():
            own = {**template.get("options", {}), **command.get("options", {}), **(self.arms[arm].get(phase) or {})}
            where = f"arm {arm!r}, command {name!r} of {phase!r}:"
            filled = {key: self._expand(value, values, f"{where} option {key!r}") for key, value in own.items()}
            files = [self._expand(file, values, f"{where} config_files") for file in command["config_files"]]
            self._check_lists(filled, where)
            commands.append(Command(name, tuple(files), filled))
        if phase == "pretraining" and (missing := [key for key in SIZES if key not in commands[0].options]):
            text = f"lack {', '.join(missing)}, which its number of network volumes depends on."
            raise self.fault(f"arm {arm!r}: the options of its pre-training", text)
        return commands

    def _check_lists(self, options: Mapping[str, Any], where: str) -> None:
        """Check that every list that an option names is written by `data.py`."""
        known = [
            PRETRAINING_LIST,
            *(list_name(part, n, seed) for part in PARTS for n in self.labels for seed in self.seeds),
        ]
        for key, value in options.items():
            found = re.fullmatch(r"\{work\}/lists/(.*)\.json", value) if isinstance(value, str) else None
            if found and found[1] not in known:
                raise self.fault(f"{where} option {key!r}", f"names {value}; the lists are {', '.join(known)}.")

    def _expand(self, value: Any, values: Mapping[str, Any], where: str) -> Any:
        """Fill in the values of a cell; placeholders that depend on where it runs remain."""
        known = [*values, *_LATE]
        for name in _names(value):
            if name not in known:
                raise self.fault(where, f"has the placeholder {{{name}}}; known here: {', '.join(known)}.")
        return _fill(value, values)


def list_name(part: str, labels: int, seed: int) -> str:
    """Name of a list of labelled patients: part `train`, or `test`, with the test patients as validation.

    Example:
        >>> list_name("train", 8, 0)
        'train_8_seed0'
    """
    return f"{part}_{labels}_seed{seed}"


def network_volumes(options: Mapping[str, Any]) -> tuple[int, int]:
    """Network volumes of a step and of a whole pre-training, from its options.

    Example:
        >>> sizes = [[96, 96, 96], [48, 48, 48], [16, 16, 16]]
        >>> network_volumes({"level_sizes": sizes, "num_children": 2, "global_batch_size": 3, "max_steps": 10})
        (21, 210)
    """
    levels, children = len(options["level_sizes"]), options["num_children"]
    step = options["global_batch_size"] * sum(children**level for level in range(levels))
    return step, step * options["max_steps"]


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise StudyError(f"{path}: cannot be read ({error.strerror}).") from error
    except ValueError as error:
        raise StudyError(f"{path}: no valid JSON ({error}).") from error
    if not isinstance(content, dict):
        raise StudyError(f"{path}: must hold a JSON object, got {type(content).__name__}.")
    return content


def _rounds(path: Path) -> list[tuple[Path, dict[str, Any]]]:
    """A study file and the files that it extends, latest first, each with its content."""
    rounds = [(path, _read(path))]
    while "extends" in rounds[-1][1]:
        file, content = rounds[-1]
        if not isinstance(name := content["extends"], str):
            raise StudyError(f"{file}: 'extends' must be the name of a study file, got {name!r}.")
        earlier = file.parent / name
        if earlier in [known for known, _ in rounds]:
            raise StudyError(f"{file}: 'extends' names {name}, which leads back to itself.")
        rounds.append((earlier, _read(earlier)))
    return rounds


def _inherit(path: Path, arms: Mapping[str, Any], name: str, seen: tuple[str, ...] = ()) -> dict[str, Any]:
    """An arm, including what it inherits from the one that it is `like`."""
    where = f"{path}: arm {(seen or (name,))[0]!r}"
    if name in seen:
        raise StudyError(f"{where} is like itself: {' -> '.join((*seen, name))}.")
    if name not in arms:
        raise StudyError(f"{where} is like {name!r}, which is not an arm; there are {', '.join(arms)}.")
    arm = arms[name]
    base = _inherit(path, arms, arm["like"], (*seen, name)) if "like" in arm else {}
    phases = {phase: _merged(base.get(phase), arm.get(phase)) for phase in PHASES if phase in {**base, **arm}}
    return {"title": arm.get("title", name), **phases}


def _merged(base: Mapping[str, Any] | None, own: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return None if base is None and own is None else {**(base or {}), **(own or {})}


def _extended(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Merge objects at every depth; any other value replaces that of the base."""
    merged = dict(base)
    for key, value in own.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict)
        merged[key] = _extended(base[key], value) if both else value
    return merged


def _names(value: Any) -> list[str]:
    """Placeholders in a value, at any depth."""
    return re.findall(r"\{(\w+)\}", value if isinstance(value, str) else json.dumps(value))


def _fill(value: Any, values: Mapping[str, Any]) -> Any:
    if isinstance(value, Mapping):
        return {key: _fill(each, values) for key, each in value.items()}
    if isinstance(value, list):
        return [_fill(each, values) for each in value]
    if not isinstance(value, str):
        return value
    if (whole := re.fullmatch(r"\{(\w+)\}", value)) and whole[1] in values:
        return values[whole[1]]
    return re.sub(r"\{(\w+)\}", lambda match: str(values.get(match[1], match[0])), value)
