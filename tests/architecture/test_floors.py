"""The layout's rules (docs/architecture.md), read from the imports. Each test lists the offenders."""

from __future__ import annotations

import ast
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "megatron_dsmath"

# From the bottom up. Rooms of one floor do not import each other.
FLOORS = [
    ["errors"],
    ["tables", "fault_injection"],
    ["files"],
    ["config"],
    ["data", "schedule", "parallel"],
    ["model"],
    ["checkpoint"],
    ["training", "sandbox"],
    ["supervision", "grading"],
    ["evaluation"],
    ["verify_layouts", "quickstart", "recipe", "report", "doctor"],
    ["cli"],
    ["__main__"],
]
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
WITHOUT_TORCH = {"errors", "files", "config", "data", "schedule", "grading"}
HEAVY = {"torch", "megatron", "wandb", "sympy", "matplotlib", "transformers"}  # each takes 1 to 5 s to import
MOST_MODULES, MOST_LINES = 200, 29_000
MOST_FILES_OF_A_ROOM, MOST_LINES_OF_A_ROOM = 25, 3_000
MOST_LINES_OF_A_TOOL = 200  # a tool turns flags into calls; longer code belongs into the package


def imports(tree: ast.AST, *, when_imported: bool = False) -> Iterator[str]:
    """Dotted names that a file imports anywhere, or only those that importing the file imports too.

    `from a.b import c` gives a.b and a.b.c, since c may be a module.
    """
    if isinstance(tree, ast.Import):
        yield from (alias.name for alias in tree.names)
    elif isinstance(tree, ast.ImportFrom):
        assert tree.level == 0 and tree.module, "imports are absolute"
        yield tree.module
        yield from (f"{tree.module}.{alias.name}" for alias in tree.names)
    elif not (when_imported and isinstance(tree, ast.FunctionDef | ast.AsyncFunctionDef)):
        only_types = when_imported and isinstance(tree, ast.If) and "TYPE_CHECKING" in ast.unparse(tree.test)
        for node in tree.orelse if only_types else ast.iter_child_nodes(tree):  # type: ignore[attr-defined]
            yield from imports(node, when_imported=when_imported)


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def room_of(module: str) -> str | None:
    """`megatron_dsmath.data.indexed` is in `data`; other packages and the package itself are in no room."""
    parts = module.split(".")
    return parts[1] if parts[0] == PACKAGE and len(parts) > 1 else None


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


FILES = {module_of(path): path for path in sorted((ROOT / PACKAGE).rglob("*.py"))}
MODULES = {module: path for module, path in FILES.items() if path.name != "__init__.py"}
IMPORTS = {module: list(imports(parse(path))) for module, path in FILES.items()}
TOOLS = sorted((ROOT / "tools").glob("*.py"))
# Modules without a test file of their own name, and the file under tests/ that tests them.
TESTED_BY = {
    "__main__": "test_cli.py",
    "checkpoint.huggingface_config": "checkpoint/test_refused_folders.py",
    "checkpoint.model_card": "checkpoint/test_to_huggingface.py",
    "checkpoint.own_logits": "checkpoint/test_logit_gate.py",
    "checkpoint.weight_reader": "checkpoint/test_weights.py",
    "checkpoint.writer_process": "checkpoint/test_background_writer.py",
    "cli.arguments": "test_cli.py",
    "cli.conversations": "test_cli.py",
    "cli.data": "test_cli.py",
    "cli.evaluation": "test_cli.py",
    "cli.models": "test_cli.py",
    "cli.runs": "test_cli.py",
    "data.audit.run_batches": "training/test_sft.py",
    "data.mixture.microbatch": "data/mixture/test_mixture_batches.py",
    "data.mixture.run_plan": "data/mixture/test_mixture_plan.py",
    "data.sft.conversation": "data/sft/test_formats.py",
    "data.sft.conversation_plan": "data/sft/test_conversation_batches.py",
    "data.sft.example_encoder": "data/sft/test_build_set.py",
    "data.sft.examples": "data/sft/test_build_set.py",
    "data.sft.jinja_template": "data/sft/test_template.py",
    "data.sft.set_report": "data/sft/test_build_set.py",
    "data.text.document_batches": "data/text/test_documents.py",
    "data.tokenizing.dataset_writers": "data/tokenizing/test_tokenize.py",
    "evaluation.code_tests_inside": "evaluation/test_code_tests.py",
    "evaluation.generation.cached_decoder": "evaluation/generation/test_open_backend.py",
    "evaluation.live_evaluation": "training/test_evaluating.py",
    "evaluation.published": "evaluation/test_benchmarks.py",
    "evaluation.results.results_page": "evaluation/test_evaluate.py",
    "files.lines": "data/text/test_documents.py",
    "files.processes": "supervision/test_lock.py",
    "grading.notation": "grading/test_grade.py",
    "grading.quantities": "grading/test_strict.py",
    "grading.sandboxed_comparison": "grading/test_grade.py",
    "grading.structure": "grading/test_strict.py",
    "grading.symbolic": "grading/test_grade.py",
    "grading.units": "grading/test_strict.py",
    "parallel.shard_file": "parallel/test_shards.py",
    "quickstart.standard_library": "quickstart/test_corpora.py",
    "recipe.recipe_stages": "recipe/test_recipe_mistakes.py",
    "report.summary": "report/test_page.py",
    "sandbox.confinement": "sandbox/test_pool.py",
    "sandbox.landlock": "sandbox/test_pool.py",
    "sandbox.outcome": "sandbox/test_pool.py",
    "sandbox.system_calls": "sandbox/test_pool.py",
    "sandbox.fork_server": "sandbox/test_pool.py",
    "supervision.heartbeat": "supervision/test_watchdog.py",
    "training.job": "training/test_train.py",
    "training.metrics": "training/test_weights_and_biases.py",
    "training.rank_progress": "supervision/test_watchdog.py",
    "training.resuming": "training/test_resume.py",
    "training.step": "training/test_train.py",
    "verify_layouts.activation_sums": "verify_layouts/test_verify.py",
}


