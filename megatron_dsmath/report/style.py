"""One look for every figure: 1,200 pixels wide, light, readable when a page shrinks it, safe for colour-blind eyes."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH_INCHES, PIXELS_PER_INCH = 6.0, 200
# Okabe and Ito's palette (jfly.uni-koeln.de/color) without its yellow, which is lost on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
INK, FAINT = "#333333", "#999999"
LONGEST_NAME = 28
LINE_HEIGHT_POINTS = 13.0

SETTINGS: dict[str, object] = {
    "font.family": ["DejaVu Sans"],
    "font.size": 9.5,
    "text.color": INK,
    "text.parse_math": False,  # a name with dollar signs is a name
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#E6E6E6",
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "figure.facecolor": "white",
    "figure.constrained_layout.h_pad": 0.09,
    "figure.constrained_layout.w_pad": 0.08,
}


class Label(NamedTuple):
    """A text at the right end of a curve, in the curve's colour."""

    height: float
    text: str
    colour: str


def colour(index: int) -> str:
    """The colour of the curve with this index; after the seventh they come again."""
    return COLOURS[index % len(COLOURS)]


def plain(name: str) -> str:
    """A name as a figure can show it: one line, printable, at most LONGEST_NAME characters."""
    shown = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in name)
    return shown if len(shown) <= LONGEST_NAME else shown[: LONGEST_NAME - 1] + "…"


@contextmanager
def figure(height_inches: float) -> Iterator[Figure]:
    """An empty figure of the common width, with the common look in force."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(SETTINGS), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # a name in a script it lacks
        yield Figure((WIDTH_INCHES, height_inches), dpi=PIXELS_PER_INCH, layout="constrained")


def png(drawn: Figure) -> bytes:
    """The figure as a PNG file, the same bytes for the same figure."""
    file = io.BytesIO()
    drawn.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def format_axis(axes: Axes, form: Callable[[float], str], which: str = "y") -> None:
    """Write an axis' numbers with `form`."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axis = axes.yaxis if which == "y" else axes.xaxis
    axis.set_major_formatter(FuncFormatter(lambda number, _: form(number)))
    axis.set_minor_formatter(NullFormatter())


def label_ends(axes: Axes, labels: Sequence[Label]) -> None:
    """Write each label beside its curve's end, moved apart where they would overlap. Limits must be final."""
    to_share = axes.transData + axes.transAxes.inverted()
    ordered = sorted(labels, key=lambda label: label.height)
    # A logarithmic axis has no place for a zero, and a view may end below a curve's end: such labels stand at the edge.
    shares = [to_share.transform((1, label.height))[1] for label in ordered]
    heights = [float(height) for height in np.clip(np.nan_to_num(shares), 0.0, 1.0)]
    gap = LINE_HEIGHT_POINTS / 72 * PIXELS_PER_INCH / axes.bbox.height
    for label, height in zip(ordered, spread(heights, gap), strict=True):
        axes.text(1.015, height, label.text, color=label.colour, transform=axes.transAxes, va="center")


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """Ascending heights moved as little as it takes to stand `gap` apart, the last not above 1 where they fit."""
    placed: list[float] = []
    for height in heights:
        placed.append(max(height, placed[-1] + gap) if placed else height)
    ceiling = max(1.0, (len(placed) - 1) * gap)
    for index in reversed(range(len(placed))):
        placed[index] = min(placed[index], ceiling)
        ceiling = placed[index] - gap
    return placed
