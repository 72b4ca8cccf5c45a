"""Metrics over the accuracy matrix, against values worked by hand."""

import json
import math

import numpy as np
import pytest

from moecl_jax import metrics

# The example of the module's docstring.
R = [
    [0.9, 0.5, 0.4],
    [0.8, 0.7, 0.5],
    [0.6, 0.8, 0.9],
]
B = [0.5, 0.5, 0.3]


def test_docstring_example():
    assert metrics.average_accuracy(R) == pytest.approx(2.3 / 3)
    assert metrics.backward_transfer(R) == pytest.approx((-0.3 + 0.1) / 2)
    assert metrics.forward_transfer(R, B) == pytest.approx((0.0 + 0.2) / 2)
    assert metrics.forgetting(R) == pytest.approx((0.3 - 0.1) / 2)


def test_forgetting_looks_only_at_rows_from_the_tasks_own_training_on():
    # Task 1 stood at 1.0 before it was trained (row 0); that is not something it could forget.
    matrix = [
        [0.5, 1.0, 0.0, 0.0],
        [0.7, 0.6, 0.0, 0.0],
        [0.9, 0.4, 0.8, 0.0],
        [0.2, 0.5, 0.9, 0.7],
    ]
    expected = ((0.9 - 0.2) + (0.6 - 0.5) + (0.8 - 0.9)) / 3
    assert metrics.forgetting(matrix) == pytest.approx(expected)


def test_two_tasks():
    matrix = np.array([[1.0, 0.25], [0.5, 0.75]])
    assert metrics.summarize(matrix, np.array([0.5, 0.5])) == {
        "acc": 0.625,
        "bwt": -0.5,
        "fwt": -0.25,
        "forgetting": 0.5,
    }


def test_without_change_nothing_is_transferred_or_forgotten():
    matrix = np.tile([0.5, 0.25, 0.75], (3, 1))
    assert metrics.summarize(matrix, matrix[0]) == {
        "acc": 0.5,
        "bwt": 0.0,
        "fwt": 0.0,
        "forgetting": 0.0,
    }


def test_single_task_leaves_all_but_accuracy_undefined():
    assert math.isnan(metrics.backward_transfer([[0.5]]))
    assert math.isnan(metrics.forward_transfer([[0.5]], [0.5]))
    assert math.isnan(metrics.forgetting([[0.5]]))
    summary = metrics.summarize([[0.5]], [0.5])
    assert json.dumps(summary) == '{"acc": 0.5, "bwt": null, "fwt": null, "forgetting": null}'


def test_summary_has_python_floats_also_from_single_precision():
    matrix = np.array([[1.0, 0.25], [0.5, 0.75]], dtype=np.float32)
    assert all(type(value) is float for value in metrics.summarize(matrix, [0.5, 0.5]).values())


def test_inputs_are_not_mutated():
    matrix, baseline = np.array(R), np.array(B)
    matrix.flags.writeable = baseline.flags.writeable = False
    metrics.summarize(matrix, baseline)
    np.testing.assert_array_equal(matrix, R)
    np.testing.assert_array_equal(baseline, B)


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        ([[0.5, 0.5]], r"square.*\(1, 2\)"),
        ([0.5], r"square.*\(1,\)"),
        (np.zeros((0, 0)), r"square.*\(0, 0\)"),
        ([[0.5, math.nan], [0.5, 0.5]], "not finite"),
        ([[0.5, 0.5], [0.5, math.inf]], "not finite"),
    ],
)
def test_bad_matrix_raises(matrix, message):
    functions = (metrics.average_accuracy, metrics.backward_transfer, metrics.forgetting)
    for function in functions:
        with pytest.raises(ValueError, match=message):
            function(matrix)
    with pytest.raises(ValueError, match=message):
        metrics.forward_transfer(matrix, [0.5, 0.5])


@pytest.mark.parametrize(
    ("baseline", "message"),
    [([0.5], "each of the 2 tasks"), (0.5, "each of the 2 tasks"), ([0.5, math.nan], "not finite")],
)
def test_bad_random_init_raises(baseline, message):
    with pytest.raises(ValueError, match=message):
        metrics.forward_transfer([[0.5, 0.5], [0.5, 0.5]], baseline)