def loaded_with(module: str) -> set[str]:
    """Every module that is loaded when this one is imported, as far as files of the package show it."""
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


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that import each other, directly or through others (Tarjan's algorithm)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(module: str) -> None:
        index[module] = low[module] = len(index)
        stack.append(module)
        for other in edges.get(module, ()):
            if other not in index:
                visit(other)
                low[module] = min(low[module], low[other])
            elif other in stack:
                low[module] = min(low[module], index[other])
        if low[module] == index[module]:
            group = stack[stack.index(module) :]
            del stack[stack.index(module) :]
            if len(group) > 1 or module in edges.get(module, ()):
                found.append(sorted(group))

    for module in edges:
        if module not in index:
            visit(module)
    return found


def lines_of(paths: Iterable[Path]) -> int:
    return sum(len(path.read_text(encoding="utf-8").splitlines()) for path in paths)


def test_every_room_has_a_floor_and_a_line_in_the_architecture() -> None:
    rooms = {room for room in map(room_of, FILES) if room is not None}
    assert rooms == FLOOR_OF.keys()
    described = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    missing = [room for room in rooms - {"__main__"} if f"| `{room}" not in described]
    assert missing == []


def test_imports_point_down() -> None:
    offenders = []
    for module, names in IMPORTS.items():
        room = room_of(module)
        below = {other for other, floor in FLOOR_OF.items() if room and floor < FLOOR_OF[room]}
        allowed = below | {room, "__version__", None}
        offenders += [f"{module} imports {name}" for name in names if room_of(name) not in allowed]
    assert offenders == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    edges = {module: {name for name in names if name in MODULES} for module, names in IMPORTS.items()}
    assert circles(edges) == []


def test_a_circle_is_found() -> None:
    edges = {"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set(), "e": {"e"}}
    assert sorted(circles(edges)) == [["b", "c"], ["e"]]


def test_no_two_modules_have_the_same_name() -> None:
    names = Counter(path.name for path in MODULES.values())
    assert [name for name, count in names.items() if count > 1] == []


def test_the_package_and_its_rooms_stay_small() -> None:
    rooms: dict[Path, list[Path]] = defaultdict(list)
    for path in FILES.values():
        rooms[path.parent].append(path)
    del rooms[ROOT / PACKAGE]
    large = [
        f"{room.relative_to(ROOT)}: {len(paths)} files, {lines_of(paths)} lines"
        for room, paths in rooms.items()
        if len(paths) > MOST_FILES_OF_A_ROOM or lines_of(paths) > MOST_LINES_OF_A_ROOM
    ]
    assert large == []
    assert len(MODULES) <= MOST_MODULES
    assert lines_of(FILES.values()) <= MOST_LINES


def test_every_module_has_its_tests_at_the_mirrored_path() -> None:
    names = [module.removeprefix(f"{PACKAGE}.") for module in MODULES]
    without = []
    for name in names:
        *rooms, module = name.split(".")
        mirrored = Path(*rooms, f"test_{module}.py")
        if not (ROOT / "tests" / TESTED_BY.get(name, mirrored)).exists():
            without.append(name)
        elif name in TESTED_BY and (ROOT / "tests" / mirrored).exists():
            without.append(f"{name} has {mirrored}, and need not be listed")
    assert without == []
    assert TESTED_BY.keys() - names == set()


def test_only_parallel_imports_megatron() -> None:
    outside = {module: names for module, names in IMPORTS.items() if room_of(module) != "parallel"}
    assert [module for module, names in outside.items() if "megatron" in {name.split(".")[0] for name in names}] == []


def test_the_lower_rooms_never_import_torch() -> None:
    lower = {module: names for module, names in IMPORTS.items() if room_of(module) in WITHOUT_TORCH}
    assert [module for module, names in lower.items() if "torch" in {name.split(".")[0] for name in names}] == []


def test_the_command_line_loads_nothing_heavy_before_a_verb_runs() -> None:
    loaded = loaded_with(f"{PACKAGE}.cli")
    assert f"{PACKAGE}.errors" in loaded  # the walk goes beyond the file itself
    assert {name.split(".")[0] for name in loaded} & HEAVY == set()


def test_a_tool_only_calls_the_package() -> None:
    offenders = []
    for tool in TOOLS:
        packages = {name.split(".")[0] for name in imports(parse(tool))} - sys.stdlib_module_names
        if packages != {PACKAGE} or lines_of([tool]) > MOST_LINES_OF_A_TOOL:
            offenders.append(tool.name)
    assert offenders == []


def test_launch_holds_only_shell_scripts() -> None:
    assert {path.suffix for path in (ROOT / "launch").iterdir()} == {".sh", ".sbatch"}


def test_late_imports_are_told_from_early_ones() -> None:
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
