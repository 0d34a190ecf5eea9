"""What texts an expression can become: paths and addresses must not be put together from harmless parts.

Sums of texts are folded, with the texts that references stand for, and judged as a whole. Whatever else could make a
new text out of others, such as parts of a text, is a finding.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator, Mapping
from itertools import product
from typing import Any

from mim_tools.verify import expressions

FOLDER = "\ufdd0"  # in a folded text: a folder of the user's choice; no text holds this character
FOLDERS = ("mim_components.run.bundle_root",)  # components that are one
# what an expression may be
NONE, LIST, MAYBE, TEXT = "no text", "a list", "perhaps a text", "a text"
_MOST = 64  # texts that one expression may become
_LONGEST = 10_000  # characters
_MOST_NAMES = 200  # that one name may lead to
_TAKES_APART = ("all", "any", "enumerate", "list", "reversed", "set", "sorted", "sum", "tuple", "zip")
_LISTS = (*_TAKES_APART[2:], "dict", "range")
_NO_TEXTS = "abs all any bool count endswith exists float index int is_dir is_file len round startswith".split()
_PAIRS = ("enumerate", "items", "named_parameters", "zip")
_PARTS = ("items", "keys", "named_parameters", "parameters", "tolist", "values")
_OF_TEXT = ("name", "origin", "path", "type")  # attributes that may be texts


class NotKnownError(Exception):
    """A text is known only when the configuration runs."""


class Definitions:
    """What the names in the configurations of a bundle stand for; several files may define one name."""

    def __init__(self) -> None:
        self._values: dict[str, list[Any]] = {}
        self._made: dict[tuple[str, str], Any] = {}

    def add(self, content: Any, prefix: str = "") -> None:
        """Add the content of a file.

        Args:
            content: its content.
            prefix: name below which MONAI puts it, `_meta_` for the metadata.
        """
        if prefix:
            self._values.setdefault(prefix, []).append(content)
        pairs: Iterator[tuple[Any, Any]] = iter(())
        if isinstance(content, Mapping):
            pairs = iter(content.items())
        elif isinstance(content, list):
            pairs = iter(enumerate(content))
        for key, value in pairs:
            name = "::".join(part.removeprefix("+") for part in str(key).replace("#", "::").split("::"))
            self.add(value, f"{prefix}::{name}" if prefix else name)

    def of(self, name: str, seen: set[str] | None = None) -> list[Any]:
        """Everything that a name may stand for, after references to references; empty if nothing defines it.

        Raises:
            NotKnownError: it leads to too many names.
        """
        seen = set() if seen is None else seen
        if name in seen:
            return []
        if len(seen) > _MOST_NAMES:
            raise NotKnownError(f"@{name}")
        seen.add(name)
        values = list(self._values.get(name, ()))
        parts = name.split("::")
        others = [
            "::".join([other, *parts[count:]])  # a part of something that is a reference itself
            for count in range(1, len(parts))
            for value in self._values.get("::".join(parts[:count]), ())
            if (other := alias(value))
        ]
        others += [other for value in values if (other := alias(value))]
        return [value for value in values if not alias(value)] + [
            value for other in others for value in self.of(other, seen)
        ]

    def once(self, what: str, expression: str, make: Callable[[], Any]) -> Any:
        """The result of `make` for an expression, which is made once.

        Raises:
            NotKnownError: the expression leads to itself, or cannot be judged.
        """
        if (what, expression) not in self._made:
            self._made[what, expression] = None
            self._made[what, expression] = make()
        if (made := self._made[what, expression]) is None:
            raise NotKnownError(expression)
        return made


def alias(value: Any) -> str:
    """The name that `@name`, `%name` or `$@name` stands for; "" for anything else, and for relative names."""
    if isinstance(value, str) and (match := re.fullmatch(r"(?:[@%]|\$\s*@)(\w[\w:#]*)\s*", value)):
        return match[1].replace("#", "::")
    return ""


class Texts:
    """Judge the texts in an accepted expression.

    Args:
        tree: the expression.
        definitions: what its references stand for.
    """

    def __init__(self, tree: ast.Expression, definitions: Definitions) -> None:
        self.tree = tree
        self.definitions = definitions
        self.locals: dict[str, str] = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.comprehension) and isinstance(node.target, ast.Name):
                kinds = {self.locals.get(node.target.id, NONE), self._kind_of_items(node.iter)}
                self.locals[node.target.id] = NONE if kinds == {NONE} else MAYBE

    def faults(self) -> Iterator[str]:
        """Why a text would be known only when the expression runs."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.BinOp):
                yield from self._fault_of_operator(node)
            elif isinstance(node, ast.Subscript) and expressions.reference_in(node) is None:
                yield from self._fault_of_item(node)
            elif isinstance(node, ast.comprehension):
                if self._is_taken_apart(node.iter):
                    yield f"goes through the characters of {ast.unparse(node.iter)}"
                if isinstance(node.target, ast.Tuple) and _called(node.iter) not in _PAIRS:
                    yield f"takes the items of {ast.unparse(node.iter)} apart"
            elif isinstance(node, ast.Call):
                yield from self._fault_of_call(node)

    def folded(self) -> Iterator[str]:
        """The texts: sums as a whole, others one by one."""
        yield from self._folded(self.tree.body)

    def _folded(self, node: ast.AST) -> Iterator[str]:
        if isinstance(node, ast.BinOp) and self._is_sum(node):
            try:
                yield from self.texts(node)
            except NotKnownError:
                pass  # a fault
            else:
                return
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        if (name := expressions.reference_in(node)) is not None:
            try:
                yield from (each for each in self.definitions.of(name) if _is_plain(each))
            except NotKnownError:
                return
        else:
            for child in ast.iter_child_nodes(node):
                yield from self._folded(child)

    def texts(self, node: ast.AST) -> list[str]:
        """What a sum of texts, or a part of it, can become.

        Raises:
            NotKnownError: that is not known.
        """
        found: list[str]
        if isinstance(node, ast.Constant) and isinstance(node.value, (str, int, float)):
            found = [str(node.value)]
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            found = [a + b for a, b in product(self.texts(node.left), self.texts(node.right))]
        elif isinstance(node, ast.IfExp):
            found = self.texts(node.body) + self.texts(node.orelse)
        elif isinstance(node, ast.BoolOp):
            found = [each for value in node.values for each in self.texts(value)]
        elif _called(node) == "str" and isinstance(node, ast.Call) and len(node.args) == 1:
            found = ["0"] if self.kind(node.args[0]) == NONE else self.texts(node.args[0])
        elif (name := expressions.reference_in(node)) is not None:
            found = [each for value in self._values(name) for each in self._texts_of(value)]
        else:
            raise NotKnownError(ast.unparse(node))
        if not 0 < len(found) <= _MOST or max(map(len, found)) > _LONGEST:
            raise NotKnownError(ast.unparse(node))
        return found

    def _values(self, name: str) -> list[Any]:
        if not (values := self.definitions.of(name)):
            raise NotKnownError(f"@{name}")
        return values

    def _texts_of(self, value: Any) -> list[str]:
        if value is None or (isinstance(value, dict) and value.get("_target_") in FOLDERS):
            return [FOLDER]
        if isinstance(value, str) and value.startswith("$"):
            found: list[str] = self.definitions.once("texts", value, lambda: self._ask(value, Texts.texts))
            return found
        if _is_plain(value) or (isinstance(value, (int, float)) and not isinstance(value, bool)):
            return [str(value)]
        raise NotKnownError(f"{value}")

    def _ask(self, expression: str, question: Callable[[Texts, ast.AST], Any]) -> Any:
        if expressions.why_not(expression) or expressions.is_import(expression):
            raise NotKnownError(expression)
        other = Texts(expressions.parsed(expression), self.definitions)
        return question(other, other.tree.body)

    def kind(self, node: ast.AST) -> str:
        """Whether a part of the expression may be a text."""
        if isinstance(node, ast.Constant):
            return TEXT if isinstance(node.value, str) else NONE
        if isinstance(node, (ast.List, ast.Tuple, ast.Set, ast.Dict, ast.ListComp, ast.GeneratorExp)):
            return LIST
        if isinstance(node, (ast.Compare, ast.UnaryOp)):
            return NONE
        if isinstance(node, ast.IfExp):
            return _widest({self.kind(node.body), self.kind(node.orelse)})
        if isinstance(node, ast.BoolOp):
            return _widest({self.kind(value) for value in node.values})
        if isinstance(node, ast.BinOp):
            kinds = {self.kind(node.left), self.kind(node.right)}
            return LIST if LIST in kinds else TEXT if isinstance(node.op, ast.Add) and NONE not in kinds else NONE
        if isinstance(node, ast.Name):
            return self.locals.get(node.id, MAYBE)
        if (name := expressions.reference_in(node)) is not None:
            try:
                return _widest({self._kind_of(value) for value in self._values(name)})
            except NotKnownError:
                return MAYBE
        return self._kind_of_call(node) if isinstance(node, ast.Call) else MAYBE

    def _kind_of_call(self, node: ast.Call) -> str:
        name = _called(node)
        if name in ("str", "lower", "upper"):
            return TEXT
        if name in ("max", "min") and len(node.args) > 1:
            return _widest({self.kind(each) for each in node.args})
        if name in ("max", "min"):
            return MAYBE
        if name in _LISTS or name in _PARTS:
            return LIST
        known = ast.unparse(node.func).partition(".")[0] in expressions.ROOTS or name in _NO_TEXTS
        return NONE if known else MAYBE

    def _kind_of(self, value: Any) -> str:
        if isinstance(value, str):
            if not value.startswith("$"):
                return TEXT if _is_plain(value) else MAYBE
            kind: str = self.definitions.once("kind", value, lambda: self._ask(value, Texts.kind))
            return kind
        if value is None or (isinstance(value, dict) and "_target_" in value):
            return MAYBE  # null: the user may give a text
        if isinstance(value, dict):
            return LIST
        return LIST if isinstance(value, list) else NONE

    def _kind_of_items(self, node: ast.AST) -> str:
        if _called(node) == "range":
            return NONE
        if isinstance(node, (ast.List, ast.Tuple)):
            return _widest({self.kind(each) for each in node.elts} or {NONE})
        name = expressions.reference_in(node)
        try:
            values = self._values(name) if name is not None else [None]
        except NotKnownError:
            return MAYBE
        plain = all(isinstance(value, list) and all(_is_number(each) for each in value) for value in values)
        return NONE if plain else MAYBE

    def _is_sum(self, node: ast.BinOp) -> bool:
        """Whether a sum may be one of texts: a text and a number or a list have no sum."""
        return isinstance(node.op, ast.Add) and not {self.kind(node.left), self.kind(node.right)} & {NONE, LIST}

    def _is_taken_apart(self, node: ast.AST) -> bool:
        """Whether something to go through may be a text."""
        if (kind := self.kind(node)) != MAYBE:
            return kind == TEXT
        if isinstance(node, ast.Attribute):
            return node.attr in _OF_TEXT
        name = expressions.reference_in(node)
        if name is None or name.startswith("::"):
            return True
        if values := self.definitions.of(name):
            return any(isinstance(value, str) for value in values)
        return bool(self.definitions.of(name.partition("::")[0]))  # items of lists get other numbers by merging

    def _fault_of_operator(self, node: ast.BinOp) -> Iterator[str]:
        left, right = self.kind(node.left), self.kind(node.right)
        if self._is_sum(node):
            try:
                self.texts(node)
            except NotKnownError as error:
                yield f"adds to a text that is known only when it runs: {error}"
        elif isinstance(node.op, ast.Mult) and LIST not in (left, right) and {left, right} != {NONE}:
            yield f"multiplies what may be a text: {ast.unparse(node)}"
        elif isinstance(node.op, ast.Mod) and left not in (NONE, LIST):
            yield f"fills in what may be a text: {ast.unparse(node)}"
        elif isinstance(node.op, ast.Div) and not {left, right} & {NONE, LIST}:
            yield f"joins what may be paths: {ast.unparse(node)}"

    def _fault_of_item(self, node: ast.Subscript) -> Iterator[str]:
        if isinstance(node.slice, ast.Constant) and isinstance(node.slice.value, str):
            return  # a text has no such item
        is_slice = isinstance(node.slice, ast.Slice) and self.kind(node.value) == MAYBE
        if is_slice or self._is_taken_apart(node.value):
            yield f"takes a part of what may be a text: {ast.unparse(node)}"

    def _fault_of_call(self, node: ast.Call) -> Iterator[str]:
        name = _called(node)
        alone = name in ("max", "min") and len(node.args) == 1
        if isinstance(node.func, ast.Name) and (alone or name in _TAKES_APART):
            if taken := [each for each in node.args if self._is_taken_apart(each)]:
                yield f"goes through the characters of {ast.unparse(taken[0])}"
        elif name == "dict" and any(_called(each) not in _PAIRS for each in node.args):
            yield f"takes the items of {ast.unparse(node.args[0])} apart"


def _called(node: ast.AST) -> str:
    """Name of the function or method that a node calls; "" for anything else."""
    if not isinstance(node, ast.Call):
        return ""
    return node.func.attr if isinstance(node.func, ast.Attribute) else ast.unparse(node.func)


def _is_plain(value: Any) -> bool:
    return isinstance(value, str) and not value.startswith(("$", "@", "%"))


def _is_number(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float))


def _widest(kinds: set[str]) -> str:
    """One kind for several: a text if there is one, else what may be one."""
    return next(kind for kind in (TEXT, MAYBE, NONE, LIST) if kind in kinds)
