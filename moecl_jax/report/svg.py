"""Small SVG pictures: heat maps with their numbers in the cells, and line charts.

The page's style sheet has the colours, in a light and a dark form: `cell` mixes a heat map's two
ends by `--t`, and `s0` to `s7` are the lines' colours. Elements are built as a tree, which escapes
all text. A length is a CSS pixel.
"""

import dataclasses
import math
import textwrap
from collections.abc import Callable, Collection, Sequence
from xml.etree import ElementTree

import numpy as np
from numpy.typing import ArrayLike

Element = ElementTree.Element
_LETTER = 6.1  # mean width of a letter of 11 px
_SMALL_LETTER = 5.3
_WIDEST = 66  # a cell is made no wider for its column's label, which is turned instead


@dataclasses.dataclass(frozen=True)
class Line:
    """A curve.

    Attributes:
      name: shown when pointed at, and read out.
      points: x and y; a y that is NaN interrupts the curve.
      style: number of the line's colour and dashes.
    """

    name: str
    points: Sequence[tuple[float, float]]
    style: int


@dataclasses.dataclass(frozen=True)
class Axis:
    """An axis of a line chart.

    Attributes:
      low: its lower end.
      high: its upper end, above the lower.
      ticks: values that get a label.
      show: the label of a value.
      name: what the axis measures.
    """

    low: float
    high: float
    ticks: Sequence[float]
    show: Callable[[float], str]
    name: str


def nice_axis(values: ArrayLike, show: Callable[[float], str], name: str) -> Axis:
    """An axis with a few round ticks, whose ends are ticks, around the values that are not NaN."""
    known = np.asarray(values, np.float64)
    known = known[np.isfinite(known)]
    low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
    span = high - low if high > low else max(abs(high), 1.0) * 0.2
    power = 10.0 ** math.floor(math.log10(span / 3))
    step = next(power * factor for factor in (1, 2, 5, 10) if span / (power * factor) <= 4)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    last = max(last, first + 1)
    ticks = [round(step * count, 10) for count in range(first, last + 1)]
    return Axis(ticks[0], ticks[-1], ticks, show, name)


def aligned_axes(groups: Sequence[ArrayLike], name: str) -> list[Axis]:
    """For each group of values an axis in tens; all have the same scale, each its own place."""
    known = [np.asarray(group, np.float64) for group in groups]
    tops = [math.ceil(group.max() / 10 - 1e-9) * 10 for group in known]
    lows = [math.floor(group.min() / 10 + 1e-9) * 10 for group in known]
    step = 20 if max(top - low for top, low in zip(tops, lows, strict=True)) > 50 else 10
    count = max(math.ceil((top - low) / step) for top, low in zip(tops, lows, strict=True))
    count = max(count, 2)
    axes = []
    for top in tops:
        low = max(top - count * step, 0)
        ticks = [low + step * index for index in range(count + 1)]
        axes.append(Axis(ticks[0], ticks[-1], ticks, "{:g}".format, name))
    return axes


def heat_map(
    values: ArrayLike,
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    title: str,
    description: str,
    show: Callable[[float], str],
    shades: ArrayLike | None = None,
    cell: tuple[int, int] = (44, 24),
    outlined: Collection[tuple[int, int]] = (),
    gaps: Collection[int] = (),
) -> Element:
    """A heat map with its numbers.

    Args:
      values: `[rows, columns]`; NaN is shown as a dash.
      rows: labels.
      columns: labels; an empty one is left out.
      title: of the picture.
      description: what a reader who cannot see it should know.
      show: the number in a cell.
      shades: `[rows, columns]` in 0 to 1, light to dark; the values themselves by default.
      cell: width and height; it is made wider for a label that needs a little more.
      outlined: cells (row, column) with a frame.
      gaps: columns before which a line is drawn.
    """
    numbers = np.asarray(values, np.float64)
    tones = numbers if shades is None else np.asarray(shades, np.float64)
    wide, high = cell
    left = _LETTER * max(len(row) for row in rows) + 8
    longest = _LETTER * max((len(column) for column in columns), default=0)
    turned = longest + 8 > _WIDEST
    if not turned:
        wide = max(wide, round(longest + 8))
    top = longest * 0.64 + 16 if turned else 18.0
    overhang = longest * 0.77 if turned else 0.0
    width = left + wide * numbers.shape[1] + max(2.0, overhang - wide / 2)
    svg = _picture(width, top + high * numbers.shape[0] + 2, title, description)
    for index, label in enumerate(columns):
        x = left + wide * (index + 0.5)
        if turned:
            _text(svg, label, transform=f"translate({x:.1f} {top - 6:.1f}) rotate(-40)")
        else:
            _text(svg, label, x=f"{x:.1f}", y=f"{top - 6:.1f}", anchor="middle")
    for row, label in enumerate(rows):
        y = top + high * row
        _text(svg, label, x=f"{left - 6:.1f}", y=f"{y + high / 2 + 4:.1f}", anchor="end")
        for column, number in enumerate(numbers[row]):
            x = left + wide * column
            tone = min(max(tones[row, column], 0.0), 1.0)
            known = not math.isnan(number) and not math.isnan(tone)
            box = {
                "x": f"{x:.1f}",
                "y": f"{y:.1f}",
                "width": f"{wide - 1}",
                "height": f"{high - 1}",
            }
            style = {"class": "cell", "style": f"--t:{100 * tone:.0f}%"} if known else {}
            ElementTree.SubElement(svg, "rect", {"class": "none", **box, **style})
            ink = "" if not known else "lo" if tone < 0.5 else "mid" if tone < 0.7 else "hi"
            size = " small" if wide < 34 else ""
            middle = {"x": f"{x + wide / 2 - 0.5:.1f}", "y": f"{y + high / 2 + 3.5:.1f}"}
            text = show(number) if known else "-"
            _text(svg, text, anchor="middle", **{"class": f"number {ink}{size}"}, **middle)
            if (row, column) in outlined:
                ElementTree.SubElement(svg, "rect", {"class": "frame", **box})
    bottom = top + high * numbers.shape[0]
    for column in gaps:
        _line(svg, left + wide * column - 0.5, top - 14, left + wide * column - 0.5, bottom, "gap")
    return svg


