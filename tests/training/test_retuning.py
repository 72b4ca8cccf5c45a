"""Later tasks with other values than earlier ones; and finished tasks whose data are gone."""

import json
import shutil

import numpy as np
import pytest
from streams import assert_bit_equal, logged, restored, stop_after, tiny_config, tiny_settings

from moecl_jax.cli.main import main
from moecl_jax.config.default import from_config
from moecl_jax.errors import UserError
from moecl_jax.runs.settings import Settings
from moecl_jax.serving.session import open_run
from moecl_jax.training.trainer import train

FEW = {"epochs": 1, "checkpoint_every": 100}


@pytest.fixture(scope="module")
def one_task(tmp_path_factory):
    """Folder and settings of a finished run of one task, to which another is added."""
    folder = tmp_path_factory.mktemp("one_task")
    settings = tiny_settings(folder, tasks=("two", "five"), **FEW)
    train(settings.changed({"tasks": ("two",)}), folder / "run")
    return folder, settings


@pytest.fixture
def copied(one_task, tmp_path):
    shutil.copytree(one_task[0] / "run", tmp_path / "run")
    return tmp_path / "run", one_task[1]


def rates(workdir, task):
    return {line["learning_rate"] for line in logged(workdir) if line["task"] == task}


def steps(workdir, task):
    return sum(line["task"] == task for line in logged(workdir))


@pytest.mark.slow
def test_a_changed_value_and_a_task_s_own_train_alike(copied, tmp_path, caplog):
    workdir, settings = copied
    shutil.copytree(workdir, tmp_path / "own")
    changes = {
        "optimizer": {"learning_rate": 3e-3, "clip_norm": 1.0},
        "epochs": 2,
        "batch": {"size": 16},
        "adversarial": {"alpha": 0.5},
    }
    caplog.set_level("INFO")
    changed = train(settings.changed(changes), workdir)
    said = [record.message for record in caplog.records]
    assert "from task 'five' on, optimizer.learning_rate is 0.003; it was 0.01" in said
    own = train(settings.changed({"task_settings": {"five": changes}}), tmp_path / "own")
    assert rates(workdir, "two") == {0.01} and rates(workdir, "five") == {0.003}
    assert (steps(workdir, "two"), steps(workdir, "five")) == (6, 6)  # of 8, and twice of 16
    (_, mine, _), (_, other, _) = restored(workdir), restored(tmp_path / "own")
    assert_bit_equal((mine.shared, mine.memory), (other.shared, other.memory))
    assert_bit_equal(mine.finished["five"], other.finished["five"])
    assert logged(workdir) == logged(tmp_path / "own")
    assert changed["accuracy_matrix"] == own["accuracy_matrix"]
    values = {
        "optimizer.learning_rate": 0.01,
        "optimizer.clip_norm": 0.0,
        "epochs": 1,
        "batch.size": 8,
        "adversarial.alpha": 0.1,
    }
    flat = {**values, "optimizer.learning_rate": 0.003, "optimizer.clip_norm": 1.0}
    flat |= {"epochs": 2, "batch.size": 16, "adversarial.alpha": 0.5}
    assert changed["task_settings"] == {"two": values}
    assert own["task_settings"] == {"five": flat}


@pytest.mark.slow
def test_what_a_task_is_trained_with_matters(copied):
    """The whole option reaches the step: with weight 0 nothing of the penalty is left."""
    workdir, settings = copied
    train(settings.changed({"adversarial": {"alpha": 0.0}}), workdir)
    totals = [
        (line["loss"], line["loss_instruction"])
        for line in logged(workdir)
        if line["task"] == "five"
    ]
    assert totals and all(loss == instruction for loss, instruction in totals)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora": {"rank": 4}}, r"lora\.rank = 8, and now it is 4\. .*trained is computed with it"),
        ({"seed": 1}, r"seed = 0, and now it is 1\. .*starting values and the order"),
        ({"moe_cl": {"shared": "moving"}}, r"shared = 'snapshot', and now .*finished tasks answer"),
        ({"data": {"max_length": 99}}, r"max_length = 256, and now .*read and cut alike"),
    ],
)
def test_what_must_stay_is_refused_with_the_reason(copied, changes, message):
    workdir, settings = copied
    before = (workdir / "config.json").read_bytes()
    with pytest.raises(UserError, match=message):
        train(settings.changed(changes), workdir)
    assert (workdir / "config.json").read_bytes() == before


def test_without_a_task_to_train_a_new_value_is_refused(copied):
    workdir, settings = copied
    with pytest.raises(UserError, match=r"begun with epochs = 1, .* and all tasks are finished"):
        train(settings.changed({"tasks": ("two",), "epochs": 5}), workdir)


