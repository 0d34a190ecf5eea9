"""Which `$` expressions a configuration may hold: a small grammar, judged without evaluating anything.

Accepted: literals, references (`@a::b`), their public attributes and items, arithmetic, comparisons, conditions, list
comprehensions, calls of the functions and methods named here, and `$import` of a few packages. Nothing else.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from monai.bundle import ReferenceResolver

IMPORTS = {"ignite": "ignite", "mim_components": "mim_components", "monai": "monai", "numpy": "np", "torch": "torch"}
ROOTS = frozenset({"ignite", "mim_components", "monai", "np", "numpy", "torch"})
BUILTINS = frozenset(
    """
    abs all any bool dict enumerate float int len list max min range reversed round set sorted str sum tuple zip
    """.split()
)
_TYPES = "bfloat16 bool double float float16 float32 float64 half int int16 int32 int64 int8 long uint8"
FUNCTIONS = frozenset(
    """
    monai.data.decollate_batch monai.data.list_data_collate monai.data.pad_list_data_collate monai.data.worker_init_fn
    monai.handlers.from_engine monai.handlers.utils.from_engine monai.utils.set_determinism
    np.ceil np.floor np.log np.prod np.sqrt numpy.ceil numpy.floor numpy.log numpy.prod numpy.sqrt
    torch.cuda.device_count torch.cuda.is_available torch.device torch.ones torch.tensor torch.zeros
    """.split()
)
CONSTANTS = frozenset(
    [f"torch.{name}" for name in _TYPES.split()]
    + [
        f"{root}.{name}"
        for root in ("np", "numpy")
        for name in "float32 float64 inf int16 int32 int64 nan pi uint8".split()
    ]
    + ["torch.inf", "torch.pi"]
)
METHODS = frozenset(
    """
    attach begin copy count cpu cuda endswith eval exists float get index is_dir is_file item items join keys lower
    named_parameters parameters run split startswith state_dict strip to tolist train upper values
    """.split()
)
# attributes that reach modules, frames and the disk; a component could call a method that is only named
FORBIDDEN_ATTRIBUTES = frozenset(
    """
    builtins chmod cr_frame ctypes eval exec f_builtins f_globals f_locals format format_map func_globals gi_code
    gi_frame globals hardlink_to importlib load loads mkdir mro open os pickle popen rename replace rmdir shutil socket
    subprocess symlink_to sys system tb_frame touch unlink write write_bytes write_text
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
        # references replaced as by MONAI, so that the judged code is what would be evaluated
        code = str(ReferenceResolver.update_refs_pattern(expression, _Everything()))[1:]
        if re.match(r"\s*(import|from)\b", code):
            return _why_not_import(ast.parse(code))
        tree = ast.parse(code.lstrip(" \t"), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return f"is no expression: {error}"
    return next(_faults(tree), "")


def strings_in(expression: str) -> Iterator[tuple[str, bool]]:
    """Strings in an accepted expression, and whether they are the right operand of a binary operator."""
    tree = ast.parse(str(ReferenceResolver.update_refs_pattern(expression, _Everything()))[1:].lstrip(" \t"))
    behind = {id(node.right) for node in ast.walk(tree) if isinstance(node, ast.BinOp)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value, id(node) in behind


def _why_not_import(tree: ast.Module) -> str:
    node = tree.body[0]
    if len(tree.body) != 1 or not isinstance(node, ast.Import) or len(node.names) != 1:
        return "is not one plain import"
    name, alias = node.names[0].name, node.names[0].asname
    if name not in IMPORTS:
        return f"imports {name}; accepted: {', '.join(IMPORTS)}"
    return "" if alias in (None, IMPORTS[name]) else f"imports {name} under the name {alias}"


def _faults(tree: ast.Expression) -> Iterator[str]:
    local = {
        node.id
        for each in ast.walk(tree)
        if isinstance(each, ast.comprehension)
        for node in ast.walk(each.target)
        if isinstance(node, ast.Name)
    }
    if taken := sorted(name for name in local if name in ROOTS | BUILTINS or name.startswith("_")):
        yield f"gives another meaning to {taken[0]}"
    yield from _visit(tree, local)


def _visit(node: ast.AST, local: set[str]) -> Iterator[str]:
    if isinstance(node, (ast.Name, ast.Attribute)) and _is_root(name := _dotted(node)):
        if name not in FUNCTIONS | CONSTANTS:
            yield f"uses {name}, which is not on the list of accepted names"
        return
    if isinstance(node, ast.Name):
        if node.id not in BUILTINS | local | {_REFERENCES}:
            yield f"uses the name {node.id}"
        elif node.id == _REFERENCES:
            yield "uses a name with two underscores"
        return
    if _is_reference(node):
        return
    if isinstance(node, ast.Attribute):
        if node.attr.startswith("_"):
            yield f"uses the private attribute {node.attr}"
        elif node.attr in FORBIDDEN_ATTRIBUTES:
            yield f"uses the attribute {node.attr}"
        yield from _visit(node.value, local)
        return
    if isinstance(node, ast.Call):
        yield from _visit_call(node, local)
        return
    if not isinstance(node, _NODES):
        yield f"holds a {type(node).__name__}"
        return
    for child in ast.iter_child_nodes(node):
        yield from _visit(child, local)


def _visit_call(node: ast.Call, local: set[str]) -> Iterator[str]:
    function = node.func
    name = _dotted(function)
    if name in FUNCTIONS or (isinstance(function, ast.Name) and name in BUILTINS - local):
        pass
    elif _is_root(name):
        yield f"calls {name}, which is not on the list of accepted functions"
    elif isinstance(function, ast.Attribute) and function.attr in METHODS:
        yield from _visit(function.value, local)
    else:
        yield f"calls {ast.unparse(function)}"
    for child in (*node.args, *node.keywords):
        yield from _visit(child, local)


def _is_reference(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Subscript)
        and isinstance(node.value, ast.Name)
        and node.value.id == _REFERENCES
        and isinstance(node.slice, ast.Constant)
        and isinstance(node.slice.value, str)
    )


def _is_root(name: str) -> bool:
    return name.partition(".")[0] in ROOTS


def _dotted(node: ast.AST) -> str:
    """`a.b.c` of names and attributes; "" for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{before}.{node.attr}" if (before := _dotted(node.value)) else ""
    return ""
