"""Whole tiny streams: freezing, resuming, extending, compiling, and what is written."""

import dataclasses
import json

import chex
import jax
import numpy as np
import pytest
from moecl_jax.config.experiment import build, load_tasks
from moecl_jax.runs.resume import restore_stream
from streams import CLASSES, assert_bit_equal, logged, tiny_config

from moecl_jax.config import experiment as experiment_module
from moecl_jax.errors import UserError
from moecl_jax.runs.checkpoint import TaskCheckpoints
from moecl_jax.runs.workdir import claimed, refuse_other_config, save_config
from moecl_jax.testing import write_model
from moecl_jax.training import steps
from moecl_jax.training.task_training import TaskTraining
from moecl_jax.training.trainer import Run, train

METHODS = ("moe_cl", "sequential_lora")


def stop_after(monkeypatch, steps):
    """Makes training fail, as a killed process would, when `steps` steps are done."""
    original, count = TaskTraining._train_batch, [0]

    def counted(self, examples):
        if count[0] == steps:
            raise KeyboardInterrupt
        count[0] += 1
        return original(self, examples)

    monkeypatch.setattr(TaskTraining, "_train_batch", counted)


def restored(config, workdir):
    experiment = build(config)
    stream, history = restore_stream(experiment, TaskCheckpoints(workdir))
    return experiment, stream, history


@pytest.fixture(scope="module", params=["lm", "classification"])
def finished_run(request, tmp_path_factory):
    """An uninterrupted moe_cl run with one head, its config and folder."""
    folder = tmp_path_factory.mktemp(request.param)
    config = tiny_config(folder, head=request.param)
    return config, folder / "run", train(config, folder / "run")


def test_results_hold_what_the_contract_says(finished_run):
    config, workdir, results = finished_run
    written = json.loads((workdir / "results.json").read_text())
    assert written == json.loads(json.dumps(results))
    assert written["method"] == "moe_cl"
    assert written["tasks"] == list(CLASSES)
    assert np.shape(written["accuracy_matrix"]) == (3, 3)
    assert np.shape(written["random_init"]) == (3,)
    assert set(written["metrics"]) == {"acc", "bwt", "fwt", "forgetting"}
    assert written["seed"] == config.seed
    assert written["wall_seconds"] > 0
    assert written["versions"]["jax"] == jax.__version__
    assert ("scored_accuracy_matrix" in written) == (config.head == "lm")


def test_each_logged_step_has_the_contract_s_keys(finished_run):
    _, workdir, _ = finished_run
    lines = logged(workdir, speeds=True)
    assert [line["step"] for line in lines] == list(range(1, 37))  # 3 tasks, 2 epochs, 6 steps
    assert [line["task"] for line in lines] == [name for name in CLASSES for _ in range(12)]
    assert [line["epoch"] for line in lines] == ([0] * 6 + [1] * 6) * 3
    contract = {"step", "task", "epoch", "loss", "loss_instruction", "loss_adversarial"}
    contract |= {"learning_rate", "examples_per_second", "tokens_per_second"}
    for line in lines:
        assert contract <= line.keys()
        assert all(np.isfinite(value).all() for key, value in line.items() if key != "task")
    assert list(workdir.glob("tensorboard/*"))


@pytest.mark.parametrize("head", ["lm", "classification"])
@pytest.mark.parametrize("method", METHODS)
def test_a_task_is_learned(tmp_path, method, head):
    config = tiny_config(
        tmp_path, method=method, head=head, tasks=("two",), epochs=10, lora__dropout=0.0
    )
    results = train(config, tmp_path / "run")
    assert results["accuracy_matrix"][0][0] >= 0.9
    lines = logged(tmp_path / "run")
    assert lines[-1]["loss_instruction"] < 0.3 * lines[0]["loss_instruction"]


def test_finished_parts_and_the_llm_never_change_again(tmp_path):
    config = tiny_config(tmp_path, head="classification")
    experiment = build(config)
    frozen_before = jax.tree.map(np.array, experiment.frozen)
    run = Run(experiment, load_tasks(config, experiment), tmp_path / "run")
    seen = {}
    original = run.train_task

    def watched(index, stream, history, log):
        after = original(index, stream, history, log)
        seen[index] = jax.tree.map(np.array, dict(after.finished))
        return after

    run.train_task = watched
    run.run()
    for name in ("two", "five"):
        first = seen[list(CLASSES).index(name)][name]
        for later in seen.values():
            if name in later:
                assert_bit_equal(first, later[name])
    assert seen[2]["two"].head.shape == (32, 2)
    assert_bit_equal(frozen_before, experiment.frozen)
    _, stream, _ = restored(config, tmp_path / "run")
    for name, parts in seen[2].items():
        assert_bit_equal(parts, stream.finished[name])


