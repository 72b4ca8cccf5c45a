"""Shows decisions at a target precision: the table of `moecl strip`, and the page of `moecl ab`."""

import csv
import dataclasses
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import jinja2
import numpy as np
from markupsafe import Markup, escape

import moecl_jax
from moecl_jax.decisions import GUARANTEED, Comparison, Estimate, Row, Stripped, Thresholds
from moecl_jax.decisions.ab import Outcome, Pair
from moecl_jax.errors import UserError
from moecl_jax.report import drawing
from moecl_jax.report.summary import percent
from moecl_jax.report.tables import Cell, Table, escape_markdown, to_markdown
from moecl_jax.writing import whole_file

_ALL = "all labels"
_NONE = "none"
_MOST_SHOWN = 50
_ARMS = ("baseline", "candidate")

RATE_TEXT = (
    "In percent of the test samples, with 95% intervals: a bootstrap over the samples. A label is "
    "decided without a person where its probability reaches the label's threshold. Precision is "
    "the share of the decided samples that is right; a dash: nothing is decided, or gold labels "
    "are not known. Where no decided sample is wrong, the interval of the precision is 100.0 to "
    "100.0, however few they are."
)
RULE_TEXT = (
    "The rule guaranteed promises the target precision for all labels at once, with the confidence "
    "that was asked for, for samples drawn like the validation samples. The rule plain takes the "
    "threshold that reached the target in the validation samples, and promises nothing."
)
GAIN_TEXT = (
    "Rate of the candidate less that of the baseline in points, and as a share of the baseline's "
    "rate. The intervals are a bootstrap over the samples in pairs, since both arms decide the "
    "same samples; the thresholds are held fixed. Bold: the interval excludes 0."
)
CURVE_TEXT = (
    "Share of the test samples that is decided over the target precision. Thresholds are chosen "
    "anew for each target, on the same validation samples."
)
MOVES_TEXT = (
    "Numbers of test samples by the decision of the baseline (row) and of the candidate (column)."
)


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of the page.

    Attributes:
      title: heading.
      text: explains how to read it.
      tables: tables, each with a caption, which may be empty.
      pictures: pictures, as markup, each with a caption.
      legend: style and name of the lines in the pictures.
    """

    title: str
    text: str
    tables: Sequence[tuple[str, Table]] = ()
    pictures: Sequence[tuple[str, str]] = ()
    legend: Sequence[tuple[int, str]] = ()


def strip_text(found: Mapping[str, tuple[Thresholds, Stripped]]) -> str:
    """The Markdown table of what each rule decides, and why a label is never decided.

    Args:
      found: thresholds and what they give, by rule.
    """
    rows = []
    for rule, (thresholds, stripped) in found.items():
        limits: Iterable[float | None] = (None, *thresholds.values)
        named_rows = ((_ALL, stripped.total), *stripped.labels.items())
        for (label, row), limit in zip(named_rows, limits, strict=True):
            shown = "" if label == _ALL else "never" if limit is None else f"{limit:.4f}"
            rows.append([Cell(f"{rule}, {label}"), Cell(shown), *_row_cells(row)])
    table = Table(["rule, label", "threshold", *_ROW_HEADER], rows)
    reasons = [
        f"{rule}: {label} is never decided: {reason}"
        for rule, (thresholds, _) in found.items()
        for label, reason in thresholds.reasons.items()
    ]
    return "\n".join([to_markdown(table), *reasons])


class ComparisonPage:
    """The comparison of two systems as a page, as Markdown and as CSV.

    Attributes:
      title: heading of the page.
      outcome: one or two sentences with the main figures.
      facts: what was compared, by name.
      parts: tables and pictures.
      notes: how to read the figures.
    """

    def __init__(self, comparison: Comparison, files: Mapping[str, str]) -> None:
        """Makes the tables and pictures.

        Args:
          comparison: the figures.
          files: name of each arm's file.
        """
        self.comparison = comparison
        target = f"{100 * comparison.target:g}"
        self.title = f"Decided alone at a precision of {target} %"
        self.outcome = " ".join(
            _sentence(rule, outcome.total) for rule, outcome in comparison.rules.items()
        )
        self.facts = {
            **{arm: files[arm] for arm in _ARMS},
            "target precision": f"{target} %",
            "confidence of the guarantee": f"{100 * comparison.confidence:g} %",
            "validation samples": str(comparison.validation),
            "test samples": str(len(comparison.test)),
            "samples that one system alone has": str(comparison.left_out),
        }
        if comparison.positive is not None:
            self.facts["label that one number stands for"] = comparison.positive
        rules = comparison.rules
        self.parts = [
            Part("Rates and precisions", f"{RULE_TEXT} {RATE_TEXT}", [("", _rates(rules))]),
            Part("Gain", GAIN_TEXT, [("", _gains(rules))]),
            Part(
                "Rate against target precision",
                CURVE_TEXT,
                pictures=[
                    (f"rule {rule}", _chart(rule, outcome, number))
                    for number, (rule, outcome) in enumerate(rules.items())
                ],
                legend=list(enumerate(_ARMS)),
            ),
            Part(
                "Samples that changed sides",
                MOVES_TEXT,
                [
                    *((f"rule {rule}", _moves(outcome)) for rule, outcome in rules.items()),
                    *_first_changed(comparison),
                ],
            ),
        ]
        self.notes = [
            f"{arm}, {rule}: {label} is never decided: {reason}"
            for rule, outcome in rules.items()
            for arm in _ARMS
            for label, reason in getattr(outcome, arm).reasons.items()
        ]

    def html(self) -> str:
        """Returns the page: one file without scripts, which loads nothing from a network."""
        environment = jinja2.Environment(
            loader=jinja2.PackageLoader("moecl_jax.report", "."),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        return environment.get_template("decisions.html").render(
            page=self,
            style=Markup(_style(environment)),
            markup=Markup,
            swatch=_swatch,
            version=moecl_jax.__version__,
        )

    def markdown(self) -> str:
        """Returns the tables as Markdown."""
        texts = [f"# {self.title}", escape_markdown(self.outcome)]
        texts.append(
            "\n".join(f"- {name}: {escape_markdown(value)}" for name, value in self.facts.items())
        )
        for part in self.parts:
            if part.tables:
                texts += [f"## {part.title}", escape_markdown(part.text)]
                for caption, table in part.tables:
                    texts += [escape_markdown(caption)] if caption else []
                    texts.append(to_markdown(table))
        if self.notes:
            texts.append("\n".join(f"- {escape_markdown(note)}" for note in self.notes))
        return "\n\n".join(texts) + "\n"

    def csv(self) -> str:
        """Returns all figures, as fractions in full precision: a line a rule, arm and label."""
        lines = []
        for rule, outcome in self.comparison.rules.items():
            for label, pair in _pairs(outcome):
                for arm in _ARMS:
                    lines.append(_figures(rule, arm, label, pair, getattr(outcome, arm)))
        return _csv_text(list(lines[0]), [list(line.values()) for line in lines])

    def changed_csv(self) -> str:
        """Returns the samples that the arms decide differently: a line a rule and sample."""
        test, lines = self.comparison.test, []
        for rule, outcome in self.comparison.rules.items():
            lines += [[rule, *line] for line in _changed_lines(self.comparison, outcome, len(test))]
        return _csv_text(["rule", "id", "gold", *_ARMS], lines)


def write_comparison(comparison: Comparison, files: Mapping[str, str], output: Path) -> list[Path]:
    """Writes the page, and beside it its tables as Markdown and CSV, and the changed samples.

    Args:
      comparison: the figures.
      files: name of each arm's file.
      output: path of the page, which must end in `.html`; its folder is created if needed.

    Returns:
      The paths of the HTML, Markdown and CSV files.

    Raises:
      UserError: the output does not end in `.html`, or a file beside it would take the place of
        one of the arms' files.
    """
    if output.suffix != ".html":
        raise UserError(f"--output={output}: expected a name that ends in .html")
    page = ComparisonPage(comparison, files)
    texts = {
        output: page.html(),
        output.with_suffix(".md"): page.markdown(),
        output.with_suffix(".csv"): page.csv(),
        output.with_name(f"{output.stem}_changed.csv"): page.changed_csv(),
    }
    arms = {Path(file).resolve() for file in files.values()}
    for path in texts:
        if path.resolve() in arms:
            raise UserError(f"--output={output}: would overwrite {path}; choose another name")
    output.parent.mkdir(parents=True, exist_ok=True)
    for path, text in texts.items():
        with whole_file(path) as stream:
            stream.write(text.encode("utf-8", "replace"))
    return list(texts)


_ROW_HEADER = ("decided", "rate", "95% interval", "precision", "95% interval", "wrong")


def _row_cells(row: Row) -> list[Cell]:
    wrong = "-" if row.wrong is None else str(row.wrong)
    texts = [str(row.decided), *_estimate(row.rate), *_estimate(row.precision), wrong]
    return [Cell(text) for text in texts]


def _estimate(found: Estimate, *, sign: bool = False) -> tuple[str, str]:
    value = percent(found.value, sign=sign)
    if math.isnan(found.low):
        return value, "-"
    return value, f"{percent(found.low, sign=sign)} to {percent(found.high, sign=sign)}"


def _pairs(outcome: Outcome) -> list[tuple[str, Pair]]:
    return [(_ALL, outcome.total), *outcome.labels.items()]


def _rates(rules: Mapping[str, Outcome]) -> Table:
    rows = [
        [Cell(f"{rule}, {label}, {arm}"), *_row_cells(getattr(pair, arm))]
        for rule, outcome in rules.items()
        for label, pair in _pairs(outcome)
        for arm in _ARMS
    ]
    return Table(["rule, label, arm", *_ROW_HEADER], rows)


def _gains(rules: Mapping[str, Outcome]) -> Table:
    rows = []
    for rule, outcome in rules.items():
        for label, pair in _pairs(outcome):
            cells = [Cell(f"{rule}, {label}")]
            for found in (pair.gain, pair.relative):
                mark = "settled" if found.low > 0.0 or found.high < 0.0 else ""
                cells += [Cell(text, mark) for text in _estimate(found, sign=True)]
            rows.append(cells)
    header = ["rule, label", "gain in points", "95% interval", "relative gain in %", "95% interval"]
    return Table(header, rows)


def _moves(outcome: Outcome) -> Table:
    names = [*outcome.labels, _NONE]
    rows = [
        [Cell(name), *(Cell(str(count)) for count in counts)]
        for name, counts in zip(names, outcome.moves, strict=True)
    ]
    return Table(["baseline, candidate", *names], rows)


def _first_changed(comparison: Comparison) -> list[tuple[str, Table]]:
    outcome = comparison.rules[GUARANTEED]
    lines = _changed_lines(comparison, outcome, _MOST_SHOWN)
    if not lines:
        return []
    shown = f"the first {len(lines)} of " if len(lines) < len(outcome.changed) else ""
    caption = f"rule {GUARANTEED}: {shown}{len(outcome.changed)} samples; all are in the CSV file"
    table = Table(["id", "gold", *_ARMS], [[Cell(text, "name") for text in line] for line in lines])
    return [(caption, table)]


def _changed_lines(comparison: Comparison, outcome: Outcome, most: int) -> list[list[str]]:
    test = comparison.test
    assert test.gold is not None  # compare() sees to it
    names = [*test.labels, _NONE]  # a decision of -1 is the last
    return [
        [test.ids[place], test.labels[test.gold[place]]]
        + [names[decision] for decision in outcome.decisions[place]]
        for place in outcome.changed[:most]
    ]


def _sentence(rule: str, pair: Pair) -> str:
    gain, low, high = (
        percent(value, sign=True) for value in (pair.gain.value, pair.gain.low, pair.gain.high)
    )
    relative = (
        ""
        if math.isnan(pair.relative.value)
        else (f" and {percent(pair.relative.value, sign=True)} % of the baseline's rate")
    )
    return (
        f"By the rule {rule} the candidate decides {percent(pair.candidate.rate.value)} % of the "
        f"test samples and the baseline {percent(pair.baseline.rate.value)} %: {gain} points (95% "
        f"interval {low} to {high}){relative}."
    )


def _swatch(style: int) -> Markup:
    return Markup(drawing.swatch(style))


def _chart(rule: str, outcome: Outcome, number: int) -> str:
    """Markup of a picture with a line for each arm's rate over the target precision."""
    targets, *arms = (100 * np.array(column) for column in zip(*outcome.curve, strict=True))
    lines, described = [], []
    for style, (arm, rates) in enumerate(zip(_ARMS, arms, strict=True)):
        lines.append(drawing.Curve(arm, style, targets, rates))
        shown = zip(targets, rates, strict=True)
        described.append(f"{arm}: " + ", ".join(f"{y:.1f} at {x:g}" for x, y in shown))
    figure = drawing.curves(lines, size=(380, 240), label="decided in %, by target precision in %")
    title = f"Rate against target precision, rule {rule}"
    return drawing.inline_svg(
        figure, number, str(escape(title)), str(escape(f"In percent. {'; '.join(described)}."))
    )


def _figures(
    rule: str, arm: str, label: str, pair: Pair, thresholds: Thresholds
) -> dict[str, object]:
    row: Row = getattr(pair, arm)
    limits = dict(zip(thresholds.labels, thresholds.values, strict=True))
    line: dict[str, object] = {"rule": rule, "arm": arm, "label": "" if label == _ALL else label}
    line |= {"threshold": limits.get(label), "decided": row.decided, "wrong": row.wrong}
    estimates = {"rate": row.rate, "precision": row.precision}
    if arm == _ARMS[1]:
        estimates |= {"gain": pair.gain, "relative_gain": pair.relative}
    for name in ("rate", "precision", "gain", "relative_gain"):
        found = estimates.get(name, Estimate())
        for key, value in (("", found.value), ("_low", found.low), ("_high", found.high)):
            line[name + key] = None if math.isnan(value) else value
    return line


def _csv_text(header: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(lines)
    return text.getvalue()


def _style(environment: jinja2.Environment) -> str:
    """The style sheet of the report's page, so that both pages look alike."""
    assert environment.loader is not None
    source, _, _ = environment.loader.get_source(environment, "page.html")
    return source.partition("<style>")[2].partition("</style>")[0]
