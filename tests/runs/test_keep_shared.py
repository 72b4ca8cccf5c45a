"""With which finished tasks the trees that all share are kept: `keep_shared`."""

import math
import shutil

import numpy as np
import pytest
from streams import tiny_settings

from moecl_jax.errors import UserError
from moecl_jax.training.trainer import train


def items(workdir, task):
    return {path.name for path in (workdir / "checkpoints" / task).iterdir() if path.is_dir()}


@pytest.mark.slow
@pytest.mark.parametrize("method", ["moe_cl", "ewc"])
def test_older_tasks_keep_their_own_trees_alone(tmp_path, method):
    """And a task added later has no column for the rows of which nothing is kept."""
    few = {"method": method, "epochs": 1, "tasks": ("two", "five")}
    more = {"method": method, "epochs": 1}
    whole, newest = tmp_path / "whole", tmp_path / "newest"
    train(tiny_settings(tmp_path, **few), whole)
    train(tiny_settings(tmp_path, **few, keep_shared=1), newest)
    assert {"task", "shared"} <= items(whole, "000_two")
    assert "task" in items(newest, "000_two")
    assert "shared" not in items(newest, "000_two")
    assert {"task", "shared"} <= items(newest, "001_five")
    expected = np.array(train(tiny_settings(tmp_path, **more), whole)["accuracy_matrix"])
    found = train(tiny_settings(tmp_path, **more, keep_shared=1), newest)["accuracy_matrix"]
    assert found[0][2] is None or math.isnan(found[0][2])
    found = np.array(found, float)
    assert np.isfinite(found).sum() == found.size - 1
    np.testing.assert_array_equal(found[np.isfinite(found)], expected[np.isfinite(found)])
    assert "shared" not in items(newest, "001_five")


def test_what_was_not_kept_is_told(tmp_path):
    settings = tiny_settings(tmp_path, epochs=1, tasks=("two", "five"), keep_shared=1)
    train(settings, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "001_five")
    with pytest.raises(UserError, match=r"001_five is missing"):
        train(settings, tmp_path / "run")
    (tmp_path / "run" / "finished.json").unlink()
    with pytest.raises(UserError, match=r"000_two holds the task's own expert and head alone"):
        train(settings, tmp_path / "run")
