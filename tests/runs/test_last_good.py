"""`--resume=last-good`: back to the newest whole state; what is lost is told and set aside."""

import json
import shutil

import pytest
from streams import assert_bit_equal, logged, restored, stop_after, tiny_config, tiny_settings

from moecl_jax.cli.main import main
from moecl_jax.errors import UserError
from moecl_jax.models.settings import Lora
from moecl_jax.runs.checkpoint import TaskCheckpoints
from moecl_jax.serving.session import open_run
from moecl_jax.training.trainer import Trainer, train

FEW = {"epochs": 1, "checkpoint_every": 2}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Folder and settings of a finished run of three tasks."""
    folder = tmp_path_factory.mktemp("finished")
    settings = tiny_settings(folder, **FEW)
    train(settings, folder / "run")
    return folder, settings


@pytest.fixture
def damaged(finished, tmp_path):
    """A copy of that workdir to damage, its settings, and the workdir that is whole."""
    folder, settings = finished
    shutil.copytree(folder / "run", tmp_path / "run")
    return tmp_path / "run", settings, folder / "run"


def damage(folder, part):
    """Overwrites what the arrays of a part of a checkpoint are kept in."""
    for file in (folder / part).rglob("*"):
        if file.is_file() and file.parent.name == "d":
            file.write_bytes(bytes(file.stat().st_size))


def assert_equal(ours, theirs):
    (_, mine, _), (_, other, _) = restored(ours), restored(theirs)
    assert_bit_equal((mine.shared, mine.memory), (other.shared, other.memory))
    assert logged(ours) == logged(theirs)
    first, second = (json.loads((run / "results.json").read_text()) for run in (ours, theirs))
    assert first["accuracy_matrix"] == second["accuracy_matrix"]


@pytest.mark.parametrize("part", ["task", "shared", "features"])
def test_a_damaged_last_task_is_trained_again(damaged, part, caplog):
    workdir, settings, whole = damaged
    damage(workdir / "checkpoints" / "002_fourteen", part)
    with pytest.raises(UserError, match=r"002_fourteen: .*--resume=last-good"):
        train(settings, workdir)
    assert not (workdir / "checkpoints" / "set_aside").exists()  # nothing before the user decides
    caplog.set_level("INFO")
    train(settings, workdir, resume="last-good")
    lines = [record.message for record in caplog.records]
    assert any("002_fourteen" in line and "cannot read" in line for line in lines)
    assert any(
        line.startswith("going on after the finished tasks: two, five; the rest is in ")
        for line in lines
    )
    [aside] = (workdir / "checkpoints" / "set_aside").iterdir()
    assert [path.name for path in aside.iterdir()] == ["002_fourteen"]
    assert_equal(workdir, whole)


def test_a_missing_middle_task_is_refused_and_trained_again(damaged):
    workdir, settings, whole = damaged
    shutil.rmtree(workdir / "checkpoints" / "001_five")
    with pytest.raises(UserError, match=r"001_five is missing, and 002_fourteen after it is there"):
        train(settings, workdir)
    with pytest.raises(UserError, match=r"001_five is missing"):
        open_run(workdir)
    train(settings, workdir, resume="last-good")
    assert_equal(workdir, whole)


def test_a_checkpoint_on_a_disk_that_is_not_mounted_is_not_trained_again(damaged, tmp_path):
    workdir, settings, whole = damaged
    checkpoint, elsewhere = workdir / "checkpoints" / "002_fourteen", tmp_path / "elsewhere"
    shutil.move(checkpoint, elsewhere)
    checkpoint.symlink_to(elsewhere)
    assert_equal(workdir, whole)
    shutil.move(elsewhere, tmp_path / "unmounted")
    with pytest.raises(UserError, match=r"002_fourteen is a link to a folder that is not there"):
        train(settings, workdir)
    train(settings, workdir, resume="last-good")
    assert_equal(workdir, whole)
    [aside] = (workdir / "checkpoints" / "set_aside").iterdir()
    assert (aside / "002_fourteen").is_symlink()


@pytest.mark.slow
def test_where_the_shared_trees_are_kept_once_their_damage_begins_anew(tmp_path, capsys):
    config = tmp_path / "config.json"
    config.write_text(tiny_config(tmp_path, keep_shared=1, tasks=("two", "five"), **FEW).to_json())
    command = ["train", f"--config={config}", f"--workdir={tmp_path / 'run'}"]
    assert main(command) == 0
    shutil.copytree(tmp_path / "run", tmp_path / "whole")
    damage(tmp_path / "run" / "checkpoints" / "001_five", "shared")
    capsys.readouterr()
    assert main([*command, "--resume=last-good"]) == 0
    assert "going on after the finished tasks: none" in capsys.readouterr().err
    assert_equal(tmp_path / "run", tmp_path / "whole")


@pytest.mark.slow
def test_a_damaged_state_inside_a_task_is_left_out(finished, tmp_path, monkeypatch):
    folder, settings = finished
    with monkeypatch.context() as patch:
        stop_after(patch, 9)
        with pytest.raises(KeyboardInterrupt):
            train(settings, tmp_path / "run")
    [state] = (tmp_path / "run" / "checkpoints" / "in_progress").iterdir()
    damage(state, "tree")
    with pytest.raises(UserError, match=f"in_progress/{state.name}: .*--resume=last-good"):
        train(settings, tmp_path / "run")
    train(settings, tmp_path / "run", resume="last-good")
    assert_equal(tmp_path / "run", folder / "run")


def test_nothing_is_said_or_moved_where_all_is_whole(damaged, caplog):
    workdir, settings, whole = damaged
    caplog.set_level("INFO")
    train(settings, workdir, resume="last-good")
    assert not any("going on after" in record.message for record in caplog.records)
    assert not (workdir / "checkpoints" / "set_aside").exists()
    assert_equal(workdir, whole)


def test_the_state_of_a_task_that_is_finished_is_forgotten(finished, tmp_path, monkeypatch):
    """As after a kill between a task's last checkpoint and the deletion of its state."""
    folder, settings = finished
    with monkeypatch.context() as patch:
        patch.setattr(TaskCheckpoints, "clear_in_progress", lambda _: None)
        train(settings, tmp_path / "run")
    assert (tmp_path / "run" / "checkpoints" / "in_progress").is_dir()
    train(settings, tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints" / "in_progress").exists()
    assert_equal(tmp_path / "run", folder / "run")


def test_another_word_is_refused(finished):
    with pytest.raises(UserError, match=r"resume = 'best' is not one of newest, last-good"):
        Trainer(open_run(finished[0] / "run").evaluator.model, resume="best")


def test_a_deleted_config_is_not_replaced_by_another(damaged):
    """Checkpoints of one rank would be read as those of another."""
    workdir, settings, _ = damaged
    (workdir / "config.json").unlink()
    with pytest.raises(UserError, match=r"holds checkpoints, and no config\.json"):
        train(settings.changed({"lora": {"rank": 4}}), workdir)
    assert not (workdir / "config.json").exists()


def test_a_config_that_was_edited_by_hand_is_noticed(damaged):
    workdir, _, _ = damaged
    file = workdir / "config.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, "lora": {**content["lora"], "alpha": 99.0}}))
    assert Lora().alpha != 99.0
    with pytest.raises(UserError, match=r"were trained with lora\.alpha = 16\.0, and now it is 99"):
        open_run(workdir)


def test_a_damaged_record_is_no_trace(damaged):
    workdir, settings, _ = damaged
    for file in (workdir / "checkpoints" / "000_two" / "record").iterdir():
        file.write_text("{}")
    with pytest.raises(UserError, match="000_two: its record has no digests"):
        train(settings, workdir)
