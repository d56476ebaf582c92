"""The style of all figures: 1,200 pixels wide, light, readable when shrunk, for colour-blind readers too."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

WIDTH_INCHES, PIXELS_PER_INCH = 6.0, 200
# Okabe and Ito's palette (jfly.uni-koeln.de/color) without its yellow, which is hard to see on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
INK, FAINT = "#333333", "#999999"
LONGEST_NAME = 28
LINE_HEIGHT_POINTS = 13.0

SETTINGS: dict[str, object] = {
    "font.family": ["DejaVu Sans"],
    "font.size": 9.5,
    "text.color": INK,
    "text.parse_math": False,  # dollar signs in names are text
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
    """The colour of the curve with this index; they repeat after the seventh."""
    return COLOURS[index % len(COLOURS)]


def printable_name(name: str) -> str:
    """The name as a figure shows it: printable, on one line, at most LONGEST_NAME characters."""
    shown = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in name)
    return shown if len(shown) <= LONGEST_NAME else shown[: LONGEST_NAME - 1] + "…"


@contextmanager
def figure(height_inches: float) -> Iterator[Figure]:
    """An empty figure of the common width, in the common style."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(SETTINGS), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # names in a script that it lacks
        yield Figure((WIDTH_INCHES, height_inches), dpi=PIXELS_PER_INCH, layout="constrained")


def png(drawn: Figure) -> bytes:
    """The figure as a PNG file, the same bytes for the same figure."""
    file = io.BytesIO()
    drawn.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def format_axis(axis: Axis, form: Callable[[float], str]) -> None:
    """Format the numbers of an axis with `form`."""
    axis.set_major_formatter(lambda number, _: form(number))
    axis.set_minor_formatter("")


def label_ends(axes: Axes, labels: Sequence[Label]) -> None:
    """Write each label beside the end of its curve, without overlaps. The limits of the axes must be final."""
    to_share = axes.transData + axes.transAxes.inverted()
    ordered = sorted(labels, key=lambda label: label.height)
    # Zero on a logarithmic axis, and ends of curves outside the limits: such labels are at the edge.
    shares = [to_share.transform((1, label.height))[1] for label in ordered]
    heights = [float(height) for height in np.clip(np.nan_to_num(shares), 0.0, 1.0)]
    gap = LINE_HEIGHT_POINTS / 72 * PIXELS_PER_INCH / axes.bbox.height
    for label, height in zip(ordered, spread_heights(heights, gap), strict=True):
        axes.text(1.015, height, label.text, color=label.colour, transform=axes.transAxes, va="center")


def spread_heights(heights: Sequence[float], gap: float) -> list[float]:
    """Move ascending heights until they are `gap` apart, the last at most 1 where all fit."""
    moved: list[float] = []
    for height in heights:
        moved.append(max(height, moved[-1] + gap) if moved else height)
    ceiling = max(1.0, (len(moved) - 1) * gap)
    for index in reversed(range(len(moved))):
        moved[index] = min(moved[index], ceiling)
        ceiling = moved[index] - gap
    return moved
