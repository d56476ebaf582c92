"""`dsmath report RUN_DIR...`: an HTML page that loads nothing, and its figures."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from megatron_dsmath.errors import UsageError
from megatron_dsmath.files.atomic_files import AtomicFiles
from megatron_dsmath.report import plots
from megatron_dsmath.report.number_formats import format_bytes, format_count, format_loss, format_share
from megatron_dsmath.report.plots import Runs
from megatron_dsmath.report.record import RunRecord, read_run, smoothing_window
from megatron_dsmath.report.summary import Facts, facts, goodput


@dataclass(frozen=True)
class Section:
    """A part that a caller adds below the summary. Its texts are escaped when they are written."""

    title: str
    rows: Sequence[tuple[str, str]] = ()  # (label, value) rows of a table
    text: str = ""  # shown above the table, with its line breaks


STEPS = "Faint: each step. Strong: mean over the last {window} steps"
FIGURES: dict[str, tuple[Callable[[Runs], bytes], str]] = {  # by file name: its function, the metric it needs
    "loss": (plots.draw_loss, "loss"),
    "loss_by_corpus": (plots.draw_loss_by_corpus, "loss_by_corpus"),
    "learning_rate": (plots.draw_learning_rate, "learning_rate"),
    "mixture": (plots.draw_mixture, "tokens_by_corpus"),
    "throughput": (plots.draw_throughput, "tokens_per_second"),
    "gradient_norm": (plots.draw_gradient_norm, "grad_norm"),
}
CAPTIONS = {  # by file name
    "loss": f"{STEPS}; the first may be outside. Circles: validation.",
    "loss_by_corpus": "Smoothed as above, over the steps in which a corpus occurs. Circles: validation.",
    "learning_rate": "Dots: the first step at the peak and after each drop.",
    "mixture": "Bars: share of the tokens so far. Lines: configured weight.",
    "throughput": "Dots: each step; much slower ones may be outside. Lines: medians.",
    "gradient_norm": f"Before clipping. {STEPS}.",
}


def write_report(run_dirs: Sequence[Path], sections: Sequence[Section] = ()) -> Path:
    """Write `report.html` and `report/*.png` into the first of `run_dirs`; return the path of the page.

    Several runs are drawn on the same axes. The page has no scripts and loads nothing. All files appear, or none.
    Raises ConfigError for a folder that is not a run's directory, DataError for one without metrics, OutputError.
    """
    if not run_dirs:
        raise UsageError("no run to report on", expected="at least one run's directory", fix="dsmath report RUN_DIR")
    runs = _named([read_run(folder) for folder in run_dirs])
    pictures = {name: draw(runs) for name, (draw, metric) in FIGURES.items() if _measured(runs, metric)}
    page = run_dirs[0] / "report.html"
    contents = [*pictures.values(), _page(runs, pictures, sections)]
    with AtomicFiles(*(run_dirs[0] / "report" / f"{name}.png" for name in pictures), page) as files:
        for file, content in zip(files, contents, strict=True):
            file.write(content)
    return page


def _named(records: Sequence[RunRecord]) -> Runs:
    """The runs by the names of their folders, or by their paths where two folders have the same name."""
    names = [record.folder.resolve().name for record in records]
    return {
        name if names.count(name) == 1 else str(record.folder.resolve()): record
        for name, record in zip(names, records, strict=True)
    }


def _measured(runs: Runs, metric: str) -> bool:
    return any(
        run.last(metric, corpus) is not None
        for run in runs.values()
        for corpus in (run.corpora() if metric.endswith("_by_corpus") else [None])
    )


def _page(runs: Runs, pictures: dict[str, bytes], sections: Sequence[Section]) -> bytes:
    parts = [
        _paragraph(", ".join(str(run.folder) for run in runs.values()), "soft"),
        _side_by_side(runs, facts),
        _heading("Goodput"),
        _side_by_side(runs, goodput),
    ]
    for section in sections:
        parts.append(_heading(section.title))
        parts += [_paragraph(section.text)] if section.text else []
        parts += [_table(section.rows)] if section.rows else []
    parts.append(_heading("Curves"))
    parts += [_figure(runs, name, png) for name, png in pictures.items()]
    for name, run in runs.items():
        of_run = f" of {name}" if len(runs) > 1 else ""
        parts += [_heading(f"Corpora{of_run}"), _corpora(run)]
        parts += [_heading(f"Checkpoints{of_run}"), _checkpoints(run)]
        settings = f"<summary>run.yaml, with all defaults</summary><pre>{escape(run.settings_text)}</pre>"
        parts += [_heading(f"Settings{of_run}"), f"<details>{settings}</details>"]
    return _document(f"Training report: {', '.join(runs)}", parts).encode("utf-8", errors="replace")


def _side_by_side(runs: Runs, facts_of: Callable[[RunRecord], Facts]) -> str:
    columns = [dict(facts_of(run)) for run in runs.values()]
    rows = [[label, *(column[label] for column in columns)] for label in columns[0]]
    return _table(rows, ["", *runs] if len(runs) > 1 else ())


def _figure(runs: Runs, name: str, png: bytes) -> str:
    window = max(smoothing_window(len(run.rows)) for run in runs.values())
    description = f"{name.replace('_', ' ')} over the steps of {', '.join(runs)}"
    return (
        f'<figure><img src="data:image/png;base64,{base64.b64encode(png).decode()}" alt="{escape(description)}">'
        f"<figcaption>{escape(CAPTIONS[name].format(window=window))}</figcaption></figure>"
    )


def _corpora(run: RunRecord) -> str:
    weights, shares, tokens = run.weights(), run.achieved_shares(), run.tokens_by_corpus()
    rows = [
        [
            corpus,
            format_share(weights.get(corpus)),
            format_share(shares.get(corpus)),
            format_count(tokens.get(corpus)),
            format_loss(run.last("loss_by_corpus", corpus)),
            format_loss(run.last("validation_loss_by_corpus", corpus)),
        ]
        for corpus in run.corpora()
    ]
    return _table(rows, ["Corpus", "Weight", "Achieved", "Tokens", "Last loss", "Validation"], numbers=True)


def _checkpoints(run: RunRecord) -> str:
    states = {True: "complete", False: "incomplete: no readable manifest"}
    rows = [(f"step {one.step:,}", f"{format_bytes(one.size_bytes)}, {states[one.whole]}") for one in run.checkpoints]
    return _table(rows) if rows else _paragraph("None yet.")


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


def _document(title: str, parts: Iterable[str]) -> str:
    """A page with inline style and without scripts, which may not load anything."""
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join([f"<h1>{escape(title)}</h1>", *parts])
        + "\n</body>\n</html>\n"
    )


def _heading(text: str) -> str:
    return f"<h2>{escape(text)}</h2>"


def _paragraph(text: str, kind: str = "text") -> str:
    return f'<p class="{kind}">{escape(text)}</p>'


def _table(rows: Sequence[Sequence[str]], header: Sequence[str] = (), numbers: bool = False) -> str:
    """A table whose first column has the names of the rows; `numbers` aligns the other columns to the right."""
    head = f"<thead><tr>{''.join(f'<th>{escape(cell)}</th>' for cell in header)}</tr></thead>" if header else ""
    body = "\n".join(
        f"<tr><th>{escape(name)}</th>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"
        for name, *cells in rows
    )
    kind = ' class="numbers"' if numbers else ""
    return f'<div class="wide"><table{kind}>{head}\n<tbody>\n{body}\n</tbody></table></div>'
