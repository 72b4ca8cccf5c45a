"""What `moecl status` reads of a workdir, in all states that a run may be in."""

import json
import os
import time
from pathlib import Path

import pytest
from streams import tiny_settings

from moecl_jax.cli import main as cli
from moecl_jax.errors import UserError
from moecl_jax.runs import status
from moecl_jax.runs.lock import claimed
from moecl_jax.runs.status import runs_of, status_of
from moecl_jax.training.task_training import TaskTraining
from moecl_jax.training.trainer import train


def put(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


@pytest.fixture
def workdir(tmp_path):
    """A run that was stopped in the second of three tasks, as its files say."""
    folder = tmp_path / "run"
    put(folder / "config.json", {"method": "moe_cl", "tasks": ["two", "five", "six"], "seed": 0})
    record = {"accuracy": [[0.75, 0.5, None]], "global_step": 12}
    put(folder / "checkpoints/000_two/record/metadata", record)
    put(folder / "checkpoints/000_two/task/data", "x" * 1000)
    place = "checkpoints/in_progress/4/record/metadata"
    put(folder / place, '{"task": "five", "step": 4, "best_score": [-1.0, -Infinity]}')
    losses = {"loss": -0.25, "loss_instruction": 0.5, "loss_adversarial": 7.5}
    lines = [
        {"step": 12, "task": "two", "task_step": 12, "task_steps": 12},
        {"step": 18, "task": "five", "task_step": 6, "task_steps": 12, **losses},
    ]
    put(folder / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    put(folder / "tensorboard/events", "x" * 500)
    return folder


def test_a_stopped_run(workdir):
    found = status_of(workdir)
    assert (found.method, found.state, found.accuracy) == ("moe_cl", "stopped", 0.75)
    first, second, third = found.tasks
    assert (first.state, first.accuracy, first.accuracy_then) == ("finished", 0.75, 0.75)
    assert (second.state, second.step, second.steps, second.saved_step) == ("begun", 6, 12, 4)
    assert second.losses == {"loss": -0.25, "loss_instruction": 0.5, "loss_adversarial": 7.5}
    assert (third.state, third.step) == ("waiting", None)
    assert found.bytes["tensorboard"] == 500
    assert found.bytes["finished_tasks"] > 1000
    files = [path for path in workdir.rglob("*") if path.is_file()]
    assert sum(found.bytes.values()) == sum(path.stat().st_size for path in files)
    assert found.written == pytest.approx(max(path.stat().st_mtime for path in files))


def test_what_follows_a_checkpoint_that_is_gone_does_not_count(workdir):
    os.rename(workdir / "checkpoints/000_two", workdir / "checkpoints/001_five")
    found = status_of(workdir)
    assert [task.state for task in found.tasks] == ["waiting"] * 3


def test_the_text_fits_a_narrow_terminal(workdir):
    os.utime(workdir / "metrics.jsonl", (time.time() - 90,) * 2)
    for path in workdir.rglob("*"):
        os.utime(path, (time.time() - 90,) * 2)
    text = str(status_of(workdir))
    assert "1 of 3 tasks finished, mean accuracy 75.0; last written 1m30s ago" in text
    assert "five  -      -      step 6 of 12, loss 0.5 adv 7.5, saved at 4" in text
    assert max(len(line) for line in text.splitlines()[1:]) <= 68


def test_nothing_is_written_and_no_lock_is_kept(workdir):
    def listing():
        return {path: path.lstat().st_mtime_ns for path in [workdir, *workdir.rglob("*")]}

    with claimed(workdir):
        pass
    before = listing()
    status_of(workdir)
    assert listing() == before
    with claimed(workdir):
        assert status_of(workdir).state == "training"
    assert status_of(workdir).state == "stopped"


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("metrics.jsonl", '{"step": 18, "task": "five", "lo'),
        ("metrics.jsonl", "\n\xff\n[]\n"),
        ("checkpoints/in_progress/4/record/metadata", "{"),
        ("checkpoints/in_progress/4/record/metadata", "[]"),
        ("checkpoints/000_two/record/metadata", '{"accuracy": [[0.75]]}'),
        ("checkpoints/000_two/record/metadata", '{"accuracy": "none"}'),
    ],
)
def test_half_written_files_do_not_matter(workdir, file, content):
    (workdir / file).write_text(content)
    found = status_of(workdir)
    assert [task.name for task in found.tasks] == ["two", "five", "six"]
    assert str(found)


