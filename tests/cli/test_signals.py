"""SIGINT and SIGTERM at any moment: one line at most, a state to go on from, and the status."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import assert_same_outcome, begin, environment, finish, run, some, write_config

from moecl_jax import stopping
from moecl_jax.cli.main import main
from moecl_jax.cli.signals import INTERRUPTED, handled

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A config, and the workdir of its uninterrupted training."""
    folder = tmp_path_factory.mktemp("whole")
    config = write_config(folder, epochs=4)
    status, _, err = run("train", f"--config={config}", f"--workdir={folder / 'run'}")
    assert status == 0, err
    return config, folder / "run"


@pytest.mark.slow
@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_at_any_moment(whole, tmp_path, number, tried):
    config, workdir = whole
    train = ["train", f"--config={config}", f"--workdir={tmp_path / 'run'}"]
    draw = random.Random(int(number))
    moments = some([0.25, 0.5, 0.75, 1.0, 1.5, *(draw.uniform(2.0, 5.0) for _ in range(9))])
    stopped = 0
    for moment in moments:
        process = begin(*train)
        time.sleep(moment)
        process.send_signal(number)
        status, _, err = finish(process)
        assert status in (128 + number, 0), err
        assert "Traceback" not in err and "Exception" not in err, err
        lines = [line for line in err.splitlines() if "interrupted" in line]
        assert lines == [INTERRUPTED] * (status != 0)
        stopped += status != 0
    status, _, err = run(*train)
    assert status == 0, err
    assert_same_outcome(tmp_path / "run", workdir)
    assert stopped >= len(moments) // 3
    tried(f"{number.name} inside a training", len(moments), "survived")


@pytest.mark.slow
def test_what_was_reached_is_saved(whole, tmp_path):
    config, _ = whole
    workdir = tmp_path / "run"
    train = ["train", f"--config={config}", f"--workdir={workdir}"]
    process = begin(*train, "--config.checkpoint_every=100000", "--config.epochs=2000")
    log = workdir / "metrics.jsonl"
    while not (log.exists() and log.read_text().count("\n") > 3):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    status, _, err = finish(process)
    assert status == 143 and err.endswith(INTERRUPTED + "\n")
    [folder] = (workdir / "checkpoints" / "in_progress").iterdir()
    assert int(folder.name) >= 4


@pytest.mark.slow
def test_a_second_signal_ends_at_once():
    """Even where the work never looks for requests, in compiled code or anywhere else."""
    script = (
        "import sys, time\n"
        "from moecl_jax import stopping\n"
        "from moecl_jax.cli import signals\n"
        "with signals.handled(), stopping.heeding():\n"
        "    print('ready', flush=True)\n"
        "    time.sleep(600)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    status, _, err = finish(process, 5)
    assert (status, err) == (143, INTERRUPTED + "\n")


def test_other_commands_end_at_once():
    """And the handlers of the program that calls the command come back."""
    before = [signal.getsignal(number) for number in SIGNALS]
    with pytest.raises(SystemExit):
        main(["--version"])
    assert [signal.getsignal(number) for number in SIGNALS] == before
    assert not stopping.heeded() and not stopping.requested()
    assert signal.set_wakeup_fd(-1) == -1


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="of Linux")
def test_no_file_stays_open():
    def files():
        return len(os.listdir("/proc/self/fd"))

    before = files()
    for _ in range(5):
        with handled():
            pass
    until = time.monotonic() + 10
    while files() > before and time.monotonic() < until:
        time.sleep(0.01)  # the threads are about to end
    assert files() <= before


def test_requests_are_seen_only_where_they_are_heeded():
    with stopping.heeding():
        assert stopping.heeded()
        stopping.check()
        stopping.request()
        with pytest.raises(stopping.Stopped):
            stopping.check()
    assert not stopping.requested()
