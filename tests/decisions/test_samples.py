"""Samples from files: the forms that are read, and messages about those that are not."""

import csv
import json

import numpy as np
import pytest
from messages import is_one_line

from moecl_jax.decisions import Samples, read_samples
from moecl_jax.errors import UserError


def write(path, *lines):
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return path


def spam(p):
    return {"ham": 1 - p, "spam": p}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda p, gold: {"gold": gold, "label": "spam", "probabilities": spam(p)},
        lambda p, gold: {"label": gold, "prediction": {"label": "x", "probabilities": spam(p)}},
        lambda p, gold: {"gold": gold, "label": "x", "prediction": {"probabilities": spam(p)}},
        lambda p, gold: {"label": gold, "score": p},
        lambda p, gold: {"label": gold, "score": str(p)},
    ],
)
def test_each_form_gives_the_same_samples(wrap, tmp_path):
    lines = [{"id": n, **wrap(p, g)} for n, p, g in ((7, 0.25, "ham"), (8, 0.75, "spam"))]
    found = read_samples(write(tmp_path / "f.jsonl", *lines))
    assert found.ids == ["7", "8"]
    assert found.labels == ("ham", "spam")
    np.testing.assert_array_equal(found.scores, [[0.75, 0.25], [0.25, 0.75]])
    np.testing.assert_array_equal(found.gold, [0, 1])


def test_fields_may_be_named_and_lines_with_an_error_are_left_out(tmp_path):
    lines = [
        {"key": "a", "truth": True, "model": {"p": 0.9}},
        {"key": "b", "error": "no text"},
        {"key": "c", "truth": False, "model": {"p": 0.2}},
    ]
    found = read_samples(
        write(tmp_path / "f.jsonl", *lines), score="model.p", gold="truth", id="key"
    )
    assert found.ids == ["a", "c"]
    assert (found.labels, found.positive, found.left_out) == (("false", "true"), "true", 1)
    np.testing.assert_array_equal(found.gold, [1, 0])


def test_a_positive_label_turns_the_order(tmp_path):
    lines = [{"label": "ham", "score": 0.9}, {"label": "spam", "score": 0.2}]
    found = read_samples(write(tmp_path / "f.jsonl", *lines), positive="ham")
    assert (found.labels, found.positive) == (("spam", "ham"), "ham")
    np.testing.assert_array_equal(found.gold, [1, 0])
    np.testing.assert_allclose(found.scores[:, 1], [0.9, 0.2])


def test_csv_and_scores_that_are_no_probabilities(tmp_path):
    path = tmp_path / "f.csv"
    path.write_text("\ufeffid,score,label\na,-3.5,0\nb,12,1\n", encoding="utf-8")
    found = read_samples(path)
    assert (found.ids, found.labels) == (["a", "b"], ("0", "1"))
    np.testing.assert_array_equal(found.scores, [-3.5, 12.0])


@pytest.mark.parametrize("ending", ["csv", "tsv"])
def test_tables_of_predict(ending, tmp_path):
    path = tmp_path / f"f.{ending}"
    rows = [
        ["id", "label", "text", "prediction", "prediction_probabilities", "prediction_error"],
        ["a", "ham", "x" * 200_000, "spam", '{"ham": 0.25, "spam": 0.75}', ""],
        ["b", "ham", "", "", "", "no text"],
        ["c", "spam", "a, b", "spam", '{"ham": 0.5, "spam": 0.5}', ""],
    ]
    with path.open("w", newline="") as file:
        if ending == "csv":
            csv.writer(file).writerows(rows)
        else:
            file.writelines("\t".join(row) + "\n" for row in rows)
    found = read_samples(path)
    assert (found.ids, found.labels, found.left_out) == (["a", "c"], ("ham", "spam"), 1)
    np.testing.assert_array_equal(found.scores, [[0.25, 0.75], [0.5, 0.5]])
    np.testing.assert_array_equal(found.gold, [0, 1])
    path.write_text("score,label\n{,x\n" if ending == "csv" else "score\tlabel\n{\tx\n")
    with pytest.raises(UserError, match="line 2: score: no JSON"):
        read_samples(path)


def test_errors_of_predict_are_left_out_by_any_name(tmp_path):
    good = {"label": "ham", "mine": {"label": "ham", "probabilities": spam(0.5)}}
    lines = [{"label": "ham", "mine": {"error": "no text"}}, good]
    found = read_samples(write(tmp_path / "f.jsonl", *lines), score="mine.probabilities")
    assert (found.ids, found.left_out) == (["2"], 1)
    lines = [{"prediction": {"error": "no text"}}, {"label": "ham", "prediction": good["mine"]}]
    assert read_samples(write(tmp_path / "f.jsonl", *lines)).left_out == 1


def test_labels_have_the_order_that_is_asked_for(tmp_path):
    path = write(tmp_path / "f.jsonl", {"gold": "spam", "probabilities": spam(0.75)})
    found = read_samples(path, labels=("spam", "ham"))
    assert (found.labels, found.gold.tolist()) == (("spam", "ham"), [0])
    np.testing.assert_array_equal(found.scores, [[0.75, 0.25]])
    assert read_samples(path, labels=("spam", "eggs")).labels == ("ham", "spam")


