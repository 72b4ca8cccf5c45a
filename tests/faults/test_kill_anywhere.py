"""SIGKILL at any moment changes no bit of what a training or a sweep comes to."""

import random
import shutil
import signal
import socket
import time

import pytest
from processes import (
    assert_same_outcome,
    begin,
    finish,
    kill_until_done,
    operations,
    run,
    some,
    write_config,
)

pytestmark = pytest.mark.slow

METHODS = ("moe_cl", "replay", "ewc", "lwf")
POINTS = 8  # kills a method at operations on files
MOMENTS = (1.5, 3.0, 3.5, 4.0)  # and at seconds after the start


@pytest.mark.parametrize(
    "method",
    [*METHODS[:2], *(pytest.param(name, marks=pytest.mark.long) for name in METHODS[2:])],
)
def test_a_training_is_killed_anywhere(tmp_path, method, tried):
    config = write_config(tmp_path, method=method)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    train = ["train", f"--config={config}"]
    status, _, err = run(*train, f"--workdir={whole}", folder=whole)
    assert status == 0, err
    count, draw = operations(whole), random.Random(method)
    points = some(draw.randrange(1, count // 2) for _ in range(POINTS))
    kills = kill_until_done([*train, f"--workdir={killed}"], killed, points, some(MOMENTS), 0)
    assert kills >= len(points) // 2
    assert_same_outcome(killed, whole)
    tried("SIGKILL inside a training", kills, "survived")


def test_a_grown_stream_is_killed_anywhere(tmp_path, tried):
    first = write_config(tmp_path, tasks=("two",), keep_shared=1)
    more = write_config(tmp_path, tasks=("two", "five", "fourteen"), keep_shared=1)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert run("train", f"--config={first}", f"--workdir={whole}")[0] == 0
    shutil.copytree(whole, killed)
    arguments = ["train", f"--config={more}"]
    assert run(*arguments, f"--workdir={whole}", folder=whole)[0] == 0
    count, draw = operations(whole), random.Random(0)
    points = some(draw.randrange(1, count // 2) for _ in range(POINTS))
    kills = kill_until_done([*arguments, f"--workdir={killed}"], killed, points, [3.0], 1)
    assert_same_outcome(killed, whole)
    tried("SIGKILL inside a grown stream", kills, "survived")


def test_a_sweep_is_killed_anywhere(tmp_path, tried):
    config = write_config(tmp_path, tasks=("two",))
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    arguments = ["sweep", f"--config={config}", "--methods=replay,sequential_lora"]
    assert run(*arguments, f"--workdir={whole}", folder=whole)[0] == 0
    count, draw = operations(whole), random.Random(0)
    points = some(draw.randrange(1, count // 2) for _ in range(POINTS))
    kills = kill_until_done([*arguments, f"--workdir={killed}"], killed, points, [2.0, 4.0], 2)
    for variant in ("replay", "sequential_lora"):
        assert_same_outcome(killed / variant / "seed0", whole / variant / "seed0")
    tried("SIGKILL inside a sweep", kills, "survived")


def test_an_export_is_killed_anywhere(tmp_path, tried):
    config = write_config(tmp_path, tasks=("two",), method="sequential_lora")
    workdir, whole, killed = (tmp_path / name for name in ("run", "whole", "killed"))
    assert run("train", f"--config={config}", f"--workdir={workdir}")[0] == 0
    export = ["export", "--format=peft", f"--workdir={workdir}"]
    assert run(*export, f"--output={whole}", folder=whole)[0] == 0
    points = some(range(1, operations(whole) + 1))
    kills = kill_until_done([*export, f"--output={killed}"], killed, points, [], 3)
    for file in whole.iterdir():
        assert (killed / file.name).read_bytes() == file.read_bytes()
    tried("SIGKILL inside an export", kills, "survived")


def test_sigterm_to_one_of_two_processes_stops_both_after_the_same_step(tmp_path, tried):
    config = write_config(tmp_path, mesh__data=2, epochs=40, tasks=("two",))
    workdir = tmp_path / "run"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    train = ["train", f"--config={config}", f"--workdir={workdir}", f"--coordinator={address}"]
    processes = [begin(*train, f"--process={index}/2") for index in range(2)]
    try:
        log, until = workdir / "metrics.jsonl", time.monotonic() + 100
        while not (log.exists() and log.read_text().count("\n") > 3):
            assert time.monotonic() < until
            time.sleep(0.05)
        processes[1].send_signal(signal.SIGTERM)
        outcomes = [finish(process) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [status for status, _, _ in outcomes] == [143, 143], outcomes
    [state] = (workdir / "checkpoints" / "in_progress").iterdir()
    assert 4 <= int(state.name) < 240
    tried("SIGTERM to one of two processes", 1, "survived")


def test_two_processes_are_killed_and_go_on(tmp_path, tried):
    config = write_config(tmp_path, mesh__data=2, model__attention="xla")
    whole, killed = tmp_path / "whole", tmp_path / "killed"

    def both(workdir, kill_at):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        train = ["train", f"--config={config}", f"--workdir={workdir}", f"--coordinator={address}"]
        first = begin(*train, "--process=0/2", kill_at=kill_at, folder=workdir)
        second = begin(*train, "--process=1/2")
        try:
            status, _, err = finish(first)
            if status:
                second.kill()
            finish(second)
        finally:
            first.kill()
            second.kill()
        return status, err

    assert both(whole, 0)[0] == 0
    count, draw = operations(whole), random.Random(1)
    points = some(draw.randrange(1, count // 2) for _ in range(4))
    for point in points:
        assert both(killed, point)[0] == -signal.SIGKILL
    status, err = both(killed, 0)
    assert status == 0, err
    assert_same_outcome(killed, whole)
    tried("SIGKILL of one of two processes", len(points), "survived")
