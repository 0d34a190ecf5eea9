"""The configuration of the running bundle: checks of its overrides, and differences from an earlier run."""

from __future__ import annotations

import difflib
import json
import logging
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any

import torch
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.utils import ensure_tuple

from mim_components.run.errors import explain_errors
from mim_components.run.options import (
    OptionsError,
    callers,
    given_names,
    holder_of,
    option_table,
    with_defaults,
    wrong_options,
)
from mim_components.run.stores import check_tracking_uri
from mim_components.utils.text import mask_secrets

OF_TRAINING = ("evaluate.json", "multi_gpu_train.json", "probe.json")  # overlays that inference does not accept
CHECKED = "_checked_"  # stored among the parser's resolved values, which it drops when it reads other files


def current_workflow() -> ConfigWorkflow | None:
    """The bundle workflow whose expression is being evaluated, found among the callers; None outside a workflow."""
    workflows = (names.get("self") for _, names in callers())
    return next((each for each in workflows if isinstance(each, ConfigWorkflow)), None)


def current_config() -> dict[str, Any]:
    """The configuration of the running workflow, files and overrides merged, references unresolved; empty without one.

    In JSON form, and without passwords and tokens in addresses, since it is written to files.
    """
    workflow = current_workflow()
    config = {} if workflow is None else _config_of(workflow)
    kept: dict[str, Any] = _masked(json.loads(json.dumps(config, default=str)))
    return kept


def current_options() -> dict[str, Any]:
    """Options of the running workflow that are numbers, strings or lists of them, evaluated where already done."""
    workflow = current_workflow()
    if workflow is None:
        return {}
    evaluated, config = workflow.parser.ref_resolver.resolved_content, _config_of(workflow)
    values = {name: evaluated.get(name, config[name]) for name in option_table() if name in config}
    return {
        name: _masked(str(value) if isinstance(value, torch.device) else value)
        for name, value in values.items()
        if _is_plain(value)
    }


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(_is_plain(each) for each in value)
    is_text = isinstance(value, str) and value[:1] not in ("$", "@", "%")
    return is_text or isinstance(value, (bool, int, float, NoneType, torch.device))


