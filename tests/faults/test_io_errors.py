"""Operations on files that fail with EIO, in Python and in compiled code, and a slow disk."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from processes import assert_same_outcome, environment, write_config

from moecl_jax.cli.main import main

pytestmark = pytest.mark.slow

FAILING = Path(__file__).parents[1] / "failing.py"
LASTS = 10**9
# Operations in their order, of a training of one task: how many there are at least of each kind.
SMALL = {".lock": 2, "config.json": 4, "data.json": 4, "metrics.jsonl": 7, "tensorboard": 4}
SMALL["results.json"] = 4
POINTS = 24  # operations on checkpoints, of some 400


@pytest.fixture(scope="module")
def shim(tmp_path_factory):
    """The library that lets operations fail."""
    compiler = shutil.which("cc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("needs Linux and a C compiler named cc")
    library = tmp_path_factory.mktemp("shim") / "failing_io.so"
    source = Path(__file__).with_name("failing_io.c")
    command = [compiler, "-Wall", "-Werror", "-shared", "-fPIC", "-o", library, source, "-ldl"]
    subprocess.run(command, check=True)
    return library


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A config, and the workdir of its training on a sound disk."""
    folder = tmp_path_factory.mktemp("whole")
    config = write_config(folder, tasks=("two",), checkpoint_every=4)
    assert main(["train", f"--config={config}", f"--workdir={folder / 'run'}"]) == 0
    return config, folder / "run"


def python(
    shim: Path, *arguments: object, **variables: object
) -> "subprocess.CompletedProcess[str]":
    """Runs Python with the library."""
    named = {f"FAILING_IO_{name.upper()}": str(value) for name, value in variables.items()}
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        env={**environment(), "LD_PRELOAD": str(shim), **named},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )


def assert_one_line(status: int, err: str, place: Path) -> None:
    """An error is one line that names a file of the workdir, and no trace; success says none."""
    lines = [line for line in err.splitlines() if "error" in line.lower()]
    assert "Traceback" not in err, err
    assert len(lines) == status, err
    for line in lines:
        assert line.startswith("moecl: error:") and len(line) < 1000, line
        assert str(place) in line, line


def trials_of(shim: Path, config: Path, folder: Path, trials: list[str]) -> list[dict]:
    done = python(shim, FAILING, config, folder, *trials)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr and "rror" not in done.stderr, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("lasting", [False, True])
def test_an_operation_fails(shim, whole, tmp_path, tried, lasting):
    config, expected = whole
    [sound] = trials_of(shim, config, tmp_path / "sound", ["checkpoints:0:0"])
    count = sound["count"]
    assert count > 200
    points = [(name, point) for name, most in SMALL.items() for point in range(1, most + 1)]
    points += [("checkpoints", 1 + count * index // POINTS) for index in range(POINTS)]
    points = points[:: 4 if lasting else 1]
    trials = [f"{name}:{first}:{LASTS if lasting else first}" for name, first in points]
    outcomes = trials_of(shim, config, tmp_path / "runs", trials)
    refused = survived = 0
    for number, ((name, first), outcome) in enumerate(zip(points, outcomes, strict=True)):
        workdir = tmp_path / "runs" / str(number)
        assert name == "checkpoints" or outcome["count"] >= first, (name, first)
        assert_one_line(outcome["status"], outcome["err"], workdir)
        assert outcome["again"]["status"] == 0, outcome["again"]["err"]
        assert_same_outcome(workdir, expected)
        refused, survived = refused + outcome["status"], survived + 1 - outcome["status"]
    assert refused > len(points) // 2
    kind = "and all after it fail" if lasting else "fails"
    for outcome, times in (("refused", refused), ("survived", survived)):
        tried(f"an operation on a file {kind}", times, outcome)


@pytest.mark.parametrize("first", [12, 90, 200, 330])
def test_a_process_ends_when_its_disk_fails(shim, whole, tmp_path, tried, first):
    config, expected = whole
    workdir = tmp_path / "run"
    train = ["-m", "moecl_jax", "train", f"--config={config}", f"--workdir={workdir}"]
    done = python(shim, *train, below=workdir, first=first, last=LASTS)
    assert done.returncode == 1
    assert_one_line(1, done.stderr, workdir)
    assert python(shim, *train).returncode == 0
    assert_same_outcome(workdir, expected)
    tried("an operation on a file and all after it fail", 1, "refused")


def test_a_slow_disk_changes_nothing(shim, whole, tmp_path, tried):
    config, expected = whole
    workdir, count = tmp_path / "run", tmp_path / "count"
    train = ["-m", "moecl_jax", "train", f"--config={config}", f"--workdir={workdir}"]
    done = python(shim, *train, below=workdir, delay=5_000, count=count)
    assert done.returncode == 0, done.stderr
    assert int(count.read_text()) > 200
    assert_same_outcome(workdir, expected)
    tried("a slow disk", 1, "survived")
