"""Options of the bundles: checked before anything else runs, and taken as they were typed.

fire and MONAI's parser change some values before a bundle sees them: `2024_07` becomes the number 202407, `a,b` a
tuple, `out#2` becomes `out::2`, and `false` stays a string that counts as true. `options.json` beside this file states
the kind, range, unit and meaning of every option; the tables in the bundles' READMEs are made from it. Options of a
part of the configuration are named by their path, `prepared::max_voxels`.
"""

from __future__ import annotations

import inspect
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from pydoc import locate
from typing import Any

import torch
from monai.bundle import ConfigWorkflow

from mim_components.run.stores import check_tracking_uri
from mim_components.utils.text import mask_secrets

KINDS = "path text bool int number choice triple numbers sizes window mapping device store part".split()
NULLS = ("null", "None")
# Parts of a configuration that determine where, how fast or how verbosely, not the result; the first line is MONAI's
FREE_PARTS = """
    handlers imports initialize run finalize run_name save_execute_config is_not_rank0
    bundle_root folder synthetic_ct module network probe train::sample_shapes train::start_check train::begin train::fit
    train::dataloader train::inferer train::progress train::collapse train::checkpoints train::pictures train::signals
    train::handlers
""".split()


class OptionsError(ValueError):
    """Options that do not exist or have invalid values; names each, what was given and what is expected."""

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__("\n  ".join(["wrong options:"] * (len(faults) > 1) + list(faults)))


@lru_cache
def option_table() -> dict[str, dict[str, Any]]:
    """The facts about every option, by name.

    Every one has `kind` and `text`; where they apply `unit`, `null`, `choices`, `length`, `least`, `above`, `most`,
    `below`, `without` (signs), `words` that stand for a value, `default` in words, and `free` where it may change when
    a run continues. A list is as long as that of the option `as_long_as`, or shorter by `fewer`.
    """
    table: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("options.json").read_text(encoding="utf-8"))
    return table


@lru_cache
def free_keys() -> frozenset[str]:
    """Keys of a configuration that may change when a run continues; `a::b` includes everything below it.

    Example:
        >>> sorted(free_keys() & {"num_workers", "seed", "folder"})
        ['folder', 'num_workers']
    """
    return frozenset([*FREE_PARTS, *(name for name, option in option_table().items() if option.get("free"))])


def with_defaults(part: Mapping[str, Any]) -> dict[str, Any]:
    """A part of a configuration with the defaults of its component; unchanged if `_target_` is a short name of MONAI.

    Example:
        >>> with_defaults({"_target_": "mim_components.engines.autocast_dtype"})
        {'amp_dtype': 'auto', '_target_': 'mim_components.engines.autocast_dtype'}
    """
    made: Any = locate(part["_target_"]) if "." in part.get("_target_", "") else None
    arguments = {} if made is None else inspect.signature(made).parameters
    return {**{name: argument.default for name, argument in arguments.items()}, **part}


def wrong_options(workflow: ConfigWorkflow) -> list[str]:
    """Check the value of every option and convert it to its kind; returns a line for each wrong one.

    `true` and `false` in any case become booleans, one number where three are expected becomes three (`roi_size`), and
    paths become the text that was typed, with `~` expanded. Expressions and references are left unchanged.
    """
    config: Any = workflow.parser.config
    resolver = workflow.parser.ref_resolver
    typed = given_options()
    wrong = []
    for name, option in option_table().items():
        place, key = holder_of(config, name)
        if key not in place or option["kind"] == "part":
            continue
        value = place[key]
        if option["kind"] in ("path", "text", "store") and name in typed:
            value = typed[name]
        elif isinstance(value, str) and value[:1] in ("$", "@", "%"):
            continue
        elif isinstance(value, Mapping) and "_target_" in value:
            continue
        try:
            new = convert(value, option)
        except ValueError as error:
            wrong.append(f"--{name} {mask_secrets(str(typed.get(name, value)))}: {error}")
            continue
        # the cache of resolved values: references to the option find it there, without another pass of the parser,
        # which would take `#` in a path for its separator
        resolver.resolved_content[name] = new
        place[key] = str(new) if isinstance(new, torch.device) else new
    return [*wrong, *_wrong_lengths(config), *_unused_list(config)]


