"""Checkpoints on disk: what is not ours stays, deletions are whole, damage is found."""

import json
import os
import shutil

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from streams import assert_bit_equal

from moecl_jax.errors import UserError
from moecl_jax.runs.checkpoint import SET_ASIDE, TaskCheckpoints
from moecl_jax.runs.names import states_inside
from moecl_jax.runs.status import status_of

NAMES = ("a", "b", "c")
FOREIGN = ("lost+found", "old", "backup_of_001_b", "002_c.bak", "003_d", "1", ".removed_by_me")


def tree(value):
    return {"expert": {"a": np.full((2, 3), value, np.float32)}, "head": {}}


def shared(value):
    return {"shared": {"gate": jnp.full((4,), value, jnp.bfloat16)}}


def save_all(workdir, count=3, **options):
    checkpoints = TaskCheckpoints(workdir, NAMES)
    for index in range(count):
        features = {"mean": np.full((index + 1, 2), index, np.float32)}
        checkpoints.save_finished(
            index, tree(index), shared(index), {"at": index}, features, **options
        )
    return checkpoints


def add_foreign(checkpoints):
    for name in FOREIGN:
        (checkpoints.folder / name / "shared").mkdir(parents=True)
        (checkpoints.folder / name / "shared" / "kept").write_text(name)
    (checkpoints.folder / "notes.txt").write_text("mine")


@pytest.mark.parametrize("keep", [1, 2])
def test_what_is_not_ours_is_neither_counted_nor_touched(tmp_path, keep):
    TaskCheckpoints(tmp_path, NAMES).probe()
    add_foreign(TaskCheckpoints(tmp_path, NAMES))
    checkpoints = save_all(tmp_path, keep_shared=keep)
    checkpoints.tidy()
    assert checkpoints.finished_count() == 3
    kept = [checkpoints.has_shared(index) for index in range(3)]
    assert kept == [index >= 3 - keep for index in range(3)]
    assert_bit_equal(checkpoints.restore_shared(2), shared(2))
    for name in FOREIGN:
        assert (checkpoints.folder / name / "shared" / "kept").read_text() == name
    assert (checkpoints.folder / "notes.txt").read_text() == "mine"


def test_arrays_and_records_come_back(tmp_path):
    checkpoints = save_all(tmp_path)
    for index in range(3):
        assert_bit_equal(checkpoints.restore_own(index), tree(index))
        assert_bit_equal(checkpoints.restore_shared(index), shared(index))
        assert checkpoints.finished_record(index)["at"] == index
    assert checkpoints.restore_features(2)["mean"].shape == (3, 2)
    assert [(checkpoints.path(index) / "features").exists() for index in range(3)] == [
        *(False, False, True)
    ]


@pytest.mark.parametrize("keep_shared", [0, 1])
def test_a_deletion_that_is_cut_short_leaves_no_half(tmp_path, monkeypatch, keep_shared):
    """Whatever is deleted is out of sight before the first of its files goes."""
    state = {"expert": jnp.arange(6.0)}

    def cut_short(path, *_, **__):
        for folder, _, files in os.walk(path):
            for file in files[:1]:
                os.unlink(os.path.join(folder, file))
        raise KeyboardInterrupt

    checkpoints = TaskCheckpoints(tmp_path, NAMES)
    checkpoints.save_finished(0, tree(0), shared(0), {})
    checkpoints.save_in_progress(state, {"step": 1})
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", cut_short)
        with pytest.raises(KeyboardInterrupt):
            checkpoints.save_in_progress(state, {"step": 2})
        assert checkpoints.in_progress_record()["step"] == 2
        with pytest.raises(KeyboardInterrupt):
            checkpoints.save_finished(1, tree(1), shared(1), {}, keep_shared=keep_shared)
    assert checkpoints.finished_count() == 2
    for index in range(2):
        assert_bit_equal(checkpoints.restore_own(index), tree(index))
        if checkpoints.has_shared(index):
            assert_bit_equal(checkpoints.restore_shared(index), shared(index))
    record = checkpoints.in_progress_record()
    assert record is None or record["step"] == 2
    checkpoints.tidy()
    assert not (checkpoints.folder / ".removed").exists()


def test_a_state_after_the_same_steps_is_not_gone_before_the_new_one_is_whole(
    tmp_path, monkeypatch
):
    checkpoints = TaskCheckpoints(tmp_path, NAMES)

    def save(epochs):
        record = {"step": 6, "task": "a", "validated_epochs": epochs}
        checkpoints.save_in_progress({"w": jnp.full(2, float(epochs))}, record)

    save(0)
    with monkeypatch.context() as patch:
        patch.setattr(ocp.CompositeCheckpointHandler, "save", lambda *_, **__: 1 / 0)
        with pytest.raises(UserError, match="cannot write the checkpoint"):
            save(1)
    for epochs in (0, 1, 2):
        if epochs:
            save(epochs)
        assert checkpoints.in_progress_record()["validated_epochs"] == epochs
        found = checkpoints.restore_in_progress({"w": np.zeros(2, np.float32)})
        assert_bit_equal(found, {"w": np.full(2, float(epochs), np.float32)})
        assert len(states_inside(checkpoints.folder)) == 1
    record = {"method": "moe_cl", "tasks": list(NAMES), "seed": 0}
    (tmp_path / "config.json").write_text(json.dumps(record))
    assert status_of(tmp_path).tasks[0].saved_step == 6


