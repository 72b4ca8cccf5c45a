"""The page of `moecl ab`: its figures are those that were measured, and it needs no other file."""

import csv
import io
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from scipy.special import expit

from moecl_jax.decisions import GUARANTEED, PLAIN, Samples, compare
from moecl_jax.errors import UserError
from moecl_jax.report.decisions import ComparisonPage, write_comparison

FILES = {"baseline": "old <b>.csv", "candidate": "new|x.jsonl"}


@pytest.fixture(scope="module")
def comparison():
    generator = np.random.default_rng(0)
    z = generator.normal(0.0, 2.5, 3000)
    gold = (generator.random(3000) < expit(z)).astype(np.int64)
    ids = [f"text {number}" for number in range(3000)]

    def arm(scores):
        p = expit(scores)
        return Samples(ids, ("ham", "spam & <eggs>"), np.stack([1 - p, p], axis=1), gold)

    return compare(arm(z + generator.normal(0.0, 2.0, 3000)), arm(z), 0.9)


def lines_of(text):
    return list(csv.DictReader(io.StringIO(text)))


def test_csv_has_each_figure_in_full(comparison):
    lines = lines_of(ComparisonPage(comparison, FILES).csv())
    assert len(lines) == 2 * 3 * 2  # rules, labels and all, arms
    for line in lines:
        outcome = comparison.rules[line["rule"]]
        pair = outcome.labels[line["label"]] if line["label"] else outcome.total
        row = getattr(pair, line["arm"])
        assert int(line["decided"]) == row.decided
        assert float(line["rate"]) == row.rate.value
        assert float(line["rate_high"]) == row.rate.high
        if row.decided:
            assert float(line["precision"]) == row.precision.value
        if line["arm"] == "candidate":
            assert float(line["gain_low"]) == pair.gain.low


def test_changed_samples_are_listed_with_both_decisions(comparison):
    lines = lines_of(ComparisonPage(comparison, FILES).changed_csv())
    for rule, outcome in comparison.rules.items():
        listed = [line for line in lines if line["rule"] == rule]
        assert [line["id"] for line in listed] == [
            comparison.test.ids[place] for place in outcome.changed
        ]
        assert len(listed) > 100
        for line in listed:
            assert line["baseline"] != line["candidate"]
        found = sum((line["baseline"], line["candidate"]) == ("none", "ham") for line in listed)
        assert found == outcome.moves[2, 0]


def test_page_and_markdown_have_the_figures_and_escape_names(comparison):
    page = ComparisonPage(comparison, FILES)
    html, markdown = page.html(), page.markdown()
    gain = comparison.rules[PLAIN].total.gain
    for text in (html, markdown.replace("\\", "")):
        assert f"{100 * gain.value:+.1f}" in text
        assert f"{100 * gain.low:+.1f} to {100 * gain.high:+.1f}" in text
        assert f"{100 * comparison.rules[GUARANTEED].total.candidate.rate.value:.1f}" in text
    assert "<b>" not in html
    assert "old &lt;b&gt;.csv" in html
    assert "spam &amp; &lt;eggs&gt;" in html
    assert "new\\|x.jsonl" in markdown
    assert not re.search(r"<script|src=|@import|url\(|http-equiv", html)
    assert "--paper" in html  # the report's style sheet
    style, _, body = html.partition("</style>")
    used = {name for names in re.findall(r'class="([^"]+)"', body) for name in names.split()}
    assert [name for name in used if f".{name}" not in style] == []


def test_labels_of_changed_samples_do_not_break_the_markdown(comparison):
    markdown = ComparisonPage(comparison, FILES).markdown()
    [row, *_] = re.findall(r"^\| `text .*", markdown, re.M)
    assert row.count("`") == 8
    assert "`spam & <eggs>`" in markdown


def test_each_rule_has_a_picture_with_both_arms(comparison):
    pictures = re.findall(r"<svg role.*?</svg>", ComparisonPage(comparison, FILES).html(), re.S)
    assert len(pictures) == len(comparison.rules)
    for picture, (rule, outcome) in zip(pictures, comparison.rules.items(), strict=True):
        described = ElementTree.fromstring(picture).findtext("desc")
        for rates, arm in zip(
            np.array(outcome.curve).T[1:], ("baseline", "candidate"), strict=True
        ):
            assert f"{arm}: {100 * rates[0]:.1f} at 70" in described, rule


def test_four_files_are_written(comparison, tmp_path):
    output = tmp_path / "new" / "ab.html"
    written = write_comparison(comparison, FILES, output)
    names = ["ab.html", "ab.md", "ab.csv", "ab_changed.csv"]
    assert [path.name for path in written] == names
    assert all(path.stat().st_size > 500 for path in written)
    with pytest.raises(UserError, match="that ends in"):
        write_comparison(comparison, FILES, tmp_path / "ab.pdf")


def test_no_file_of_an_arm_is_overwritten(comparison, tmp_path):
    files = {"baseline": str(tmp_path / "old.csv"), "candidate": str(tmp_path / "new.csv")}
    (tmp_path / "new.csv").write_text("id,score\n")
    with pytest.raises(UserError, match=r"would overwrite .*new\.csv"):
        write_comparison(comparison, files, tmp_path / "new.html")
    assert [path.name for path in tmp_path.iterdir()] == ["new.csv"]
    assert (tmp_path / "new.csv").read_text() == "id,score\n"
