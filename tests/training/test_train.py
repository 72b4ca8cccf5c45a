"""Whole tiny streams: freezing, resuming, extending, compiling, and what is written."""

import dataclasses
import json
import time

import chex
import jax
import numpy as np
import pytest
from streams import (
    CLASSES,
    assert_bit_equal,
    logged,
    restored,
    stop_after,
    tiny_settings,
    training_of,
)

from moecl_jax.errors import UserError
from moecl_jax.runs.checkpoint import TaskCheckpoints
from moecl_jax.runs.lock import claimed
from moecl_jax.runs.workdir import refuse_other_settings, save_settings
from moecl_jax.serving import evaluator as evaluator_module
from moecl_jax.serving.scoring import evaluation_step
from moecl_jax.testing import write_model
from moecl_jax.training import task_training
from moecl_jax.training.steps import train_piece
from moecl_jax.training.trainer import train

METHODS = ("moe_cl", "sequential_lora")


@pytest.fixture(scope="module", params=["lm", "classification"])
def finished_run(request, tmp_path_factory):
    """An uninterrupted moe_cl run with one head: its settings, folder and results."""
    folder = tmp_path_factory.mktemp(request.param)
    settings = tiny_settings(folder, head=request.param)
    return settings, folder / "run", train(settings, folder / "run")


def test_results_hold_what_the_contract_says(finished_run):
    settings, workdir, results = finished_run
    written = json.loads((workdir / "results.json").read_text())
    assert written == json.loads(json.dumps(results))
    assert written["method"] == "moe_cl"
    assert written["tasks"] == list(CLASSES)
    assert np.shape(written["accuracy_matrix"]) == (3, 3)
    assert np.shape(written["random_init"]) == (3,)
    assert set(written["metrics"]) == {"acc", "bwt", "fwt", "forgetting"}
    assert written["seed"] == settings.seed
    assert written["wall_seconds"] > 0
    assert written["versions"]["jax"] == jax.__version__
    for key in ("scored_accuracy_matrix", "scored_random_init"):
        assert (key in written) == (settings.head == "lm")
    for index, (figures, count) in enumerate(
        zip(written["classification"], CLASSES.values(), strict=True)
    ):
        support, recall = np.array(figures["support"]), np.array(figures["recall"], float)
        assert len(figures["labels"]) == len(support) == count
        assert figures["majority"] == support.max() / support.sum()
        last = written["accuracy_matrix"][-1][index]
        assert np.nansum(support * recall) / support.sum() == pytest.approx(last)


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
    settings = tiny_settings(
        tmp_path, method=method, head=head, tasks=("two",), epochs=10, lora__dropout=0.0
    )
    results = train(settings, tmp_path / "run")
    assert results["accuracy_matrix"][0][0] >= 0.9
    lines = logged(tmp_path / "run")
    assert lines[-1]["loss_instruction"] < 0.3 * lines[0]["loss_instruction"]


def test_finished_parts_and_the_llm_never_change_again(tmp_path):
    run = training_of(tiny_settings(tmp_path, head="classification"), tmp_path / "run")
    frozen_before = jax.tree.map(np.array, run.evaluator.model.params)
    seen = {}
    original = run._train_task

    def watched(index, stream, history, log):
        after = original(index, stream, history, log)
        seen[index] = jax.tree.map(np.array, dict(after.finished))
        return after

    run._train_task = watched
    run.run()
    for name in ("two", "five"):
        first = seen[list(CLASSES).index(name)][name]
        for later in seen.values():
            if name in later:
                assert_bit_equal(first, later[name])
    assert seen[2]["two"].head.shape == (32, 2)
    assert_bit_equal(frozen_before, run.evaluator.model.params)
    _, stream, _ = restored(tmp_path / "run")
    for name, parts in seen[2].items():
        assert_bit_equal(parts, stream.finished[name])


def test_shared_expert_gate_and_discriminator_do_change(finished_run):
    _, workdir, _ = finished_run
    evaluator, stream, _ = restored(workdir)
    start = evaluator.starting.shared(3)
    for part in ("expert", "gate", "discriminator"):
        changed = jax.tree.map(
            lambda before, after: bool(np.any(np.asarray(before) != np.asarray(after))),
            start[part],
            stream.shared[part],
        )
        assert all(jax.tree.leaves(changed)), part


@pytest.mark.slow
@pytest.mark.parametrize("head", ["lm", "classification"])
def test_one_compilation_for_tasks_of_2_5_and_14_classes(tmp_path, monkeypatch, head):
    chex.clear_trace_counter()
    traced = []
    for module, step, traces in (
        (task_training, train_piece, 1),
        (evaluator_module, evaluation_step, 3),
    ):
        limited = chex.assert_max_traces(step, n=traces)

        def counted(*arguments, limited=limited, name=step.__name__, **static):
            traced.append(name)
            return limited(*arguments, **static)

        monkeypatch.setattr(module, step.__name__, counted)
    settings = tiny_settings(tmp_path, head=head, batch__layout="padded")
    training_of(settings, tmp_path / "run").run()
    assert traced.count("train_piece") == 1
    assert 1 <= traced.count("evaluation_step") <= 3


