"""What is kept of evaluations, and its way through the JSON of a checkpoint."""

import json
import math

import numpy as np
import pytest

from moecl_jax.runs.history import Evaluation, History
from moecl_jax.runs.log import plain

UNKNOWN = Evaluation(math.nan, math.nan, math.nan)


def test_gate_weights_have_a_row_for_every_task_also_for_one_without_examples():
    history = History([0.5, math.nan, 0.0])
    gates = [(0.25, 0.75), (0.5, 1.0)]
    known = [Evaluation(0.5, 0.5, -1.0, shared_weight=gate) for gate in gates]
    history.append_row([known[0], UNKNOWN, known[1]])
    expected = [[0.25, 0.75], [math.nan, math.nan], [0.5, 1.0]]
    np.testing.assert_array_equal(history.gate_weights, expected)
    record = json.loads(json.dumps(plain(vars(history)), allow_nan=False))
    assert record["gate_weights"][1] == [None, None]
    again = History.from_record(record)
    np.testing.assert_array_equal(again.gate_weights, expected)
    np.testing.assert_array_equal(again.accuracy, [[0.5, math.nan, 0.5]])


def test_a_method_without_a_gate_has_none():
    history = History([0.5, 0.5])
    history.append_row([Evaluation(0.5, 0.5, -1.0), UNKNOWN])
    assert history.gate_weights == []
    assert History.from_record(plain(vars(history))).gate_weights == []


def test_figures_of_each_label_are_those_of_the_last_row():
    history = History.of_untrained([Evaluation(0.0, 0.4, -1.0), Evaluation(0.25, math.nan, -1.0)])
    gold, predicted = np.array([0, 0, 0, 1]), np.array([0, 0, -1, 0])
    labelled = Evaluation(0.5, 0.75, -1.0, labels=("ham", "spam"), gold=gold, predicted=predicted)
    history.append_unknown_row()
    history.append_row([labelled, Evaluation(0.25, math.nan, -1.0)])
    assert history.right == ["1100", ""]
    figures, free_form = History.from_record(plain(vars(history))).classification
    assert free_form is None
    assert (figures["labels"], figures["support"]) == (["ham", "spam"], [3, 1])
    assert figures["majority"] == 0.75  # always "ham"
    # ham: TP 2, FP 1, FN 1; spam: TP 0, FP 0, FN 1.
    assert figures["precision"] == [pytest.approx(2 / 3), None]
    assert figures["recall"] == [pytest.approx(2 / 3), 0.0]
    assert figures["f1"] == [pytest.approx(2 / 3), 0.0]
    assert figures["macro_f1"] == pytest.approx(1 / 3)
    assert history.results()["classification"] == history.classification


def test_the_untrained_model_is_scored_in_records_of_today_alone():
    history = History.of_untrained([Evaluation(0.0, 0.4, -1.0), Evaluation(0.25, math.nan, -1.0)])
    record = plain(vars(history))
    assert record["scored_random_init"] == [0.4, None]
    np.testing.assert_array_equal(History.from_record(record).scored_random_init, [0.4, math.nan])
    del record["scored_random_init"]
    assert np.isnan(History.from_record(record).scored_random_init).all()