def line_chart(
    lines: Sequence[Line],
    x: Axis,
    y: Axis,
    *,
    title: str,
    description: str,
    size: tuple[int, int] = (250, 190),
    sections: Sequence[tuple[float, str]] = (),
    dots: bool = False,
) -> Element:
    """A line chart.

    Args:
      lines: the curves.
      x: the axis from left to right.
      y: the axis from bottom to top.
      title: of the picture.
      description: what a reader who cannot see it should know.
      size: width and height.
      sections: where sections of the x axis begin, with their names, in order.
      dots: whether each point gets a dot.
    """
    width, height = size
    left = _LETTER * max(len(y.show(tick)) for tick in y.ticks) + 10
    right, top, bottom = width - 10.0, 18.0, height - 34.0
    svg = _picture(width, height, title, description)

    def across(value: float) -> float:
        return left + (right - left) * (value - x.low) / (x.high - x.low)

    def up(value: float) -> float:
        return bottom - (bottom - top) * (value - y.low) / (y.high - y.low)

    for tick in y.ticks:
        _line(svg, left, up(tick), right, up(tick), "grid")
        _text(svg, y.show(tick), x=f"{left - 6:.1f}", y=f"{up(tick) + 4:.1f}", anchor="end")
    for tick in x.ticks:
        _text(svg, x.show(tick), x=f"{across(tick):.1f}", y=f"{bottom + 15:.1f}", anchor="middle")
    _text(svg, x.name, x=f"{(left + right) / 2:.1f}", y=f"{height - 4}", anchor="middle")
    _text(svg, y.name, x="2", y="10")
    ends = [across(start) for start, _ in sections[1:]] + [right]
    for number, ((start, name), end) in enumerate(zip(sections, ends, strict=False)):
        if number:
            _line(svg, across(start), top, across(start), bottom, "gap")
        room = int((end - across(start)) / _SMALL_LETTER)
        if room > 1:
            label = textwrap.shorten(name, room, placeholder="…") if len(name) > room else name
            label = label if label != "…" else name[: room - 1] + "…"
            place = {"x": f"{across(start) + 3:.1f}", "y": f"{top + 9}", "class": "small"}
            _text(svg, label, **place)
    for line in lines:
        group = ElementTree.SubElement(svg, "g", {"class": _style(line.style)})
        ElementTree.SubElement(group, "title").text = line.name
        known = [(across(a), up(b)) for a, b in line.points if not math.isnan(b)]
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in known)
        ElementTree.SubElement(group, "polyline", {"points": path})
        for a, b in known if dots else ():
            ElementTree.SubElement(
                group, "circle", {"cx": f"{a:.1f}", "cy": f"{b:.1f}", "r": "2.6"}
            )
    return svg


def swatch(style: int) -> Element:
    """A line's piece for a legend; the words beside it say what it is."""
    svg = Element("svg", {"class": "swatch", "width": "26", "height": "10", "aria-hidden": "true"})
    group = ElementTree.SubElement(svg, "g", {"class": _style(style)})
    ElementTree.SubElement(group, "polyline", {"points": "1,5 25,5"})
    return svg


def markup(svg: Element, number: int | None = None) -> str:
    """The picture as text to put into a page; `number` sets its ids apart from other pictures'."""
    if number is not None:
        names = {"title": f"title-{number}", "desc": f"desc-{number}"}
        for tag, name in names.items():
            child = svg.find(tag)
            assert child is not None  # _picture has made it
            child.set("id", name)
        svg.set("aria-labelledby", " ".join(names.values()))
    return ElementTree.tostring(svg, encoding="unicode")


def _picture(width: float, height: float, title: str, description: str) -> Element:
    size = {"width": f"{width:.0f}", "height": f"{height:.0f}"}
    svg = Element("svg", {"role": "group", "viewBox": f"0 0 {width:.0f} {height:.0f}", **size})
    ElementTree.SubElement(svg, "title").text = title
    ElementTree.SubElement(svg, "desc").text = description
    return svg


def _text(parent: Element, text: str, anchor: str = "start", **attributes: str) -> None:
    if text:
        element = ElementTree.SubElement(parent, "text", {"text-anchor": anchor, **attributes})
        element.text = text


def _line(parent: Element, x1: float, y1: float, x2: float, y2: float, kind: str) -> None:
    ends = {"x1": f"{x1:.1f}", "y1": f"{y1:.1f}", "x2": f"{x2:.1f}", "y2": f"{y2:.1f}"}
    ElementTree.SubElement(parent, "line", {"class": kind, **ends})


def _style(number: int) -> str:
    """Eight colours and three ways to dash, so that neighbours differ in both."""
    return f"line s{number % 8} d{number % 3}"
