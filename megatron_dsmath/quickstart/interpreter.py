"""The texts that every Python installation carries: the standard library's sources and documentation.

Licence: the Python Software Foundation License 2, and for some modules the notice that stands in the module itself;
sources are used as whole files, so that each keeps its notice. They are read from the running interpreter, which
has them under that licence already; nothing of them is part of this project.
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
SMALLEST_BYTES, LARGEST_BYTES = 500, 60_000  # an empty __init__ says nothing; a huge module is most of a small corpus
PIECE_CHARACTERS = 6_000
FEWEST_MODULES = 50  # fewer would be a stripped library, and the corpus would soon be learnt by heart


def mathematical_modules() -> Iterator[str]:
    """The sources of the standard library's mathematical modules, one after the other."""
    for path in sources():
        if path.stem in MATHEMATICAL and path.parent == library():
            yield from _text(path)


def modules(draw: Random) -> Iterator[str]:
    """The sources of the other modules in a drawn order. Raises DataError where the interpreter carries too few."""
    paths = [path for path in sources() if path.stem not in MATHEMATICAL]
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
    """English prose in a drawn order: the language reference of `help()`, and the modules' documentation strings."""
    chapters: list[str | Path] = [*_reference(), *sources()]
    draw.shuffle(chapters)
    for chapter in chapters:
        texts = [chapter] if isinstance(chapter, str) else map(_documentation_strings, _text(chapter))
        for text in texts:
            yield from _pieces(text)


def library() -> Path:
    """The folder of the standard library."""
    return Path(sysconfig.get_path("stdlib"))


def sources() -> list[Path]:
    """The library's own modules, in the order of their names; what others installed beside them is left out."""
    known = sys.stdlib_module_names.difference(LEFT_OUT)
    found = [
        path for name in sorted(known) for path in (library() / f"{name}.py", *sorted((library() / name).rglob("*.py")))
    ]
    return [path for path in found if _is_plain(path)]


def _is_plain(path: Path) -> bool:
    tests = {"test", "tests", "idle_test", "__pycache__"}.intersection(path.relative_to(library()).parts)
    return not tests and path.is_file() and SMALLEST_BYTES < path.stat().st_size < LARGEST_BYTES


def _text(path: Path) -> Iterator[str]:
    try:
        yield path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):  # a few old modules are in another encoding
        return


def _reference() -> list[str]:
    try:
        from pydoc_data.topics import topics
    except ImportError:  # some distributions leave it out; the documentation strings remain
        return []
    return [topics[name] for name in sorted(topics)]


def _pieces(text: str) -> Iterator[str]:
    """The text cut at empty lines into pieces of about PIECE_CHARACTERS."""
    piece = ""
    for paragraph in text.split("\n\n"):
        if piece and len(piece) + len(paragraph) > PIECE_CHARACTERS:
            yield piece
            piece = ""
        piece += ("\n\n" if piece else "") + paragraph.strip("\n")
    if piece:
        yield piece


def _documentation_strings(source: str) -> str:
    documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    nodes = (node for node in ast.walk(ast.parse(source)) if isinstance(node, documented))
    strings = (ast.get_docstring(node) for node in nodes)
    return "\n\n".join(string for string in strings if string and len(string) > 200)