def _masked(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _masked(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_masked(each) for each in value]
    return mask_secrets(value) if isinstance(value, str) else value


def _config_of(workflow: ConfigWorkflow) -> dict[str, Any]:
    config: Any = workflow.parser.config
    return dict(config)


def check_overrides(one_of: Sequence[Sequence[str]] = ()) -> None:
    """Refuse mistaken commands before anything else runs, and make errors end in one clear line.

    An overlay asks for it too, so that one without its file is refused; it is done once.

    MONAI accepts a misspelt `--datset_dir` silently, takes the second of two files without brackets for the id of what
    to run, and an overlay without the file it changes.

    Args:
        one_of: groups of options that set the same thing in different units. Null, or an object that derives one from
            another, means that an option is not given.

    Raises:
        ValueError: the files are wrong (shows the right command), several of `one_of` are given, or an address in
            MLFLOW_TRACKING_URI cannot work.
        OptionsError: names every unknown option, with the nearest known ones, and every invalid value.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from mim_components.utils.text import root_cause
        >>> check = {"_target_": "mim_components.run.check_overrides"}
        >>> with TemporaryDirectory() as folder:
        ...     file = Path(folder, "train.json")
        ...     _ = file.write_text(json.dumps({"bundle_root": ".", "max_steps": 5, "initialize": [check]}))
        ...     workflow = ConfigWorkflow(str(file), str(file), logging_file=False, max_step=9)
        ...     try:
        ...         workflow.initialize()
        ...     except RuntimeError as error:
        ...         print(root_cause(error))
        unknown option --max_step: nothing in the configuration reads it; did you mean --max_steps?
    """
    _mask_secrets_in_monais_log()
    workflow = current_workflow()
    explain_errors(None if workflow is None else workflow.parser.ref_resolver.resolved_content)
    if workflow is None or CHECKED in workflow.parser.ref_resolver.resolved_content:
        return
    _check_files(workflow)
    _leave_tracking_to_us(workflow)
    faults = [*_unknown_names(workflow), *_unknown_paths(workflow), *wrong_options(workflow)]
    if faults:
        raise OptionsError(faults)
    config = _config_of(workflow)
    _check_one_of(config, one_of)
    if "tracking_uri" in config and config["tracking_uri"] is None and "MLFLOW_TRACKING_URI" in os.environ:
        check_tracking_uri(os.environ["MLFLOW_TRACKING_URI"])
    workflow.parser.ref_resolver.resolved_content[CHECKED] = True


class _SecretsMask(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        """Mask secrets in a record."""
        record.msg, record.args = mask_secrets(record.getMessage()), None
        return True


def _mask_secrets_in_monais_log() -> None:
    """MONAI logs all options once the configuration is initialised."""
    monais = logging.getLogger("monai.bundle.scripts")
    if not any(isinstance(each, _SecretsMask) for each in monais.filters):
        monais.addFilter(_SecretsMask())


def _leave_tracking_to_us(workflow: ConfigWorkflow) -> None:
    """Switch off what MONAI's `--tracking mlflow` adds: a `RunTracker` tracks, and an inference has no numbers.

    MONAI's handlers expect the loss to be a tensor. A key that MONAI adds disables them in processes other than the
    first.
    """
    if "is_not_rank0" in _config_of(workflow):
        workflow.parser.ref_resolver.resolved_content["is_not_rank0"] = True


def _check_files(workflow: ConfigWorkflow) -> None:
    """Refuse configuration files in a wrong order."""
    run_id = str(workflow.run_id)
    if run_id.endswith(".json"):
        raise ValueError(f"several files need brackets and quotes: --config_file \"['...','{run_id}']\"")
    files = _given_files()
    overlays = [path for path in files if _is_overlay(path)]
    if not overlays:
        return
    base = next((path for path in files if path not in overlays), overlays[0].with_name("train.json"))
    if base.name == "inference.json" and any(path.name in OF_TRAINING for path in overlays):
        base = base.with_name("train.json")
    foreign = [path for path in overlays if _is_of_another_bundle(path, base)]
    if files[0] != base or foreign:
        moved = {path: base.parent / path.name for path in foreign if (base.parent / path.name).is_file()}
        shown = ",".join(f"'{path}'" for path in (base, *(moved.get(path, path) for path in overlays)))
        raise ValueError(f'{overlays[0].name} changes the {base.name} of its bundle: --config_file "[{shown}]"')


def _is_of_another_bundle(path: Path, base: Path) -> bool:
    folder = path.resolve().parent
    return folder != base.resolve().parent and (folder / "metadata.json").is_file()


def _given_files() -> list[Path]:
    """`config_file` of the call that created the workflow."""
    for module, names in callers():
        if "config_file" in names and module.startswith("monai.bundle"):
            return [Path(each) for each in ensure_tuple(names["config_file"] or ())]
    return []


def _is_overlay(path: Path) -> bool:
    return "bundle_root" not in json.loads(path.read_text(encoding="utf-8"))


def _unknown_names(workflow: ConfigWorkflow) -> Iterator[str]:
    """A line for every key that nothing in the configuration reads."""
    known = known_keys(Path(workflow.config_root_path))
    config = _config_of(workflow)
    text = json.dumps(config, default=str)
    if isinstance(config.get("network"), str) and config["network"][:1] not in ("@", "$", "%"):
        raise ValueError(f"--network {config['network']}: the option is --architecture; `network` is its result.")
    for key in config:
        if key not in known and not re.search(rf"[@%]{re.escape(key)}\b", text):
            moved = [path for path in option_table() if path.endswith(f"::{key}") and _is_there(config, path)]
            nearest = moved or difflib.get_close_matches(key, sorted(known), n=3)
            hint = f"did you mean {' or '.join(f'--{each}' for each in nearest)}?" if nearest else "see the README."
            if f"no{key}" in known:  # fire's reading of an option that begins with "no" and has no value
                yield f"--no{key} needs a value."
            else:
                yield f"unknown option --{key}: nothing in the configuration reads it; {hint}"


def _is_there(config: Mapping[str, Any], path: str) -> bool:
    place, key = holder_of(config, path)
    return key in with_defaults(place)


def _unknown_paths(workflow: ConfigWorkflow) -> Iterator[str]:
    """A line for every unknown `--part::nmae`, which MONAI would add to the part."""
    nested = [name for name in given_names() if "::" in name]
    config = ConfigParser.load_config_files([str(path) for path in _given_files()]) if nested else {}
    for name in nested:
        place, key = holder_of(config, name)
        known = with_defaults(place)
        if not place or key in known or key.startswith("_"):
            continue
        part = name.rpartition("::")[0]
        nearest = difflib.get_close_matches(key, known, n=3)
        hint = f"did you mean {' or '.join(f'--{part}::{each}' for each in nearest)}?"
        yield f"unknown option --{name}: {part} has no {key}; {hint if nearest else 'see the README.'}"


def _check_one_of(config: Mapping[str, Any], one_of: Sequence[Sequence[str]]) -> None:
    for names in one_of:
        given = [name for name in names if not isinstance(config.get(name), (Mapping, NoneType))]
        if len(given) > 1:
            values = " and ".join(f"--{name} {config[name]}" for name in given)
            raise ValueError(f"{values} are both given, but set the same thing; give only one of them.")


def bundle_root() -> str:
    """Folder of the running bundle, whatever the working directory; "." outside a workflow.

    Example:
        >>> bundle_root()  # no workflow is running
        '.'
    """
    workflow = current_workflow()
    return "." if workflow is None else str(Path(workflow.config_root_path).parent)


def known_keys(configs: Path) -> set[str]:
    """Top-level keys of all configuration files of a bundle."""
    keys = {"_meta_"}
    for path in sorted(configs.glob("*.json")):
        if path.name != "metadata.json":
            keys |= {key.removeprefix("+") for key in json.loads(path.read_text())}
    return keys


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Flatten nested dictionaries and lists, joining names with `::`."""
    if isinstance(config, Mapping) and config:
        parts = [(str(name), value) for name, value in config.items()]
    elif isinstance(config, list) and any(isinstance(each, (dict, list)) for each in config):
        parts = [(str(number), each) for number, each in enumerate(config)]
    else:
        return {prefix: config}
    flat: dict[str, Any] = {}
    for name, value in parts:
        flat |= flatten(value, f"{prefix}::{name}" if prefix else name)
    return flat


def is_free(key: str, free: Collection[str]) -> bool:
    """Whether a key is free or below a free one.

    Example:
        >>> is_free("folder::on_full_disk", ["folder"]), is_free("folders", ["folder"])
        (True, False)
    """
    names = key.split("::")
    return any("::".join(names[:count]) in free for count in range(1, len(names) + 1))


def differences(old: Mapping[str, Any], new: Mapping[str, Any], free: Collection[str] = ()) -> list[str]:
    """Lines `key: old -> new` for all values that differ, except free keys and everything below them.

    Example:
        >>> old = {"seed": 0, "train": {"inferer": 1, "step": {"max_norm": 1.0}}}
        >>> new = {"seed": 1, "train": {"inferer": 2, "step": {"max_norm": 1.0}}}
        >>> differences(old, new, free=["train::inferer"])
        ['seed: 0 -> 1']
    """
    before, after = flatten(old), flatten(json.loads(json.dumps(new, default=str)))

    def matters(key: str) -> bool:
        names = key.split("::")
        if names[0] == "_meta_":  # holds the settings of a dataset
            return names[1:2] == ["dataset"]
        return not is_free(key, free)

    return [
        f"{key}: {before.get(key, 'absent')} -> {after.get(key, 'absent')}"
        for key in sorted(before.keys() | after.keys())
        if matters(key) and before.get(key, "absent") != after.get(key, "absent")
    ]
