"""What must be equal bit for bit, whatever changes around it."""

import dataclasses

import pytest
from processes import assert_same_outcome, environment, run, write_config
from streams import assert_bit_equal, logged, restored, tiny_settings

from moecl_jax.training.trainer import train

FEW = {"tasks": ("two", "five"), "epochs": 1}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Settings and workdir of a training."""
    folder = tmp_path_factory.mktemp("whole")
    settings = tiny_settings(folder, **FEW)
    train(settings, folder / "run")
    return settings, folder / "run"


def test_the_same_again(whole, tmp_path):
    settings, workdir = whole
    train(settings, tmp_path / "again")
    assert_same_outcome(tmp_path / "again", workdir)


@pytest.mark.parametrize(
    "changes", [{"checkpoint_every": 1}, {"checkpoint_every": 10**6}, {"keep_shared": 1}]
)
def test_what_is_saved_changes_nothing(whole, tmp_path, changes):
    settings, workdir = whole
    train(dataclasses.replace(settings, **changes), tmp_path / "run")
    assert_same_outcome(tmp_path / "run", workdir)


def test_what_is_logged_changes_nothing(whole, tmp_path):
    settings, workdir = whole
    train(dataclasses.replace(settings, log_every=5), tmp_path / "run")
    (_, ours, _), (_, theirs, _) = restored(tmp_path / "run"), restored(workdir)
    assert_bit_equal((ours.shared, ours.memory), (theirs.shared, theirs.memory))
    lines = logged(workdir)
    assert logged(tmp_path / "run") == [line for line in lines if _is_logged(line["step"])]


def _is_logged(step: int) -> bool:
    """Whether the step is a fifth one of its task of 6 steps."""
    return (step - 1) % 6 + 1 == 5


def test_the_size_of_evaluation_batches_changes_no_training(whole, tmp_path):
    settings, workdir = whole
    batch = dataclasses.replace(settings.batch, evaluation_size=5)
    results = train(dataclasses.replace(settings, batch=batch), tmp_path / "run")
    (_, ours, history), (_, theirs, other) = restored(tmp_path / "run"), restored(workdir)
    assert_bit_equal((ours.shared, ours.memory), (theirs.shared, theirs.memory))
    assert history.accuracy == other.accuracy == results["accuracy_matrix"]


@pytest.mark.slow
def test_the_cache_of_compiled_programs_changes_nothing(tmp_path, monkeypatch):
    config = write_config(tmp_path, **FEW)
    cold, warm, none = (tmp_path / name for name in ("cold", "warm", "none"))
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    assert environment()["JAX_COMPILATION_CACHE_DIR"] == str(tmp_path / "cache")
    for workdir in (cold, warm):
        status, _, err = run("train", f"--config={config}", f"--workdir={workdir}")
        assert status == 0, err
    assert any((tmp_path / "cache").iterdir())
    monkeypatch.setenv("JAX_ENABLE_COMPILATION_CACHE", "false")
    assert run("train", f"--config={config}", f"--workdir={none}")[0] == 0
    assert_same_outcome(warm, cold)
    assert_same_outcome(none, cold)
