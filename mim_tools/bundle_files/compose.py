"""Compose the files of a bundle from fragments, so that what several tasks share is in one of them only.

A configuration is the merge by key of the fragments of that name; later ones win, with MONAI's meaning of
keys: `a::b` sets inside `a`, `+a` extends a list or a dictionary. If no fragment has `a`, the key stays unchanged,
and MONAI applies it to the file that an overlay follows.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mim_components.run.options import option_table

WIDTH = 128
INDENT = 4
# Keys that are not options, in reading order; also inside `train` and `validate`.
PARTS = """
    class_names label_set crop_size original imports results_dir synthetic_ct folder found labels prepared
    network_def scale contract settings started probed trained module network averaged evaluated_network class_loss
    region_loss loss optimizer lr_scheduler tracker probe crop scans preprocessing dataset dataloader sample_shapes
    start_check begin step inferer postprocessing scores dice error accuracy auc_macro auc_micro metric key_metric
    additional_metrics progress collapse validation checkpoints pictures signals handlers evaluator trainer fit train
    validate initialize run finalize
""".split()
SECTIONS = ("train", "validate")


def merge(fragments: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Merge fragments of a configuration, in the order of `PARTS`.

    Raises:
        ValueError: `+key` joins values of different types, or a key has no place in `PARTS`.

    Example:
        >>> merge([{"run": [1], "step": {"amp": True}}, {"+run": [2], "step::norm": 1.0, "trainer::x": 3}])
        {'step': {'amp': True, 'norm': 1.0}, 'trainer::x': 3, 'run': [1, 2]}
    """
    config: dict[str, Any] = {}
    for fragment in fragments:
        for key, value in fragment.items():
            _set(config, key.removeprefix("+"), copy.deepcopy(value), extend=key.startswith("+"))
    for name in SECTIONS:
        if name in config:
            config[name] = _sorted(config[name])
    return _sorted({name: _target_first(value) for name, value in config.items()})


def as_overlay(config: Mapping[str, Any]) -> dict[str, Any]:
    """An overlay that MONAI can also read alone or first, so that the check can say which file it changes.

    `a::b` needs an existing `a`; `+a` does not.

    Example:
        >>> overlay = as_overlay({"prepared::spacing": None, "seed": 1, "validate::evaluator::amp": True})
        >>> {key: overlay[key] for key in sorted(overlay)[:2]}
        {'+initialize': [{'_target_': 'mim_components.run.check_overrides'}], '+prepared': {'spacing': None}}
    """
    made: dict[str, Any] = {}
    for name, value in config.items():
        part, _, key = name.rpartition("::")
        if part:
            made.setdefault(f"+{part}", {})[key] = value
        else:
            made[name] = value
    check = {"_target_": "mim_components.run.check_overrides"}
    made["+initialize"] = [check, *made.pop("initialize", [])]
    return _sorted(made)


def _set(config: dict[str, Any], key: str, value: Any, extend: bool) -> None:
    *parents, name = key.split("::")
    place = config
    if parents and parents[0] in config:
        for parent in parents:
            place = place[parent]
    else:
        name = key
    if not extend or name not in place:
        place[name] = value
    elif isinstance(value, dict) and isinstance(place[name], dict):
        place[name].update(value)
    elif isinstance(value, list) and isinstance(place[name], list):
        place[name].extend(value)
    else:
        raise ValueError(f"+{key} must extend a list with a list or a dictionary with one, got {value!r}.")


def with_literals(value: Any, metadata: Mapping[str, Any]) -> Any:
    """Replace references to the metadata in a configuration by their values, where they exist.

    Raises:
        ValueError: an expression refers to the metadata.

    Example:
        >>> with_literals({"spacing": "@_meta_::dataset::spacing"}, {"dataset": {"spacing": [1.5, 1.5, 2.0]}})
        {'spacing': [1.5, 1.5, 2.0]}
    """
    if isinstance(value, dict):
        return {name: with_literals(each, metadata) for name, each in value.items()}
    if isinstance(value, list):
        return [with_literals(each, metadata) for each in value]
    if not isinstance(value, str) or "_meta_" not in value:
        return value
    if value[1:].partition("::")[0] != "_meta_":
        raise ValueError(f"expected @_meta_::NAME or %_meta_::NAME, got {value!r}.")
    found: Any = metadata
    for name in value.split("::")[1:]:
        if name not in found:
            return value
        found = found[name]
    return copy.deepcopy(found)


def _target_first(value: Any) -> Any:
    if isinstance(value, list):
        return [_target_first(each) for each in value]
    if not isinstance(value, dict):
        return value
    first = {"_target_": value["_target_"]} if "_target_" in value else {}
    return {name: _target_first(each) for name, each in {**first, **value}.items()}


def _sorted(config: dict[str, Any]) -> dict[str, Any]:
    names = [name for name in option_table() if "::" not in name]
    order = {name: number for number, name in enumerate(["bundle_root", *names, *PARTS])}
    roots = {name: name if name in order else name.removeprefix("+").split("::")[0] for name in config}
    if unplaced := sorted(set(roots.values()) - order.keys()):
        raise ValueError(f"no place for {', '.join(unplaced)}: add it to the table of options, or to PARTS.")
    return dict(sorted(config.items(), key=lambda item: order[roots[item[0]]]))


def as_text(config: Mapping[str, Any]) -> str:
    """Readable JSON: values that fit are on one line; lists of strings and numbers fill lines.

    Example:
        >>> print(as_text({"spacing": [1.5, 1.5, 2.0], "folder": {"_target_": "RunFolder"}}), end="")
        {
            "spacing": [1.5, 1.5, 2.0],
            "folder": {"_target_": "RunFolder"}
        }
    """
    lines = [f"{json.dumps(name)}: {_text(value, len(name) + 4, INDENT)}" for name, value in config.items()]
    return "{\n" + ",\n".join(f"{' ' * INDENT}{line}" for line in lines) + "\n}\n"


def _text(value: Any, before: int, indent: int) -> str:
    """A value on a line that already has `before` characters after `indent` spaces."""
    short = json.dumps(value, ensure_ascii=False)
    if not isinstance(value, (dict, list)) or not value or indent + before + len(short) + 1 <= WIDTH:
        return short
    inner = indent + INDENT
    if isinstance(value, dict):
        lines = [f"{json.dumps(name)}: {_text(each, len(name) + 4, inner)}" for name, each in value.items()]
    elif any(isinstance(each, (dict, list)) for each in value):
        lines = [_text(each, 0, inner) for each in value]
    else:
        lines = _filled([json.dumps(each) for each in value], WIDTH - inner)
    opening, closing = ("{", "}") if isinstance(value, dict) else ("[", "]")
    body = ",\n".join(" " * inner + line for line in lines)
    return f"{opening}\n{body}\n{' ' * indent}{closing}"


def _filled(words: Iterable[str], width: int) -> list[str]:
    lines = [""]
    for word in words:
        longer = f"{lines[-1]}, {word}" if lines[-1] else word
        if not lines[-1] or len(longer) + 1 <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def read_fragment(path: Path) -> dict[str, Any]:
    """Read a fragment.

    Raises:
        ValueError: the file is not a JSON object; the message names it.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: invalid JSON, {error}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: must hold a JSON object, got {type(content).__name__}.")
    return content
