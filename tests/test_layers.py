"""Layers of the code: a module imports only its own room (subpackage) and rooms on lower floors."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("mim_components", "mim_tools", "benchmarks", "studies")
PREFIXES = tuple(f"{package}." for package in PACKAGES)
FLOORS = [
    "utils tokens labels randomness",
    "networks transforms inferers run",
    "losses data visualize",
    "weights",
    "metrics",
    "handlers optimizers",
    "engines",
    "mim_tools",
    "benchmarks",
    "studies",
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms.split()}
# imports (module, room) that the floors would forbid, each with its reason
EXCEPTIONS: dict[tuple[str, str], str] = {
    (f"mim_components.networks.{module}", "weights"): "a class that loads its own weights, imported on demand"
    for module in ("hub", "hybrid", "vit")
}

# the modules and rooms of `data`, in the order in which a scan passes: each imports only those before it
DATA = "volumes names cases grids resample read find state check checked_reader cache prepare load inputs".split()


def room_of(module: str) -> str:
    """`mim_components.data.find.walk` is in `data`, `mim_tools.prepare` in `mim_tools`."""
    package, _, rest = module.partition(".")
    return rest.partition(".")[0] if package == "mim_components" else package


def modules() -> Iterator[tuple[str, ast.Module]]:
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            if name != "mim_components":  # it re-exports the public names of all rooms
                yield name, ast.parse(path.read_text(encoding="utf-8"))


def imports(tree: ast.Module) -> Iterator[str]:
    """Modules of ours that a module imports, anywhere in its code."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"relative import at line {node.lineno}"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        yield from (name for name in names if name.startswith(PREFIXES))


def arrows() -> set[tuple[str, str]]:
    """(module, room) of every import from another room."""
    return {
        (module, room)
        for module, tree in modules()
        for room in map(room_of, imports(tree))
        if room not in (room_of(module), "__version__")
    }


def test_every_room_has_a_floor() -> None:
    rooms = {room_of(module) for module, _ in modules()}
    assert rooms <= FLOOR.keys()
    assert {"data", "handlers", "networks"} <= rooms  # the walk found the packages


def test_imports_go_down() -> None:
    placed = {(module, room) for module, room in arrows() if {room_of(module), room} <= FLOOR.keys()}
    assert placed
    assert {(module, room) for module, room in placed if FLOOR[room_of(module)] <= FLOOR[room]} == EXCEPTIONS.keys()


def test_rooms_of_data_stand_in_the_order_of_a_scan() -> None:
    def of_data(name: str) -> str:
        return name.removeprefix("mim_components.data.").partition(".")[0]

    own = {module: tree for module, tree in modules() if module.startswith("mim_components.data.")}
    pairs = {(module, of_data(name)) for module in own for name in imports(own[module]) if room_of(name) == "data"}
    rooms = {of_data(module) for module in own}
    assert rooms == set(DATA) and {room for _, room in pairs} <= rooms  # the face of the package is none
    assert not [(module, room) for module, room in pairs if DATA.index(of_data(module)) < DATA.index(room)]


def test_no_module_imports_itself_through_others() -> None:
    trees = dict(modules())
    graph: dict[str, set[str]] = {module: set() for module in trees}
    for module, tree in trees.items():
        for name in imports(tree):
            if (module, room_of(name)) not in EXCEPTIONS:
                graph[module].add(name if name in trees else name.rpartition(".")[0])
    assert len(list(TopologicalSorter(graph).static_order())) >= len(trees)  # CycleError names the modules


def test_components_need_no_command() -> None:
    assert not [module for module, room in arrows() if room == "mim_tools" and module.startswith("mim_components.")]


def test_a_package_that_is_missing_leaves_no_name() -> None:
    """MONAI's placeholder raises on any access, even by tools that only inspect, such as doctest."""
    kept = [
        f"{module}, line {node.lineno}"
        for module, tree in modules()
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call)  # with [1] it would be a subscript
        if getattr(node.value.func, "id", "") == "optional_import"
    ]
    assert kept == [], "take [1], and import the package where it is used"
