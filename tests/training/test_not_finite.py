"""Steps whose loss or gradient is not finite change nothing, and ten in a row stop a training."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from streams import assert_bit_equal, logged, restored, tiny_config, tiny_settings, training_of

from moecl_jax.cli.main import main
from moecl_jax.errors import UserError
from moecl_jax.training.pieces import Cutter
from moecl_jax.training.task_training import TaskTraining
from moecl_jax.training.trainer import train
from moecl_jax.training.watch import PATIENCE, NotFinite, Watch

FEW = {"tasks": ("two", "five"), "epochs": 2}


def poison(monkeypatch, steps, *, field="answer_mask"):
    """Makes the batches of some steps of each task NaN; `steps` are counted from 1."""
    original, step_of = Cutter.cut, TaskTraining._train_batch
    training = []

    def train_batch(self, examples):
        training.append(self.step + 1)
        try:
            return step_of(self, examples)
        finally:
            training.pop()

    def cut(self, index, examples):
        made = original(self, index, examples)
        if not training or training[-1] not in steps:
            return made
        return [
            (dataclasses.replace(b, **{field: getattr(b, field) * np.float32(np.nan)}), piece)
            for b, piece in made
        ]

    monkeypatch.setattr(TaskTraining, "_train_batch", train_batch)
    monkeypatch.setattr(Cutter, "cut", cut)


def watch_states(monkeypatch):
    """The parameters and the optimizer's state after each step."""
    states, original = [], TaskTraining._train_batch

    def train_batch(self, examples):
        metrics = original(self, examples)
        state = self.placement.host((self.state.active, self.state.optimizer_state))
        states.append((int(self.state.step), state))
        return metrics

    monkeypatch.setattr(TaskTraining, "_train_batch", train_batch)
    return states


@pytest.mark.parametrize("method", ["moe_cl", "ewc"])
def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(
    tmp_path, monkeypatch, method, caplog
):
    caplog.set_level("INFO")
    states = watch_states(monkeypatch)
    poison(monkeypatch, {4, 7})
    results = train(tiny_settings(tmp_path, method=method, tasks=("two",)), tmp_path / "run")
    assert [step for step, _ in states] == list(range(1, 13))
    for step in (4, 7):
        assert_bit_equal(states[step - 1][1], states[step - 2][1])
    assert not all(map(np.array_equal, *(jax.tree.leaves(states[at][1]) for at in (3, 4))))
    assert results["skipped_steps"] == 2
    assert np.isfinite(results["accuracy_matrix"]).all()
    assert [line["loss"] is None for line in logged(tmp_path / "run")] == [
        step in (4, 7) for step in range(1, 13)
    ]
    notes = [r.message for r in caplog.records if "is skipped" in r.message]
    assert notes == ["note: step 4 of task 'two' is skipped: its loss or a gradient is not finite"]


def test_all_is_as_before_where_everything_is_finite(tmp_path):
    results = train(tiny_settings(tmp_path, tasks=("two",), epochs=1), tmp_path / "run")
    assert "skipped_steps" not in results
    assert all("skipped" not in line for line in logged(tmp_path / "run"))


@pytest.mark.slow
def test_ten_in_a_row_stop_with_the_place_and_the_state_before_them(tmp_path, monkeypatch):
    settings = tiny_settings(tmp_path, **FEW, checkpoint_every=100)
    whole = train(settings, tmp_path / "whole")
    with monkeypatch.context() as patch:
        poison(patch, range(3, 100))
        with pytest.raises(UserError) as caught:
            train(settings, tmp_path / "run")
    message = str(caught.value)
    assert message.startswith(
        "task 'two': loss or gradients were not finite in steps 3 to 12, one after another. "
        "Nothing was learned from these examples, such as "
    )
    assert "two_train.jsonl:" in message and "Lower optimizer.learning_rate" in message
    listed = json.loads((tmp_path / "run" / "not_finite.json").read_text())
    assert str(tmp_path / "run" / "not_finite.json") in message
    assert [step["step"] for step in listed["steps"]] == list(range(3, 3 + PATIENCE))
    assert all(len(step["examples"]) == 8 for step in listed["steps"])
    assert not (tmp_path / "run" / "results.json").exists()
    _, _, history = restored(tmp_path / "run")
    assert history is None
    # What is kept is the state before: once the fault is mended, nothing is lost or repeated.
    assert train(settings, tmp_path / "run")["accuracy_matrix"] == whole["accuracy_matrix"]
    assert logged(tmp_path / "run") == logged(tmp_path / "whole")


def test_a_task_of_fewer_steps_stops_too(tmp_path, monkeypatch):
    poison(monkeypatch, range(1, 100))
    settings = tiny_settings(tmp_path, tasks=("two",), epochs=1)
    with pytest.raises(UserError, match="in steps 1 to 6, one after another"):
        train(settings, tmp_path / "run")


@pytest.mark.slow
def test_a_skipped_step_in_the_middle_of_a_resumption_is_counted_once(tmp_path, monkeypatch):
    settings = tiny_settings(tmp_path, tasks=("two",), checkpoint_every=3)
    poison(monkeypatch, {2, 8})
    whole = train(settings, tmp_path / "whole")
    with monkeypatch.context() as patch:
        original = TaskTraining._train_batch

        def stop(self, examples):
            if self.step == 10:
                raise KeyboardInterrupt
            return original(self, examples)

        patch.setattr(TaskTraining, "_train_batch", stop)
        with pytest.raises(KeyboardInterrupt):
            train(settings, tmp_path / "run")
    assert train(settings, tmp_path / "run")["skipped_steps"] == whole["skipped_steps"] == 2


def test_an_adversarial_loss_that_diverges_is_named(tmp_path):
    settings = tiny_settings(tmp_path, tasks=("two", "five"), epochs=2)
    training = training_of(settings, tmp_path / "run")
    step = training.steps.step

    def diverging(*arguments):
        *state, metrics = step(*arguments)
        metrics = {**metrics, "loss_adversarial": np.float32(1e6), "skipped": np.bool_(True)}
        return *state, metrics

    diverging.lower = step.lower
    training.steps = dataclasses.replace(training.steps, step=diverging)
    with pytest.raises(UserError) as caught:
        training.run()
    assert "The adversarial loss diverged: it is 1e+06, and guessing gives 0.693" in str(
        caught.value
    )
    assert "Take adversarial.objective = 'confusion'" in str(caught.value)


def test_the_command_says_it_in_one_line(tmp_path, monkeypatch, capsys):
    config = tmp_path / "config.json"
    config.write_text(tiny_config(tmp_path, tasks=("two",), epochs=2).to_json())
    poison(monkeypatch, range(1, 100))
    assert main(["train", f"--config={config}", f"--workdir={tmp_path / 'run'}"]) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert len(errors) == 1 and errors[0].startswith("moecl: error: task 'two': loss or gradients")


def test_a_step_under_way_that_is_finite_ends_the_row():
    """It has changed the state, which so is no longer the one before the row."""
    watch = Watch("two", 2, 100)
    losses = {"loss_instruction": np.float32(1), "loss_adversarial": np.float32(0)}
    for step in range(1, 2 * PATIENCE):
        watch.add(step, np.bool_(step != PATIENCE + 2), losses, [])
    watch.look_at_all()
    assert watch.skipped == 2 * PATIENCE - 2
    with pytest.raises(NotFinite, match=f"in steps {PATIENCE + 3} to {2 * PATIENCE + 2}"):
        for step in range(2 * PATIENCE, 3 * PATIENCE):
            watch.add(step, np.bool_(True), losses, [])
