"""Judge the text of configuration files: everything that MONAI would import, call or evaluate."""

from __future__ import annotations

import ast
import configparser
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import yaml  # type: ignore[import-untyped]
from monai.bundle import ConfigParser

from mim_tools.verify import expressions, targets
from mim_tools.verify.findings import Finding
from mim_tools.verify.texts import FOLDER, Definitions, NotKnownError, Texts, alias

SUFFIXES = (".json", ".yaml", ".yml")
MOST_BYTES = 16 * 2**20
# MONAI imports and calls what strings under these names say
BY_NAME = ("reader", "writer", "merger_cls")
# options of `monai.bundle run` that lead to unjudged files or classes
RUNNER_OPTIONS = ("args_file", "config_file", "logging_file", "meta_file", "parser", "workflow", "workflow_type")
# folders of the user's own data; absolute paths are common there in examples
_READ_ONLY = ("dataset_dir", "data_root")
# the Model Zoo's lists of downloads
LISTS = ("large_files.json", "large_files.yaml", "large_files.yml")
# texts for human readers; references to them in a configuration are refused
DOCUMENTARY = ("changelog", "copyright", "data_source", "description", "intended_use", "references", "schema")
# configuration files of `logging`, and what accepted ones name
LOGGING_SUFFIXES = (".cfg", ".conf", ".ini")
_HANDLERS = ("FileHandler", "NullHandler", "StreamHandler")
_ROTATING = ("RotatingFileHandler", "TimedRotatingFileHandler", "WatchedFileHandler")
_CLASSES = frozenset(
    [
        *_HANDLERS,
        *(f"logging.{name}" for name in (*_HANDLERS, "Formatter")),
        *(f"{module}.{name}" for name in _ROTATING for module in ("handlers", "logging.handlers")),
    ]
)
_STREAMS = ("sys.stderr", "sys.stdout")
_DOWNLOADS = "may download files whose digests nobody checks"
# `https://`, also `file:/`; not the drive of a path, such as `C:/`
_URL = re.compile(r"\s*[A-Za-z][A-Za-z0-9+.-]+:[/\\]")
_ABSOLUTE = re.compile(r"\s*([/\\]|~[\w.-]*([/\\]|$)|[A-Za-z]:[/\\])")
_KEY = re.compile(r"[^@$%'\"()\[\]{}\\,;=]*")


def judge_config(path: Path, name: str, definitions: Definitions | None = None) -> list[Finding]:
    """Judge a JSON or YAML file.

    Args:
        path: the file.
        name: name of the file in findings.
        definitions: what the names in all configurations of the bundle stand for; None = those of the file.
    """
    findings: list[Finding] = []
    try:
        if path.stat().st_size > MOST_BYTES:
            return [Finding(name, "", f"{path.stat().st_size} bytes", f"more than {MOST_BYTES}, too large to judge")]
        content = read_content(path, findings, name)
        if definitions is None:
            definitions = Definitions()
            definitions.add(content)
        texts_for_people = path.name in ("metadata.json", *LISTS)
        walk = _Walk(name, metadata=texts_for_people, definitions=definitions)
        findings += walk.value(content, ())
    except (OSError, ValueError, RecursionError, MemoryError) as error:
        findings.append(Finding(name, "", type(error).__name__, f"cannot be read: {error}"))
    return findings


def read_content(path: Path, findings: list[Finding] | None = None, name: str = "") -> Any:
    """Read a JSON or YAML file that may hold only plain data.

    Args:
        path: the file.
        findings: receives repeated keys of JSON.
        name: name of the file in findings.

    Raises:
        ValueError: not readable, or more than plain data.
    """
    text = path.read_text(encoding="utf-8")
    found = [] if findings is None else findings
    return _read_json(text, name or path.name, found) if path.suffix.lower() == ".json" else _read_yaml(text)


def judge_overrides(overrides: Sequence[str]) -> list[Finding]:
    """Judge `key=value` pairs for the command line of `monai.bundle run`.

    Raises:
        ValueError: one is not of this form.
    """
    findings: list[Finding] = []
    for override in overrides:
        key, equals, text = override.partition("=")
        key = key.removeprefix("--")
        if not equals or not key:
            raise ValueError(f"--override must be key=value, got {override!r}.")
        walk = _Walk("command line", own=True)
        if key.removeprefix("+") in RUNNER_OPTIONS:
            findings.append(Finding("command line", key, text, "names a file or class that was not judged"))
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        # the runner may strip quotes
        for each in (value, text.strip("'\"")) if isinstance(value, str) else (value,):
            findings += [found for found in walk.entry(key, each, ()) if found not in findings]
    return findings


