"""HTML from plain values: everything that is text is escaped here, and only here."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape

STYLE = """
:root { color-scheme: light; --ink: #222; --soft: #666; --line: #e2e2e2; --accent: #0072b2; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 47rem; background: #fff; color: var(--ink);
       font: 16px/1.5 system-ui, "Segoe UI", "Noto Sans CJK SC", "PingFang SC", sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .25rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.5rem 0 .75rem; padding-top: 1rem; border-top: 2px solid var(--line); }
p.soft, figcaption { color: var(--soft); font-size: .875rem; margin: .25rem 0 1rem; }
p.text { white-space: pre-line; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .9375rem; }
th, td { text-align: left; vertical-align: top; padding: .35rem .75rem .35rem 0; border-bottom: 1px solid var(--line);
         overflow-wrap: anywhere; }
thead th, tbody th { font-weight: 600; }
tbody th { width: 9rem; min-width: 8.5rem; }
table.numbers th { overflow-wrap: normal; width: auto; }
table.numbers th + th, table.numbers td { text-align: right; white-space: nowrap; padding: .35rem 0 .35rem .75rem; }
figure { margin: 0 0 1.75rem; break-inside: avoid; }
img { display: block; width: 100%; height: auto; }
details { border: 1px solid var(--line); border-radius: 6px; padding: .5rem .9rem; margin: .5rem 0; }
summary { cursor: pointer; color: var(--accent); }
pre { overflow-x: auto; font: .8125rem/1.45 ui-monospace, Consolas, monospace; }
@media print { body { max-width: none; padding: 0; font-size: 10.5pt; } h2 { break-after: avoid; }
               details { border: 0; padding: 0; } pre { white-space: pre-wrap; } }
"""


def document(title: str, parts: Iterable[str]) -> str:
    """A whole page: styled inline, without scripts, and forbidden to fetch anything."""
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join([f"<h1>{escape(title)}</h1>", *parts])
        + "\n</body>\n</html>\n"
    )


def heading(text: str) -> str:
    """The title of a part."""
    return f"<h2>{escape(text)}</h2>"


def paragraph(text: str, kind: str = "text") -> str:
    """A paragraph; line breaks in `text` stay."""
    return f'<p class="{kind}">{escape(text)}</p>'


def table(rows: Sequence[Sequence[str]], header: Sequence[str] = (), numbers: bool = False) -> str:
    """A table whose first column names its rows; `numbers` sets the other columns to the right."""
    head = f"<thead><tr>{''.join(f'<th>{escape(cell)}</th>' for cell in header)}</tr></thead>" if header else ""
    body = "\n".join(
        f"<tr><th>{escape(name)}</th>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"
        for name, *cells in rows
    )
    kind = ' class="numbers"' if numbers else ""
    return f'<div class="wide"><table{kind}>{head}\n<tbody>\n{body}\n</tbody></table></div>'


def picture(png: bytes, description: str, caption: str) -> str:
    """A figure that carries its picture in itself; `description` is read where it cannot be seen."""
    data = base64.b64encode(png).decode()
    return (
        f'<figure><img src="data:image/png;base64,{data}" alt="{escape(description)}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def fold(title: str, text: str) -> str:
    """Text as it stands, closed until it is asked for."""
    return f"<details><summary>{escape(title)}</summary><pre>{escape(text)}</pre></details>"
