"""The table of options in a bundle's README, made from its configurations and the descriptions of the options."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mim_components.run.configuration import is_free
from mim_components.run.options import free_keys, holder_of, option_table, with_defaults

BEGIN, END = "<!-- options -->", "<!-- /options -->"
FILES = {
    "train": "train.json",
    "evaluate": "evaluate.json",
    "probe": "probe.json",
    "inference": "inference.json",
    "multi_gpu": "multi_gpu_train.json",
}
# keys that define what is done, not how
PARTS = frozenset("imports initialize run finalize handlers results_dir loss".split())
PARTS |= {"network", "evaluated_network"}


def options_of(folder: Path) -> dict[str, dict[str, Any]]:
    """Options of a bundle by name: the default of each in every command that has it.

    Raises:
        ValueError: a key of a configuration has no entry in the table of options; names file and key.
    """
    metadata = json.loads((folder / "configs" / "metadata.json").read_text(encoding="utf-8"))
    table = option_table()
    found: dict[str, dict[str, Any]] = {}
    for command, name in FILES.items():
        path = folder / "configs" / name
        config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        for key, value in config.items():
            if key in table:
                found.setdefault(key, {})[command] = _from_metadata(value, metadata)
            elif not isinstance(value, dict) and key not in PARTS and key[0] != "+":
                raise ValueError(f"{path}: option {key!r} has no line in options.json.")
        for key in (name for name in table if "::" in name):
            place, name = holder_of(config, key)
            place = with_defaults(place)
            if name in place:
                found.setdefault(key, {})[command] = _from_metadata(place[name], metadata)
    return found


def _from_metadata(value: Any, metadata: dict[str, Any]) -> Any:
    if isinstance(value, str) and value[1:].startswith("_meta_::"):
        for name in value.split("::")[1:]:
            metadata = metadata[name]
        return metadata
    return value


def options_markdown(folder: Path) -> str:
    """The table, one line per option: name (starred if it may change on continuing), default, values, meaning."""
    lines = ["\\* may change when an unfinished run continues.", ""]
    lines += ["| option | default | values | meaning |", "|---|---|---|---|"]
    for name, defaults in options_of(folder).items():
        option = option_table()[name]
        star = " \\*" if "train" in defaults and is_free(name, free_keys()) else ""
        cells = [f"`{name}`{star}", _defaults(defaults, option), _values(option), _where(defaults) + option["text"]]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _values(option: dict[str, Any]) -> str:
    """Allowed values of an option in short: `>= 1`, `auto, never`, `(0, 1], mm`."""
    least, most = option.get("least", option.get("above")), option.get("most", option.get("below"))
    kinds = {"bool": "true, false", "triple": "[h, w, d] or one", "numbers": "list", "sizes": "[[h, w, d], ...]"}
    kinds |= {"window": "[low, high]", "choice": ", ".join(str(each).lower() for each in option.get("choices", ()))}
    text = kinds.get(option["kind"], "")
    if least is not None and most is not None:
        span = f"{'[' if 'least' in option else '('}{least}, {most}{']' if 'most' in option else ')'}"
    elif least is not None:
        span = f"{'>=' if 'least' in option else '>'} {least}"
    else:
        span = ""
    return ", ".join(each for each in (text, span, option.get("unit"), *option.get("words", ())) if each)


def _defaults(defaults: dict[str, Any], option: dict[str, Any]) -> str:
    texts = {command: _text(value, option) for command, value in defaults.items()}
    first, *others = dict.fromkeys(texts.values())
    if not others:
        return first
    return "; ".join([first, *(f"{text} ({command})" for command, text in texts.items() if text in others)])


def _text(value: Any, option: dict[str, Any]) -> str:
    if isinstance(value, str) and value[:1] == "@" and value[1:] in option_table():
        return f"`{value[1:]}`"
    if not isinstance(value, (int, float, list)) and "default" in option:
        return str(option["default"])
    if isinstance(value, dict):
        return json.dumps(value["default"]) if "default" in value else "computed"
    return json.dumps(value) if not isinstance(value, str) else value


def _where(defaults: dict[str, Any]) -> str:
    commands = list(defaults)
    return "" if "train" in commands else f"{', '.join(commands)}: ".replace("multi_gpu", "several GPUs")


def with_options(text: str, folder: Path) -> str:
    """A README with its table of options updated.

    Raises:
        ValueError: it has no place for the table.
    """
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{folder / 'docs' / 'README.md'}: needs the lines {BEGIN} and {END} around its options.")
    return f"{head}{BEGIN}\n{options_markdown(folder)}\n{END}{tail}"
