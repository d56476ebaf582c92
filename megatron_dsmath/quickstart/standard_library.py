"""Code and documentation of Python's standard library, read from the running interpreter.

Licence: the Python Software Foundation License 2, and in some modules a notice of their own. Sources are used as whole
files, so each keeps its notice. Nothing of them is part of this project.
"""

from __future__ import annotations

import ast
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from random import Random

from megatron_dsmath.errors import DataError

MATHEMATICAL = ("fractions", "statistics", "numbers", "random", "colorsys", "heapq", "bisect", "decimal", "graphlib")
# Tables and toys rather than programs.
LEFT_OUT = ("encodings", "pydoc_data", "lib2to3", "idlelib", "turtledemo", "this", "antigravity")
SMALLEST_BYTES, LARGEST_BYTES = 500, 60_000  # without empty __init__ files, and modules that fill a small corpus alone
EXCERPT_CHARACTERS = 6_000
FEWEST_MODULES = 50  # fewer mean a stripped library, and a corpus that the model would soon know by heart


def mathematical_modules() -> Iterator[str]:
    """Yield the sources of the library's mathematical modules in the order of their names."""
    for path in source_files():
        if path.stem in MATHEMATICAL and path.parent == library():
            yield from _text(path)


def other_modules(draw: Random) -> Iterator[str]:
    """Yield the sources of the other modules in a random order. Raises DataError where the interpreter has too few."""
    paths = [path for path in source_files() if path.stem not in MATHEMATICAL]
    if len(paths) < FEWEST_MODULES:
        raise DataError(
            "the quickstart's code corpus needs the sources of the standard library",
            where=library(),
            found=f"{len(paths)} modules as .py files",
            expected=f"at least {FEWEST_MODULES}, as every usual installation has",
            fix="run it with Python from python.org, your distribution's full package, conda or uv",
        )
    draw.shuffle(paths)
    for path in paths:
        yield from _text(path)


def documentation(draw: Random) -> Iterator[str]:
    """Yield excerpts of English prose in a random order: the language reference of `help()`, and docstrings."""
    chapters: list[str | Path] = [*_language_reference(), *source_files()]
    draw.shuffle(chapters)
    for chapter in chapters:
        texts = [chapter] if isinstance(chapter, str) else map(_docstrings, _text(chapter))
        for text in texts:
            yield from _excerpts(text)


def library() -> Path:
    """The folder of the standard library."""
    return Path(sysconfig.get_path("stdlib"))


def source_files() -> list[Path]:
    """The library's modules in the order of their names, without tests and packages installed beside them."""
    known = sys.stdlib_module_names.difference(LEFT_OUT)
    found: list[Path] = []
    for name in sorted(known):
        found += [library() / f"{name}.py", *sorted((library() / name).rglob("*.py"))]
    return [path for path in found if path.is_file() and _is_used(path)]


def _is_used(path: Path) -> bool:
    is_test = {"test", "tests", "idle_test", "__pycache__"}.intersection(path.relative_to(library()).parts)
    return not is_test and SMALLEST_BYTES < path.stat().st_size < LARGEST_BYTES


def _text(path: Path) -> Iterator[str]:
    try:
        yield path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):  # a few old modules are in another encoding
        return


def _language_reference() -> list[str]:
    try:
        from pydoc_data.topics import topics
    except ImportError:  # some distributions leave it out
        return []
    return [topics[name] for name in sorted(topics)]


def _excerpts(text: str) -> Iterator[str]:
    """Cut the text at empty lines into excerpts of about EXCERPT_CHARACTERS."""
    excerpt = ""
    for paragraph in text.split("\n\n"):
        if excerpt and len(excerpt) + len(paragraph) > EXCERPT_CHARACTERS:
            yield excerpt
            excerpt = ""
        excerpt += ("\n\n" if excerpt else "") + paragraph.strip("\n")
    if excerpt:
        yield excerpt


def _docstrings(source: str) -> str:
    documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    nodes = (node for node in ast.walk(ast.parse(source)) if isinstance(node, documented))
    strings = (ast.get_docstring(node) for node in nodes)
    return "\n\n".join(string for string in strings if string and len(string) > 200)