def _unused_list(config: Mapping[str, Any]) -> list[str]:
    """A line for a list of scans to probe that is given where nothing probes."""
    names, probe = given_names(), config.get("probe")
    probes = isinstance(probe, Mapping) and probe.get("_disabled_") is False  # by probe.json
    if "probe::datalist" not in names or "probe_interval" in names or probes or config.get("probe_interval"):
        return []
    return ["--probe::datalist: nothing probes; give --probe_interval as well, or add probe.json to --config_file."]


def _wrong_lengths(config: Mapping[str, Any]) -> list[str]:
    """A line for every list whose length does not match that of another option."""
    lines = []
    for name, option in option_table().items():
        value, other = config.get(name), config.get(str(option.get("as_long_as")))
        if isinstance(value, list) and isinstance(other, list):
            wanted = len(other) - option.get("fewer", 0)
            if len(value) != wanted:
                lines.append(f"--{name} {value}: expected {wanted} numbers for {len(other)} {option['as_long_as']}.")
    return lines


def holder_of(config: Mapping[str, Any], name: str) -> tuple[dict[str, Any], str]:
    """The dictionary and key that hold the value of an option; an empty dictionary if its part does not exist.

    Example:
        >>> holder_of({"prepared": {"verify": "full"}}, "prepared::verify")
        ({'verify': 'full'}, 'verify')
    """
    *parts, key = name.split("::")
    place: Any = config
    for part in parts:
        place = place.get(part) if isinstance(place, dict) else None
    return (place if isinstance(place, dict) else {}), key


def given_options() -> dict[str, str]:
    """Options as the caller gave them: words of the command line, or strings of a call from Python."""
    return {name: value for name, value in _given().items() if isinstance(value, str)}


def given_names() -> list[str]:
    """Names of the options that the caller gave, `a#b` as `a::b`."""
    return [name.replace("#", "::") for name in _given()]


def _given() -> dict[str, Any]:
    if Path(sys.argv[0]).parts[-3:-1] == ("monai", "bundle"):
        return dict(read_words(sys.argv[1:]))
    for module, names in callers():
        if module == "monai.bundle.scripts":
            given = names.get("override", names.get("kwargs"))  # in run, in create_workflow
            if isinstance(given, dict):
                return given
    return {}


def callers() -> Iterator[tuple[str, dict[str, Any]]]:
    """Module and local variables of every running function, innermost first.

    MONAI passes an expression only its references, not the configuration or the arguments of the call.
    """
    frame = inspect.currentframe()
    while frame is not None:
        yield str(frame.f_globals.get("__name__", "")), frame.f_locals
        frame = frame.f_back


def read_words(words: Sequence[str]) -> dict[str, str]:
    """Options of a command line, split as fire does but without converting values to numbers.

    Example:
        >>> read_words(["run", "--output-dir", "2024_07", "--level=-1", "--amp", "--spacing", "[1,1,1]"])
        {'output_dir': '2024_07', 'level': '-1', 'spacing': '[1,1,1]'}
    """
    options = {}
    for number, word in enumerate(words):
        if not word.startswith("--"):
            continue
        name, equals, value = word[2:].partition("=")
        if not equals:
            if number + 1 == len(words) or _is_flag(words[number + 1]):
                continue
            value = words[number + 1]
        options[name.replace("-", "_")] = value
    return options


def _is_flag(word: str) -> bool:
    return word.startswith("--") or (word[:1] == "-" and word[1:2].isalpha())


def convert(value: Any, option: Mapping[str, Any]) -> Any:
    """Convert a value to its kind.

    Raises:
        ValueError: says what is expected.

    Example:
        >>> convert("FALSE", {"kind": "bool"}), convert(32, {"kind": "triple", "least": 1})
        (False, [32, 32, 32])
    """
    if value is None or (isinstance(value, str) and value in NULLS):
        if option.get("null"):
            return None
        raise ValueError(f"needs a value, {expectation(option)}.")
    if value in option.get("words", ()):
        return value
    new = _CONVERTERS[option["kind"]](value, option)
    if new is None:
        raise ValueError(f"expected {expectation(option)}, got {value!r}.")
    return new


