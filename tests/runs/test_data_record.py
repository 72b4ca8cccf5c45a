"""Data and tokenizer that change between stop and resume are an error, or accepted and named."""

import json
import shutil
from pathlib import Path

import pytest
from streams import stop_after, tiny_settings

from moecl_jax.errors import UserError
from moecl_jax.runs.results import Results
from moecl_jax.serving.session import open_run
from moecl_jax.training.trainer import train

CHANGES = {
    "halved": lambda lines: lines[: len(lines) // 2],
    "shuffled": lambda lines: lines[::-1],
    "relabelled": lambda lines: [
        line.replace('"label": "w0"', '"label": "w1"') if index == 0 else line
        for index, line in enumerate(lines)
    ],
}


def change(file: Path, how: str) -> None:
    lines = file.read_text(encoding="utf-8").splitlines()
    file.write_text("\n".join(CHANGES[how](lines)) + "\n", encoding="utf-8")


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """Folder and settings of a run that was stopped inside the second of three tasks."""
    folder = tmp_path_factory.mktemp("stopped")
    settings = tiny_settings(folder, epochs=1, checkpoint_every=2)
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 9)
        with pytest.raises(KeyboardInterrupt):
            train(settings, folder / "run")
    return folder, settings


@pytest.fixture
def run(stopped):
    """A copy of it whose data may be changed; they are put back afterwards."""
    folder, settings = stopped
    kept = folder.with_name(folder.name + "_kept")
    shutil.copytree(folder, kept)
    yield folder, settings
    shutil.rmtree(folder)
    shutil.move(kept, folder)


@pytest.mark.parametrize(
    ("file", "how", "message"),
    [
        ("five_train", "halved", "the train split of task 'five' (48 examples, now 24) changed"),
        ("five_train", "shuffled", "the train split of task 'five' (48 examples as before, but"),
        ("five_train", "relabelled", "the train split of task 'five' (48 examples as before, but"),
        ("two_train", "halved", "the train split of task 'two' (48 examples, now 24) changed"),
        ("two_test", "halved", "the test split of task 'two' (48 examples, now 24) changed"),
        ("fourteen_test", "halved", "the test split of task 'fourteen' (48 examples, now 24)"),
    ],
)
def test_changed_data_are_refused_and_named(run, file, how, message):
    folder, settings = run
    before = (folder / "run" / "data.json").read_bytes()
    change(folder / "data" / f"{file}.jsonl", how)
    with pytest.raises(UserError) as caught:
        train(settings, folder / "run")
    assert str(caught.value).startswith(f"since the training was begun, {message}")
    assert "--accept-changes" in str(caught.value)
    assert (folder / "run" / "data.json").read_bytes() == before


def test_training_examples_of_a_task_to_come_may_change(run):
    folder, settings = run
    change(folder / "data" / "fourteen_train.jsonl", "halved")
    results = train(settings, folder / "run")
    assert results["sizes"]["train"] == [48, 48, 24]
    assert "accepted_changes" not in results


def test_a_change_is_accepted_deliberately_and_named_in_the_results(run):
    folder, settings = run
    change(folder / "data" / "two_test.jsonl", "halved")
    results = train(settings, folder / "run", accept_changes=True)
    expected = ["the test split of task 'two' (48 examples, now 24)"]
    assert results["accepted_changes"] == expected
    assert Results.load(folder / "run").content["accepted_changes"] == expected
    train(settings, folder / "run")  # it is known now


def permute(folder: Path) -> None:
    """Swaps two token ids of the tokenizer."""
    file = folder / "model" / "tokenizer.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    words = content["model"]["vocab"]
    words["w3"], words["w4"] = words["w4"], words["w3"]
    file.write_text(json.dumps(content), encoding="utf-8")


def test_a_changed_tokenizer_is_refused_by_training_and_by_use(run):
    folder, settings = run
    permute(folder)
    with pytest.raises(UserError, match=r"since the training was begun, .*the tokenizer.* changed"):
        train(settings, folder / "run")
    with pytest.raises(UserError, match=r"the tokenizer is not the one that .*run was trained wit"):
        open_run(folder / "run")


def test_a_broken_record_is_told(run):
    folder, settings = run
    (folder / "run" / "data.json").write_text('{"tokenizer": 1}')
    with pytest.raises(UserError, match=r"data\.json is broken: it is not what a training writes"):
        train(settings, folder / "run")


def test_before_anything_is_trained_all_may_change(run, tmp_path):
    folder, settings = run
    shutil.copytree(folder / "run", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    (tmp_path / "run" / "finished.json").unlink()  # else what is gone is missed
    change(folder / "data" / "two_test.jsonl", "halved")
    permute(folder)
    assert "accepted_changes" not in train(settings, tmp_path / "run")
