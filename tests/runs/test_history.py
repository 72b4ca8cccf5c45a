"""The history of a stream: rows of all tasks, whatever was measured of each."""

import dataclasses
import json
import math

import numpy as np

from moecl_jax.runs.history import Evaluation, History
from moecl_jax.runs.log import plain

MEASURED = Evaluation(0.5, 0.25, -1.0, shared_weight=(0.25, 0.75))
WITHOUT_WEIGHTS = Evaluation(math.nan, math.nan, math.nan)


def test_gate_weights_have_a_row_for_each_task() -> None:
    history = History([0.5] * 3)
    history.append_row([WITHOUT_WEIGHTS, MEASURED, WITHOUT_WEIGHTS])
    unknown = [math.nan, math.nan]
    np.testing.assert_array_equal(history.gate_weights, [unknown, [0.25, 0.75], unknown])


def test_a_method_without_a_gate_has_no_gate_weights() -> None:
    history = History([0.5] * 2)
    history.append_row([WITHOUT_WEIGHTS, WITHOUT_WEIGHTS])
    assert history.gate_weights == []


def test_a_record_gives_the_history_back() -> None:
    history = History([0.5, math.nan], validation=[None])
    history.append_row([MEASURED, WITHOUT_WEIGHTS])
    record = json.loads(json.dumps(plain(dataclasses.asdict(history)), allow_nan=False))
    again = History.from_record(record)
    for name in ("random_init", "accuracy", "scored", "gate_weights"):
        np.testing.assert_array_equal(getattr(again, name), getattr(history, name), err_msg=name)
    assert again.validation == [None]
