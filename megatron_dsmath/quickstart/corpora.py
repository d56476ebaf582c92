"""Five small corpora in place of the five sources of the paper's mixture, written from nothing but Python itself."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from random import Random

from megatron_dsmath.files.atomic_files import AtomicFiles, OutputFile
from megatron_dsmath.quickstart import formal, papers, plain_texts, web_pages

README = """\
# Corpora of the quickstart

Miniatures of the five sources of DeepSeekMath's mixture (arXiv 2402.03300, section 2.3), made by `dsmath quickstart`.

| file | what it is | whose it is |
|---|---|---|
| deepseekmath_corpus.jsonl | generated: mathematical pages with worked solutions, English and Chinese | ours |
| algebraic_stack.jsonl | generated: Lean, computer algebra, numerical programs | ours |
| | and the mathematical modules of Python's standard library | Python's |
| arxiv.jsonl | generated: LaTeX sections with theorems and proofs | ours |
| github_code.jsonl | other modules of Python's standard library, each whole | Python's |
| natural_language.jsonl | generated: Chinese essays | ours |
| | and documentation that Python carries, English | Python's |

Ours: megatron_dsmath, Apache-2.0; the mathematics is true, the stories are made up.
Python's: read from the interpreter that wrote this folder, under the Python Software Foundation License 2 (see its
LICENSE.txt, or `license()` in Python) and, in some modules, the notice in the module. Pass them on only with it.
"""
SESSIONS_PER_MODULE = 120


def _algebraic_stack(draw: Random) -> Iterator[str]:
    """Sessions without end, and while there are any, a mathematical module after every few of them."""
    sessions = formal.sessions(draw)
    for module in plain_texts.mathematical_modules():
        yield from islice(sessions, SESSIONS_PER_MODULE)
        yield module
    yield from sessions


# Of each corpus: its share of the bytes, which is the paper's share of the tokens (section 2.3), and its documents.
CORPORA: dict[str, tuple[float, Callable[[Random], Iterator[str]]]] = {
    "deepseekmath_corpus": (0.56, web_pages.pages),
    "algebraic_stack": (0.04, _algebraic_stack),
    "arxiv": (0.10, papers.articles),
    "github_code": (0.20, plain_texts.modules),
    "natural_language": (0.10, plain_texts.documents),
}


def write_corpora(folder: Path, seed: int, megabytes: float = 6.0) -> dict[str, Path]:
    """Write `folder`/NAME.jsonl for each corpus, `{"text": ...}` a line, and return their paths by name.

    README.md beside them says what they are and whose.
    `megabytes`: about the size of all files together, shared out as the paper's mixture; a corpus that is read from
    the interpreter ends earlier where there is no more to read. The same seed and version of Python give the same
    bytes. All files appear, or none. Raises OutputError, and DataError where Python's own sources are missing.
    """
    paths = {name: folder / f"{name}.jsonl" for name in CORPORA}
    with AtomicFiles(folder / "README.md", *paths.values()) as (readme, *files):
        readme.write(README.encode())
        for file, (name, (share, documents)) in zip(files, CORPORA.items(), strict=True):
            draw = Random(f"{seed}/{name}")  # noqa: S311 - it draws texts, not secrets
            _write(file, documents(draw), int(megabytes * share * 1e6))
    return paths


def _write(file: OutputFile, documents: Iterator[str], size_bytes: int) -> None:
    for text in documents:
        file.write((json.dumps({"text": text}, ensure_ascii=False) + "\n").encode())
        if file.size_bytes >= size_bytes:
            return
