"""The floors of the house (docs/architecture.md): imports point down, and heavy ones wait until they are needed."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "megatron_dsmath"

# From the ground up; rooms of one floor do not know each other.
FLOORS = [
    ["errors"],
    ["faults"],
    ["config"],
    ["data", "schedule", "parallel"],
    ["model"],
    ["checkpoint"],
    ["training", "evaluation", "planning"],
    ["report", "tables"],
    ["quickstart", "doctor", "verify_layouts"],
    ["cli"],
    ["__main__"],
]
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
WITHOUT_TORCH = ["errors", "config", "data", "schedule"]
HEAVY = {"torch", "megatron", "wandb", "sympy", "matplotlib", "transformers"}  # 1 to 5 s each
TOOL_LINES = 200  # a tool turns flags into calls; what is longer belongs into the package


def imports(tree: ast.AST, *, when_imported: bool = False) -> Iterator[str]:
    """Dotted names that a file imports anywhere, or only those that importing the file imports too.

    `from a.b import c` gives a.b and a.b.c, since c may be a module.
    """
    if isinstance(tree, ast.Import):
        yield from (alias.name for alias in tree.names)
    elif isinstance(tree, ast.ImportFrom):
        assert tree.level == 0 and tree.module, "imports are written from the package's name on"
        yield tree.module
        yield from (f"{tree.module}.{alias.name}" for alias in tree.names)
    elif not (when_imported and isinstance(tree, ast.FunctionDef | ast.AsyncFunctionDef)):
        only_types = when_imported and isinstance(tree, ast.If) and "TYPE_CHECKING" in ast.unparse(tree.test)
        for node in tree.orelse if only_types else ast.iter_child_nodes(tree):  # type: ignore[attr-defined]
            yield from imports(node, when_imported=when_imported)


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def room_of(module: str) -> str | None:
    """`megatron_dsmath.data.indexed` stands in `data`; other packages and the package's own name in no room."""
    parts = module.split(".")
    return parts[1] if parts[0] == PACKAGE and len(parts) > 1 else None


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


FILES = {module_of(path): path for path in sorted((ROOT / PACKAGE).rglob("*.py"))}
TOOLS = sorted((ROOT / "tools").glob("*.py"))


def loaded_with(module: str) -> set[str]:
    """Every module that is loaded when this one is imported, as far as files of the package say it."""
    loaded: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        parents = {".".join(name.split(".")[:depth]) for depth in range(1, name.count(".") + 2)}
        for found in parents - loaded:
            loaded.add(found)
            if found in FILES:
                waiting += imports(parse(FILES[found]), when_imported=True)
    return loaded


def test_every_room_has_a_floor_and_a_line_in_the_architecture() -> None:
    rooms = {room for room in map(room_of, FILES) if room is not None}
    assert rooms - FLOOR_OF.keys() == set()
    described = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert [room for room in rooms - {"__main__"} if f"| `{room}" not in described] == []


@pytest.mark.parametrize("module", FILES)
def test_imports_point_down(module: str) -> None:
    room = room_of(module)
    if room is None:  # the package's own __init__ stands below every room
        assert not [name for name in imports(parse(FILES[module])) if room_of(name)]
        return
    below = {other for other, floor in FLOOR_OF.items() if floor < FLOOR_OF[room]} | {room, "__version__"}
    above = [name for name in imports(parse(FILES[module])) if room_of(name) not in below | {None}]
    assert above == []


@pytest.mark.parametrize("module", [module for module in FILES if room_of(module) != "parallel"])
def test_only_parallel_names_megatron(module: str) -> None:
    assert [name for name in imports(parse(FILES[module])) if name.split(".")[0] == "megatron"] == []


@pytest.mark.parametrize("module", [module for module in FILES if room_of(module) in WITHOUT_TORCH])
def test_the_lower_rooms_never_import_torch(module: str) -> None:
    assert [name for name in imports(parse(FILES[module])) if name.split(".")[0] == "torch"] == []


def test_the_command_line_loads_nothing_heavy_before_a_verb_runs() -> None:
    loaded = loaded_with(f"{PACKAGE}.cli")
    assert f"{PACKAGE}.errors" in loaded  # the walk goes beyond the file itself
    assert {name.split(".")[0] for name in loaded} & HEAVY == set()


@pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: tool.name)
def test_a_tool_is_thin(tool: Path) -> None:
    packages = {name.split(".")[0] for name in imports(parse(tool))}
    assert packages - sys.stdlib_module_names == {PACKAGE}, "the work is done in the package"
    assert len(tool.read_text(encoding="utf-8").splitlines()) <= TOOL_LINES


def test_launch_holds_shell_alone() -> None:
    assert {path.suffix for path in (ROOT / "launch").iterdir()} == {".sh", ".sbatch"}


def test_the_reader_tells_late_imports_from_early_ones() -> None:
    source = """
import os, torch.nn
try:
    from wandb import sdk
except ImportError:
    pass
if TYPE_CHECKING:
    import sympy
else:
    import rich
class A:
    import yaml
    def method(self):
        import matplotlib
        return lambda: __import__
"""
    early = ["os", "torch.nn", "wandb", "wandb.sdk", "rich", "yaml"]
    assert list(imports(ast.parse(source), when_imported=True)) == early
    assert sorted(imports(ast.parse(source))) == sorted([*early, "sympy", "matplotlib"])
