"""One classification head for all tasks, and runs of our own in the original's format."""

import json

import jax
import numpy as np
import pytest
from streams import assert_bit_equal, evaluator_of, restored, tiny_settings
from tiny import context_of, starting_of

from moecl_jax.cli.main import main
from moecl_jax.errors import UserError
from moecl_jax.methods.stream import StreamState
from moecl_jax.runs.workdir import save_settings
from moecl_jax.testing import write_task
from moecl_jax.training.trainer import train


def test_a_shared_head_is_carried_on_from_task_to_task():
    context = context_of("classification")
    one_each, starting = starting_of(context), starting_of(context, shared_head=True)
    shared = starting.shared(3)
    first, second = starting.begin(shared, 0), starting.begin(shared, 1)
    np.testing.assert_array_equal(first.head, second.head)  # none is finished yet
    stream = StreamState(shared, {}).after("a", first.replace(head=first.head + 1), 3)
    begun = starting.begin(stream.shared, 1, stream.last_head)
    np.testing.assert_array_equal(begun.head, first.head + 1)
    stream = stream.after("b", begun.replace(head=begun.head + 1), 3)
    for index, name in enumerate(("a", "b")):
        head = starting.task(stream, name, index).head
        np.testing.assert_array_equal(head, stream.last_head)
    np.testing.assert_array_equal(one_each.task(stream, "a", 0).head, first.head + 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head": "lm"}, "shared_head needs head = 'classification'; it is 'lm'"),
        ({"head": "classification"}, "but two has 2, five has 5, fourteen has 14"),
    ],
)
def test_a_shared_head_needs_equal_tasks(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        evaluator_of(tiny_settings(tmp_path, shared_head=True, **changes))


def two_tasks(folder, **changes):
    """Settings of two tasks with two classes each."""
    values = {"head": "classification", "epochs": 1, "moe_cl__shared": "moving", **changes}
    settings = tiny_settings(folder, tasks=("two",), **values)
    pair = write_task(folder / "data", "pair", 2)
    definitions = {**settings.definitions, "pair": pair}
    return settings.changed({"definitions": definitions, "tasks": ("two", "pair")})


@pytest.mark.slow
@pytest.mark.parametrize("shared_head", [True, False])
def test_a_run_of_ours_in_the_original_s_format(tmp_path, shared_head):
    chosen = two_tasks(tmp_path, shared_head=shared_head)
    results = train(chosen, tmp_path / "run")
    evaluator, stream, _ = restored(tmp_path / "run")
    starting = evaluator.starting
    heads = [starting.task(stream, name, index).head for index, name in enumerate(chosen.tasks)]
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
    back, again, history = restored(tmp_path / "back")
    assert back.names == list(chosen.tasks)
    assert_bit_equal(
        jax.tree.map(np.asarray, again.shared), jax.tree.map(np.asarray, stream.shared)
    )
    for index, name in enumerate(chosen.tasks):
        ours = starting.task(stream, name, index)
        assert_bit_equal(ours, back.starting.task(again, name, index))
    assert history.converted == 2 and np.isnan(history.accuracy).all()
    # Training on with the data of before measures what the run's last row says.
    resumed = json.loads((tmp_path / "back" / "config.json").read_text())
    assert resumed["shared_head"] == shared_head
    measured = train(chosen, tmp_path / "back")
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
    (tmp_path / "run").mkdir()
    settings = tiny_settings(tmp_path, **{"head": "classification", **changes})
    save_settings(settings, tmp_path / "run")
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
