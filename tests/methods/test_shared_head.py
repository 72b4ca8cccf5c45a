"""One classification head for all tasks, and runs of our own in the original's format."""

import json

import jax
import numpy as np
import pytest
import tiny
from ml_collections import ConfigDict
from streams import assert_bit_equal, tiny_config

from moecl_jax.cli.main import main
from moecl_jax.config.experiment import build
from moecl_jax.errors import UserError
from moecl_jax.methods.state import Initializer, Stream, finish, look_up
from moecl_jax.runs.checkpoint import TaskCheckpoints
from moecl_jax.runs.resume import restore_stream, task_trees
from moecl_jax.testing import write_task
from moecl_jax.training.trainer import train


def test_a_shared_head_is_carried_on_from_task_to_task():
    initializer = Initializer(tiny.learner("classification").method, 0, "classification", 3, True)
    shared = initializer.shared(3)
    first, second = initializer.begin(shared, 0), initializer.begin(shared, 1)
    np.testing.assert_array_equal(first.head, second.head)  # none is finished yet
    stream = finish(Stream(shared, {}), "a", first.replace(head=first.head + 1), 3)
    begun = initializer.begin(stream.shared, 1, stream.last_head)
    np.testing.assert_array_equal(begun.head, first.head + 1)
    stream = finish(stream, "b", begun.replace(head=begun.head + 1), 3)
    for name in ("a", "b"):
        head = look_up(stream, name, 3, shared_head=True).head
        np.testing.assert_array_equal(head, stream.last_head)
    np.testing.assert_array_equal(look_up(stream, "a", 3).head, first.head + 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head": "lm"}, "shared_head needs head = 'classification'; it is 'lm'"),
        ({"head": "classification"}, "but two has 2, five has 5, fourteen has 14"),
    ],
)
def test_a_shared_head_needs_equal_tasks(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        build(tiny_config(tmp_path, shared_head=True, **changes))


def two_tasks(folder, **changes):
    """A config of two tasks with two classes each."""
    config = tiny_config(folder, head="classification", epochs=1, tasks=("two",), **changes)
    with config.unlocked():
        config.definitions.pair = ConfigDict(write_task(folder / "data", "pair", 2))
        config.tasks = ("two", "pair")
    return config


@pytest.mark.parametrize("shared_head", [True, False])
def test_a_run_of_ours_in_the_original_s_format(tmp_path, shared_head):
    config = two_tasks(tmp_path, shared_head=shared_head)
    results = train(config, tmp_path / "run")
    experiment = build(config)
    stream, _ = restore_stream(experiment, TaskCheckpoints(tmp_path / "run"))
    heads = [task_trees(experiment, stream, index).head for index in range(2)]
    assert np.array_equal(*heads) == shared_head

    output = tmp_path / "exported"
    assert (
        main(
            [
                "export",
                f"--workdir={tmp_path / 'run'}",
                "--format=safetensors",
                f"--output={output}",
            ]
        )
        == 0
    )
    settings = json.loads((tmp_path / "exported.json").read_text())
    assert (settings["r"], settings["lora_alpha"], settings["num_experts"]) == (8, 16, 3)
    assert settings["target_modules"] == ["w1_proj", "w2_proj", "w3_proj"]
    places = [
        f"--base={tmp_path / 'model'}",
        f"--adapter={output}",
        f"--workdir={tmp_path / 'back'}",
    ]
    names = ["--tasks=two,pair"] if shared_head else []
    assert main(["convert", "official", *places, *names]) == 0
    back = build(converted := two_tasks(tmp_path, shared_head=shared_head))
    assert converted.tasks == config.tasks
    again, history = restore_stream(back, TaskCheckpoints(tmp_path / "back"))
    assert_bit_equal(
        jax.tree.map(np.asarray, again.shared), jax.tree.map(np.asarray, stream.shared)
    )
    for index in range(2):
        ours, theirs = task_trees(experiment, stream, index), task_trees(back, again, index)
        assert_bit_equal(ours, theirs)
    assert history.converted == 2 and np.isnan(history.accuracy).all()
    # Training on with the data of before measures what the run's last row says.
    resumed = json.loads((tmp_path / "back" / "config.json").read_text())
    assert resumed["shared_head"] == shared_head
    measured = train(converted, tmp_path / "back")
    assert measured["accuracy_matrix"] == [[None, None], results["accuracy_matrix"][1]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "sequential_lora"}, "trained with method = 'sequential_lora'; the original's"),
        ({"head": "lm"}, "trained with head = 'lm'; the original's format has a place for head"),
        ({"adversarial__objective": "off"}, "'off' and has no discriminator"),
    ],
)
def test_what_the_original_s_format_cannot_hold_is_refused(tmp_path, capsys, changes, message):
    from moecl_jax.runs.workdir import save_config

    config = tiny_config(tmp_path, **{"head": "classification", **changes})
    (tmp_path / "run").mkdir()
    save_config(config, tmp_path / "run")
    arguments = [f"--workdir={tmp_path / 'run'}", f"--output={tmp_path / 'out'}"]
    assert main(["export", "--format=official", *arguments]) == 1
    assert message in capsys.readouterr().err


def test_a_task_that_is_not_finished_is_not_exported(tmp_path, capsys):
    train(two_tasks(tmp_path), tmp_path / "run")
    config = tmp_path / "run" / "config.json"
    content = json.loads(config.read_text())
    content["tasks"].append("five")
    config.write_text(json.dumps(content))
    arguments = [f"--workdir={tmp_path / 'run'}", f"--output={tmp_path / 'out'}"]
    assert main(["export", "--format=safetensors", *arguments]) == 1
    assert "task 'five' has not been trained to its end" in capsys.readouterr().err
    assert not list(tmp_path.glob("out*"))
