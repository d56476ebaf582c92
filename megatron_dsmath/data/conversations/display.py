"""A packed sequence as a person reads it: every token coloured by whether it is learned."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from megatron_dsmath.data.atomic_files import AtomicFiles
from megatron_dsmath.data.conversations.show import ShownDocument, ShownSequence, Stretch, stretches, tokenizer_of

PAGE = """\
<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{title}</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 15px/1.6 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }}
pre {{ white-space: pre-wrap; overflow-wrap: anywhere; font-size: 14px; margin: 0 0 1.5rem; }}
h2 {{ font-size: 1rem; font-weight: 600; margin: 1.5rem 0 .3rem; }}
.learned {{ background: light-dark(#b9e6c5, #1d5b33); }}
.learned.odd {{ background: light-dark(#d8f2df, #2a7545); }}
.given {{ color: light-dark(#6b6b6b, #a0a0a0); }}
.given.odd {{ background: light-dark(#f1f1f1, #262626); }}
.special {{ outline: 1px solid currentColor; }}
</style>
<h1>{title}</h1>
<p>{summary}
<span class="learned">learned</span> <span class="given">given</span> <span class="special">special</span></p>
{documents}
<p>{padding}</p>
</html>
"""


def print_sequence(shown: ShownSequence, tokenizer: Path | None, as_json: bool) -> None:
    """The sequence in colours on a terminal, with ⟦ ⟧ around what is learned in a pipe, or as JSON.

    `tokenizer`: where the one lies that the set was made with; None: where it lay then.
    """
    if as_json:
        print(json.dumps(asdict(shown), default=str, ensure_ascii=False))
        return
    from rich.console import Console
    from rich.text import Text

    engine = tokenizer_of(shown, tokenizer)
    console = Console(highlight=False, soft_wrap=True)
    print(_summary(shown))
    for document in shown.documents:
        print(f"--- {_title(document)}")
        parts = list(stretches(shown, document, engine))
        if not console.is_terminal:
            print(_marked(parts))
            continue
        text = Text()
        for place, stretch in enumerate(parts):
            style = ("bold green", "green")[place % 2] if stretch.is_learned else ("bright_black", "dim")[place % 2]
            text.append(stretch.text, f"{style} reverse" if stretch.is_special else style)
        console.print(text)
    print(_padding(shown))


def write_page(shown: ShownSequence, tokenizer: Path | None, path: Path) -> Path:
    """The sequence as an HTML page at `path`, one element a token. Raises OutputError."""
    engine = tokenizer_of(shown, tokenizer)
    documents = []
    for document in shown.documents:
        spans = "".join(_span(place, part) for place, part in enumerate(stretches(shown, document, engine)))
        documents.append(f"<h2>{html.escape(_title(document))}</h2>\n<pre>{spans}</pre>")
    page = PAGE.format(
        title=html.escape(f"{shown.prefix.name}, sequence {shown.index:,}"),
        summary=html.escape(_summary(shown)),
        documents="\n".join(documents),
        padding=_padding(shown),
    )
    files = AtomicFiles(path)
    try:
        files.files[0].write(page.encode())
        files.publish()
    finally:
        files.discard()
    return path


def _marked(parts: Sequence[Stretch]) -> str:
    text = ""
    was_learned = False
    for stretch in parts:
        text += "" if stretch.is_learned == was_learned else "⟦" if stretch.is_learned else "⟧"
        text += stretch.text
        was_learned = stretch.is_learned
    return text + "⟧" * was_learned


def _span(place: int, stretch: Stretch) -> str:
    names = ["learned" if stretch.is_learned else "given", *(["odd"] if place % 2 else [])]
    names += ["special"] if stretch.is_special else []
    ids = " ".join(map(str, stretch.ids))
    return f'<span class="{" ".join(names)}" title="{ids}">{html.escape(stretch.text)}</span>'


def _title(document: ShownDocument) -> str:
    topic = f", {document.topic}" if document.topic else ""
    return (
        f"{document.file}:{document.line}, {document.source}, {document.kind}, {document.language}{topic}, "
        f"tokens {document.first_token:,} to {document.end_token - 1:,}"
    )


def _summary(shown: ShownSequence) -> str:
    return (
        f"sequence {shown.index:,}: number {shown.sequence:,} of epoch {shown.epoch:,}, "
        f"{len(shown.documents)} examples, {shown.token_count:,} of {len(shown.tokens):,} tokens, "
        f"{sum(shown.loss_mask):,} of them learned"
    )


def _padding(shown: ShownSequence) -> str:
    return f"{len(shown.tokens) - shown.token_count:,} tokens of padding"
