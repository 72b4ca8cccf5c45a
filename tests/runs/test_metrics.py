"""Metrics over the accuracy matrix, against values worked by hand."""

import json
import math

import numpy as np
import pytest

from moecl_jax.runs import metrics

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


def test_a_converted_stream_is_measured_from_the_conversion_on():
    # Tasks 0 and 1 were trained before a conversion, after which R[1] was measured; task 1 has no
    # test data. Then tasks 2 and 3 were trained.
    nan = math.nan
    matrix = [
        [nan, nan, nan, nan],
        [0.8, nan, 0.4, 0.3],
        [0.9, nan, 0.7, 0.5],
        [0.6, nan, 0.5, 0.9],
    ]
    baseline = [0.5, nan, 0.25, nan]
    assert metrics.average_accuracy(matrix) == pytest.approx((0.6 + 0.5 + 0.9) / 3)
    assert metrics.backward_transfer(matrix) == pytest.approx(((0.6 - 0.8) + (0.5 - 0.7)) / 2)
    assert metrics.forward_transfer(matrix, baseline) == pytest.approx(0.4 - 0.25)
    assert metrics.forgetting(matrix) == pytest.approx(((0.9 - 0.6) + (0.7 - 0.5)) / 2)
    # None, as results.json has it, is the same.
    as_json = [[None if math.isnan(value) else value for value in row] for row in matrix]
    assert metrics.summarize(as_json, [0.5, None, 0.25, None]) == metrics.summarize(
        matrix, baseline
    )


def test_just_after_a_conversion_only_the_accuracy_is_known():
    matrix = [[math.nan, math.nan], [0.5, 0.75]]
    expected = {"acc": 0.625, "bwt": None, "fwt": None, "forgetting": None}
    assert metrics.summarize(matrix, [0.5, 0.5]) == expected


def test_without_any_test_data_nothing_is_known():
    unknown = np.full((3, 3), math.nan)
    assert set(metrics.summarize(unknown, unknown[0]).values()) == {None}


@pytest.mark.parametrize("tasks", [2, 3, 9, 40])
def test_full_matrices_give_the_formulas_bit_for_bit(tasks):
    generator = np.random.default_rng(tasks)
    matrix, baseline = generator.random((tasks, tasks)), generator.random(tasks)
    last = matrix[-1]
    falls = [matrix[j:-1, j].max() - last[j] for j in range(tasks - 1)]
    assert metrics.summarize(matrix, baseline) == {
        "acc": float(last.mean()),
        "bwt": float((last - np.diagonal(matrix))[:-1].mean()),
        "fwt": float((np.diagonal(matrix, offset=1) - baseline[1:]).mean()),
        "forgetting": float(np.mean(falls)),
    }


def test_inputs_are_not_mutated():
    matrix, baseline = np.array(R), np.array(B)
    matrix.flags.writeable = baseline.flags.writeable = False
    metrics.summarize(matrix, baseline)
    np.testing.assert_array_equal(matrix, R)
    np.testing.assert_array_equal(baseline, B)


def test_lists_with_unknown_entries_are_not_mutated_either():
    matrix, baseline = [[None, None], [0.5, 0.75]], [None, 0.5]
    metrics.summarize(matrix, baseline)
    assert matrix == [[None, None], [0.5, 0.75]]
    assert baseline == [None, 0.5]


def test_tasks_that_keep_what_they_reached_transfer_exactly_nothing_back():
    matrix = [[0.1, 0.2, 0.3], [0.1, 0.7, 0.3], [0.1, 0.7, 1 / 3]]
    summary = metrics.summarize(matrix, [0.1, 0.1, 0.1])
    assert (summary["bwt"], summary["forgetting"]) == (0.0, 0.0)


def test_joint_training_has_an_accuracy_alone():
    matrix = [[None] * 3, [None] * 3, [0.25, 0.5, 0.75]]
    expected = {"acc": 0.5, "bwt": None, "fwt": None, "forgetting": None}
    assert metrics.summarize(matrix, [0.5, 0.25, 0.125]) == expected


def test_what_is_known_before_training_is_by_the_best_scored_label():
    # Task 1 is free-form. By exact match an untrained model gets task 2 wrong, whatever it knows.
    nan = math.nan
    exact, untrained = [[0.9, 0.2, 0.0], [0.8, 0.6, 0.0], [0.7, 0.5, 0.8]], [0.0, 0.1, 0.0]
    scored = [[0.95, nan, 0.6], [0.9, nan, 0.75], [0.9, nan, 0.85]]
    matrix, baseline = metrics.comparable(exact, untrained, scored, [0.5, nan, 0.4])
    np.testing.assert_array_equal(matrix, [[0.9, 0.2, 0.6], [0.8, 0.6, 0.75], [0.7, 0.5, 0.8]])
    np.testing.assert_array_equal(baseline, [0.5, 0.1, 0.4])
    summary = metrics.summarize(exact, untrained, scored, [0.5, nan, 0.4])
    assert summary["fwt"] == pytest.approx(((0.2 - 0.1) + (0.75 - 0.4)) / 2)
    by_exact_match = metrics.summarize(exact, untrained)
    assert {**summary, "fwt": 0} == {**by_exact_match, "fwt": 0}
    # Where the untrained model was not scored, exact match does not stand for it.
    summary = metrics.summarize(exact, untrained, scored, [nan, nan, nan])
    assert summary["fwt"] == pytest.approx(0.2 - 0.1)


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        ([[0.5, 0.5]], r"square.*\(1, 2\)"),
        ([0.5], r"square.*\(1,\)"),
        (np.zeros((0, 0)), r"square.*\(0, 0\)"),
        ([[0.5, 0.5], [0.5, math.inf]], "infinite entries"),
        ([[0.5, -math.inf], [0.5, 0.5]], "infinite entries"),
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
    [
        ([0.5], "each of the 2 tasks"),
        (0.5, "each of the 2 tasks"),
        ([0.5, math.inf], "infinite entry"),
    ],
)
def test_bad_random_init_raises(baseline, message):
    with pytest.raises(ValueError, match=message):
        metrics.forward_transfer([[0.5, 0.5], [0.5, 0.5]], baseline)
