"""Which `$` expressions a configuration may hold: a small grammar, judged without evaluating anything.

Accepted: literals, references (`@a::b`), attributes of them that are named here, items, arithmetic, comparisons,
conditions, list comprehensions, calls of the functions and methods named here, and `$import` of a few packages. A
function that is only named, and not called, could be called by whatever receives it, so few are accepted.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from monai.bundle import ReferenceResolver

IMPORTS = {"ignite": "ignite", "mim_components": "mim_components", "monai": "monai", "numpy": "np", "torch": "torch"}
ROOTS = frozenset({"ignite", "mim_components", "monai", "np", "numpy", "torch"})
ANY = "*"  # any keyword
# accepted functions: most positional arguments, and keywords
BUILTINS: dict[str, tuple[int, frozenset[str]]] = {
    **dict.fromkeys("abs all any bool float len list set tuple".split(), (1, frozenset())),
    "reversed": (1, frozenset()),
    "dict": (1, frozenset({ANY})),
    "enumerate": (2, frozenset({"start"})),
    "int": (2, frozenset()),
    "max": (9, frozenset({"default"})),
    "min": (9, frozenset({"default"})),
    "range": (3, frozenset()),
    "round": (2, frozenset()),
    "sorted": (1, frozenset({"reverse"})),
    "str": (1, frozenset()),
    "sum": (2, frozenset({"start"})),
    "zip": (9, frozenset({"strict"})),
}
_TENSOR = frozenset({"device", "dtype"})
FUNCTIONS: dict[str, tuple[int, frozenset[str]]] = {
    **{f"{root}.{name}": (1, frozenset()) for root in ("np", "numpy") for name in "ceil floor log prod sqrt".split()},
    "monai.data.decollate_batch": (1, frozenset()),
    "monai.data.list_data_collate": (1, frozenset()),
    "monai.data.pad_list_data_collate": (1, frozenset()),
    "monai.data.worker_init_fn": (1, frozenset()),
    "monai.handlers.from_engine": (2, frozenset({"first", "keys"})),
    "monai.handlers.utils.from_engine": (2, frozenset({"first", "keys"})),
    "monai.utils.set_determinism": (1, frozenset({"seed"})),
    "torch.cuda.device_count": (0, frozenset()),
    "torch.cuda.is_available": (0, frozenset()),
    "torch.device": (2, frozenset()),
    "torch.ones": (4, _TENSOR),
    "torch.tensor": (1, _TENSOR),
    "torch.zeros": (4, _TENSOR),
}
_TYPES = "bfloat16 bool double float float16 float32 float64 half int int16 int32 int64 int8 long uint8"
# accepted without a call: numbers, types, and functions for batches
NAMED = frozenset(
    [f"torch.{name}" for name in _TYPES.split()]
    + [
        f"{root}.{name}"
        for root in ("np", "numpy")
        for name in "float32 float64 inf int16 int32 int64 nan pi uint8".split()
    ]
    + [
        f"monai.data.{name}"
        for name in "decollate_batch list_data_collate pad_list_data_collate worker_init_fn".split()
    ]
    + ["bool", "float", "int", "str", "torch.inf", "torch.pi"]
)
# accepted methods: most arguments, all positional unless the method moves data to a device
METHODS = {
    **dict.fromkeys(
        """
        copy cpu eval exists float is_dir is_file item items keys lower named_parameters parameters run state_dict
        tolist train upper values
        """.split(),
        0,
    ),
    **dict.fromkeys("attach count cuda endswith index startswith".split(), 1),
    "get": 2,
    "to": 2,
}
_METHOD_KEYWORDS = {"to": _TENSOR}
# accepted without a call: data of components, no function that writes, loads or runs
ATTRIBUTES = frozenset(
    """
    content_range contract crop device dtype encoder high is_regions items low module name ndim network num_visible
    num_volumes origin out_channels path regions shape size spacing targets training type validation window
    """.split()
)
MOST = 2000  # characters
_REFERENCES = "__local_refs"
_NODES = (
    ast.Expression,
    ast.Constant,
    ast.List,
    ast.Tuple,
    ast.Set,
    ast.Dict,
    ast.Subscript,
    ast.Slice,
    ast.UnaryOp,
    ast.unaryop,
    ast.BinOp,
    ast.operator,
    ast.BoolOp,
    ast.boolop,
    ast.Compare,
    ast.cmpop,
    ast.IfExp,
    ast.ListComp,
    ast.GeneratorExp,
    ast.comprehension,
    ast.keyword,
    ast.expr_context,
)


class _Everything(dict[str, None]):
    """For `update_refs_pattern`: every reference exists."""

    def __contains__(self, key: object) -> bool:
        return True


def why_not(expression: str) -> str:
    """Why an expression, with its `$`, is not accepted; "" if it is."""
    if len(expression) > MOST:
        return f"is {len(expression)} characters long, more than {MOST}"
    try:
        if is_import(expression):
            return _why_not_import(ast.parse(_code(expression)))
        tree = parsed(expression)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return f"is no expression: {error}"
    return next(_faults(tree), "")


def is_import(expression: str) -> bool:
    """Whether an expression, with its `$`, is or holds an import."""
    return bool(re.match(r"\s*(import|from)\b", _code(expression)))


def parsed(expression: str) -> ast.Expression:
    """Parse an expression, with its `$`.

    Raises:
        SyntaxError: not an expression; others of `ast.parse`.
    """
    return ast.parse(_code(expression).lstrip(" \t"), mode="eval")


def reference_in(node: ast.AST) -> str | None:
    """The id of a reference, which is parsed as an item of a dictionary; None for anything else."""
    if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id == _REFERENCES:
        if isinstance(node.slice, ast.Constant) and isinstance(node.slice.value, str):
            return node.slice.value
    return None


def _code(expression: str) -> str:
    # references replaced as by MONAI, so that the judged code is what would be evaluated
    return str(ReferenceResolver.update_refs_pattern(expression, _Everything()))[1:]


def _why_not_import(tree: ast.Module) -> str:
    node = tree.body[0]
    if len(tree.body) != 1 or not isinstance(node, ast.Import) or len(node.names) != 1:
        return "is not one plain import"
    name, alias = node.names[0].name, node.names[0].asname
    if name not in IMPORTS:
        return f"imports {name}; accepted: {', '.join(IMPORTS)}"
    return "" if alias in (None, IMPORTS[name]) else f"imports {name} under the name {alias}"


def _faults(tree: ast.Expression) -> Iterator[str]:
    targets = [each.target for each in ast.walk(tree) if isinstance(each, ast.comprehension)]
    local: set[str] = set()
    for target in targets:
        names = target.elts if isinstance(target, ast.Tuple) else [target]
        for name in names:
            if not isinstance(name, ast.Name):  # an item or attribute would be changed
                yield f"gives a value to {ast.unparse(name)}"
                return
            local.add(name.id)
    if taken := sorted(name for name in local if name in {*ROOTS, *BUILTINS} or name.startswith("_")):
        yield f"gives another meaning to {taken[0]}"
    yield from _visit(tree, local)


def _visit(node: ast.AST, local: set[str]) -> Iterator[str]:
    if isinstance(node, (ast.Name, ast.Attribute)) and _is_root(name := _dotted(node)):
        if name not in NAMED:
            yield f"uses {name}, which is not on the list of accepted names"
    elif isinstance(node, ast.Name):
        if node.id == _REFERENCES:
            yield "uses a name with two underscores"
        elif node.id in BUILTINS and node.id not in NAMED:
            yield f"names {node.id} without calling it"
        elif node.id not in local and node.id not in NAMED:
            yield f"uses the name {node.id}"
    elif reference_in(node) is not None:
        pass
    elif isinstance(node, ast.Attribute):
        yield from _visit_attribute(node, local)
    elif isinstance(node, ast.Call):
        yield from _visit_call(node, local)
    elif not isinstance(node, _NODES):
        yield f"holds a {type(node).__name__}"
    elif isinstance(node, ast.Constant) and isinstance(node.value, bytes):
        yield "holds bytes, which can become any text"
    elif isinstance(node, ast.comprehension) and node.is_async:
        yield "holds an asynchronous comprehension"
    else:
        for child in ast.iter_child_nodes(node):
            yield from _visit(child, local)


def _visit_attribute(node: ast.Attribute, local: set[str]) -> Iterator[str]:
    if node.attr.startswith("_"):
        yield f"uses the private attribute {node.attr}"
    elif node.attr not in ATTRIBUTES:
        yield f"uses the attribute {node.attr}, which is not on the list of accepted ones"
    base = node.value
    while isinstance(base, (ast.Attribute, ast.Subscript)) and reference_in(base) is None:
        base = base.value
    if reference_in(base) is None and not isinstance(base, ast.Name):
        yield f"uses an attribute of {ast.unparse(base)}, which is no reference"
    yield from _visit(node.value, local)


def _visit_call(node: ast.Call, local: set[str]) -> Iterator[str]:
    function = node.func
    name = _dotted(function)
    known = FUNCTIONS.get(name) or (BUILTINS.get(name) if name not in local else None)
    if known is not None:
        most, keywords = known
    elif _is_root(name):
        yield f"calls {name}, which is not on the list of accepted functions"
        return
    elif isinstance(function, ast.Attribute) and function.attr in METHODS:
        most, keywords = METHODS[function.attr], _METHOD_KEYWORDS.get(function.attr, frozenset())
        yield from _visit(function.value, local)
    else:
        yield f"calls {ast.unparse(function)}"
        return
    if len(node.args) > most:
        yield f"calls {ast.unparse(function)} with {len(node.args)} arguments, accepted: {most}"
    for keyword in node.keywords:
        if ANY not in keywords and keyword.arg not in keywords:
            yield f"calls {ast.unparse(function)} with {keyword.arg or '**'}, which is not accepted there"
    for child in (*node.args, *node.keywords):
        yield from _visit(child, local)


def _is_root(name: str) -> bool:
    return name.partition(".")[0] in ROOTS


def _dotted(node: ast.AST) -> str:
    """`a.b.c` of names and attributes; "" for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{before}.{node.attr}" if (before := _dotted(node.value)) else ""
    return ""
