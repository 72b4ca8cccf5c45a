"""Accuracy, precision, recall and F1 a class, against counts made one example at a time."""

import json
import math
from fractions import Fraction

import numpy as np
import pytest

from moecl_jax.runs.classification import NO_LABEL, classify


def counted(gold, predicted, label):
    """Precision, recall and F1 (the harmonic mean of the two) of a class, as exact fractions."""
    pairs = list(zip(gold, predicted, strict=True))
    true = sum(g == p == label for g, p in pairs)
    assigned = sum(p == label for _, p in pairs)
    exists = sum(g == label for g, _ in pairs)
    precision, recall = Fraction(true, assigned), Fraction(true, exists)
    return precision, recall, 2 * precision * recall / (precision + recall)


def test_figures_equal_those_counted_example_by_example():
    generator = np.random.default_rng(0)
    gold, predicted = generator.integers(0, 3, 50).tolist(), generator.integers(-1, 3, 50).tolist()
    found = classify("abc", gold, predicted)
    for label in range(3):
        figures = [float(each) for each in counted(gold, predicted, label)]
        np.testing.assert_allclose(
            [found.precision[label], found.recall[label], found.f1[label]], figures, rtol=1e-15
        )
        assert found.support[label] == gold.count(label)
        row = [
            sum((g, p) == (label, k) for g, p in zip(gold, predicted, strict=True))
            for k in range(3)
        ]
        assert found.confusion[label].tolist() == row
    assert found.accuracy == sum(g == p for g, p in zip(gold, predicted, strict=True)) / 50
    assert found.macro_f1 == pytest.approx(np.mean(found.f1), rel=1e-15)


def test_what_is_divided_by_zero_is_undefined():
    # No example of c, which is predicted once; b is never predicted; d has neither.
    found = classify("abcd", [0, 0, 1, 1], [0, 0, 2, 0])
    np.testing.assert_equal(found.precision, [2 / 3, math.nan, 0, math.nan])
    np.testing.assert_equal(found.recall, [1, 0, math.nan, math.nan])
    np.testing.assert_equal(found.f1, [0.8, 0, 0, math.nan])
    assert found.macro_f1 == pytest.approx(0.8 / 3)  # of a, b and c
    written = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert written["precision"] == [2 / 3, None, 0, None]
    assert written["confusion"] == [[2, 0, 0, 0], [1, 0, 1, 0], [0] * 4, [0] * 4]


def test_no_examples_have_no_figures():
    found = classify("ab", [], [])
    assert math.isnan(found.accuracy) and math.isnan(found.macro_f1)
    assert found.to_json()["accuracy"] is None and found.support.tolist() == [0, 0]


def test_a_prediction_that_is_no_label_is_wrong_and_in_no_column():
    found = classify("ab", [0, 1, 1], [0, NO_LABEL, 1])
    assert found.accuracy == 2 / 3
    assert found.confusion.tolist() == [[1, 0], [0, 1]] and found.support.tolist() == [1, 2]
    assert found.precision.tolist() == [1, 1] and found.recall.tolist() == [1, 0.5]


@pytest.mark.parametrize(("gold", "predicted"), [([0], [0, 1]), ([-1], [0]), ([0], [2])])
def test_classes_that_do_not_exist_are_refused(gold, predicted):
    with pytest.raises(ValueError, match=r"gold|predicted"):
        classify("ab", gold, predicted)
