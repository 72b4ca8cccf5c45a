"""SIGKILL inside a rollback or a removal leaves the run as it was, or as it is to be."""

import json
import random
import shutil
import signal

import pytest
from processes import operations, run, some, write_config

from moecl_jax.runs.results import Results
from moecl_jax.serving.session import open_run, open_stream

pytestmark = pytest.mark.slow

KILLS = 20


def state_of(workdir):
    """What a user sees of a run: tasks, answers with and without a task's name, results."""
    session, texts = open_run(workdir), ["w1 w20", "w40 w3", "w11"]
    answers = [session.predict(texts, task) for task in (*session.tasks, None)]
    _, store = open_stream(workdir)
    _, history = store.restore()
    results = None
    if (workdir / "results.json").exists():
        results = Results.load(workdir).content
    config = json.loads((workdir / "config.json").read_text(encoding="utf-8"))["tasks"]
    return session.tasks, answers, history.accuracy, results, config


@pytest.mark.parametrize(
    ("command", "argument"), [("rollback", "--to=two"), ("remove", "--task=two")]
)
def test_it_is_killed_anywhere(tmp_path, command, argument, tried):
    config = write_config(
        tmp_path, tasks=("two", "five", "fourteen"), adversarial__past="statistics"
    )
    trained, whole, killed = (tmp_path / name for name in ("trained", "whole", "killed"))
    assert run("train", f"--config={config}", f"--workdir={trained}")[0] == 0
    before = state_of(trained)
    shutil.copytree(trained, whole)
    arguments = [command, argument, "--yes"]
    status, _, err = run(*arguments, f"--workdir={whole}", folder=whole)
    assert status == 0, err
    after = state_of(whole)
    assert before != after
    count, seen = operations(whole), {"before": 0, "after": 0}
    kills = min(KILLS, count)
    others = some(random.Random(command).sample(range(2, count + 1), kills - 1))
    for point in (1, *others):  # the first operation is before the change, most are after it
        shutil.copytree(trained, killed)
        status, _, err = run(*arguments, f"--workdir={killed}", kill_at=point, folder=killed)
        assert status == -signal.SIGKILL, err
        found = state_of(killed)
        if found == before:
            seen["before"] += 1
            status, _, err = run(*arguments, f"--workdir={killed}")
            assert status == 0, err
            found = state_of(killed)
        else:
            seen["after"] += 1
        assert found == after
        assert not (killed / "change.json").exists()
        shutil.rmtree(killed)
    assert all(seen.values()) and sum(seen.values()) == 1 + len(others)
    tried(f"SIGKILL inside a {command}", sum(seen.values()), "survived")