def expectation(option: Mapping[str, Any]) -> str:
    """What is expected of an option, in words.

    Example:
        >>> expectation({"kind": "int", "least": 1}), expectation({"kind": "window", "unit": "HU"})
        ('a whole number, at least 1', 'two numbers [low, high] with low < high, HU')
    """
    length, unit = option.get("length"), option.get("unit")
    words = {
        "path": "a path",
        "text": f"a text without {' and '.join(option['without'])}" if "without" in option else "a text",
        "bool": "true or false",
        "int": "a whole number",
        "number": "a number, such as 0.001",
        "choice": f"one of {', '.join(map(str, option.get('choices', ())))}",
        "triple": "three whole numbers [h, w, d], or one for all",
        "numbers": f"{length if length else 'a list of'} numbers, such as [{', '.join(['1.5'] * (length or 2))}]",
        "sizes": "one [h, w, d] for every level, such as [[96,96,96],[48,48,48]]",
        "window": "two numbers [low, high] with low < high",
        "mapping": 'names and values, such as {"liver": 6}',
        "device": "a device of PyTorch, such as cpu, cuda or cuda:1",
        "store": "an address such as http://host:5000 or sqlite:////path/mlruns.db",
    }[option["kind"]]
    limits = {"least": "at least", "above": "more than", "most": "at most", "below": "less than"}
    bounds = [f"{text} {option[name]}" for name, text in limits.items() if name in option]
    text = ", ".join([words, " and ".join(bounds)] if bounds else [words])
    text = f"{text}, {unit}" if unit else text
    text = ", or ".join([text, *option.get("words", ())])
    return f"{text}, or null" if option.get("null") else text


def _in_range(value: float, option: Mapping[str, Any]) -> bool:
    return (
        value >= option.get("least", -math.inf)
        and value <= option.get("most", math.inf)
        and not value <= option.get("above", -math.inf)
        and not value >= option.get("below", math.inf)
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _path(value: Any, option: Mapping[str, Any]) -> Any:
    if isinstance(value, (list, tuple, dict, bool)) or str(value) == "":
        return None
    return str(Path(str(value)).expanduser())


def _text(value: Any, option: Mapping[str, Any]) -> Any:
    plain = not isinstance(value, (list, tuple, dict, bool)) and not set(str(value)) & set(option.get("without", ""))
    return str(value) if plain and str(value).strip() else None


def _bool(value: Any, option: Mapping[str, Any]) -> Any:
    return {"true": True, "false": False}.get(str(value).lower())


def _int(value: Any, option: Mapping[str, Any]) -> Any:
    return value if _is_int(value) and _in_range(value, option) else None


def _number(value: Any, option: Mapping[str, Any]) -> Any:
    return value if _is_number(value) and _in_range(value, option) else None


def _choice(value: Any, option: Mapping[str, Any]) -> Any:
    for choice in option["choices"]:
        if str(value) == str(choice) or (isinstance(choice, bool) and str(value).lower() == str(choice).lower()):
            return choice
    return None


def _numbers(value: Any, option: Mapping[str, Any]) -> Any:
    if not isinstance(value, (list, tuple)) or len(value) != option.get("length", len(value)) or not value:
        return None
    return list(value) if all(_is_number(each) and _in_range(each, option) for each in value) else None


def _triple(value: Any, option: Mapping[str, Any]) -> Any:
    each = [value] * 3 if _is_int(value) else value
    if not isinstance(each, (list, tuple)) or len(each) != 3:
        return None
    return list(each) if all(_is_int(side) and _in_range(side, option) for side in each) else None


def _sizes(value: Any, option: Mapping[str, Any]) -> Any:
    if not isinstance(value, (list, tuple)) or not value or not all(isinstance(each, (list, tuple)) for each in value):
        return None
    sizes = [_triple(each, {"least": 1}) for each in value]
    return None if None in sizes else sizes


def _window(value: Any, option: Mapping[str, Any]) -> Any:
    ends = _numbers(value, {"length": 2})
    return ends if ends and ends[0] < ends[1] else None


def _mapping(value: Any, option: Mapping[str, Any]) -> Any:
    return dict(value) if isinstance(value, Mapping) and value else None


def _device(value: Any, option: Mapping[str, Any]) -> Any:
    if isinstance(value, torch.device):
        return value
    try:
        device = torch.device(value) if isinstance(value, str) else None
    except RuntimeError:
        return None
    if device is not None and device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"PyTorch sees {torch.cuda.device_count()} CUDA devices here.")
    return device


def _store(value: Any, option: Mapping[str, Any]) -> Any:
    text = _text(value, option)
    if text is not None:
        check_tracking_uri(text)
    return text


_CONVERTERS = {
    "path": _path,
    "text": _text,
    "bool": _bool,
    "int": _int,
    "number": _number,
    "choice": _choice,
    "triple": _triple,
    "numbers": _numbers,
    "sizes": _sizes,
    "window": _window,
    "mapping": _mapping,
    "device": _device,
    "store": _store,
}
