"""Small SVG pictures: heat maps with numbers in their cells, and line charts.

The colours are in the style sheet of the page, in a light and a dark version. The class `cell`
mixes the two end colours of a heat map in the proportion `--t`; the classes `s0` to `s7` are the
colours of lines. Pictures are built as trees of elements, which escapes all text. All lengths are
in CSS pixels.
"""

import dataclasses
import math
import textwrap
from collections.abc import Callable, Collection, Sequence
from xml.etree import ElementTree

import numpy as np
from numpy.typing import ArrayLike

Element = ElementTree.Element
_LETTER = 6.1  # mean width of a letter in text of 11 px
_SMALL_LETTER = 5.3  # mean width of a letter in text of 10 px
_WIDEST = 66  # widest cell; the labels of columns that need more are turned


@dataclasses.dataclass(frozen=True)
class Line:
    """A curve of a line chart.

    Attributes:
      name: name that is shown when the mouse points at the curve, and read out by screen readers.
      points: x and y of each point; a point whose y is NaN is left out.
      style: number that chooses the colour and the dashes.
    """

    name: str
    points: Sequence[tuple[float, float]]
    style: int


@dataclasses.dataclass(frozen=True)
class Axis:
    """An axis of a line chart.

    Attributes:
      low: value at the lower end.
      high: value at the upper end, greater than `low`.
      ticks: values that get a label.
      show: returns the label of a value.
      name: name of the quantity on the axis.
    """

    low: float
    high: float
    ticks: Sequence[float]
    show: Callable[[float], str]
    name: str


def nice_axis(values: ArrayLike, show: Callable[[float], str], name: str) -> Axis:
    """Makes an axis with a few round ticks that holds all values.

    Args:
      values: numbers of any shape; NaN and infinite ones are ignored.
      show: returns the label of a tick.
      name: name of the quantity on the axis.

    Returns:
      The axis, which begins and ends with a tick.
    """
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
    """Makes an axis in steps of 10 or 20 for each group of values.

    Args:
      groups: numbers of each group, at least one and none of them NaN.
      name: name of the quantity on the axes.

    Returns:
      An axis for each group. All span equally much, so that slopes can be compared, but each has
      its own ends.
    """
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
    """Draws a heat map with a number in each cell.

    Args:
      values: numbers to show, `[rows, columns]`; NaN is shown as a dash.
      rows: labels of the rows.
      columns: labels of the columns; an empty label is left out.
      title: title of the picture, for screen readers.
      description: what a reader who cannot see the picture should know.
      show: returns the text of a number.
      shades: shades of the cells, `[rows, columns]`, from 0 (light) to 1 (dark); the values
        themselves by default.
      cell: width and height of a cell; cells become a little wider if the labels need it.
      outlined: cells (row, column) that get a frame.
      gaps: columns that get a line on their left.

    Returns:
      The `svg` element.
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
    """Draws a line chart.

    Args:
      lines: curves of the chart.
      x: axis from left to right.
      y: axis from bottom to top.
      title: title of the picture, for screen readers.
      description: what a reader who cannot see the picture should know.
      size: width and height of the picture.
      sections: first x and name of each section of the x axis, in order.
      dots: whether each point gets a dot.

    Returns:
      The `svg` element.
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
    """Draws a short piece of a line for a legend, without text.

    Args:
      style: number that chooses the colour and the dashes, as in `Line`.
    """
    svg = Element("svg", {"class": "swatch", "width": "26", "height": "10", "aria-hidden": "true"})
    group = ElementTree.SubElement(svg, "g", {"class": _style(style)})
    ElementTree.SubElement(group, "polyline", {"points": "1,5 25,5"})
    return svg


def markup(svg: Element, number: int | None = None) -> str:
    """Returns a picture as text to put into a page.

    Args:
      svg: the picture.
      number: number that makes the ids of the title and the description unique on the page; None
        for a picture without them.
    """
    if number is not None:
        names = {"title": f"title-{number}", "desc": f"desc-{number}"}
        for tag, name in names.items():
            child = svg.find(tag)
            assert child is not None  # _picture adds both
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
    """Classes of one of eight colours and one of three dashes; neighbours differ in both."""
    return f"line s{number % 8} d{number % 3}"
