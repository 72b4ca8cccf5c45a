"""Pictures of the report: numbers, colours that can be read, names that do not collide."""

import re

import numpy as np
import pytest
from report_runs import write_run

from moecl_jax.report import drawing, report


def texts_of(figure):
    return [text.get_text() for text in figure.axes[0].texts]


def test_a_heat_map_has_its_numbers_and_a_dash():
    values = np.array([[0.25, np.nan], [1.0, 0.0]])
    figure = drawing.heat_map(values, ["r", "s"], ["c", "d"], "{:.2f}".format, framed=[(1, 0)])
    assert texts_of(figure) == ["0.25", "-", "1.00", "0.00"]
    *cells, frame = figure.axes[0].patches
    assert [cell.get_alpha() for cell in cells] == [0.25, None, 1.0, 0.0]
    assert frame.get_xy() == (0, 1)


def contrast(first, second):
    """The contrast ratio of two colours, as WCAG 2 defines it."""
    linear = [
        np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4) for c in (first, second)
    ]
    low, high = sorted(float(channels @ [0.2126, 0.7152, 0.0722]) for channels in linear)
    return (high + 0.05) / (low + 0.05)


def test_numbers_of_a_heat_map_can_be_read_in_light_and_dark(tmp_path):
    folder = write_run(tmp_path / "x", "ewc", ["a", "b"], [[0.9, 0.1], [0.4, 0.8]])
    page = report([folder], tmp_path / "report.html")[0].read_text(encoding="utf-8")
    sheets = re.findall(r":root \{(.*?)\}", page, re.S)
    assert len(sheets) == 2
    tones = np.linspace(0, 1, 41)
    figure = drawing.heat_map(tones[None], ["r"], ["c"] * len(tones), "{:.2f}%".format)
    page = drawing.inline_svg(figure, 1, "t", "d")
    letters = re.findall(
        r"<text style=\"[^\"]*fill: var\(--([a-z-]+)\)[^\"]*\"[^>]*>\d\.\d\d%<", page
    )
    assert len(letters) == len(tones)
    for sheet in sheets:
        colours = {
            name: np.array([int(c, 16) for c in re.findall("..", value * (6 // len(value)))]) / 255
            for name, value in re.findall(r"--([a-z-]+): #([0-9a-f]{6}|[0-9a-f]{3});", sheet)
        }
        for tone, letter in zip(tones, letters, strict=True):
            cell = tone * colours["high"] + (1 - tone) * colours["paper"]
            assert contrast(colours[letter], cell) > 3.5, (letter, tone)


def test_numbers_in_names_and_at_axes_are_not_cut():
    names = ["m:learning_rate=0.0003", "m:learning_rate=0.001"]
    lines = [drawing.Curve(name, 0, [0, 1], [0.0, 0.004]) for name in names]
    figure = drawing.curves(lines, size=(600, 300), label="y", named=True)
    shown = re.findall(r"<text[^>]*>([^<]*)<", drawing.inline_svg(figure, 1, "t", "d"))
    assert {*names, "0.002", "0.004"} <= set(shown)


def test_one_point_is_drawn_as_a_point_with_its_spread():
    lines = [
        drawing.Curve(name, style, [0], [50.0 + style], [2.0]) for style, name in enumerate("ab")
    ]
    axes = drawing.curves(lines, size=(300, 200), label="y", ticks=["only"]).axes[0]
    marks = [line for line in axes.lines if line.get_marker() in ("o", "s")]
    assert [line.get_linestyle() for line in marks] == ["None", "None"]
    places = [line.get_xdata()[0] for line in marks]
    assert places[0] < 0 < places[1]  # side by side
    assert len(axes.containers) == 2  # bars of the spreads


def two_curves(**options):
    lines = [
        drawing.Curve("a $x$", 0, [0, 1], [50.0, 60.0], [1.0, 2.0]),
        drawing.Curve("b", 1, [0, 1], [55.0, 40.0]),
    ]
    return drawing.curves(
        lines, size=(400, 200), label="y", ticks=["s", "t"], named=True, **options
    )


def test_pictures_do_not_depend_on_the_user_s_style():
    from matplotlib import style

    plain = drawing.inline_svg(two_curves(), 1, "t", "d")
    with style.context(["dark_background", {"font.size": 20}]):
        assert drawing.inline_svg(two_curves(), 1, "t", "d") == plain
    assert ">a $x$</text>" in plain  # no formula


@pytest.mark.parametrize(
    ("values", "drawn"), [([15, 16], False), ([39, 45], True), ([80, 90], True)]
)
def test_a_reference_is_drawn_where_it_leaves_room_for_the_curves(values, drawn):
    axes = two_curves(reference=("r", values)).axes[0]
    assert ("r" in {text.get_text() for text in axes.texts}) is drawn
    low, high = axes.get_ylim()
    assert low < 40 and high > 62
    if drawn:
        assert low < min(values) and high > max(values)


@pytest.mark.parametrize("count", [2, 4, 9, 14, 40])
@pytest.mark.parametrize("width", [286, 366, 1180])
def test_names_of_tasks_do_not_collide(count, width):
    names = [f"a_task_with_a_long_name_{index}" for index in range(count)]
    line = drawing.Curve("m", 0, np.arange(count), np.linspace(50, 60, count), np.zeros(count))
    figure = drawing.curves([line], size=(width, 240), label="y", ticks=names)
    figure.canvas.draw()
    shown = [label for label in figure.axes[0].get_xticklabels() if label.get_text()]
    assert len({label.get_text() for label in shown}) == len(shown)
    boxes = [label.get_window_extent() for label in shown]
    assert min(box.x0 for box in boxes) > -8 and max(box.x1 for box in boxes) < width + 8
    starts = [label.get_transform().transform((label.get_position()[0], 0))[0] for label in shown]
    turned = shown[0].get_rotation() > 0
    needed = 11 / np.sin(np.deg2rad(36)) if turned else max(box.width for box in boxes)
    assert min(np.diff(starts)) >= needed - 1