def test_files_that_vanish_meanwhile_do_not_matter(workdir, monkeypatch):
    walked = list(os.walk(workdir))
    walked.append((str(workdir / "checkpoints/.removed"), [], ["gone"]))
    monkeypatch.setattr(status.os, "walk", lambda _: walked)
    assert status_of(workdir).bytes["tensorboard"] == 500


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda _: None, "is no folder"),
        (lambda folder: folder.write_text("x"), "is no folder"),
        (lambda folder: folder.mkdir(), r"holds no run: there is no config\.json"),
        (lambda folder: put(folder / "photo.jpg", "x"), "holds no run"),
        (lambda folder: put(folder / "config.json", "{"), r"config\.json is broken"),
        (lambda folder: put(folder / "config.json", '{"model": 1}'), "method and tasks"),
        (lambda folder: put(folder / "config.json", {"method": "x", "tasks": 3}), "no list"),
        (lambda folder: put(folder / "sweep.json", "[]"), r"sweep\.json is broken"),
        (lambda folder: put(folder / "sweep.json", {"runs": []}), "none of which was begun"),
    ],
)
def test_what_is_no_run_is_one_line(tmp_path, capsys, make, message):
    folder = tmp_path / "folder"
    make(folder)
    with pytest.raises(UserError, match=message):
        [status_of(run) for run in runs_of(folder)]
    assert cli.main(["status", f"--workdir={folder}"]) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1


def test_a_sweep_is_the_status_of_its_runs(workdir, tmp_path, capsys):
    sweep = tmp_path / "sweep.json"
    put(sweep, {"runs": [{"workdir": "run"}, {"workdir": "later"}]})
    assert cli.main(["status", f"--workdir={tmp_path}", "--json"]) == 0
    [found] = json.loads(capsys.readouterr().out)
    assert found["tasks"][1]["step"] == 6
    assert cli.main(["status", f"--workdir={tmp_path}"]) == 0
    assert capsys.readouterr().out.startswith(f"{workdir}: moe_cl, stopped\n")


def test_a_real_run_while_it_trains_and_when_it_is_finished(tmp_path, monkeypatch):
    workdir = tmp_path / "run"
    settings = tiny_settings(
        tmp_path, method="sequential_lora", tasks=("two", "five"), epochs=1, checkpoint_every=2
    )
    seen, original = [], TaskTraining._train_batch

    def watched(self, examples):
        seen.append(status_of(workdir))
        return original(self, examples)

    monkeypatch.setattr(TaskTraining, "_train_batch", watched)
    results = train(settings, workdir)
    assert {found.state for found in seen} == {"training"}
    assert [found.tasks[0].state for found in seen] == ["waiting"] * 2 + ["begun"] * 4 + [
        "finished"
    ] * 6
    last = seen[-1].tasks[1]
    assert (last.state, last.step, last.steps, last.saved_step) == ("begun", 4, 6, 4)
    assert last.losses["loss_instruction"] > 0
    assert seen[-1].bytes["state_inside_a_task"] > 0
    found = status_of(workdir)
    assert found.state == "finished"
    now, then = results["accuracy_matrix"][1], results["accuracy_matrix"][0][0]
    assert [task.accuracy for task in found.tasks] == now
    assert [task.accuracy_then for task in found.tasks] == [then, now[1]]
    assert found.accuracy == pytest.approx(results["metrics"]["acc"])
