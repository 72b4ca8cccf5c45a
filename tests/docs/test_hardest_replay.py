"""The example of a method from outside the package, without a training."""

import importlib.util
import types

import numpy as np
import pytest
from streams import ROOT


@pytest.fixture(scope="module")
def method():
    file = ROOT / "examples" / "hardest_replay.py"
    spec = importlib.util.spec_from_file_location("hardest_replay", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.HardestReplay(memory=4, batch=2)


def finish(method, memory, index, losses):
    """The memory after a task with these losses."""

    class Parameters(types.SimpleNamespace):
        def replace(self, **changes):
            return Parameters(**{**vars(self), **changes})

    end = types.SimpleNamespace(index=index, losses=lambda: np.array(losses))
    return method.finish_task(Parameters(memory=memory), end).memory


def test_the_hardest_of_each_task_are_kept_in_equal_shares(method):
    empty = method.init_memory(None, 3)
    first = finish(method, empty, 0, [0.1, 0.9, 0.5, 0.3, 0.7])
    second = finish(method, first, 1, [5.0, 9.0, 7.0])
    third = finish(method, second, 2, [0.0])
    stored = [method.examples.stored(memory, [], 0) for memory in (empty, first, second, third)]
    assert stored[0] == []
    assert stored[1] == [(0, 1), (0, 4), (0, 2), (0, 3)]
    assert sorted(stored[2]) == [(0, 1), (0, 4), (1, 1), (1, 2)]
    assert sorted(stored[3])[::3] == [(0, 1), (2, 0)]
    assert (1, 1) in stored[3]


def test_the_memory_s_shapes_never_change(method):
    memory = method.init_memory(None, 2)
    shapes = {name: (values.shape, values.dtype) for name, values in memory.items()}
    for index, losses in enumerate(([1.0], [2.0, 3.0, 4.0, 5.0, 6.0])):
        memory = finish(method, memory, index, losses)
        assert {name: (v.shape, v.dtype) for name, v in memory.items()} == shapes
