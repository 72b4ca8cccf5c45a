"""Tiny trainings in processes of their own, and what two workdirs must have in common."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from streams import assert_bit_equal, logged, restored, tiny_config

from moecl_jax.serving.session import open_run

KILLED = Path(__file__).with_name("killed.py")


def write_config(folder: Path, **changes: Any) -> Path:
    """The file of a config of two tiny tasks; `changes` are dotted with `__`."""
    defaults = {"tasks": ("two", "five"), "epochs": 1, "checkpoint_every": 2}
    config: ConfigDict = tiny_config(folder, **{**defaults, **changes})
    file = folder / f"{'_'.join(map(str, changes.values())) or 'config'}.json".replace("/", "_")
    file.write_text(config.to_json(), encoding="utf-8")
    return file


def environment() -> dict[str, str]:
    """One device, as a user has it; compiled functions are shared with this session."""
    return {**os.environ, "XLA_FLAGS": ""}


def begin(*arguments: str, kill_at: int = 0, folder: Path | None = None) -> "subprocess.Popen[str]":
    """Starts a command, which is killed at an operation on files below a folder."""
    command = [sys.executable, "-m", "moecl_jax"]
    if folder is not None:
        command = [sys.executable, str(KILLED), str(kill_at), str(folder)]
    return subprocess.Popen(
        [*command, *arguments],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: "subprocess.Popen[str]", seconds: float = 120) -> tuple[int, str, str]:
    """Exit status and what was printed."""
    out, err = process.communicate(timeout=seconds)
    return process.returncode, out, err


def run(*arguments: str, **options: Any) -> tuple[int, str, str]:
    """Runs a command to its end, or till it is killed."""
    return finish(begin(*arguments, **options))


def operations(folder: Path) -> int:
    """Number of operations on files of the uninterrupted run in a folder."""
    return int(Path(f"{folder}.operations").read_text(encoding="utf-8"))


def some(trials: Iterable[Any]) -> list[Any]:
    """All trials for `launch/faults.sh`, whose table counts them; else a third of them."""
    return list(trials)[:: 1 if "MOECL_FAULTS" in os.environ else 3]


def kill_until_done(
    arguments: list[str], folder: Path, points: list[int], moments: list[float], seed: int
) -> int:
    """Runs a command again and again, killed each time, and at last to its end.

    Args:
      arguments: the command, whose files lie below the folder.
      folder: where operations are counted.
      points: operations, counted from each start, at which it is killed.
      moments: seconds after the start at which it is killed, after these.
      seed: order of the kills.

    Returns:
      How many kills there were; a run that is finished before its kill is none.
    """
    kills = 0
    order: list[tuple[int, float]] = [(point, 0.0) for point in points]
    order += [(0, moment) for moment in moments]
    random.Random(seed).shuffle(order)
    for point, moment in order:
        process = begin(*arguments, kill_at=point, folder=folder)
        if moment:
            time.sleep(moment)
            process.kill()
        status, _, err = finish(process)
        assert status in (-signal.SIGKILL, 0), err
        assert "Traceback" not in err
        kills += status == -signal.SIGKILL
    status, _, err = run(*arguments)
    assert status == 0, err
    return kills


def assert_same_outcome(ours: Path, theirs: Path) -> None:
    """Fails unless parameters, memory, R, metrics and predictions of two workdirs are equal."""
    (evaluator, mine, _), (_, other, _) = restored(ours), restored(theirs)
    assert_bit_equal((mine.shared, mine.memory), (other.shared, other.memory))
    for name, done in mine.finished.items():
        assert_bit_equal(
            (done.expert, done.head), (other.finished[name].expert, other.finished[name].head)
        )
    assert logged(ours) == logged(theirs)
    assert _results(ours) == _results(theirs)
    texts = [example.text for example in evaluator.load()[0].splits["test"][:4]]
    answers = [open_run(workdir).predict(texts, evaluator.names[0]) for workdir in (ours, theirs)]
    assert answers[0] == answers[1]
    left = [path.name for path in (ours / "checkpoints").iterdir() if not path.name[0].isdigit()]
    assert left == []


def _results(workdir: Path) -> dict[str, Any]:
    content = json.loads((workdir / "results.json").read_text(encoding="utf-8"))
    return {key: value for key, value in content.items() if key != "wall_seconds"}
