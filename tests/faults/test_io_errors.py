"""Operations on files that fail with EIO, in Python and in compiled code, and a slow disk."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from processes import assert_same_outcome, environment, some, write_config

pytestmark = pytest.mark.slow

FAILING = Path(__file__).parents[1] / "failing.py"
LASTS = 10**9
# Operations on the files beside the checkpoints, in a training of one task.
COUNTS = {".lock": 2, "config.json": 4, "data.json": 4, "metrics.jsonl": 7, "tensorboard": 4}
BESIDE = [(name, point) for name, count in COUNTS.items() for point in range(1, count + 1)]
BESIDE += [("results.json", point) for point in range(1, 5)]
# Of those on checkpoints, some 400, these places from the first (0) to the last (1).
INSIDE = [("checkpoints", index / 16) for index in range(16)]


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


def python(
    shim: Path, *arguments: object, seconds: float = 600, **variables: object
) -> "subprocess.CompletedProcess[str]":
    """Runs Python with the library, for at most some seconds."""
    named = {f"FAILING_IO_{name.upper()}": str(value) for name, value in variables.items()}
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        env={**environment(), "LD_PRELOAD": str(shim), **named},
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )


def assert_one_line(status: int, err: str, place: Path) -> None:
    """An error is one line that names a file of the workdir, and no trace; success says none."""
    told = [line for line in err.splitlines() if not line.startswith("note: the tracker")]
    lines = [line for line in told if "error" in line.lower()]
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


@pytest.fixture(scope="module")
def whole(shim, tmp_path_factory):
    """A config, the workdir of its training on a sound disk, its operations on checkpoints."""
    folder = tmp_path_factory.mktemp("whole")
    config = write_config(folder, tasks=("two",), checkpoint_every=4)
    [sound] = trials_of(shim, config, folder, ["checkpoints:0:0"])
    assert sound["status"] == 0 and sound["count"] > 200
    return config, folder / "0", sound["count"]


@pytest.mark.parametrize(
    ("places", "lasting"),
    [(BESIDE, False), (INSIDE, False), (BESIDE[::4], True), (INSIDE[::4], True)],
    ids=["beside", "inside", "beside and on", "inside and on"],
)
def test_an_operation_fails(shim, whole, tmp_path, tried, places, lasting):
    config, expected, count = whole
    places = some(places)
    points = [(name, 1 + int(count * at) if at < 1 else at) for name, at in places]
    trials = [f"{name}:{first}:{LASTS if lasting else first}" for name, first in points]
    refused = survived = 0
    outcomes = trials_of(shim, config, tmp_path, trials)
    for number, ((name, first), outcome) in enumerate(zip(points, outcomes, strict=True)):
        workdir = tmp_path / str(number)
        assert name == "checkpoints" or outcome["count"] >= first, (name, first)
        assert_one_line(outcome["status"], outcome["err"], workdir)
        assert outcome["again"]["status"] == 0, outcome["again"]["err"]
        assert_same_outcome(workdir, expected)
        refused, survived = refused + outcome["status"], survived + 1 - outcome["status"]
    assert refused > len(points) // 2
    kind = "and all after it fail" if lasting else "fails"
    for outcome, times in (("refused", refused), ("survived", survived)):
        if times:
            tried(f"an operation on a file {kind}", times, outcome)


@pytest.mark.parametrize("first", [12, 200])
def test_a_process_ends_when_its_disk_fails(shim, whole, tmp_path, tried, first):
    config, expected, _ = whole
    workdir = tmp_path / "run"
    train = ["-m", "moecl_jax", "train", f"--config={config}", f"--workdir={workdir}"]
    done = python(shim, *train, seconds=200, below=workdir, first=first, last=LASTS)
    assert done.returncode == 1
    assert_one_line(1, done.stderr, workdir)
    assert python(shim, *train).returncode == 0
    assert_same_outcome(workdir, expected)
    tried("an operation on a file and all after it fail", 1, "refused")


def test_a_slow_disk_changes_nothing(shim, whole, tmp_path, tried):
    config, expected, _ = whole
    workdir, count = tmp_path / "run", tmp_path / "count"
    train = ["-m", "moecl_jax", "train", f"--config={config}", f"--workdir={workdir}"]
    done = python(shim, *train, below=workdir, delay=5_000, count=count)
    assert done.returncode == 0, done.stderr
    assert int(count.read_text()) > 200
    assert_same_outcome(workdir, expected)
    tried("a slow disk, 5 ms an operation", 1, "survived")
