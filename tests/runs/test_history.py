"""What is kept of evaluations, and its way through the JSON of a checkpoint."""

import json
import math

import numpy as np

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