def test_shared_expert_gate_and_discriminator_do_change(finished_run):
    config, workdir, _ = finished_run
    experiment, stream, _ = restored(config, workdir)
    start = experiment.initializer.shared(3)
    for part in ("expert", "gate", "discriminator"):
        changed = jax.tree.map(
            lambda before, after: bool(np.any(np.asarray(before) != np.asarray(after))),
            start[part],
            stream.shared[part],
        )
        assert all(jax.tree.leaves(changed)), part


@pytest.mark.parametrize("head", ["lm", "classification"])
def test_one_compilation_for_tasks_of_2_5_and_14_classes(tmp_path, monkeypatch, head):
    chex.clear_trace_counter()
    shapes = 2 if head == "lm" else 1  # rows of 16 hold 2 or 5 labels' texts; of 32, fourteen
    for name, traces in (("train_step", 1), ("evaluation_step", shapes)):
        counted = chex.assert_max_traces(getattr(steps, name), n=traces)
        monkeypatch.setattr(experiment_module, name, counted)
    config = tiny_config(tmp_path, head=head, batch__layout="padded")
    experiment = build(config)
    Run(experiment, load_tasks(config, experiment), tmp_path / "run").run()


@pytest.mark.parametrize("steps", [8, 9], ids=["at a checkpoint", "a step after it"])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(
    tmp_path, monkeypatch, finished_run, steps
):
    config, workdir, results = finished_run
    resumed = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_after(patch, 12 + steps)  # inside task 2
        with pytest.raises(KeyboardInterrupt):
            train(config, resumed)
    assert not (resumed / "results.json").exists()
    record = TaskCheckpoints(resumed).in_progress_record()
    assert record["task"] == "five" and record["step"] == 8
    again = train(config, resumed)
    assert again["accuracy_matrix"] == results["accuracy_matrix"]
    assert again["random_init"] == results["random_init"]
    assert logged(resumed) == logged(workdir)
    _, whole, _ = restored(config, workdir)
    _, pieces, _ = restored(config, resumed)
    assert_bit_equal(whole.shared, pieces.shared)
    for name in CLASSES:
        assert_bit_equal(whole.finished[name], pieces.finished[name])


def test_running_a_finished_stream_again_trains_nothing(finished_run, monkeypatch):
    config, workdir, results = finished_run
    before = logged(workdir, speeds=True)
    with monkeypatch.context() as patch:
        stop_after(patch, 0)
        again = train(config, workdir)
    assert again["accuracy_matrix"] == results["accuracy_matrix"]
    assert logged(workdir, speeds=True) == before


@pytest.mark.parametrize("method", METHODS)
def test_a_task_can_be_added_to_a_finished_stream(tmp_path, method):
    workdir = tmp_path / "run"
    short = tiny_config(tmp_path, method=method, tasks=("two", "five"))
    first = train(short, workdir)
    _, before, _ = restored(short, workdir)
    whole = tiny_config(tmp_path, method=method)
    second = train(whole, workdir)
    assert second["tasks"] == ["two", "five", "fourteen"]
    matrix = np.array(second["accuracy_matrix"])
    np.testing.assert_array_equal(matrix[:2, :2], first["accuracy_matrix"])
    assert second["random_init"][:2] == first["random_init"]
    assert np.isfinite(matrix).all()
    lines = logged(workdir)
    assert [line["step"] for line in lines] == list(range(1, 37))
    assert {line["task"] for line in lines[24:]} == {"fourteen"}
    _, after, _ = restored(whole, workdir)
    for name in ("two", "five"):
        assert_bit_equal(before.finished[name], after.finished[name])


def test_tasks_are_not_added_inside_a_task(tmp_path, monkeypatch):
    workdir = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_after(patch, 5)
        with pytest.raises(KeyboardInterrupt):
            train(tiny_config(tmp_path, tasks=("two",)), workdir)
    with pytest.raises(UserError, match=r"stopped inside task 'two' of two\. Finish it with these"):
        train(tiny_config(tmp_path, tasks=("two", "five")), workdir)


def test_added_columns_are_what_an_evaluation_at_that_time_gives(tmp_path):
    workdir = tmp_path / "added"
    train(tiny_config(tmp_path, method="sequential_lora", tasks=("two", "five")), workdir)
    added = train(tiny_config(tmp_path, method="sequential_lora"), workdir)
    at_once = train(tiny_config(tmp_path, method="sequential_lora"), tmp_path / "at_once")
    assert added["accuracy_matrix"] == at_once["accuracy_matrix"]
    assert added["random_init"] == at_once["random_init"]


def test_tasks_can_be_added_one_by_one(tmp_path):
    workdir = tmp_path / "run"
    for count in (1, 2, 3):
        results = train(tiny_config(tmp_path, epochs=1, tasks=tuple(CLASSES)[:count]), workdir)
        assert np.shape(results["accuracy_matrix"]) == (count, count)
        assert np.isfinite(results["accuracy_matrix"]).all()
    assert [line["step"] for line in logged(workdir)] == list(range(1, 19))