def _read_json(text: str, name: str, findings: list[Finding]) -> Any:
    def collect(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [key for key, _ in pairs]
        for key in sorted({key for key in names if names.count(key) > 1}):
            findings.append(
                Finding(name, key, "duplicate key", "only one of the values counts; programs differ in which")
            )
            # every value is judged, including those that are dropped
            hidden = [value for each, value in pairs if each == key][:-1]
            walk = _Walk(name)
            findings.extend(found for value in hidden for found in walk.entry(key, value, ()))
        return dict(pairs)

    return json.loads(text, object_pairs_hook=collect)


def _read_yaml(text: str) -> Any:
    try:
        return _plain_yaml(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def _plain_yaml(text: str) -> Any:
    for event in yaml.parse(text, yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise ValueError("holds an alias; plain data only")
        if (tag := getattr(event, "tag", None)) is not None and not tag.startswith("tag:yaml.org,2002:"):
            raise ValueError(f"holds the tag {tag}; plain data only")
        if tag is not None and "python" in tag:
            raise ValueError(f"holds the tag {tag}, which makes Python objects")
    return yaml.load(text, _UniqueKeys)  # a subclass of SafeLoader


class _UniqueKeys(yaml.SafeLoader):
    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        repeated = sorted({str(key) for key in keys if keys.count(key) > 1})
        if repeated:
            raise ValueError(f"duplicate key {', '.join(repeated)}")
        return super().construct_mapping(node, deep)


class _Walk:
    """Go through a configuration.

    Args:
        file: name of the file in findings.
        metadata: texts for human readers may hold addresses.
        own: the values are the user's own, so paths and addresses are fine.
        definitions: what references stand for.
    """

    def __init__(
        self, file: str, metadata: bool = False, own: bool = False, definitions: Definitions | None = None
    ) -> None:
        self.file = file
        self.metadata = metadata
        self.own = own
        self.definitions = Definitions() if definitions is None else definitions

    def value(self, value: Any, keys: tuple[str, ...], target: object = None) -> Iterator[Finding]:
        """Findings in a value and everything below it; `target` is the component that it is for."""
        if isinstance(value, dict):
            target = value.get("_target_", target)
            if targets.downloads(value):
                yield self._finding(keys, target, f"{_DOWNLOADS}; give pretrained: false")
            for key, each in value.items():
                yield from self.entry(str(key), each, keys, target)
        elif isinstance(value, list):
            for index, each in enumerate(value):
                yield from self.value(each, (*keys, str(index)), target)
        elif isinstance(value, str):
            yield from self._text(value, keys)

    def entry(self, key: str, value: Any, keys: tuple[str, ...], target: object = None) -> Iterator[Finding]:
        """Findings in one entry of an object; a key may lead deeper, as `train#trainer#max_epochs` does."""
        place = (*keys, *key.replace("#", "::").split("::"))
        if not _KEY.fullmatch(key):
            yield self._finding(place, key, "a key with such characters can become part of an expression")
        last = place[-1].removeprefix("+")
        if last == "_target_":
            if why := targets.why_not(value):
                yield self._finding(place, value, why)
            return
        if last in BY_NAME and isinstance(value, (str, list)) and (why := targets.why_not_by_name(value)):
            yield self._finding(place, value, f"MONAI imports and calls what this names; {why}")
        yield from self._switches(place, last, value, target)
        yield from self.value(value, place, target)

    def _switches(self, place: tuple[str, ...], last: str, value: Any, target: object) -> Iterator[Finding]:
        if last == "allow_pickle" and value is not False:
            yield self._finding(place, value, "reads pickles, which run code")
        if last == "weights_only" and value is not True:
            yield self._finding(place, value, "reads pickles, which run code")
        if last in ("download", "pretrained") and not self._is_off(place, value, target):
            yield self._finding(place, value, f"{_DOWNLOADS}; expected false")
        if last == "pickle_module" and value != "pickle":
            yield self._finding(place, value, "reads pickles, which run code")
        if last in ("_mode_", "_debug_") and value not in ("default", "callable"):
            yield self._finding(place, value, "starts the debugger")

    def _is_off(self, place: tuple[str, ...], value: Any, target: object) -> bool:
        """Whether a switch for downloads is surely off, or belongs to no component that downloads."""
        if value is None or value is False:
            return True
        if target is None and len(place) > 1:  # merged into a component elsewhere
            name = "::".join(part.removeprefix("+") for part in (*place[:-1], "_target_"))
            target = next(iter(self.definitions.of(name)), None)
        if target is None:
            plain = isinstance(value, str) and not value.startswith(("$", "@", "%"))
            return value is not True and (plain or len(place) == 1)
        return str(target).startswith("mim_components.") and value is not True

    def _text(self, text: str, keys: tuple[str, ...]) -> Iterator[Finding]:
        documentary = self.metadata and keys[:1] and (keys[0] in DOCUMENTARY or keys[-1] == "url")
        text_as_read = text.replace("#", "::")
        if any(f"_meta_::{name}" in text_as_read for name in DOCUMENTARY) or re.search(
            r"[@%:]_meta_(?!::\w)", text_as_read
        ):
            yield self._finding(keys, text, "uses a text of the metadata that is for people")
        if text_as_read.startswith("$"):
            yield from self._expression(text, keys)
            return
        if text_as_read.startswith("%") and ConfigParser.split_path_id(text[1:])[0]:
            yield self._finding(keys, text, "takes its content from a file, which is not judged")
        elif not (documentary or self.own):
            if name := alias(text):
                yield from self._expression(f"$@{name}", keys)
            elif not text.startswith("%"):
                yield from self._place(text, keys)

    def _expression(self, text: str, keys: tuple[str, ...]) -> Iterator[Finding]:
        relative = re.search(r"[@%](::|#)", text)
        if relative and not all(re.fullmatch(r"\+?\w+", key) for key in keys):
            yield self._finding(keys, text, "a relative reference below a key that is no plain name")
        if why := expressions.why_not(text):
            yield self._finding(keys, text, why)
        elif not self.own and not expressions.is_import(text):
            try:
                texts = Texts(expressions.parsed(text), self.definitions)
                if faults := list(dict.fromkeys(texts.faults())):
                    yield from (self._finding(keys, text, why) for why in faults)
                    return
                for each in dict.fromkeys(texts.folded()):
                    yield from self._place(each, keys, text)
            except NotKnownError as error:
                yield self._finding(keys, text, f"leads to too many names: {error}")

    def _place(self, text: str, keys: tuple[str, ...], what: str = "") -> Iterator[Finding]:
        """Findings in a string that may be a path or an address.

        Args:
            text: the string; it may begin with `FOLDER`.
            keys: its place.
            what: the expression that can become this string; "" = the string itself.
        """
        begins, rest = text.startswith(FOLDER), text.removeprefix(FOLDER)
        note = f"; it can become {text.replace(FOLDER, '(folder)')!r}" if what and what != f"${text!r}" else ""
        if FOLDER in rest or (begins and not re.match(r"/(?!/)|$", rest)):
            yield self._finding(keys, what or text, f"a folder with something else than a path in it{note}")
        elif _URL.match(text):
            yield self._finding(keys, what or text, f"an address: a configuration opens no connections by itself{note}")
        elif ".." in re.split(r"[/\\]", text.strip()):
            yield self._finding(keys, what or text, f"a path that leads out of its folder{note}")
        elif keys[-1:] not in [(name,) for name in _READ_ONLY] and _ABSOLUTE.match(text):
            why = "an absolute path: where it leads is not the bundle's to say"
            yield self._finding(keys, what or text, why + note)

    def _finding(self, keys: Sequence[str], what: Any, why: str) -> Finding:
        return Finding(
            self.file, "::".join(keys), what if isinstance(what, str) else json.dumps(what, default=str), why
        )


def judge_logging(path: Path, name: str) -> list[Finding]:
    """Judge a configuration file of `logging`: `fileConfig` evaluates class, args and kwargs.

    Args:
        path: the file.
        name: name of the file in findings.
    """
    parser = configparser.RawConfigParser()
    try:
        parser.read_string(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, configparser.Error) as error:
        return [Finding(name, "", type(error).__name__, f"cannot be read: {error}")]
    return [
        Finding(name, f"{section}::{key}", value, why)
        for section in parser.sections()
        for key, value in parser.items(section)  # includes those of [DEFAULT]
        if (why := next(_logging_faults(key, value.strip()), ""))
    ]


def _logging_faults(key: str, value: str) -> Iterator[str]:
    if key == "class" and value not in _CLASSES:
        yield "is no handler or formatter that only writes lines to a stream or file"
    if key in ("args", "kwargs") and value:
        try:
            tree = ast.parse(value, mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            yield f"is no literal: {error}"
            return
        yield from _argument_faults(tree)


def _argument_faults(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Constant):
        if isinstance(node.value, str) and (
            node.value.startswith(("/", "~", "\\")) or ":" in node.value or ".." in PurePosixPath(node.value).parts
        ):
            yield f"leads out of the working directory: {node.value}"
    elif isinstance(node, (ast.Tuple, ast.List, ast.Dict)):
        for child in ast.iter_child_nodes(node):
            if not isinstance(child, ast.expr_context):
                yield from _argument_faults(child)
    elif not (isinstance(node, ast.Attribute) and ast.unparse(node) in _STREAMS):
        yield f"holds {ast.unparse(node)}, expected literals, sys.stdout or sys.stderr"