@pytest.mark.slow
def test_a_task_that_stopped_inside_goes_on_with_its_values(copied, tmp_path, monkeypatch):
    workdir, settings = copied
    shutil.copytree(workdir, tmp_path / "whole")
    settings = settings.changed({"optimizer": {"learning_rate": 3e-3}, "checkpoint_every": 2})
    train(settings, tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            train(settings, workdir)
    other = settings.changed({"optimizer": {"learning_rate": 1e-3}})
    message = r"stopped inside task 'five' with optimizer\.learning_rate = 0\.003, and now it is"
    with pytest.raises(UserError, match=message):
        train(other, workdir)
    own = {"five": {"optimizer": {"learning_rate": 3e-3}}}
    train(other.changed({"task_settings": own}), workdir)
    (_, mine, _), (_, expected, _) = restored(workdir), restored(tmp_path / "whole")
    assert_bit_equal(mine.finished["five"], expected.finished["five"])
    assert logged(workdir) == logged(tmp_path / "whole")


def test_values_of_a_task_on_the_command_line(copied, tmp_path):
    workdir, _ = copied
    config = tmp_path / "config.json"
    config.write_text(tiny_config(tmp_path, tasks=("two", "five"), **FEW).to_json())
    content = json.loads((workdir / "config.json").read_text())
    paths = {"model": content["model"], "definitions": content["definitions"]}
    config.write_text(json.dumps(json.loads(config.read_text()) | paths))
    flag = "--config.task_settings.five.optimizer.learning_rate=0.003"
    assert main(["train", f"--config={config}", f"--workdir={workdir}", flag]) == 0
    assert rates(workdir, "five") == {0.003}
    written = json.loads((workdir / "config.json").read_text())
    assert written["task_settings"] == {"five": {"optimizer": {"learning_rate": 0.003}}}
    assert written["optimizer"]["learning_rate"] == 0.01


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"six": {"epochs": 2}}, r"task_settings\.six: config\.tasks has no such task"),
        ({"sms_spam": {"epochs": 0}}, r"task_settings\.sms_spam: epochs = 0 must be at least 1"),
        ({"trec": {"epoch": 2}}, r"task_settings\.trec: unknown config key 'epoch'"),
        ({"trec": {"lora": {"rank": 2}}}, r"task_settings\.trec\.lora\.rank: it is one for all"),
        ({"trec": {"seed": 2}}, r"task_settings\.trec\.seed: it is one for all tasks: starting"),
        ({"trec": 3}, r"task_settings\.trec = 3 must be a section"),
        (3, r"task_settings = 3 must map tasks to values"),
    ],
)
def test_wrong_values_of_a_task_are_named(values, message):
    with pytest.raises(UserError, match=message):
        Settings(task_settings=values)


def test_settings_of_a_task_are_those_of_all_but_its_own():
    settings = Settings(task_settings={"trec": {"epochs": 7, "adversarial": {"alpha": 0.5}}})
    own = settings.for_task("trec")
    assert (own.epochs, own.options["adversarial"]["alpha"]) == (7, 0.5)
    assert settings.for_task("sms_spam") == settings.changed({"task_settings": {}}) == Settings()
    assert from_config(_config_of(settings)) == settings


def _config_of(settings):
    from moecl_jax.config.default import to_config

    return to_config(settings)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["moe_cl", pytest.param("ewc", marks=pytest.mark.slow)])
def test_a_stream_grows_without_the_data_of_finished_tasks(tmp_path, method, capsys, caplog):
    """Where a method answers finished tasks for ever alike, it has the results that it had."""
    settings = tiny_settings(tmp_path, tasks=("two", "five"), method=method, **FEW)
    workdir, whole = tmp_path / "run", tmp_path / "whole"
    train(settings.changed({"tasks": ("two",)}), workdir)
    shutil.copytree(workdir, whole)
    expected = train(settings, whole)
    texts = ["w1 w20", "w40 w3"]
    before = open_run(whole).predict(texts, "two")
    for file in (tmp_path / "data").glob("two_*.jsonl"):
        file.unlink()
    caplog.set_level("INFO")
    grown = train(settings, workdir)
    said = [record.message for record in caplog.records]
    assert any(line.startswith("two is finished, and its data cannot be read") for line in said)
    assert grown["sizes"] == expected["sizes"]
    matrix = np.array(grown["accuracy_matrix"], float)
    session = open_run(workdir)
    if method == "moe_cl":
        assert grown["right"][0] == expected["right"][0]
        assert grown["gate_weights"][0] == expected["gate_weights"][0]
        np.testing.assert_array_equal(matrix[:, 0], np.array(expected["accuracy_matrix"])[:, 0])
        assert session.predict(texts, "two") == before
        assert {each.task for each in session.predict(texts)} <= {"two", "five"}
    else:
        assert np.isnan(matrix[1, 0])
    assert np.isfinite(matrix[:, 1]).all()
    found = session.evaluate()["tasks"]
    assert "cannot read" in found["two"]["error"] and found["five"]["examples"] > 0
    assert main(["evaluate", f"--workdir={workdir}"]) == 0
    assert "cannot read" in json.loads(capsys.readouterr().out)["tasks"]["two"]["error"]
    assert train(settings, workdir)["accuracy_matrix"] == grown["accuracy_matrix"]  # nothing to do


def test_replay_needs_the_data_of_finished_tasks(tmp_path):
    settings = tiny_settings(tmp_path, tasks=("two", "five"), method="replay", **FEW)
    train(settings.changed({"tasks": ("two",)}), tmp_path / "run")
    (tmp_path / "data" / "two_train.jsonl").unlink()
    with pytest.raises(UserError, match=r"cannot read .*two_train\.jsonl"):
        train(settings, tmp_path / "run")
