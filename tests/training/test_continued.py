"""A task of the stream that is more data of an earlier one: its expert goes on from there."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from ml_collections import ConfigDict
from streams import assert_bit_equal, logged, restored, stop_after, tiny_config, tiny_settings

from moecl_jax.config.default import from_config
from moecl_jax.data.continued import check_continued
from moecl_jax.data.task import Task
from moecl_jax.errors import UserError
from moecl_jax.methods.stream import StreamState
from moecl_jax.runs.undo import remove, rollback
from moecl_jax.serving.session import open_run
from moecl_jax.testing import write_task
from moecl_jax.training.trainer import train

FEW = {"epochs": 1, "checkpoint_every": 2}
TASKS = ("two", "five", "two_2")
NO_STEP = {"task_settings": {"two_2": {"optimizer": {"learning_rate": 0.0}}}}
TEXTS = ["w1 w20 w30", "w40 w3 w50 w2", "w11 w12", "w2 w2 w4"]


def settings_in(folder, tasks=TASKS, **changes):
    """Settings of a stream whose task `two_2` has other training texts for `two`."""
    config = tiny_config(folder, **FEW, **changes)
    more = write_task(folder / "data", "two_2", 2)
    test = dict(config.definitions["two"])["test"]  # so both are scored on the same texts
    with config.unlocked():
        config.definitions["two_2"] = ConfigDict(
            {
                "continues": "two",
                "test": test,
                **{key: more[key] for key in ("source", "path", "train", "validation")},
            }
        )
    return from_config(config).changed({"tasks": tasks})


def answers(workdir, *tasks):
    session = open_run(workdir)
    return {task: session.predict(TEXTS, task) for task in tasks}


def matrix(workdir):
    content = json.loads((workdir / "results.json").read_text(encoding="utf-8"))
    return np.array(content["accuracy_matrix"], float)


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """Folder and settings of a finished run of `two` and `five`, which `two_2` is to follow."""
    folder = tmp_path_factory.mktemp("begun")
    settings = settings_in(folder)
    train(settings.changed({"tasks": TASKS[:2]}), folder / "run")
    return folder, settings


@pytest.fixture(scope="module")
def continued(begun):
    """Folder and settings of that run, and of a copy that went on with `two_2`, in `more`."""
    folder, settings = begun
    shutil.copytree(folder / "run", folder / "more")
    train(settings, folder / "more")
    return folder, settings


def test_without_a_step_the_task_answers_as_before(begun, tmp_path):
    folder, settings = begun
    shutil.copytree(folder / "run", tmp_path / "run")
    train(settings.changed(NO_STEP), tmp_path / "run")
    (_, state, _), (_, before, _) = restored(tmp_path / "run"), restored(folder / "run")
    assert_bit_equal(state.finished["two_2"], before.finished["two"])
    known = answers(folder / "run", "two", "five")
    assert answers(tmp_path / "run", "two", "five") == known
    assert answers(tmp_path / "run", "two_2")["two_2"] == [
        dataclasses.replace(prediction, task="two_2") for prediction in known["two"]
    ]


def test_what_was_trained_on_more_data_answers_for_the_task(continued):
    folder, _ = continued
    (evaluator, state, _), (_, before, _) = restored(folder / "more"), restored(folder / "run")
    assert_bit_equal(state.finished["two"], before.finished["two"])  # the old one stays as it was
    now, then = answers(folder / "more", "two", "five"), answers(folder / "run", "two", "five")
    assert now["five"] == then["five"]
    assert now["two"] != then["two"]
    # The newest part's own expert, put in the place of the first, says the same.
    alone = StreamState(state.shared, {"two": state.finished["two_2"]}, state.memory)
    scores = [
        evaluator.scores(evaluator.starting.task(of, "two", 0), 0, examples).scores
        for examples in [evaluator.load()[0].splits["test"]]
        for of in (state, alone)
    ]
    np.testing.assert_array_equal(*scores)
    # No task is validated on data of one that comes later.
    assert [evaluator.parts(place) for place in range(3)] == [[0], [1], [0, 2]]
    session = open_run(folder / "more")
    assert session.tasks == ["two", "five"]
    assert {each.task for each in session.predict(TEXTS)} <= {"two", "five"}
    assert set(session.evaluate()["tasks"]) == set(TASKS)


def test_each_part_has_a_row_and_a_column(continued):
    folder, _ = continued
    found = matrix(folder / "more")
    assert found.shape == (3, 3) and np.isfinite(found).all()
    # Both names are answered alike after each task, and are scored on the same texts here.
    np.testing.assert_array_equal(found[:, 2], found[:, 0])
    np.testing.assert_array_equal(found[:2, :2], matrix(folder / "run"))
    reached = open_run(folder / "more").evaluate()["tasks"]
    assert [reached[task]["accuracy"] for task in TASKS] == found[2].tolist()
    content = json.loads((folder / "more" / "results.json").read_text(encoding="utf-8"))
    chosen = np.array(content["task_free"]["choices"])
    assert chosen[:, 2].sum() == 0 and (chosen[:2].sum(axis=1) == 48).all()
    assert content["task_free"]["accuracy"][0] == content["task_free"]["accuracy"][2]


def test_a_killed_continuation_goes_on_bit_for_bit(continued, tmp_path, monkeypatch):
    folder, settings = continued
    shutil.copytree(folder / "run", tmp_path / "run")
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            train(settings, tmp_path / "run")
    train(settings, tmp_path / "run")
    (_, mine, _), (_, whole, _) = restored(tmp_path / "run"), restored(folder / "more")
    assert_bit_equal((mine.shared, mine.memory), (whole.shared, whole.memory))
    assert_bit_equal(mine.finished["two_2"], whole.finished["two_2"])
    assert logged(tmp_path / "run") == logged(folder / "more")
    np.testing.assert_array_equal(matrix(tmp_path / "run"), matrix(folder / "more"))


@pytest.mark.parametrize(
    "undo", [lambda run: rollback(run, "five"), lambda run: remove(run, TASKS[2])]
)
def test_undone_the_task_answers_as_before(continued, tmp_path, undo):
    folder, _ = continued
    shutil.copytree(folder / "more", tmp_path / "run")
    undo(tmp_path / "run")
    assert open_run(tmp_path / "run").tasks == ["two", "five"]
    assert answers(tmp_path / "run", "two", "five") == answers(folder / "run", "two", "five")


def test_a_removal_says_what_answers_then_and_needs_the_parts_gone_first(continued, tmp_path):
    folder, _ = continued
    shutil.copytree(folder / "more", tmp_path / "run")
    with pytest.raises(UserError, match="'two' is continued by two_2"):
        remove(tmp_path / "run", "two")
    lines = remove(tmp_path / "run", "two_2").lines
    assert "  five answers as before" in lines or "  five answer as before" in lines
    assert "  'two' is answered by what it had before 'two_2'" in lines
    remove(tmp_path / "run", "two")
    assert open_run(tmp_path / "run").tasks == ["five"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes", [{"moe_cl__shared": "merged"}, {"moe_cl__snapshot_dtype": "int8"}], ids=str
)
def test_without_a_step_other_ways_answer_as_before(tmp_path, changes):
    settings = settings_in(tmp_path, **changes)
    train(settings.changed({"tasks": TASKS[:2]}), tmp_path / "run")
    before = answers(tmp_path / "run", "two")
    train(settings.changed(NO_STEP), tmp_path / "run")
    for now, then in zip(answers(tmp_path / "run", "two")["two"], before["two"], strict=True):
        assert now.label == then.label
        np.testing.assert_allclose(now.logits, then.logits, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_a_method_without_an_expert_a_task_trains_on(tmp_path):
    settings = settings_in(tmp_path, method="replay")
    train(settings, tmp_path / "run")
    found = matrix(tmp_path / "run")
    np.testing.assert_array_equal(found[:, 2], found[:, 0])


@pytest.mark.slow
def test_a_method_that_cannot_go_on_says_so(tmp_path):
    tasks = ("two", "two_2")
    settings = settings_in(tmp_path, tasks, method="o_lora", o_lora__composed=False)
    with pytest.raises(UserError, match="'two_2' continues 'two', and method 'o_lora' cannot"):
        train(settings, tmp_path / "run")
    settings = settings_in(tmp_path, method="joint")
    with pytest.raises(UserError, match="trains all at once; add the examples to those of 'two'"):
        train(settings, tmp_path / "joint")


def rows(*pairs):
    return [{"text": text, "label": label} for text, label in pairs]


def some(name, **fields):
    return Task(name, train=rows(("a", "x"), ("b", "y")), **fields)


@pytest.mark.parametrize(
    ("tasks", "problem"),
    [
        ([some("b", continues="a"), some("a")], "continues = 'a' must name a task .*: none is"),
        ([some("a"), some("b", continues="c")], "trained before it: a"),
        (
            [some("a"), some("b", continues="a"), some("c", continues="b")],
            "continues = 'b' is a task that continues 'a' itself; name that one",
        ),
        (
            [some("a"), some("b", continues="a", labels=("y", "x"))],
            r"task 'b': labels = \('y', 'x'\) must be that of 'a'",
        ),
        ([some("a"), some("b", continues="a", template="{text}?")], "template = '{text}[?]' must"),
    ],
)
def test_what_cannot_be_continued_is_refused(tasks, problem):
    with pytest.raises(UserError, match=problem):
        check_continued(tasks)
    check_continued([some("a"), some("b"), some("c", continues="a"), some("d", continues="a")])


def test_a_definition_has_what_it_leaves_out_from_the_task_that_it_continues(tmp_path):
    definitions = {
        "mail": {
            "source": "jsonl",
            "train": "a.jsonl",
            "labels": ("ham", "spam"),
            "template": "M {text}:",
        },
        "mail_2": {"source": "jsonl", "train": "b.jsonl", "continues": "mail"},
        "trec_2": {"source": "jsonl", "train": "c.jsonl", "continues": "trec"},
    }
    settings = tiny_settings(tmp_path).changed(
        {"definitions": definitions, "tasks": ("mail", "trec", "mail_2", "trec_2")}
    )
    tasks = {task.name: task for task in settings.task_objects()}
    check_continued(list(tasks.values()))
    for name in ("mail", "trec"):
        first, more = tasks[name], tasks[f"{name}_2"]
        assert (more.labels, more.template) == (first.labels, first.template)
        assert more.raw_labels == () and more.source == "jsonl"
