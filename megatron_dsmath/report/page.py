"""`dsmath report RUN_DIR...`: one self-contained HTML page and its figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from megatron_dsmath.data.atomic_files import AtomicFiles
from megatron_dsmath.errors import UsageError
from megatron_dsmath.report import formats, markup, plots
from megatron_dsmath.report.curves import achieved_shares, tokens_by_corpus, window_steps
from megatron_dsmath.report.plots import Runs
from megatron_dsmath.report.record import RunRecord, read_run
from megatron_dsmath.report.summary import Facts, facts, goodput


@dataclass(frozen=True)
class Section:
    """A part that a caller adds below the summary: plain text and values, escaped when they are written."""

    title: str
    rows: Sequence[tuple[str, str]] = ()
    """(label, value) lines of a table."""
    text: str = ""
    """Shown above the table; line breaks stay."""


class Figure(NamedTuple):
    """A figure of the report: its file's name, how it is drawn, the metric it needs, and what a reader should know."""

    name: str
    draw: Callable[[Runs], bytes]
    metric: str
    caption: str


FIGURES = (
    Figure(
        "loss",
        plots.loss,
        "loss",
        "Faint: each step. Strong: mean over the last {window} steps; the first may lie above. Circles: validation.",
    ),
    Figure(
        "loss_by_corpus",
        plots.loss_by_corpus,
        "loss_by_corpus",
        "Smoothed as above, over the steps in which a corpus occurs. Circles: validation.",
    ),
    Figure(
        "learning_rate", plots.learning_rate, "learning_rate", "Dots: the first step at the peak and after each drop."
    ),
    Figure("mixture", plots.mixture, "tokens_by_corpus", "Bars: share of the tokens so far. Lines: configured weight."),
    Figure(
        "throughput",
        plots.throughput,
        "tokens_per_second",
        "Dots: each step; those far slower than the rest may lie outside. Lines: medians.",
    ),
    Figure(
        "gradient_norm",
        plots.gradient_norm,
        "grad_norm",
        "Before clipping. Faint: each step. Strong: the mean as above.",
    ),
)


def write_report(run_dirs: Sequence[Path], sections: Sequence[Section] = ()) -> Path:
    """Write `report.html` and `report/*.png` into the first of `run_dirs`; return the page's path.

    Several runs are drawn on the same axes. The page stands alone: no script, no network. All files appear, or none.
    Raises ConfigError for a folder that is no run's, DataError for one without metrics, OutputError.
    """
    if not run_dirs:
        raise UsageError("no run to report on", expected="at least one run's directory", fix="dsmath report RUN_DIR")
    runs = _named([read_run(folder) for folder in run_dirs])
    pictures = {figure: figure.draw(runs) for figure in FIGURES if _measured(runs, figure.metric)}
    page = run_dirs[0] / "report.html"
    output = AtomicFiles(*(run_dirs[0] / "report" / f"{figure.name}.png" for figure in pictures), page)
    try:
        for file, content in zip(output.files, [*pictures.values(), _page(runs, pictures, sections)], strict=True):
            file.write(content)
        output.publish()
    finally:
        output.discard()
    return page


def _named(records: Sequence[RunRecord]) -> Runs:
    """Each run by its folder's name, or by its whole path where two folders have the same name."""
    names = [record.folder.resolve().name for record in records]
    return {
        name if names.count(name) == 1 else str(record.folder.resolve()): record
        for name, record in zip(names, records, strict=True)
    }


def _measured(runs: Runs, metric: str) -> bool:
    by_corpus = metric.endswith("_by_corpus")
    return any(
        run.last(metric, corpus) is not None
        for run in runs.values()
        for corpus in (run.corpora() if by_corpus else [None])
    )


def _page(runs: Runs, pictures: dict[Figure, bytes], sections: Sequence[Section]) -> bytes:
    parts = [
        markup.paragraph(", ".join(str(run.folder) for run in runs.values()), "soft"),
        _side_by_side(runs, facts),
        markup.heading("Goodput"),
        _side_by_side(runs, goodput),
    ]
    for section in sections:
        parts.append(markup.heading(section.title))
        parts += [markup.paragraph(section.text)] if section.text else []
        parts += [markup.table(section.rows)] if section.rows else []
    parts.append(markup.heading("Curves"))
    parts += [_picture(runs, figure, png) for figure, png in pictures.items()]
    for name, run in runs.items():
        of_run = f" of {name}" if len(runs) > 1 else ""
        parts += [markup.heading(f"Corpora{of_run}"), _corpora(run)]
        parts += [markup.heading(f"Checkpoints{of_run}"), _checkpoints(run)]
        parts += [
            markup.heading(f"Settings{of_run}"),
            markup.fold("run.yaml, as the run resolved it", run.settings_text),
        ]
    return markup.document(f"Training report: {', '.join(runs)}", parts).encode("utf-8", errors="replace")


def _side_by_side(runs: Runs, facts_of: Callable[[RunRecord], Facts]) -> str:
    columns = [dict(facts_of(run)) for run in runs.values()]
    rows = [[label, *(column[label] for column in columns)] for label in columns[0]]
    return markup.table(rows, ["", *runs] if len(runs) > 1 else ())


def _picture(runs: Runs, figure: Figure, png: bytes) -> str:
    window = max(window_steps(len(run.rows)) for run in runs.values())
    description = f"{figure.name.replace('_', ' ')} over the steps of {', '.join(runs)}"
    return markup.picture(png, description, figure.caption.format(window=window))


def _corpora(run: RunRecord) -> str:
    weights, shares, tokens = run.weights(), achieved_shares(run), tokens_by_corpus(run)
    rows = [
        [
            corpus,
            formats.share(weights.get(corpus)),
            formats.share(shares.get(corpus)),
            formats.count(tokens.get(corpus)),
            formats.loss(run.last("loss_by_corpus", corpus)),
            formats.loss(run.last("validation_loss_by_corpus", corpus)),
        ]
        for corpus in run.corpora()
    ]
    return markup.table(rows, ["Corpus", "Weight", "Achieved", "Tokens", "Last loss", "Validation"], numbers=True)


def _checkpoints(run: RunRecord) -> str:
    rows = [
        (
            f"step {saved.step:,}",
            f"{formats.size_bytes(saved.size_bytes)}, {'whole' if saved.whole else 'not whole: no readable manifest'}",
        )
        for saved in run.checkpoints
    ]
    return markup.table(rows) if rows else markup.paragraph("None yet.")