@pytest.mark.parametrize("steps", [8, 9], ids=["at a checkpoint", "a step after it"])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(
    tmp_path, monkeypatch, finished_run, steps
):
    settings, workdir, results = finished_run
    resumed = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_after(patch, 12 + steps)  # inside task 2
        with pytest.raises(KeyboardInterrupt):
            train(settings, resumed)
    assert not (resumed / "results.json").exists()
    record = TaskCheckpoints(resumed).in_progress_record()
    assert record["task"] == "five" and record["step"] == 8
    again = train(settings, resumed)
    assert again["accuracy_matrix"] == results["accuracy_matrix"]
    assert again["random_init"] == results["random_init"]
    assert logged(resumed) == logged(workdir)
    _, whole, _ = restored(workdir)
    _, pieces, _ = restored(resumed)
    assert_bit_equal(whole.shared, pieces.shared)
    for name in CLASSES:
        assert_bit_equal(whole.finished[name], pieces.finished[name])


def test_running_a_finished_stream_again_trains_nothing(finished_run, monkeypatch):
    settings, workdir, results = finished_run
    before = logged(workdir, speeds=True)
    with monkeypatch.context() as patch:
        stop_after(patch, 0)
        again = train(settings, workdir)
    assert again["accuracy_matrix"] == results["accuracy_matrix"]
    assert logged(workdir, speeds=True) == before


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_task_can_be_added_to_a_finished_stream(tmp_path, method):
    workdir = tmp_path / "run"
    short = tiny_settings(tmp_path, method=method, tasks=("two", "five"))
    first = train(short, workdir)
    _, before, _ = restored(workdir)
    whole = tiny_settings(tmp_path, method=method)
    second = train(whole, workdir)
    assert second["tasks"] == ["two", "five", "fourteen"]
    matrix = np.array(second["accuracy_matrix"])
    np.testing.assert_array_equal(matrix[:2, :2], first["accuracy_matrix"])
    assert second["random_init"][:2] == first["random_init"]
    assert np.isfinite(matrix).all()
    lines = logged(workdir)
    assert [line["step"] for line in lines] == list(range(1, 37))
    assert {line["task"] for line in lines[24:]} == {"fourteen"}
    _, after, _ = restored(workdir)
    for name in ("two", "five"):
        assert_bit_equal(before.finished[name], after.finished[name])


@pytest.mark.slow
def test_tasks_are_not_added_inside_a_task(tmp_path, monkeypatch):
    workdir = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_after(patch, 5)
        with pytest.raises(KeyboardInterrupt):
            train(tiny_settings(tmp_path, tasks=("two",)), workdir)
    with pytest.raises(UserError, match=r"stopped inside task 'two' of two\. Finish it with these"):
        train(tiny_settings(tmp_path, tasks=("two", "five")), workdir)


@pytest.mark.slow
def test_added_columns_are_what_an_evaluation_at_that_time_gives(tmp_path):
    workdir = tmp_path / "added"
    train(tiny_settings(tmp_path, method="sequential_lora", tasks=("two", "five")), workdir)
    added = train(tiny_settings(tmp_path, method="sequential_lora"), workdir)
    at_once = train(tiny_settings(tmp_path, method="sequential_lora"), tmp_path / "at_once")
    assert added["accuracy_matrix"] == at_once["accuracy_matrix"]
    assert added["random_init"] == at_once["random_init"]


@pytest.mark.slow
def test_tasks_can_be_added_one_by_one(tmp_path):
    workdir = tmp_path / "run"
    for count in (1, 2, 3):
        results = train(tiny_settings(tmp_path, epochs=1, tasks=tuple(CLASSES)[:count]), workdir)
        assert np.shape(results["accuracy_matrix"]) == (count, count)
        assert np.isfinite(results["accuracy_matrix"]).all()
    assert [line["step"] for line in logged(workdir)] == list(range(1, 19))


def without_validation(definitions):
    return {name: {**fields, "validation": ""} for name, fields in definitions.items()}


def test_without_validation_the_last_epoch_is_kept(tmp_path):
    settings = tiny_settings(tmp_path, tasks=("two",), epochs=1, data__validation_fraction=0.0)
    settings = settings.changed({"definitions": without_validation(settings.definitions)})
    with pytest.raises(UserError, match="no validation examples to select the best epoch by"):
        train(settings, tmp_path / "best")
    results = train(settings.changed({"selection": "last"}), tmp_path / "last")
    assert results["validation_accuracy"] == [None]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 9}, "begun with epochs = 2, .* all tasks are finished"),
        ({"seed": 1}, "begun with seed = 0, and now it is 1"),
        ({"lora__rank": 4}, "begun with lora.rank = 8, and now it is 4"),
        ({"tasks": ("five", "two")}, "may only be extended at its end"),
    ],
)
def test_a_workdir_refuses_other_settings(tmp_path, finished_run, change, message):
    settings, workdir, _ = finished_run
    other = tiny_settings(tmp_path, **{"head": settings.head, **change})
    other = other.changed({"model": settings.model, "definitions": settings.definitions})
    before = (workdir / "results.json").read_text()
    with pytest.raises(UserError, match=message):
        train(other, workdir)
    assert (workdir / "results.json").read_text() == before


