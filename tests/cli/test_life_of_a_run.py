"""A run from nothing to its result: extended, rolled back, a task removed, retuned."""

import json

import numpy as np
import pytest
from records import read
from streams import CLASSES, tiny_config

from moecl_jax.cli.main import main

pytestmark = pytest.mark.slow

RIGHT = 0.9  # share of a task's test texts


class Run:
    """A workdir and the commands on it."""

    def __init__(self, folder):
        self.folder, self.workdir = folder, folder / "run"
        config = tiny_config(folder, epochs=10, checkpoint_every=100, lora__dropout=0.0)
        self.config = folder / "config.json"
        self.config.write_text(config.to_json(), encoding="utf-8")

    def __call__(self, command, *arguments):
        assert main([command, f"--workdir={self.workdir}", *arguments]) == 0

    def train(self, *tasks, **changes):
        flags = [f"--config.{key.replace('__', '.')}={value}" for key, value in changes.items()]
        self("train", f"--config={self.config}", f"--config.tasks={tasks!r}", *flags)

    def answers(self, task):
        """The answers to a task's test texts, which are right, with the task named and without."""
        source, output = self.folder / "data" / f"{task}_test.jsonl", self.folder / "out.jsonl"
        self("predict", f"--task={task}", f"--input={source}", f"--output={output}")
        lines, gold = read(output), [line["label"] for line in read(source)]
        right = np.mean([line["label"] == label for line, label in zip(lines, gold, strict=True)])
        assert right >= RIGHT, (task, right)
        self("predict", f"--input={source}", f"--output={output}")
        return lines, read(output)


def labels_of(lines):
    return [line["label"] for line in lines]


def test_every_prediction_on_the_way_is_right(tmp_path, capsys):
    run = Run(tmp_path)
    run.train("two")
    two = run.answers("two")
    run.train("two", "five")
    run.answers("five")
    assert labels_of(run.answers("two")[0]) == labels_of(two[0])

    # A task whose labels are wrong is trained, and undone.
    data = tmp_path / "data" / "fourteen_train.jsonl"
    good = data.read_text(encoding="utf-8")
    lines = [json.loads(line) for line in good.splitlines()]
    labels = [line["label"] for line in lines]
    wrong = [
        {**line, "label": label} for line, label in zip(lines, labels[1:] + labels[:1], strict=True)
    ]
    data.write_text("".join(json.dumps(line) + "\n" for line in wrong), encoding="utf-8")
    run.train(*CLASSES)
    with pytest.raises(AssertionError, match="fourteen"):
        run.answers("fourteen")
    two, five = run.answers("two"), run.answers("five")
    run("rollback", "--to=five", "--yes")
    assert run.answers("two")[0] == two[0] and run.answers("five")[0] == five[0]

    # It is trained again with the right ones, and other values than the others were.
    data.write_text(good, encoding="utf-8")
    run.train(*CLASSES, epochs=20, task_settings__fourteen__optimizer__learning_rate=0.02)
    fourteen = run.answers("fourteen")
    assert run.answers("two")[0] == two[0] and run.answers("five")[0] == five[0]

    # One task goes, and the data of another.
    run("remove", "--task=two", "--yes")
    assert run.answers("five")[0] == five[0] and run.answers("fourteen")[0] == fourteen[0]
    assert {line["task"] for line in run.answers("five")[1]} <= {"five", "fourteen"}
    capsys.readouterr()
    source = tmp_path / "data" / "two_test.jsonl"
    arguments = ["--task=two", f"--input={source}", f"--output={tmp_path / 'out.jsonl'}"]
    assert main(["predict", f"--workdir={run.workdir}", *arguments]) == 1
    assert "there is no task 'two'" in capsys.readouterr().err
    (tmp_path / "data" / "five_train.jsonl").unlink()

    # It is learned anew at the end.
    run.train("five", "fourteen", "two", epochs=10)
    for task, before in (("five", five), ("fourteen", fourteen)):
        assert labels_of(run.answers(task)[0]) == labels_of(before[0])
    run.answers("two")
    results = json.loads((run.workdir / "results.json").read_text(encoding="utf-8"))
    assert results["tasks"] == ["two-removed", "five", "fourteen", "two"]
    assert results["accuracy_matrix"][3][0] is None
    assert min(results["accuracy_matrix"][3][1:]) >= RIGHT
    values = results["task_settings"]["fourteen"]
    assert values == {"optimizer.learning_rate": 0.02, "epochs": 20}
    assert main(["compare", f"--workdir={run.workdir}"]) == 0
    assert "two-removed" in capsys.readouterr().out
