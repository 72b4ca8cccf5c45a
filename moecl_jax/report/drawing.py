"""Draws curves and heat maps with matplotlib, for the page and for files.

A picture is drawn in the colours of a light page. On the page its colours become those of the style
sheet, which has them for light and dark pages, and its letters those of the page. All lengths are
in CSS pixels, of which matplotlib makes points.
"""

import dataclasses
import functools
import io
import math
import re
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import numpy as np
from numpy.typing import ArrayLike

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Arguments = ParamSpec("Arguments")
Returned = TypeVar("Returned")

LINES = ("#0072b2", "#d55e00", "#009e73", "#b0558c", "#2f9fd8", "#b57700", "#333333", "#6a51c9")
_INK, _SOFT, _RULE = "#1b1f24", "#59636e", "#d5dae0"
_HIGH, _ON_MIDDLE, _ON_HIGH = "#0b4a8f", "#1b1f25", "#fefefe"  # of a heat map, and letters on it
# Variables of the page's style sheet, by the colour that a picture is drawn in.
_VARIABLES = {_INK: "ink", _SOFT: "soft", _RULE: "rule", _HIGH: "high", _ON_HIGH: "on-high"}
_VARIABLES[_ON_MIDDLE] = "on-middle"
_VARIABLES |= {colour: f"c{number}" for number, colour in enumerate(LINES)}
_DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)))
_MARKERS = "osD^v"
_LETTER = 6.0  # mean width of a letter
_LONGEST = 18  # letters of a name beside an axis
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "moecl",
    "pdf.fonttype": 42,
    "font.size": 11,
    "axes.edgecolor": _RULE,
    "axes.labelcolor": _SOFT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": _INK,
    "text.parse_math": False,  # a name may hold dollars
    "xtick.color": _SOFT,
    "ytick.color": _SOFT,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
}


@dataclasses.dataclass(frozen=True)
class Curve:
    """A curve with its band.

    Attributes:
      name: name of the curve.
      style: number that chooses colour, dashes and markers.
      x: places from left to right.
      y: values at these places; NaN is left out.
      spread: half the height of the band at each place, NaN where there is none; None for no band.
      marked: whether each point gets a marker.
    """

    name: str
    style: int
    x: ArrayLike
    y: ArrayLike
    spread: ArrayLike | None = None
    marked: bool = True