def test_a_workdir_older_than_a_field_of_definitions_goes_on(tmp_path):
    settings = tiny_settings(tmp_path, tasks=("two",))
    save_settings(settings, tmp_path)
    older = json.loads((tmp_path / "config.json").read_text())["definitions"]["two"]
    assert not older.keys() & {"subset", "text_fields"}

    def with_text_fields(*names):
        two = {**settings.definitions["two"], "subset": "", "text_fields": names}
        return settings.changed({"definitions": {**settings.definitions, "two": two}})

    refuse_other_settings(with_text_fields("text"), tmp_path)
    differs = r"definitions.two.text_fields = \('text',\), and now it is \('body',\)"
    with pytest.raises(UserError, match=differs):
        refuse_other_settings(with_text_fields("body"), tmp_path)


def test_a_workdir_is_trained_in_by_one_process(tmp_path):
    settings = tiny_settings(tmp_path, tasks=("two",))
    with (
        claimed(tmp_path / "run"),
        pytest.raises(UserError, match=r"another process is training in .*run; wait for it"),
    ):
        train(settings, tmp_path / "run")
    with claimed(tmp_path / "run"):  # it was let go
        pass


def test_checkpoints_refuse_another_frozen_model(tmp_path):
    settings = tiny_settings(tmp_path, tasks=("two",), epochs=1)
    train(settings, tmp_path / "run")
    write_model(tmp_path / "model", seed=1)
    with pytest.raises(UserError, match="trained on a frozen model with fingerprint"):
        train(settings, tmp_path / "run")


def test_a_damaged_checkpoint_is_named(tmp_path):
    settings = tiny_settings(tmp_path, tasks=("two",), epochs=1)
    train(settings, tmp_path / "run")
    checkpoint = tmp_path / "run" / "checkpoints" / "000_two"
    for file in (checkpoint / "task").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    with pytest.raises(UserError, match=r"cannot read the checkpoint .*000_two"):
        train(settings, tmp_path / "run")


def test_the_frozen_llm_is_not_in_the_checkpoints(finished_run):
    _, workdir, _ = finished_run
    evaluator, stream, _ = restored(workdir)
    frozen_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(evaluator.model.params))
    saved = sum(f.stat().st_size for f in (workdir / "checkpoints").rglob("*") if f.is_file())
    trained = sum(leaf.nbytes for leaf in jax.tree.leaves((stream.shared, stream.finished)))
    assert len(list((workdir / "checkpoints").iterdir())) == 3
    assert saved < 3 * trained + 3 * 60_000, (saved, trained, frozen_bytes)
    for path, _ in jax.tree.leaves_with_path(stream.shared):
        assert not any(name in jax.tree_util.keystr(path) for name in ("embed", "attention"))


def test_selection_keeps_the_best_validating_epoch_and_last_the_last(tmp_path, monkeypatch):
    chosen = {}
    for selection in ("best", "last"):
        values = {"tasks": ("two",), "epochs": 3, "selection": selection}
        run = training_of(
            tiny_settings(tmp_path / selection, **values), tmp_path / selection / "run"
        )
        [task], scripted, trees = run.tasks, iter([0.5, 0.9, 0.7]), []
        validation, original = task.splits["validation"], run.evaluator.evaluate

        def evaluate(
            parameters,
            index,
            examples,
            validation=validation,
            scripted=scripted,
            trees=trees,
            original=original,
        ):
            result = original(parameters, index, examples)
            if examples is not validation:
                return result
            trees.append(jax.tree.map(np.array, parameters))
            return dataclasses.replace(result, accuracy=next(scripted))

        monkeypatch.setattr(run.evaluator, "evaluate", evaluate)
        _, results = run.run()
        assert len(trees) == 3
        _, stream, _ = restored(tmp_path / selection / "run")
        kept = {"best": 1, "last": 2}[selection]
        assert_bit_equal(stream.finished["two"].expert["task"], trees[kept].expert)
        assert_bit_equal(stream.shared, trees[kept].shared)
        chosen[selection] = results["validation_accuracy"]
    assert chosen == {"best": [0.9], "last": [0.7]}


@pytest.mark.parametrize("log_every", [1, 3])
def test_speeds_are_those_since_the_line_before(tmp_path, log_every):
    """Also at the end of an epoch and before a checkpoint, where a line is written early."""
    settings = tiny_settings(tmp_path, tasks=("two",), log_every=log_every, checkpoint_every=2)
    begun = time.perf_counter()
    train(settings, tmp_path / "run")
    elapsed = time.perf_counter() - begun
    lines = logged(tmp_path / "run", speeds=True)
    assert len(lines) > 3
    assert all(line["examples_per_second"] > 0 for line in lines)
    # The seconds that a line stands for are its examples by its speed; no second counts twice.
    seconds = [log_every * settings.batch.size / line["examples_per_second"] for line in lines]
    assert 0 < sum(seconds) <= elapsed
    assert all(line["tokens_per_second"] > line["examples_per_second"] for line in lines)
