"""Rollback and removal: what stays is as it was, bit for bit, and what goes is gone."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from streams import assert_bit_equal, logged, restored, stop_after, tiny_settings

from moecl_jax.cli.main import main
from moecl_jax.data.task import Task
from moecl_jax.errors import UserError
from moecl_jax.methods import METHODS
from moecl_jax.runs.changes import Change
from moecl_jax.runs.checkpoint import TaskCheckpoints
from moecl_jax.runs.undo import _files_without, _out_of_reach, remove, rollback
from moecl_jax.runs.workdir import load_settings, save_settings, write_json
from moecl_jax.serving.session import open_run, open_stream
from moecl_jax.training.trainer import train

FEW = {"epochs": 1, "checkpoint_every": 100}
STEPS = 6  # of a task's epoch
STATISTICS = {"adversarial__past": "statistics"}
ADDED = ("gain_lora", "inf_lora", "mocl", "n_lora", "o_lora")  # all LoRAs answer for all tasks


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Folder and settings of a finished run of three tasks, which keeps statistics of features."""
    folder = tmp_path_factory.mktemp("finished")
    settings = tiny_settings(folder, **FEW, **STATISTICS)
    train(settings, folder / "run")
    return folder, settings


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of that workdir to change, and its settings."""
    shutil.copytree(finished[0] / "run", tmp_path / "run")
    return tmp_path / "run", finished[1]


def content_of(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, but the lock."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def answers(workdir, *tasks):
    """Predictions of each task for the same texts, and what is chosen where none is named."""
    session, texts = open_run(workdir), ["w1 w20 w30", "w40 w3 w50 w2", "w11 w12"]
    found = {task: session.predict(texts, task) for task in tasks or session.tasks}
    if session.evaluator.method.traits.expert_per_task:
        found[None] = session.predict(texts)
    return found


def assert_same_state(ours, theirs):
    (_, mine, history), (_, other, expected) = restored(ours), restored(theirs)
    assert_bit_equal((mine.shared, mine.memory), (other.shared, other.memory))
    assert mine.finished.keys() == other.finished.keys()
    for name, done in mine.finished.items():
        assert_bit_equal(done, other.finished[name])
    np.testing.assert_equal(
        {**vars(history), "wall_seconds": 0}, {**vars(expected), "wall_seconds": 0}
    )
    features = [
        store.restore_features(state)
        for (_, store), state in zip(map(open_stream, (ours, theirs)), (mine, other), strict=True)
    ]
    assert (features[0] is None) == (features[1] is None)
    if features[0] is not None:
        assert features[0].names == features[1].names
        assert_bit_equal(features[0].arrays, features[1].arrays)
    assert answers(ours) == answers(theirs)


def results_of(workdir):
    content = json.loads((workdir / "results.json").read_text(encoding="utf-8"))
    return {key: value for key, value in content.items() if key != "wall_seconds"}


# What they keep: features, examples, Fisher information, earlier answers, one merged LoRA, gates.
@pytest.mark.slow
@pytest.mark.parametrize("method", ["moe_cl", "replay", "ewc", "lwf", "slao", "gain_lora"])
def test_a_rollback_is_the_run_that_stopped_then(tmp_path, monkeypatch, method):
    settings = tiny_settings(tmp_path, method=method, **FEW, **STATISTICS)
    whole, back, stopped = (tmp_path / name for name in ("whole", "back", "stopped"))
    train(settings, whole)
    shutil.copytree(whole, back)
    with monkeypatch.context() as patch:
        stop_after(patch, STEPS)
        with pytest.raises(KeyboardInterrupt):
            train(settings, stopped)
    rollback(back, "two")
    assert (back / "config.json").read_bytes() == (stopped / "config.json").read_bytes()
    assert not (back / "results.json").exists()
    assert [path.name for path in (back / "checkpoints").iterdir()] == ["000_two"]
    assert_same_state(back, stopped)
    train(settings, back)
    assert_same_state(back, whole)
    assert logged(back) == logged(whole) and results_of(back) == results_of(whole)


def test_a_rollback_of_what_trains_nothing_and_the_next_task_are_the_whole_run(tmp_path):
    settings = tiny_settings(tmp_path, method="few_shot", **FEW)
    whole, back = tmp_path / "whole", tmp_path / "back"
    train(settings, whole)
    shutil.copytree(whole, back)
    rollback(back, "two")
    assert open_run(back).tasks == ["two"]
    train(settings, back)
    assert_same_state(back, whole)
    assert results_of(back) == results_of(whole)


def test_other_tasks_may_follow_a_rollback(copied):
    workdir, settings = copied
    rollback(workdir, "two")
    before = answers(workdir)
    other = settings.definitions["five"]
    settings = settings.changed(
        {"tasks": ("two", "other"), "definitions": {**settings.definitions, "other": other}}
    )
    content = train(settings, workdir)
    assert content["tasks"] == ["two", "other"]
    assert np.shape(content["accuracy_matrix"]) == (2, 2)
    assert np.isfinite(np.array(content["accuracy_matrix"], float)).all()
    assert open_run(workdir).tasks == ["two", "other"]
    for ours, theirs in zip(answers(workdir, "two")["two"], before["two"], strict=True):
        assert ours.label == theirs.label
        np.testing.assert_allclose(ours.logits, theirs.logits, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "changes", "task"),
    [
        ("moe_cl", STATISTICS, "two"),
        *(
            pytest.param(method, changes, task, marks=pytest.mark.slow)
            for method, changes, task in [
                ("moe_cl", {"moe_cl__shared": "moving"}, "five"),
                ("moe_cl", {"moe_cl__shared": "merged"}, "fourteen"),
                ("moe_cl", {"moe_cl__shared": "projected"}, "five"),
                ("moe_cl", {"head": "classification", **STATISTICS}, "fourteen"),
                ("per_task", {}, "five"),
                ("o_lora", {"o_lora__composed": False}, "two"),
                ("replay", {}, "five"),
                ("ewc", {}, "fourteen"),
                ("lwf", {}, "two"),
                ("slao", {}, "five"),
                ("sequential_full", {}, "two"),
            ]
        ),
    ],
)
def test_all_other_tasks_answer_as_before_a_removal(tmp_path, method, changes, task):
    settings = tiny_settings(tmp_path, method=method, **FEW, **changes)
    workdir = tmp_path / "run"
    train(settings, workdir)
    before, place = answers(workdir), settings.tasks.index(task)
    matrix = results_of(workdir)["accuracy_matrix"]
    remove(workdir, task)
    left = [name for name in settings.tasks if name != task]
    assert open_run(workdir).tasks == left
    after = answers(workdir)
    assert {name: after[name] for name in left} == {name: before[name] for name in left}
    if None in after:
        assert {each.task for each in after[None]} <= set(left)
    with pytest.raises(UserError, match=f"no task '{task}'; the tasks are .*{task}-removed"):
        open_run(workdir).predict(["w1"], task)
    with pytest.raises(UserError, match=f"'{task}-removed' was removed from"):
        open_run(workdir).predict(["w1"], f"{task}-removed")
    assert set(open_run(workdir).evaluate()["tasks"]) == set(left)
    results = results_of(workdir)
    assert results["tasks"][place] == f"{task}-removed" and results["accuracy_matrix"] == matrix
    gone = workdir / "checkpoints" / f"{place:03d}_{task}"
    assert (
        not gone.exists() and not gone.with_name(f"{gone.name}-removed").joinpath("task").exists()
    )
    # The same list less the task is trained on, and the task anew at its end.
    again = settings.changed({"tasks": (*left, task)})
    content = train(again, workdir)
    assert content["tasks"] == [*results["tasks"], task]
    last = np.array(content["accuracy_matrix"][-1], float)
    assert np.isnan(last[place]) and np.isfinite(np.delete(last, place)).all()
    assert open_run(workdir).tasks == [*left, task]


def test_a_damaged_state_inside_a_task_can_be_left_behind(copied):
    workdir, _ = copied
    state = workdir / "checkpoints" / "in_progress" / "3"
    state.mkdir(parents=True)
    assert "deleted: the training inside a task, which is damaged" in str(rollback(workdir, "five"))
    assert not state.exists() and open_run(workdir).tasks == ["two", "five"]


def test_a_removal_names_a_file_that_lacks_its_tasks(copied):
    workdir, _ = copied
    (workdir / "results.json").write_text("{}")
    with pytest.raises(UserError, match=r"results\.json is broken: it lacks 'tasks'"):
        remove(workdir, "five")
    assert not (workdir / "change.json").exists()


def test_a_removed_task_leaves_no_trace_in_features_and_memory(copied):
    workdir, _ = copied
    (_, before, _), (_, store) = restored(workdir), open_stream(workdir)
    whole = store.restore_features(before)
    remove(workdir, "five")
    _, after, history = restored(workdir)
    left = open_stream(workdir)[1].restore_features(after)
    assert left.names == ("two", "fourteen")
    np.testing.assert_array_equal(left.means, whole.means[[0, 2]])
    own = [
        open_stream(workdir)[1].checkpoints.restore_features(place, own=True)["scatter"]
        for place in (0, 2)
    ]
    np.testing.assert_array_equal(left.scatter, own[0] + own[1])
    assert np.abs(left.scatter - whole.scatter).max() > 0
    statistics = after.memory["statistics"]
    assert statistics["seen"].tolist() == [True, False, True]
    assert not statistics["mean"][:, 1].any() and not statistics["deviation"][:, 1].any()
    np.testing.assert_array_equal(
        statistics["mean"][:, 2], before.memory["statistics"]["mean"][:, 2]
    )
    assert list(after.finished) == ["two", "five-removed", "fourteen"]
    assert after.finished["five-removed"] is None
    assert len(history.accuracy) == 3


@pytest.mark.parametrize(
    ("undo", "learned", "goes"),
    [
        (lambda run: remove(run, "five"), "two", True),
        (lambda run: rollback(run, "two"), "five", True),
        (lambda run: rollback(run, "two"), "two", False),
    ],
)
def test_what_was_learned_online_of_a_task_goes_with_it(copied, undo, learned, goes):
    workdir, _ = copied
    record = {"step": 1, "tracks": [{"task": learned, "window": [{"ids": [1, 2], "label": 0}]}]}
    TaskCheckpoints(workdir / "online").save_in_progress({"lines": np.ones(1)}, record)
    (workdir / "online" / "online.jsonl").write_text("{}\n")
    (workdir / "not_finite.json").write_text("{}")
    said = "  deleted: online/, all that was learned online"
    assert (said in undo(workdir).lines) == goes
    assert (workdir / "online").exists() != goes
    assert not (workdir / "not_finite.json").exists()


def test_a_removal_says_what_it_does_not_reach(tmp_path):
    checkpoints = TaskCheckpoints(tmp_path, ["mail", "mail_2", "mail_3"])
    assert _out_of_reach(checkpoints, []) == []
    (checkpoints.folder / "set_aside").mkdir(parents=True)
    assert _out_of_reach(checkpoints, ["mail_3"]) == [
        "  stays: what mail_3 took over by going on from it",
        "  stays: checkpoints/set_aside, which may be of it too",
    ]


@pytest.mark.slow
def test_a_removal_may_be_rolled_back_over_and_repeated(copied):
    workdir, settings = copied
    two = answers(workdir, "two")["two"]
    remove(workdir, "five")
    train(settings.changed({"tasks": ("two", "fourteen", "five")}), workdir)
    remove(workdir, "five")
    assert open_run(workdir).evaluator.names == [
        "two",
        "five-removed",
        "fourteen",
        "five-removed-2",
    ]
    assert answers(workdir, "two")["two"] == two
    rollback(workdir, "two")
    assert open_run(workdir).tasks == ["two"]
    assert json.loads((workdir / "config.json").read_text())["tasks"] == ["two", "fourteen"]
    content = train(settings, workdir)
    assert content["tasks"] == ["two", "five", "fourteen"]


@pytest.mark.parametrize("command", [["rollback", "--to=two"], ["remove", "--task=five"]])
def test_without_yes_nothing_is_changed(copied, command, capsys):
    workdir, _ = copied
    (workdir / "online").mkdir()
    (workdir / "online" / "online.jsonl").write_text("", encoding="utf-8")
    before = content_of(workdir)
    assert main([command[0], f"--workdir={workdir}", *command[1:]]) == 0
    out = capsys.readouterr().out
    assert "deleted: checkpoints/001_five, with expert, head and features" in out
    assert "nothing was changed; add --yes to do it" in out
    assert content_of(workdir) == before
    assert main([command[0], f"--workdir={workdir}", *command[1:], "--yes"]) == 0
    assert "nothing was changed" not in capsys.readouterr().out
    assert content_of(workdir).keys() != before.keys()
    assert (workdir / "online").exists() == (command[0] == "rollback")
    assert f"{'stays' if command[0] == 'rollback' else 'deleted'}: online/" in out
    assert not list((workdir / "checkpoints").glob(".*")) and not (workdir / "change.json").exists()


@pytest.mark.parametrize("method", ADDED)
def test_a_sum_of_loras_loses_no_summand(method):
    made = METHODS[method]()
    with pytest.raises(UserError, match=f"'{method}' answers for every task with the LoRAs of all"):
        made.without_task({}, 0)


def test_what_cannot_be_undone_is_refused(copied, tmp_path, monkeypatch):
    workdir, settings = copied
    before = content_of(workdir)
    for call, task, message in (
        (rollback, "fourteen", "'fourteen' is the task that was finished last"),
        (rollback, "six", "task 'six' is none of .*; finished are two, five, fourteen"),
        (remove, "six", "task 'six' is none of .*; finished are two, five, fourteen"),
    ):
        with pytest.raises(UserError, match=message):
            call(workdir, task)
    assert content_of(workdir) == before
    with pytest.raises(UserError, match="is no workdir"):
        rollback(tmp_path / "nothing", "two")
    assert not (tmp_path / "nothing").exists()
    with monkeypatch.context() as patch:
        stop_after(patch, STEPS + 2)
        with pytest.raises(KeyboardInterrupt):
            train(settings.changed({"checkpoint_every": 1}), tmp_path / "inside")
    with pytest.raises(UserError, match=r"stopped inside task 'five' .*rollback --to=two"):
        remove(tmp_path / "inside", "two")
    with pytest.raises(UserError, match="task 'five' has not been trained to its end"):
        remove(tmp_path / "inside", "five")
    assert "the training of 'five' up to step" in str(rollback(tmp_path / "inside", "two"))
    with pytest.raises(UserError, match="'two' is the only task that answers"):
        remove(tmp_path / "inside", "two")


@pytest.mark.parametrize("gone", [(0,), (2,), (0, 1, 2)])
def test_checkpoints_that_are_gone_are_named_and_nothing_is_trained(copied, gone):
    workdir, settings = copied
    names = [f"{place:03d}_{settings.tasks[place]}" for place in gone]
    for name in names:
        shutil.rmtree(workdir / "checkpoints" / name)
    before = content_of(workdir)
    for call in (lambda: open_run(workdir), lambda: train(settings, workdir)):
        with pytest.raises(UserError, match=f"the checkpoint .*{names[0]} is missing"):
            call()
    assert content_of(workdir) == before


def test_what_is_gone_is_trained_again_if_that_is_asked_for(copied, finished, caplog):
    workdir, settings = copied
    shutil.rmtree(workdir / "checkpoints" / "002_fourteen")
    caplog.set_level("INFO")
    train(settings, workdir, resume="last-good")
    assert any("002_fourteen" in record.message for record in caplog.records)
    assert_same_state(workdir, finished[0] / "run")


def test_a_rollback_by_hand_is_mended_by_one(copied):
    workdir, settings = copied
    shutil.rmtree(workdir / "checkpoints" / "002_fourteen")
    rollback(workdir, "five")
    assert open_run(workdir).tasks == ["two", "five"]
    assert len(answers(workdir)[None]) == 3  # tasks are chosen
    assert train(settings, workdir)["tasks"] == list(settings.tasks)


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"removed": []}',
        '{"removed": ["../outside"], "placed": {}, "files": {}, "number": 1}',
        '{"removed": [], "placed": {"a": "/b"}, "files": {}, "number": 1}',
        '{"removed": [], "placed": {}, "files": {"../outside": 1}, "number": 1}',
    ],
)
def test_what_is_left_to_do_stays_inside_the_workdir(copied, content):
    workdir, _ = copied
    (workdir.parent / "outside").write_text("mine")
    (workdir / "change.json").write_text(content)
    with pytest.raises(UserError, match=r"change\.json is broken: "):
        open_run(workdir)
    assert (workdir.parent / "outside").read_text() == "mine"


def test_a_list_without_the_tasks_that_are_left_is_refused(copied):
    workdir, settings = copied
    remove(workdir, "two")
    with pytest.raises(UserError, match="holds the tasks five, fourteen, and two-removed stand"):
        train(settings, workdir)


class Killed(BaseException):
    """In place of SIGKILL: from then on no file is changed any more."""


@pytest.mark.slow
@pytest.mark.parametrize(("undo", "task"), [(rollback, "two"), (remove, "two")])
def test_a_change_is_whole_wherever_it_is_cut_short(finished, tmp_path, monkeypatch, undo, task):
    """The process stops before each of the operations on files with which a change is made."""
    trained, whole, cut = finished[0] / "run", tmp_path / "whole", tmp_path / "cut"

    def seen(workdir):
        """Files, the parts of each checkpoint, and the tasks that the memory knows."""
        load_settings(workdir)  # as whoever opens the workdir does
        files = {path.name: json.loads(path.read_text()) for path in workdir.glob("*.json")}
        folders = (workdir / "checkpoints").glob("[0-9]*")
        parts = {path.name: {part.name for part in path.iterdir()} for path in folders}
        names = files["config.json"]["tasks"]
        checkpoints = TaskCheckpoints(workdir, names)
        memory = checkpoints.restore_shared(checkpoints.finished_count() - 1)["memory"]
        return files, parts, memory["statistics"]["seen"].tolist()

    def operations(workdir, limit=None):
        """Number of operations, before the `limit`-th of which the process stops."""
        made, original = [0], Change.make

        def make(change, folder):
            with monkeypatch.context() as patch:
                for name in ("rename", "replace", "mkdir", "rmdir", "unlink"):
                    patch.setattr(os, name, counted(getattr(os, name)))
                original(change, folder)

        def counted(function):
            def call(*arguments, **named):
                made[0] += 1
                if limit is not None and made[0] >= limit:
                    raise Killed
                return function(*arguments, **named)

            return call

        with monkeypatch.context() as patch:
            patch.setattr(Change, "make", make)
            if limit is None:
                undo(workdir, task)
            else:
                with pytest.raises(Killed):
                    undo(workdir, task)
        return made[0]

    shutil.copytree(trained, whole)
    count, before = operations(whole), seen(trained)
    after, kinds = seen(whole), []
    assert count > 10 and before != after
    # Each step up to the deletion of files, which is most of the operations, and some of that.
    for limit in sorted({*range(1, 18), count // 2, count - 1, count}):
        shutil.copytree(trained, cut)
        operations(cut, limit)
        found = seen(cut)
        kinds.append(found == after)
        assert found in (before, after), limit
        if found == before:
            undo(cut, task)
            assert seen(cut) == after
        assert not (cut / "change.json").exists()
        shutil.rmtree(cut)
    assert answers(whole).keys() == {*after[0]["finished.json"], None} - {"two-removed"}
    assert kinds == sorted(kinds) and any(kinds) and not all(kinds)


def test_a_task_s_own_values_go_with_it(tmp_path):
    own = {name: {"epochs": 2} for name in ("two", "five")}
    save_settings(tiny_settings(tmp_path).changed({"task_settings": own}), tmp_path)
    names = ["two-removed", "five", "fourteen"]
    trace = Task("two-removed", source="removed", labels=("a", "b"))
    files = _files_without(tmp_path, "two", trace, names, 3)
    write_json(tmp_path / "config.json", files["config.json"])
    found = load_settings(tmp_path)
    assert found.tasks == tuple(names) and found.task_settings == {"five": {"epochs": 2}}