def _styled(function: Callable[Arguments, Returned]) -> Callable[Arguments, Returned]:
    """Gives a function the style of all pictures, whatever style the user has."""

    @functools.wraps(function)
    def styled(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Returned:
        from matplotlib import style

        with style.context(["default", _STYLE]):
            return function(*args, **kwargs)

    return styled


@_styled
def curves(
    lines: Sequence[Curve],
    *,
    size: tuple[int, int],
    label: str,
    ticks: Sequence[str] | None = None,
    limits: tuple[float, float] | None = None,
    reference: tuple[str, ArrayLike] | None = None,
    named: bool = False,
    sections: Sequence[tuple[float, str]] = (),
) -> "Figure":
    """Draws curves over stages 0, 1, ... or over steps.

    Where all curves have but one point, the points stand side by side, with their spreads as bars.

    Args:
      lines: the curves.
      size: width and height.
      label: name of the vertical axis.
      ticks: names of the stages; None for numbers.
      limits: ends of the vertical axis; by default those of what is drawn.
      reference: name and values, one a stage, of a dotted line to compare with; left out where it
        lies far below the curves.
      named: whether names stand at the ends of the curves.
      sections: first x and name of each section of the horizontal axis, in order.
    """
    from matplotlib.ticker import MaxNLocator

    longest = max(len(line.name) for line in lines) if named else 0
    right = min(longest, 34) * 6.6 + 16 if named else 12
    width, height = size
    slot = (width - right - 46) / max(1, len(ticks or ""))
    names = [_shortened(name, max(_LONGEST, int(slot / _LETTER) - 1)) for name in ticks or ()]
    if slot < 20:  # names would touch each other, turned too
        label += " (tasks by number)"
        names = [str(number) for number in range(1, len(names) + 1)]
    widths = [_LETTER * len(name) for name in names]
    turned = max(widths, default=0) + 6 > slot >= 20
    left, bottom = 46.0, 22.0
    if turned:
        bottom += 0.6 * max(widths) + 4
        left = max(left, *(0.82 * wide - place * slot for place, wide in enumerate(widths)))
    elif names:
        right = max(right, widths[-1] / 2 - 0.1 * slot)
    figure, axes = _canvas(width, height, (left, bottom, right, 22))
    axes.set_title(label, loc="left", fontsize=11, color=_SOFT)
    axes.grid(axis="y", color=_RULE, linewidth=0.8, clip_on=False)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
    # Single points stand side by side, in their part of the axis.
    single = all(np.size(line.y) == 1 for line in lines)
    apart = min(0.12 * max(1, len(ticks or "")) / 3, 0.8 / len(lines)) if single else 0.0
    for place, line in enumerate(lines):
        shift = (place - (len(lines) - 1) / 2) * apart
        _draw_curve(axes, line, shift)
    if ticks is not None:
        side = 0.5 if len(ticks) == 1 else 0.15
        axes.set_xlim(-side, len(ticks) - 1 + side)
        every = max(1, math.ceil(14 / slot))
        turn: Any = {"rotation": 36, "ha": "right", "rotation_mode": "anchor"} if turned else {}
        axes.set_xticks(range(0, len(ticks), every), names[::every], **turn)
    low, high = limits or axes.get_ylim()
    if reference is not None and np.min(reference[1]) < low - (high - low) / 2:
        reference = None  # it would press the curves together
    if reference is not None:
        values, room = np.asarray(reference[1], np.float64), 0.06 * (high - low)
        low, high = min(low, values.min() - room), max(high, values.max() + room)
        places = np.arange(len(values), dtype=np.float64)
        if len(values) == 1:
            places, values = np.array(axes.get_xlim()), np.repeat(values, 2)
        axes.plot(places, values, color=_SOFT, linestyle=(0, (1, 2)), linewidth=1.6, clip_on=False)
    axes.set_ylim(low, high)
    if named:
        _name_ends(axes, lines, reference, height)
    _draw_sections(axes, sections, width)
    return figure


@_styled
def heat_map(
    values: ArrayLike,
    rows: Sequence[str],
    columns: Sequence[str],
    show: Callable[[float], str],
    *,
    shades: ArrayLike | None = None,
    cell: tuple[int, int] = (52, 25),
    framed: Collection[tuple[int, int]] = (),
    gaps: Collection[int] = (),
) -> "Figure":
    """Draws a heat map with a number in each cell.

    Args:
      values: numbers to show, `[rows, columns]`; NaN is shown as a dash.
      rows: names of the rows.
      columns: names of the columns.
      show: returns the text of a number.
      shades: shades of the cells, `[rows, columns]`, from 0 (none) to 1 (full); the values
        themselves by default.
      cell: width and height of a cell.
      framed: cells (row, column) that get a frame.
      gaps: columns that get a line on their left.
    """
    from matplotlib.patches import Rectangle

    numbers = np.asarray(values, np.float64)
    tones = np.clip(numbers if shades is None else np.asarray(shades, np.float64), 0.0, 1.0)
    (wide, high), (height, width) = cell, numbers.shape
    rows, columns = ([_shortened(name, 28) for name in names] for names in (rows, columns))
    left = 6.4 * max(map(len, rows)) + 10
    widest = _LETTER * max(map(len, columns))
    turned = widest + 6 > wide
    top = 0.6 * widest + 16 if turned else 20
    right = 0.8 * widest - wide / 2 + 6 if turned else 4
    figure, axes = _canvas(
        left + wide * width + max(right, 4), top + high * height + 4, (left, 4, max(right, 4), top)
    )
    axes.set(xlim=(0, width), ylim=(height, 0), yticks=np.arange(height) + 0.5, yticklabels=rows)
    turn: Any = {"rotation": 36, "ha": "left", "rotation_mode": "anchor"} if turned else {}
    axes.set_xticks(np.arange(width) + 0.5, columns, **turn)
    axes.tick_params(top=True, labeltop=True, bottom=False, labelbottom=False)
    axes.spines[:].set_visible(False)
    for (row, column), number in np.ndenumerate(numbers):
        tone = tones[row, column]
        known = not math.isnan(number) and not math.isnan(tone)
        place, extent = (column + 0.5 / wide, row + 0.5 / high), (1 - 1 / wide, 1 - 1 / high)
        look: dict[str, Any] = {"facecolor": "none", "edgecolor": _RULE, "linewidth": 0.5}
        if known:
            look = {"facecolor": _HIGH, "alpha": round(float(tone), 2), "linewidth": 0}
        axes.add_patch(Rectangle(place, *extent, **look)).set_clip_on(False)
        axes.text(
            column + 0.5,
            row + 0.5,
            show(number) if known else "-",
            ha="center",
            va="center_baseline",
            color=_letters_on(float(tone)) if known else _INK,
            fontsize=11 if wide >= 34 else 9.5,
        )
    for row, column in framed:
        frame = Rectangle((column, row), 1, 1, fill=False, edgecolor=LINES[1], linewidth=2)
        axes.add_patch(frame).set_clip_on(False)
    for column in gaps:
        axes.plot(
            [column] * 2, [0, height], color=_SOFT, linestyle="--", linewidth=1, clip_on=False
        )
    return figure


@_styled
def inline_svg(figure: "Figure", number: int, title: str, description: str) -> str:
    """Returns a picture as an element of a page, in the colours and letters of its style sheet.

    Args:
      figure: the picture.
      number: number of the picture, which makes its ids unique on the page.
      title: title of the picture, escaped.
      description: what a reader who cannot see the picture should know, escaped.
    """
    stream = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(stream, format="svg", transparent=True, metadata=nothing)
    body = stream.getvalue().partition("<svg ")[2].partition(">")[2]
    body = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", body, count=1, flags=re.DOTALL)
    body = re.sub(r"font-family: [^;\"]*;?", "", body)
    body = re.sub(r'<path d="[^"]*" style="fill: none"/>', "", body)  # backgrounds
    body = re.sub(r"(\bid=\"|xlink:href=\"#|url\(#)", rf"\g<1>p{number}-", body)
    # Lengths are rounded, but not the numbers that a reader sees.
    body = re.sub(r"<[^>]*>", lambda tag: re.sub(r"(\.\d\d)\d+", r"\1", tag[0]), body)
    body = re.sub(r"\s+", " ", body.replace("xlink:href", "href"))
    for colour, name in _VARIABLES.items():
        body = body.replace(colour, f"var(--{name})")
    width, height = (72 * float(length) for length in figure.get_size_inches())
    return (
        f'<svg role="img" aria-labelledby="t{number} d{number}" width="{width:.0f}" '
        f'height="{height:.0f}" viewBox="0 0 {width:.1f} {height:.1f}">'
        f'<title id="t{number}">{title}</title><desc id="d{number}">{description}</desc>{body}'
    )


@_styled
def save(figure: "Figure", path: Path) -> None:
    """Writes a picture to a file, on white; the ending of the name says in which format."""
    figure.savefig(path, dpi=216, facecolor="white")


def swatch(style: int) -> str:
    """Returns a short piece of a curve, for a legend of the page."""
    dashes = _DASHES[style % len(_DASHES)]
    array = "" if isinstance(dashes, str) else " ".join(f"{2 * length:g}" for length in dashes[1])
    return (
        '<svg class="swatch" width="28" height="10" aria-hidden="true">'
        f'<path d="M1 5H27" style="fill: none; stroke: var(--c{style % len(LINES)}); '
        f'stroke-width: 2; stroke-dasharray: {array or "none"}"/></svg>'
    )


def _letters_on(tone: float) -> str:
    """The colour of letters on a cell of a heat map, in which each can be read."""
    return _INK if tone < 0.53 else _ON_MIDDLE if tone < 0.7 else _ON_HIGH


def _canvas(
    width: float, height: float, margins: tuple[float, float, float, float]
) -> tuple["Figure", "Axes"]:
    """A figure with axes inside margins: left, bottom, right and top."""
    from matplotlib.figure import Figure

    left, bottom, right, top = margins
    inside = (
        left / width,
        bottom / height,
        1 - (left + right) / width,
        1 - (bottom + top) / height,
    )
    figure = Figure(figsize=(width / 72, height / 72), dpi=72)
    axes = figure.add_axes(inside)
    axes.set_axisbelow(True)
    return figure, axes


def _draw_curve(axes: "Axes", line: Curve, shift: float) -> None:
    x, y = np.asarray(line.x, np.float64) + shift, np.asarray(line.y, np.float64)
    colour = LINES[line.style % len(LINES)]
    spread = np.full(len(y), np.nan) if line.spread is None else np.asarray(line.spread, np.float64)
    known = ~np.isnan(y)
    x, y, spread = x[known], y[known], spread[known]
    banded = ~np.isnan(spread)
    if len(y) == 1 and banded.all():
        axes.errorbar(x, y, yerr=spread, color=colour, linewidth=1.6, capsize=3, clip_on=False)
    elif banded.any():
        low, high = (y - spread)[banded], (y + spread)[banded]
        axes.fill_between(
            x[banded], low, high, color=colour, alpha=0.16, linewidth=0, clip_on=False
        )
    axes.plot(
        x,
        y,
        color=colour,
        linestyle=_DASHES[line.style % len(_DASHES)] if len(y) > 1 else "none",
        linewidth=2.0 if line.marked else 1.2,
        marker=_MARKERS[line.style % len(_MARKERS)] if line.marked else None,
        markersize=5.5,
        clip_on=False,
    )


def _name_ends(
    axes: "Axes",
    lines: Sequence[Curve],
    reference: tuple[str, ArrayLike] | None,
    height: float,
) -> None:
    """Writes the names of curves beside their last points, a line apart."""
    low, high = axes.get_ylim()
    apart = (high - low) * 15 / (height * axes.get_position().height)
    known = [(line.name, LINES[line.style % len(LINES)], np.asarray(line.y)[-1]) for line in lines]
    if reference is not None:
        known.append((reference[0], _SOFT, np.asarray(reference[1])[-1]))
    ends = sorted((end for end in known if not math.isnan(end[2])), key=lambda end: float(end[2]))
    steps = apart * np.arange(len(ends))
    places = np.maximum.accumulate([float(end[2]) for end in ends] - steps) + steps
    places -= max(0.0, *(places - high))  # below the top, if they were pushed above it
    for place, (name, colour, _) in zip(places, ends, strict=True):
        axes.annotate(
            _shortened(name, 34),
            (1, (place - low) / (high - low)),
            xycoords="axes fraction",
            xytext=(10, 0),
            textcoords="offset points",
            color=colour,
            va="center_baseline",
        )


def _draw_sections(axes: "Axes", sections: Sequence[tuple[float, str]], width: float) -> None:
    """Draws a line where a section begins, and its name as far as there is room."""
    low, high = axes.get_xlim()
    inside = axes.get_position().width * width
    starts = [start for start, _ in sections]
    for number, (start, name) in enumerate(sections):
        if number:
            axes.axvline(start, color=_SOFT, linestyle="--", linewidth=0.8, clip_on=False)
        end = starts[number + 1] if number + 1 < len(starts) else high
        room = int((end - start) / (high - low) * inside / _LETTER)
        if room > 2:
            axes.annotate(
                _shortened(name, room),
                (start, 1),
                xycoords=("data", "axes fraction"),
                xytext=(3, -8),
                textcoords="offset points",
                color=_SOFT,
                fontsize=10,
            )


def _shortened(text: str, letters: int) -> str:
    """Leaves out the middle of a long text, for names often differ at their ends."""
    if len(text) <= letters:
        return text
    start = max(1, letters // 2)
    end = letters - 1 - start
    return f"{text[:start]}…{text[-end:] if end > 0 else ''}"
