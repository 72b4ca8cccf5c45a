"""Online learning: what it reduces to, the order of scoring and learning, drift, and going on."""

import collections
import contextlib
import io
import json
import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from streams import assert_bit_equal, evaluator_of, restored, tiny_settings

from moecl_jax import stopping
from moecl_jax.cli import main as cli
from moecl_jax.data.batching import epoch_order
from moecl_jax.errors import UserError
from moecl_jax.methods.per_task import PerTask
from moecl_jax.runs.checkpoint import TaskCheckpoints
from moecl_jax.runs.settings import Settings
from moecl_jax.runs.workdir import save_settings
from moecl_jax.serving import arrivals
from moecl_jax.serving.arrivals import Arrivals
from moecl_jax.training import online as online_module
from moecl_jax.training.drift import Drift
from moecl_jax.training.online import Online, OnlineSettings, learn_online
from moecl_jax.training.online_track import Track
from moecl_jax.training.trainer import train

pytest.importorskip("river")

TWO = ("two", "five")
SIZE = 8  # examples of a batch
STEPS = 12  # of both tasks: 48 examples each
DEFAULT = OnlineSettings()


def settings_of(folder, method="sequential_lora", **changes):
    values = {"tasks": TWO, "epochs": 1, "selection": "last", **changes}
    return tiny_settings(folder, method=method, **values)


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A folder with a workdir of each method in which nothing was trained, and its stream."""
    made = {}

    def workdir_of(method="sequential_lora", **changes):
        folder = tmp_path_factory.mktemp(method)
        settings = settings_of(folder, method, **changes)
        (folder / "run").mkdir()
        save_settings(settings, folder / "run")
        if "lines" not in made:
            made["lines"] = lines_of(settings)
        (folder / "stream.jsonl").write_text("".join(made["lines"]), encoding="utf-8")
        return folder / "run"

    return workdir_of


@pytest.fixture(scope="module")
def whole(begun):
    """A workdir in which the command has learned the whole stream, and what it has printed."""
    workdir, printed = begun(), io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert cli.main(["online", f"--workdir={workdir}", f"--input={stream_of(workdir)}"]) == 0
    return workdir, printed.getvalue()


def lines_of(settings):
    """The training examples of a stream as lines, in the order of a training of one epoch."""
    lines = []
    for index, task in enumerate(evaluator_of(settings).load()):
        examples = task.splits["train"]
        for place in epoch_order(settings.seed, index, 0, len(examples)):
            example = examples[place]
            label = task.definition.labels[example.label]
            record = {"text": example.text, "label": label, "task": task.name}
            lines.append(json.dumps(record) + "\n")
    return lines


def stream_of(workdir):
    return workdir.parent / "stream.jsonl"


def logged(workdir):
    text = (workdir / "online" / "online.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def assert_same_pass(ours, theirs, options=DEFAULT):
    """Fails unless what two passes have logged, counted and learned is the same, bit for bit."""
    assert logged(ours) == logged(theirs)
    first, second = Online(ours, options), Online(theirs, options)
    first.tally.seconds = second.tally.seconds = 0.0
    assert first.tally == second.tally
    assert_bit_equal(first._tree(), second._tree())


def test_a_pass_task_by_task_that_learns_each_once_is_the_training_of_one_epoch(whole, tmp_path):
    workdir, _ = whole
    train(settings_of(workdir.parent), tmp_path / "trained")
    evaluator, state, _ = restored(tmp_path / "trained")
    online = Online(workdir, DEFAULT)
    assert online.tally.steps == STEPS and online.tally.bad == 0
    assert online.tally.counts.keys() == set(TWO)
    untrained = evaluator.starting.stream(2)
    for place, name in enumerate(TWO):
        ours = online.parameters(place)
        theirs = evaluator.starting.task(state, name, place)
        before = evaluator.starting.task(untrained, name, place)
        trees = (each.shared for each in (ours, theirs, before))
        for leaves in zip(*map(jax.tree.leaves, trees), strict=True):
            a, b, start = map(np.asarray, leaves)
            assert np.linalg.norm(b - start) > 0.1  # it was trained
            assert np.linalg.norm(a - b) < 1e-3 * np.linalg.norm(b - start)


def test_each_example_is_scored_before_it_is_learned(begun):
    workdir = begun()
    two = stream_of(workdir).read_bytes().splitlines()[:2]
    first, second = Online(workdir, OnlineSettings(budget=1.0)).learn(two)
    evaluator = evaluator_of(settings_of(workdir.parent))
    parameters = evaluator.starting.task(evaluator.starting.stream(2), "two", 0)
    order = epoch_order(evaluator.settings.seed, 0, 0, 48)
    examples = [evaluator.load()[0].splits["train"][place] for place in order[:2]]
    scores = evaluator.scores(parameters, 0, examples).scores[:, :2].astype(np.float64)
    gold = [example.label for example in examples]
    untaught = np.logaddexp.reduce(scores, axis=1) - scores[range(2), gold]
    assert first["loss"] == pytest.approx(untaught[0], rel=1e-5)
    assert first["right"] == (scores[0].argmax() == gold[0])
    assert second["loss"] != pytest.approx(untaught[1], rel=1e-4)  # the first one was learned


@pytest.mark.parametrize(
    ("budget", "arrived"),
    [(1 / 3, [3, 6, 9]), (0.125, [8, 16, 24]), (0.4, [3, 5, 8]), (2.0, [1, 1, 2])],
)
def test_the_budget_is_of_steps_an_example(budget, arrived):
    track, taken = Track(0, None, collections.deque()), []
    while len(taken) < 3:
        while track.due(1, budget):
            track.steps += 1
            taken.append(track.arrived + 1)
        track.arrived += 1
    assert taken[:3] == arrived


@pytest.mark.slow
def test_a_pass_over_a_file_that_grows_is_that_over_the_whole_bit_for_bit(begun, whole):
    parts = begun()
    content = stream_of(parts).read_bytes()
    ends = [content.index(b"\n", share) + 1 for share in (700, 3000)]
    growing = parts.parent / "growing.jsonl"
    for end in (ends[0], ends[1] - 20, len(content)):  # once in the middle of a line
        growing.write_bytes(content[:end])
        learn_online(parts, growing, DEFAULT)
    assert_same_pass(whole[0], parts)


@pytest.mark.slow
def test_a_pass_that_was_stopped_or_killed_goes_on_bit_for_bit(begun, monkeypatch):
    whole, parts, options = begun("moe_cl"), begun("moe_cl"), OnlineSettings(budget=0.5)
    learn_online(whole, stream_of(whole), options)
    learn, taken = Online._learn, []

    def stopping_learn(self, track):
        taken.append(track)
        if len(taken) == 3:
            stopping.request()  # amid eight lines, which are learned to their end
        if len(taken) == 30:
            raise RuntimeError("killed")
        learn(self, track)

    monkeypatch.setattr(Online, "_learn", stopping_learn)
    with pytest.raises(stopping.Stopped):
        learn_online(parts, stream_of(parts), options)
    assert len(logged(parts)) == Online(parts, options).lines == SIZE
    with pytest.raises(RuntimeError, match="killed"):
        learn_online(parts, stream_of(parts), options)
    learn_online(parts, stream_of(parts), options)
    monkeypatch.undo()
    assert_same_pass(whole, parts, options)


@pytest.mark.slow
def test_a_drift_begins_a_new_expert_and_sets_the_old_one_aside(begun, monkeypatch):
    rises = Drift.rises

    def at_20(self, loss):
        rises(self, loss)
        return len(self.losses) == 20

    monkeypatch.setattr(Drift, "rises", at_20)
    options = OnlineSettings(on_drift="expert", task="two")
    whole, parts = begun("per_task"), begun("per_task")
    tally = learn_online(whole, stream_of(whole), options)
    assert tally.drifts == [{"line": 20, "task": "two"}, {"line": 68, "task": "five"}]
    lines = logged(whole)
    assert [line["line"] for line in lines if line.get("drift")] == [20, 68]
    assert [line["expert"] for line in lines[:48]] == [0] * 20 + [1] * 28
    online = Online(whole, options)
    assert sorted(online.aside) == ["000_five", "000_two"]
    fresh = online.evaluator.starting.task(online.stream, "two", 0).expert
    for name, kept in online.aside["000_two"]["expert"].items():  # two steps from its start
        assert np.any(kept["b"] != 0) and np.any(kept["a"] != fresh[name]["a"])
    content = stream_of(whole).read_bytes().splitlines(keepends=True)
    for count in (21, 96):
        stream_of(parts).write_bytes(b"".join(content[:count]))
        learn_online(parts, stream_of(parts), options)
    assert logged(parts) == lines
    assert_bit_equal(Online(parts, options)._tree(), online._tree())


def test_a_line_without_a_label_is_answered_and_a_bad_one_says_why(begun):
    workdir = begun()
    good = json.loads(stream_of(workdir).read_text(encoding="utf-8").splitlines()[0])
    bare = {key: value for key, value in good.items() if key != "label"}
    lines = [
        json.dumps(bare),
        "{",
        json.dumps({**good, "label": "w33"}),
        json.dumps({**good, "task": "six"}),
        json.dumps(bare | {"task": ""}),
        json.dumps({"task": "two"}),
        json.dumps(good),
    ]
    stream_of(workdir).write_text("\n".join(lines) + "\n", encoding="utf-8")
    tally = learn_online(workdir, stream_of(workdir), DEFAULT)
    assert (tally.bad, tally.bare, tally.counts["two"][0]) == (5, 1, 1)
    answered, *bad, learned = logged(workdir)
    assert answered.keys() == {"line", "task", "label", "probability"}
    assert learned["line"] == 7 and learned["gold"] == good["label"]
    for line, part in zip(
        bad,
        (
            "no JSON",
            "'w33' is no label of task 'two'",
            "no task 'six'",
            "name one by --task",
            "text",
        ),
        strict=True,
    ):
        assert part in line["error"]


@pytest.mark.slow
def test_the_task_of_a_text_is_found(tmp_path):
    settings = settings_of(tmp_path, "per_task")
    workdir = tmp_path / "run"
    train(settings, workdir)
    lines = [json.loads(line) for line in lines_of(settings)[36:60]]
    without = [{"text": line["text"], "label": line["label"]} for line in lines]
    stream = tmp_path / "stream.jsonl"
    stream.write_text("".join(json.dumps(line) + "\n" for line in without), encoding="utf-8")
    _, before, _ = restored(workdir)
    learn_online(workdir, stream, DEFAULT)
    found = [line.get("task") for line in logged(workdir)]
    right = sum(name == line["task"] for name, line in zip(found, lines, strict=True))
    assert right > 12
    _, after, _ = restored(workdir)  # what was finished stays as it was
    assert_bit_equal(dict(before.finished), dict(after.finished))


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("sequential_lora", {"on_drift": "expert"}, "'sequential_lora' keeps no expert a task"),
        ("inf_lora", {}, "'inf_lora' asks for the inputs of all examples"),
        ("zero_shot", {}, "'zero_shot' trains nothing"),
        ("o_lora", {"on_drift": "expert"}, "'o_lora' keeps no expert a task"),
        ("per_task", {"task": "six"}, "there is no task 'six'"),
    ],
)
def test_what_cannot_be_done_online_is_refused(begun, method, options, message):
    changes = {"o_lora__composed": False} if method == "o_lora" else {}
    with pytest.raises(UserError, match=message):
        Online(begun(method, **changes), OnlineSettings(**options))


def test_one_head_of_several_tasks_is_refused():
    settings = Settings(head="classification", shared_head=True)
    evaluator = SimpleNamespace(method=PerTask(), settings=settings, tasks=TWO)
    with pytest.raises(UserError, match="shared_head: online each task would train a head of its"):
        online_module._check(evaluator, DEFAULT)


def test_a_pass_goes_on_with_its_own_options_and_file_alone(whole, tmp_path, monkeypatch):
    workdir, _ = whole
    with pytest.raises(UserError, match=r"was begun with options = .* Go on with the values of"):
        Online(workdir, OnlineSettings(budget=0.5))
    content = json.loads((workdir / "config.json").read_text(encoding="utf-8"))
    other = tmp_path / "other"
    shutil.copytree(workdir, other)
    content["optimizer"]["weight_decay"] = 0.5
    (other / "config.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(UserError, match=r"begun with optimizer.weight_decay = .* now it is 0.5"):
        Online(other, DEFAULT)
    monkeypatch.setattr(TaskCheckpoints, "digest", lambda *_: "of another training")
    with pytest.raises(UserError, match="digest of what is finished = , and now it is of another"):
        Online(workdir, DEFAULT)
    monkeypatch.undo()
    lines = stream_of(workdir).read_bytes()
    changed = tmp_path / "changed.jsonl"
    changed.write_bytes(b" " + lines)
    with pytest.raises(UserError, match=r"no end of a line after \d+ bytes"):
        learn_online(workdir, changed, DEFAULT)
    short = tmp_path / "short.jsonl"
    short.write_text("{}\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"has 3 bytes, and \d+ of it were read before"):
        learn_online(workdir, short, DEFAULT)


def test_what_is_only_looked_at_stays_as_it_is(whole):
    """The log of a pass that is under way is ahead of what it has saved."""
    workdir, _ = whole
    log = workdir / "online" / "online.jsonl"
    before = log.read_bytes()
    try:
        log.write_bytes(before + b'{"line": 97}\n')
        Online(workdir, DEFAULT)
        assert log.read_bytes() == before + b'{"line": 97}\n'
    finally:
        log.write_bytes(before)


@pytest.mark.slow
def test_what_a_task_began_with_is_restored(begun):
    """The teacher of `lwf` is the LoRA with which the second task began."""
    workdir = begun("lwf")
    online = Online(workdir, DEFAULT)
    lines = stream_of(workdir).read_bytes().splitlines()
    online.learn([*lines[:SIZE], *lines[48 : 48 + SIZE]])
    online.save()
    teachers = [
        each.tracks[1].state.memory["teacher"] for each in (online, Online(workdir, DEFAULT))
    ]
    assert_bit_equal(*teachers)
    assert any(np.any(factors["b"]) for factors in teachers[0]["expert"].values())


def test_a_line_that_is_too_long_is_a_bad_one(monkeypatch, tmp_path):
    monkeypatch.setattr(arrivals, "LONGEST_LINE", 8)
    monkeypatch.setattr(arrivals, "_CHUNK", 4)
    file = tmp_path / "lines.jsonl"
    file.write_bytes(b"one\n" + b"x" * 30 + b"\ntwo\n" + b"y" * 20)
    with Arrivals(file) as opened:
        assert opened.next() == b"one\n"
        assert "more than 8 bytes" in str(opened.next())
        assert opened.offset == 35
        assert opened.next() == b"two\n"
        assert opened.next() is None and opened.unfinished
        assert opened.offset == 39


def test_a_file_goes_on_where_its_pipe_ended(monkeypatch, tmp_path):
    file = tmp_path / "lines.jsonl"
    file.write_bytes(b"one\ntwo\n")
    with file.open() as piped:
        monkeypatch.setattr(sys, "stdin", piped)
        with Arrivals(Path("-"), 8) as opened:
            assert [opened.next(), opened.next(), opened.next()] == [b"one\n", b"two\n", None]
            assert opened.offset == 16
    file.write_bytes(b"one\ntwo\none\ntwo\nsix\n")
    with Arrivals(file, 16) as opened:
        assert opened.next() == b"six\n"


def test_lines_of_a_pipe_are_given_as_they_come(monkeypatch):
    reader, writer = os.pipe()
    with os.fdopen(reader) as piped:
        monkeypatch.setattr(sys, "stdin", piped)
        with Arrivals(Path("-")) as arrivals:
            assert arrivals.next() is None and not arrivals.ended
            os.write(writer, b"one\ntw")
            assert arrivals.next() == b"one\n"
            assert arrivals.next() is None
            os.write(writer, b"o")
            os.close(writer)
            assert arrivals.next() == b"two" and arrivals.ended
            assert arrivals.next() is None


def test_the_command_learns_and_prints(whole):
    workdir, output = whole
    assert f"steps: {STEPS}; lines that could not be used: 0" in output
    assert "two: 48 learned, accuracy before learning " in output
    assert str(workdir / "online" / "online.jsonl") in output
