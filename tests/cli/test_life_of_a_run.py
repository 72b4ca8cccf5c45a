"""A run from nothing to its result: extended, rolled back, a task removed, retuned."""

import json

import numpy as np
import pytest
from ml_collections import ConfigDict
from records import read
from streams import tiny_config

from moecl_jax.cli.main import main
from moecl_jax.testing import write_task

pytestmark = pytest.mark.slow

TASKS = ("two", "deux", "zwei")
RIGHT = 0.9  # share of a task's test texts


class Run:
    """A workdir and the commands on it."""

    def __init__(self, folder):
        self.folder, self.workdir = folder, folder / "run"
        config = tiny_config(folder, epochs=10, checkpoint_every=100, lora__dropout=0.0)
        for name in TASKS[1:]:
            with config.unlocked():
                config.definitions[name] = ConfigDict(write_task(folder / "data", name, 2))
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
        right = np.mean([a == b for a, b in zip(labels_of(lines), gold, strict=True)])
        assert right >= RIGHT, (task, right)
        self("predict", f"--input={source}", f"--output={output}")
        return lines, read(output)


def labels_of(lines):
    return [line["prediction"]["label"] for line in lines]


def test_every_prediction_on_the_way_is_right(tmp_path, capsys):
    run = Run(tmp_path)
    run.train("two")
    two = run.answers("two")
    run.train("two", "deux")
    run.answers("deux")
    assert labels_of(run.answers("two")[0]) == labels_of(two[0])

    # A task whose labels are wrong is trained, and undone.
    data = tmp_path / "data" / "zwei_train.jsonl"
    good = data.read_text(encoding="utf-8")
    lines = [json.loads(line) for line in good.splitlines()]
    labels = [line["label"] for line in lines]
    wrong = [
        {**line, "label": label} for line, label in zip(lines, labels[1:] + labels[:1], strict=True)
    ]
    data.write_text("".join(json.dumps(line) + "\n" for line in wrong), encoding="utf-8")
    run.train(*TASKS)
    with pytest.raises(AssertionError, match="zwei"):
        run.answers("zwei")
    two, deux = run.answers("two"), run.answers("deux")
    run("rollback", "--to=deux", "--yes")
    assert run.answers("two")[0] == two[0] and run.answers("deux")[0] == deux[0]

    # It is trained again with the right ones, and other values than the others were.
    data.write_text(good, encoding="utf-8")
    run.train(*TASKS, epochs=20, task_settings__zwei__optimizer__learning_rate=0.02)
    zwei = run.answers("zwei")
    assert run.answers("two")[0] == two[0] and run.answers("deux")[0] == deux[0]

    # One task goes, and the data of another.
    run("remove", "--task=two", "--yes")
    assert run.answers("deux")[0] == deux[0] and run.answers("zwei")[0] == zwei[0]
    assert {line["prediction"]["task"] for line in run.answers("deux")[1]} <= {"deux", "zwei"}
    capsys.readouterr()
    source = tmp_path / "data" / "two_test.jsonl"
    arguments = ["--task=two", f"--input={source}", f"--output={tmp_path / 'out.jsonl'}"]
    assert main(["predict", f"--workdir={run.workdir}", *arguments]) == 1
    assert "there is no task 'two'" in capsys.readouterr().err
    (tmp_path / "data" / "deux_train.jsonl").unlink()

    # It is learned anew at the end.
    run.train("deux", "zwei", "two", epochs=10)
    for task, before in (("deux", deux), ("zwei", zwei)):
        assert labels_of(run.answers(task)[0]) == labels_of(before[0])
    run.answers("two")
    results = json.loads((run.workdir / "results.json").read_text(encoding="utf-8"))
    assert results["tasks"] == ["two-removed", "deux", "zwei", "two"]
    assert results["accuracy_matrix"][3][0] is None
    assert min(results["accuracy_matrix"][3][1:]) >= RIGHT
    values = results["task_settings"]["zwei"]
    assert values == {"optimizer.learning_rate": 0.02, "epochs": 20}
    assert main(["compare", f"--workdir={run.workdir}"]) == 0
    assert "two-removed" in capsys.readouterr().out