def test_without_validation_the_last_epoch_is_kept(tmp_path):
    config = tiny_config(tmp_path, tasks=("two",), epochs=1, data__validation_fraction=0.0)
    with config.unlocked():
        config.definitions.two.validation = ""
    with pytest.raises(UserError, match="no validation examples to select the best epoch by"):
        train(config, tmp_path / "best")
    config.selection = "last"
    results = train(config, tmp_path / "last")
    assert results["validation_accuracy"] == [None]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "begun with seed = 0, and now it is 1"),
        ({"lora__rank": 4}, "begun with lora.rank = 8, and now it is 4"),
        ({"tasks": ("five", "two")}, "may only be extended at its end"),
    ],
)
def test_a_workdir_refuses_another_config(tmp_path, finished_run, change, message):
    config, workdir, _ = finished_run
    other = tiny_config(tmp_path, **{"head": config.head, **change})
    with other.unlocked():
        other.model.path, other.definitions = config.model.path, config.definitions
    before = (workdir / "results.json").read_text()
    with pytest.raises(UserError, match=message):
        train(other, workdir)
    assert (workdir / "results.json").read_text() == before


def test_a_workdir_older_than_a_field_of_definitions_goes_on(tmp_path):
    config = tiny_config(tmp_path, tasks=("two",))
    save_config(config, tmp_path)
    path = tmp_path / "config.json"
    older = json.loads(path.read_text())
    with config.unlocked():
        config.definitions.two.subset, config.definitions.two.text_fields = "", ("text",)
    path.write_text(json.dumps(older))
    refuse_other_config(config, tmp_path)
    config.definitions.two.subset = "other"
    with pytest.raises(UserError, match=r"definitions.two.subset = '', and now it is 'other'"):
        refuse_other_config(config, tmp_path)


def test_a_workdir_is_trained_in_by_one_process(tmp_path):
    config = tiny_config(tmp_path, tasks=("two",))
    with (
        claimed(tmp_path / "run"),
        pytest.raises(UserError, match=r"another process is training in .*run; wait for it"),
    ):
        train(config, tmp_path / "run")
    with claimed(tmp_path / "run"):  # it was let go
        pass


def test_checkpoints_refuse_another_frozen_model(tmp_path):
    config = tiny_config(tmp_path, tasks=("two",), epochs=1)
    train(config, tmp_path / "run")
    write_model(tmp_path / "model", seed=1)
    with pytest.raises(UserError, match="trained on a frozen model with fingerprint"):
        train(config, tmp_path / "run")


def test_a_damaged_checkpoint_is_named(tmp_path):
    config = tiny_config(tmp_path, tasks=("two",), epochs=1)
    train(config, tmp_path / "run")
    checkpoint = tmp_path / "run" / "checkpoints" / "000_two"
    for file in (checkpoint / "task").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    with pytest.raises(UserError, match=r"cannot read the checkpoint .*000_two"):
        train(config, tmp_path / "run")


def test_the_frozen_llm_is_not_in_the_checkpoints(finished_run):
    config, workdir, _ = finished_run
    experiment, stream, _ = restored(config, workdir)
    frozen_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(experiment.frozen))
    saved = sum(f.stat().st_size for f in (workdir / "checkpoints").rglob("*") if f.is_file())
    trained = sum(leaf.nbytes for leaf in jax.tree.leaves((stream.shared, stream.finished)))
    assert len(list((workdir / "checkpoints").iterdir())) == 3
    assert saved < 3 * trained + 3 * 60_000, (saved, trained, frozen_bytes)
    for path, _ in jax.tree.leaves_with_path(stream.shared):
        assert not any(name in jax.tree_util.keystr(path) for name in ("embed", "attention"))


def test_selection_keeps_the_best_validating_epoch_and_last_the_last(tmp_path, monkeypatch):
    chosen = {}
    for selection in ("best", "last"):
        config = tiny_config(tmp_path / selection, tasks=("two",), epochs=3, selection=selection)
        experiment = build(config)
        run = Run(experiment, load_tasks(config, experiment), tmp_path / selection / "run")
        scripted, trees = iter([0.5, 0.9, 0.7]), []
        original = run.evaluate_active

        def evaluate(active, index, split, scripted=scripted, trees=trees, original=original):
            result = original(active, index, split)
            if split != "validation":
                return result
            trees.append(jax.tree.map(np.array, active))
            return dataclasses.replace(result, accuracy=next(scripted))

        monkeypatch.setattr(run, "evaluate_active", evaluate)
        results = run.run()
        _, stream, _ = restored(config, tmp_path / selection / "run")
        kept = {"best": 1, "last": 2}[selection]
        assert_bit_equal(stream.finished["two"].expert, trees[kept].expert)
        assert_bit_equal(stream.shared, trees[kept].shared)
        chosen[selection] = results["validation_accuracy"]
    assert chosen == {"best": [0.9], "last": [0.7]}
