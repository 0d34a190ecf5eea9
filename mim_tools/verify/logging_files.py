"""Judge a configuration file of `logging`: `fileConfig` evaluates what stands under class, args and kwargs."""

from __future__ import annotations

import ast
import configparser
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from mim_tools.verify.findings import Finding

SUFFIXES = (".cfg", ".conf", ".ini")
HANDLERS = ("FileHandler", "NullHandler", "StreamHandler")
ROTATING = ("RotatingFileHandler", "TimedRotatingFileHandler", "WatchedFileHandler")
CLASSES = frozenset(
    [
        *HANDLERS,
        *(f"logging.{name}" for name in (*HANDLERS, "Formatter")),
        *(f"{module}.{name}" for name in ROTATING for module in ("handlers", "logging.handlers")),
    ]
)
STREAMS = ("sys.stderr", "sys.stdout")


def judge_logging(path: Path, name: str) -> list[Finding]:
    """Judge a file.

    Args:
        path: the file.
        name: what findings call it.
    """
    parser = configparser.RawConfigParser()
    try:
        parser.read_string(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, configparser.Error) as error:
        return [Finding(name, "", type(error).__name__, f"cannot be read: {error}")]
    return [
        Finding(name, f"{section}::{key}", value, why)
        for section in parser.sections()
        for key, value in parser.items(section)  # those of [DEFAULT] are among them
        if (why := next(_faults(key, value.strip()), ""))
    ]


def _faults(key: str, value: str) -> Iterator[str]:
    if key == "class" and value not in CLASSES:
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
    elif not (isinstance(node, ast.Attribute) and ast.unparse(node) in STREAMS):
        yield f"holds {ast.unparse(node)}, expected literals, sys.stdout or sys.stderr"