def test_gold_labels_may_be_missing_and_ids_too(tmp_path):
    path = write(tmp_path / "f.jsonl", {"probabilities": spam(0.5)}, {"probabilities": spam(0.7)})
    found = read_samples(path)
    assert found.gold is None
    assert found.ids == ["1", "2"]
    with pytest.raises(UserError, match=r"line 1: has no field 'id'.*--id"):
        read_samples(path, needs_ids=True)
    path = write(tmp_path / "f.jsonl", {"score": 0.5}, {"score": 0.7})
    assert read_samples(path, labels=("a", "b")).labels == ("a", "b")


GOOD = {"id": 1, "gold": "ham", "probabilities": spam(0.5)}


@pytest.mark.parametrize(
    ("lines", "options", "message"),
    [
        ([], {}, "no sample"),
        ([GOOD, {**GOOD, "gold": "eggs"}], {}, "line 2: the gold label 'eggs'.*ham, spam"),
        ([GOOD, {**GOOD, "gold": None}], {}, "line 2: has no gold label in the field 'gold'"),
        ([{**GOOD, "gold": None}, GOOD], {}, "line 1: has no gold label in the field 'gold'"),
        ([GOOD, {**GOOD, "probabilities": {"ham": 1}}], {}, "line 2: expected the prob.*one task"),
        ([GOOD, {**GOOD, "probabilities": 0.4}], {}, "line 2: expected the probabilities"),
        ([GOOD, {"id": 2, "gold": "ham"}], {}, "line 2: probabilities: expected a finite"),
        ([{"score": 0.5, "gold": "a"}, {"score": "x", "gold": "b"}], {}, "line 2: score: exp.*'x'"),
        ([{"score": True, "gold": "a"}], {}, "line 1: score: expected a finite number"),
        ([{"score": 0.5, "gold": "a"}], {}, "labels are a; give the probability"),
        ([{"score": 0.5}], {}, "has no gold labels.*--gold"),
        (
            [{"score": 0.5, "gold": "a"}, {"score": spam(0.5), "gold": "b"}],
            {},
            "line 2: expected a",
        ),
        ([GOOD], {"score": "logit"}, "--score=logit: .*id, gold, probabilities"),
        ([GOOD], {"positive": "eggs"}, "--positive=eggs: .*ham, spam"),
        ([{"id": 1}], {}, "expected one of the fields.*found id; .*--score"),
        ([[1]], {}, "line 1: expected a JSON object"),
        ([{**GOOD, "probabilities": spam(1.5)}], {}, "probabilities from 0 to 1"),
    ],
)
def test_a_mistake_is_named_with_its_place(lines, options, message, tmp_path):
    path = write(tmp_path / "f.jsonl", *lines)
    with pytest.raises(UserError, match=message) as caught:
        read_samples(path, **options)
    assert is_one_line(caught.value)


def test_lines_that_are_no_json_are_named(tmp_path):
    path = tmp_path / "f.jsonl"
    path.write_text('{"score": 1}\n\n{"score": NaN}\n')
    with pytest.raises(UserError, match="line 3: no JSON: NaN"):
        read_samples(path)
    path.write_bytes(b'{"score": "\xff"}\n')
    with pytest.raises(UserError, match="line 1: no JSON"):
        read_samples(path)


def test_a_comma_that_is_not_quoted_moves_no_cell_in_silence(tmp_path):
    path = tmp_path / "f.csv"
    path.write_text("id,text,score,label,\n1,a,0.5,x,\n2,I owe you 5,000,0.5,y,\n")
    with pytest.raises(UserError, match="line 3: has more cells than the header"):
        read_samples(path)


def test_shapes_are_checked():
    gold = np.zeros(2, np.int64)
    for scores, message in (
        (np.zeros((2, 3)), r"\(2, 2\)"),
        (np.full((2, 2), np.nan), "finite"),
    ):
        with pytest.raises(UserError, match=message):
            Samples(["a", "b"], ("x", "y"), scores, gold)
    with pytest.raises(UserError, match="two or more"):
        Samples(["a"], ("x",), np.zeros((1, 1)), None)
    with pytest.raises(UserError, match="gold"):
        Samples(["a", "b"], ("x", "y"), np.zeros((2, 2)), gold[:1])


def test_halves_have_each_sample_once_and_follow_the_seed():
    samples = Samples(
        [str(n) for n in range(101)], ("x", "y"), np.full((101, 2), 0.5), np.arange(101) % 2
    )
    first, second = samples.halves(3)
    assert (len(first), len(second)) == (50, 51)
    assert sorted([*first.ids, *second.ids]) == sorted(samples.ids)
    assert [int(name) % 2 for name in first.ids] == list(first.gold)
    assert samples.halves(3)[0].ids == first.ids != samples.halves(4)[0].ids