def test_a_missing_checkpoint_is_named(tmp_path):
    checkpoints = save_all(tmp_path)
    shutil.rmtree(checkpoints.path(1))
    with pytest.raises(UserError, match=r"001_b is missing, and 002_c after it is there\. Restore"):
        checkpoints.finished_count()
    shutil.rmtree(checkpoints.path(0))
    with pytest.raises(UserError, match="000_a is missing, and 002_c"):
        checkpoints.finished_count()
    shutil.rmtree(checkpoints.path(2))
    with pytest.raises(UserError, match=r"000_a is missing, and finished\.json says that its task"):
        checkpoints.finished_count()
    (tmp_path / "finished.json").write_text("{}")
    with pytest.raises(UserError, match=r"finished\.json is broken: expected a list of names"):
        checkpoints.finished_count()
    (tmp_path / "finished.json").unlink()
    assert checkpoints.finished_count() == 0


def is_refused(checkpoints):
    """Whether a damaged checkpoint is refused; if it is not, what is read is what was written."""
    try:
        assert checkpoints.finished_record(0)["at"] == 0
        assert_bit_equal(checkpoints.restore_own(0), tree(0))
        assert_bit_equal(checkpoints.restore_shared(0), shared(0))
        assert checkpoints.restore_features(0)["mean"].tolist() == [[0.0, 0.0]]
    except UserError as error:
        assert "000_a" in str(error) and "--resume=last-good" in str(error)
        return True
    return False


def note_all(tried, fault, outcomes):
    """Notes whether each was refused."""
    tried(fault, sum(outcomes), "refused")
    tried(fault, len(outcomes) - sum(outcomes), "survived")


@pytest.mark.slow
def test_a_flipped_bit_is_found_or_changes_nothing(tmp_path, tried):
    """In any file of a checkpoint, wherever in it; what is read is what was written."""
    checkpoints = save_all(tmp_path, 1)
    path, rng = checkpoints.path(0), np.random.default_rng(0)
    outcomes = []
    for file in [file for file in path.rglob("*") if file.is_file() and file.stat().st_size]:
        content = bytearray(file.read_bytes())
        for place in rng.choice(len(content), min(12, len(content)), replace=False):
            changed = bytearray(content)
            changed[place] ^= 1 << int(rng.integers(8))
            file.write_bytes(changed)
            outcomes.append(is_refused(checkpoints))
        file.write_bytes(content)
    assert not is_refused(checkpoints)
    assert sum(outcomes) > 20
    note_all(tried, "a bit of a checkpoint flipped", outcomes)


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["deleted", "truncated", "emptied"])
def test_a_damaged_file_is_found_or_changes_nothing(tmp_path, damage, tried):
    whole = save_all(tmp_path / "whole", 1)
    files = [file.relative_to(whole.path(0)) for file in whole.path(0).rglob("*")]
    outcomes = []
    for number, file in enumerate(f for f in files if (whole.path(0) / f).is_file()):
        checkpoints = TaskCheckpoints(tmp_path / str(number), NAMES)
        shutil.copytree(whole.path(0), checkpoints.path(0))
        target = checkpoints.path(0) / file
        if damage == "deleted":
            target.unlink()
        else:
            content = target.read_bytes()
            target.write_bytes(content[: len(content) // 2] if damage == "truncated" else b"")
        outcomes.append(is_refused(checkpoints))
    assert sum(outcomes) > 3
    note_all(tried, f"a file of a checkpoint {damage}", outcomes)


def test_an_earlier_version_s_checkpoint_is_told_as_such(tmp_path, monkeypatch):
    from moecl_jax.runs import checkpoint

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_DIGESTS", "other")
        checkpoints = save_all(tmp_path, 1)
    with pytest.raises(UserError, match=r"no digests, as in version 0\.1 of moecl_jax"):
        checkpoints.restore_own(0)


def test_what_is_needed_at_the_end_is_tried_at_the_start(tmp_path):
    TaskCheckpoints(tmp_path / "fine", ("a" * 150,)).probe()
    with pytest.raises(UserError, match=r"no checkpoint of task 'a{80}'\.\.\. can be written"):
        TaskCheckpoints(tmp_path / "long", ("a" * 250,)).probe()
    with pytest.raises(UserError, match=r"is not UTF-8, in which checkpoints cannot be written"):
        TaskCheckpoints(tmp_path / os.fsdecode(b"caf\xe9"), ("a",)).probe()
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="Not a directory"):
        TaskCheckpoints(tmp_path / "file", ("a",)).probe()


def test_what_is_set_aside_is_all_there(tmp_path):
    checkpoints = save_all(tmp_path)
    checkpoints.save_in_progress({"x": np.ones(2)}, {"step": 3})
    aside = checkpoints.set_aside_from(1, in_progress=True)
    assert aside.parent.name == SET_ASIDE
    assert sorted(path.name for path in aside.iterdir()) == ["001_b", "002_c", "in_progress"]
    assert checkpoints.finished_count() == 1 and checkpoints.in_progress_record() is None
    assert checkpoints.set_aside_from(1, in_progress=True) is None
