"""A disk that is full at any size, read-only, or limits files: one line, and nothing lost."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from processes import assert_same_outcome, environment, some, write_config
from streams import logged

from moecl_jax.cli.main import main

pytestmark = pytest.mark.slow

STEP = 16 if "MOECL_FAULTS" in os.environ else 64  # KiB


def mount(*options: str) -> bool:
    return subprocess.run(["mount", *options], capture_output=True, check=False).returncode == 0


@pytest.fixture
def disk(tmp_path):
    """A function that makes a file system of so many KiB, or changes the size of the one there."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if not mount("-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)):
        pytest.skip("a tmpfs cannot be mounted here")

    def resized(kib: int, *, mode: str = "rw"):
        assert mount("-o", f"remount,{mode},size={kib}k", str(folder))
        return folder

    yield resized
    mount("-o", "remount,rw", str(folder))
    subprocess.run(["umount", "--lazy", str(folder)], check=False)


@pytest.fixture
def whole(tmp_path):
    """A config, and the workdir of its training on a disk with room."""
    config = write_config(tmp_path, tasks=("two",))
    assert main(["train", f"--config={config}", f"--workdir={tmp_path / 'whole'}"]) == 0
    return config, tmp_path / "whole"


def assert_refused(capfd, workdir) -> None:
    """One line that says what is wrong, and no trace; what is there can be read.

    A note may stand before it: a training goes on without TensorBoard's events.
    """
    err = capfd.readouterr().err
    lines = [line for line in err.splitlines() if "error" in line.lower()]
    lines = [line for line in lines if not line.startswith("note: the tracker 'tensorboard'")]
    assert len(lines) == 1 and lines[0].startswith("moecl: error:"), err
    assert "Traceback" not in err and len(lines[0]) < 1000, err
    log = workdir / "metrics.jsonl"
    for line in log.read_text(encoding="utf-8").splitlines() if log.exists() else ():
        json.loads(line)


def test_a_disk_that_is_full_at_any_size(whole, disk, capfd, tried):
    config, expected = whole
    train = ["train", f"--config={config}"]
    refused, size = 0, STEP
    while True:
        workdir = disk(size) / "run"
        capfd.readouterr()
        if main([*train, f"--workdir={workdir}"]) == 0:
            break
        assert_refused(capfd, workdir)
        refused += 1
        disk(65536)
        assert main([*train, f"--workdir={workdir}"]) == 0
        assert logged(workdir) == logged(expected)
        if refused % 5 == 1:
            assert_same_outcome(workdir, expected)
        shutil.rmtree(workdir)
        size += STEP
    assert refused * STEP > 80
    tried(f"the disk full, at every {STEP} KiB", refused, "refused")


def test_a_disk_that_becomes_read_only(whole, disk, capfd, tried):
    config, expected = whole
    workdir = disk(65536) / "run"
    train = ["train", f"--config={config}", f"--workdir={workdir}"]
    disk(65536, mode="ro")
    capfd.readouterr()
    assert main(train) == 1
    assert "Read-only file system" in capfd.readouterr().err
    disk(65536)
    assert main(train) == 0
    disk(65536, mode="ro")
    assert main(["evaluate", f"--workdir={workdir}"]) == 0
    assert_same_outcome(workdir, expected)
    tried("the disk read-only", 2, "refused")


def test_files_that_cannot_grow(whole, tmp_path, tried):
    """Every write beyond a size fails, in Python and in TensorStore."""
    config, expected = whole
    sizes = some([0, 100, 1000, 5000, 20_000, 50_000])
    for size in sizes:
        workdir = tmp_path / str(size)
        train = ["train", f"--config={config}", f"--workdir={workdir}"]
        script = (
            "import resource, sys\n"
            "from moecl_jax.cli.main import main\n"
            f"resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, resource.RLIM_INFINITY))\n"
            "sys.exit(main(sys.argv[1:]))\n"
        )
        outcome = subprocess.run(
            [sys.executable, "-c", script, *train],
            env={**environment(), "JAX_ENABLE_COMPILATION_CACHE": "false"},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert outcome.returncode in (0, 1), outcome.stderr
        assert "Traceback" not in outcome.stderr, outcome.stderr
        assert outcome.stderr.count("moecl: error:") == outcome.returncode
        assert main(train) == 0
        assert_same_outcome(workdir, expected)
    tried("writes that fail", len(sizes), "refused")
