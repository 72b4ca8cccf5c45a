"""A workdir is made when something is saved in it, and a start that fails leaves none."""

import fcntl
import threading
from pathlib import Path

import pytest
from ml_collections import ConfigDict
from streams import tiny_config, tiny_settings

from moecl_jax.config.default import from_config
from moecl_jax.errors import UserError
from moecl_jax.runs.lock import Busy, claimed
from moecl_jax.runs.workdir import Origin, refuse_other_settings, save_settings
from moecl_jax.training.trainer import train


@pytest.mark.parametrize("fault", ["definition", "model", "data"])
def test_a_start_that_fails_leaves_no_workdir(tmp_path: Path, fault: str) -> None:
    config = tiny_config(tmp_path / "files", tasks=("two",))
    with config.unlocked():
        if fault == "definition":
            config.definitions.two = ConfigDict({"source": "csv", "labels": ("a",)})
        elif fault == "model":
            config.model.path = "/none"
        else:
            config.definitions.two.labels = ("w0", "w5")
    with pytest.raises(UserError):
        train(from_config(config), tmp_path / "runs" / "new" / "one")
    assert [path.name for path in tmp_path.iterdir()] == ["files"]
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "other").mkdir()
    with pytest.raises(UserError):
        train(from_config(config), tmp_path / "runs" / "one")
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["other"]


def test_what_was_there_stays(tmp_path: Path) -> None:
    settings = tiny_settings(tmp_path / "files", tasks=("two",), model__path="/none")
    (tmp_path / "mine").mkdir()
    (tmp_path / "empty").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    for name in ("mine", "empty"):
        with pytest.raises(UserError, match="no such path"):
            train(settings, tmp_path / name)
    assert (tmp_path / "mine" / "notes.txt").read_text() == "mine"
    assert (tmp_path / "empty").is_dir()


def test_a_claim_that_saves_nothing_leaves_nothing_and_one_that_does_all(tmp_path: Path) -> None:
    with claimed(tmp_path / "a" / "b"):
        (tmp_path / "a" / "b" / "checkpoints").mkdir()
    assert list(tmp_path.iterdir()) == []
    with claimed(tmp_path / "a" / "b"):
        (tmp_path / "a" / "b" / "checkpoints" / "x").mkdir(parents=True)
        (tmp_path / "a" / "b" / "checkpoints" / "x" / "file").touch()
    assert (tmp_path / "a" / "b" / "checkpoints" / "x" / "file").exists()
    with claimed(tmp_path / "a" / "b"):
        pass
    assert (tmp_path / "a" / "b" / "checkpoints" / "x" / "file").exists()


def test_the_lock_of_a_folder_that_went_away_claims_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process lets go of the workdir between the opening of the lock and the locking."""
    original = fcntl.flock

    def late(lock: object, how: int) -> None:
        (tmp_path / "run" / ".lock").unlink()
        original(lock, how)  # type: ignore[arg-type]

    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(Busy, match="another process is training"), claimed(tmp_path / "run"):
        pytest.fail("claimed")


def test_a_damaged_state_after_a_conversion_does_not_bar_the_way_back(tmp_path: Path) -> None:
    """'--resume=last-good' looks at the settings before it goes back."""
    settings = tiny_settings(tmp_path / "files", tasks=("two", "five"))
    save_settings(settings, tmp_path)
    Origin({}, ("two",), 1, {}).save(tmp_path)
    (tmp_path / "checkpoints" / "in_progress" / "5").mkdir(parents=True)
    refuse_other_settings(settings, tmp_path)
    with pytest.raises(UserError, match=r"was begun with data\.max_length"):
        refuse_other_settings(settings.changed({"data": {"max_length": 17}}), tmp_path)


def test_a_lock_that_is_held_for_a_moment_is_waited_for(tmp_path: Path) -> None:
    """As by `moecl status`, which looks whether the lock is free."""
    (tmp_path / "run").mkdir()
    with (tmp_path / "run" / ".lock").open("a") as looked_at:
        fcntl.flock(looked_at, fcntl.LOCK_SH)
        threading.Timer(0.03, fcntl.flock, (looked_at, fcntl.LOCK_UN)).start()
        with claimed(tmp_path / "run"), pytest.raises(BlockingIOError):
            fcntl.flock(looked_at, fcntl.LOCK_SH | fcntl.LOCK_NB)
