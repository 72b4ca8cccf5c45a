"""Training over a mesh of eight virtual devices, in one process and in two."""

import dataclasses
import os
import shutil
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from streams import ROOT, evaluator_of, logged, restored, stop_after, tiny_config

from moecl_jax.cli.main import main
from moecl_jax.config.default import from_config
from moecl_jax.errors import UserError
from moecl_jax.models.sharding import AXES, Placement
from moecl_jax.serving.session import open_run
from moecl_jax.training.trainer import train

TASKS = ("two", "five")
MESHES = {"data": (8, 1, 1), "data and fsdp": (2, 4, 1), "all three": (2, 2, 2)}


def config_of(folder, mesh=(1, 1, 1), tasks=TASKS):
    sizes = {f"mesh__{axis}": size for axis, size in zip(AXES, mesh, strict=True)}
    rate = {"optimizer__learning_rate": 1e-3}
    return tiny_config(folder, tasks=tasks, epochs=1, **sizes, **rate)


def settings_of(*arguments, **values):
    return from_config(config_of(*arguments, **values))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder where one task was trained on one device, and the second on one device too.

    The gradient of the gate is 0 but for rounding as long as both experts are 0, and Adam makes
    whole steps of it: runs are compared after a first task.
    """
    folder = tmp_path_factory.mktemp("runs")
    train(settings_of(folder, tasks=TASKS[:1]), folder / "first")
    shutil.copytree(folder / "first", folder / "alone")
    train(settings_of(folder), folder / "alone")
    return folder


def trees(workdir):
    _, stream, _ = restored(workdir)
    return stream.shared, {name: stream.finished[name].expert for name in TASKS}


def assert_same_run(ours, theirs, tolerance=1e-5):
    """Fails unless losses, trained trees and test results of two workdirs agree."""
    lines, others = logged(ours), logged(theirs)
    assert len(lines) == len(others) == 12
    for line, other in zip(lines, others, strict=True):
        assert line["step"] == other["step"]
        for key in ("loss", "loss_instruction", "loss_adversarial", "gradient_norm"):
            assert line[key] == pytest.approx(other[key], rel=tolerance), key
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=tolerance),
        trees(ours),
        trees(theirs),
    )
    mine, other = (open_run(workdir).evaluate("test")["tasks"] for workdir in (ours, theirs))
    for task in TASKS:
        assert mine[task]["examples"] == other[task]["examples"] == 48
        likelihoods = [result[task]["log_likelihood"] for result in (mine, other)]
        assert likelihoods[0] == pytest.approx(likelihoods[1], abs=10 * tolerance)


@pytest.mark.slow
@pytest.mark.parametrize(
    "mesh",
    [
        pytest.param(mesh, id=name, marks=[] if name == "all three" else pytest.mark.slow)
        for name, mesh in MESHES.items()
    ],
)
def test_a_mesh_goes_on_from_one_device_and_trains_as_it_does(mesh, runs, tmp_path):
    shutil.copytree(runs / "first", tmp_path / "run")
    results = train(settings_of(runs, mesh), tmp_path / "run")
    assert_same_run(tmp_path / "run", runs / "alone")
    assert results["sizes"]["test"] == [48, 48]


@pytest.mark.slow
def test_a_task_begun_on_one_mesh_is_ended_on_another(runs, tmp_path, monkeypatch):
    shutil.copytree(runs / "first", tmp_path / "run")
    with monkeypatch.context() as patch:
        stop_after(patch, 5)  # a step after a checkpoint
        with pytest.raises(KeyboardInterrupt):
            train(settings_of(runs, (2, 2, 2)), tmp_path / "run")
    train(settings_of(runs, (2, 4, 1)), tmp_path / "run")
    assert_same_run(tmp_path / "run", runs / "alone")


@pytest.mark.slow
def test_two_processes_train_as_one(runs, tmp_path):
    shutil.copytree(runs / "first", tmp_path / "run")
    config = tmp_path / "config.json"
    config.write_text(config_of(runs, (2, 4, 1)).to_json(), encoding="utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    command = [sys.executable, "-m", "moecl_jax", "train", f"--config={config}"]
    command += [f"--workdir={tmp_path / 'run'}", f"--coordinator={address}"]
    processes = [
        subprocess.Popen(
            [*command, f"--process={index}/2"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    outputs = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert "after five" in outputs[0][0]
    assert "after five" not in outputs[1][0]
    assert "five: train 48" in outputs[0][1]
    assert "five: train 48" not in outputs[1][1]
    assert_same_run(tmp_path / "run", runs / "alone")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--process=0/2"], "--process needs the --coordinator of all processes"),
        (["--coordinator=host:1"], "give --coordinator=HOST:PORT --process=I/N with I from 0"),
        (["--coordinator=host:1", "--process=2/2"], "with I from 0 to N - 1"),
        (["--coordinator=host:1", "--process=first"], "with I from 0 to N - 1"),
        (["--coordinator=auto", "--process=0/2"], "--coordinator=auto alone"),
        (["--coordinator=host", "--process=0/2"], "give --coordinator=HOST:PORT"),
    ],
)
def test_wrong_numbers_of_processes_are_refused(arguments, message, tmp_path, capsys):
    config = str(ROOT / "configs" / "default.py")
    assert main(["train", f"--config={config}", f"--workdir={tmp_path / 'run'}", *arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith("moecl: error: ")
    assert message in error
    assert not (tmp_path / "run").exists()


def test_parameters_lie_where_the_table_says():
    placement = Placement.over({"data": 2, "fsdp": 2, "tensor": 2})
    tree = {
        "embedder": {"embedding": np.zeros((8, 4))},
        "layers": {
            "attention": {"q_proj": {"kernel": np.zeros((3, 4, 6)), "bias": np.zeros((3, 6))}},
            "feed_forward": {"down_proj": {"kernel": np.zeros((3, 6, 4))}},
        },
        "expert": {"up_proj": {"a": np.zeros((3, 4, 2)), "b": np.zeros((3, 2, 6))}},
        "final_norm": {"scale": np.zeros(4)},
        "odd": {"up_proj": {"kernel": np.zeros((3, 5, 7))}},
    }
    specs = jax.tree.map(lambda leaf: leaf.sharding.spec, placement.put(tree))
    assert specs["embedder"]["embedding"] == PartitionSpec(("fsdp", "tensor"), None)
    attention = specs["layers"]["attention"]["q_proj"]
    assert attention["kernel"] == PartitionSpec(None, "fsdp", "tensor")
    assert attention["bias"] == PartitionSpec(None, "tensor")
    down = specs["layers"]["feed_forward"]["down_proj"]["kernel"]
    assert down == PartitionSpec(None, "tensor", "fsdp")
    assert specs["expert"]["up_proj"]["a"] == PartitionSpec(None, "fsdp", None)
    assert specs["expert"]["up_proj"]["b"] == PartitionSpec(None, None, "tensor")
    assert specs["final_norm"]["scale"] == PartitionSpec()
    assert specs["odd"]["up_proj"]["kernel"] == PartitionSpec(None, None, None)


def test_planned_bytes_are_those_that_lie_on_a_device(runs):
    placement = Placement.over({"data": 2, "fsdp": 2, "tensor": 2})
    evaluator = evaluator_of(settings_of(runs, (2, 2, 2)))
    shared = evaluator.starting.shared(2)
    active = placement.put(evaluator.starting.begin(shared, 0))
    for tree in (evaluator.model.params, active):
        device = jax.devices()[3]
        held = [
            shard.data.nbytes
            for leaf in jax.tree.leaves(tree)
            for shard in leaf.addressable_shards
            if shard.device == device
        ]
        whole = sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)
        assert placement.bytes_per_device(shapes) == sum(held) < whole
        assert Placement().bytes_per_device(shapes) == whole


def test_rows_of_any_dataclass_are_split():
    @dataclasses.dataclass(frozen=True)
    class Texts:
        tokens: jax.Array
        positions: jax.Array
        segments: jax.Array
        branches: jax.Array
        weights: jax.Array

    texts = Texts(*(np.full((8, 3), value) for value in range(4)), np.ones(5))
    assert Placement().split_rows(texts) is texts
    placement = Placement.over({"data": 2, "fsdp": 2, "tensor": 2})

    def split(*arrays):
        return dataclasses.astuple(placement.split_rows(Texts(*arrays)))

    *rows, weights = jax.jit(split)(*dataclasses.astuple(texts))
    for index, array in enumerate(rows):
        assert array.sharding.spec[0] == ("data", "fsdp")
        np.testing.assert_array_equal(array, np.full((8, 3), index))
    assert weights.sharding.is_fully_replicated


@pytest.mark.parametrize("sizes", [(3, 1, 1), (-1, 3, 1), (-1, -1, 1), (0, 1, 1), (16, 1, 1)])
def test_a_mesh_that_does_not_fit_is_refused(sizes):
    with pytest.raises(UserError, match=r"mesh \(data = .* must multiply to the 8 devices"):
        Placement.over(dict(zip(AXES, sizes, strict=True)))


def test_a_mesh_takes_the_devices_that_are_left():
    placement = Placement.over({"data": -1, "fsdp": 2, "tensor": 2})
    assert dict(placement.mesh.shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    assert placement.row_shards == 4
    assert Placement.over({"data": 1, "fsdp": 1, "tensor": 1}).mesh is None


def test_a_workdir_of_a_larger_machine_answers_on_one_device(runs, tmp_path):
    shutil.copytree(runs / "alone", tmp_path / "run")
    config = config_of(runs, (32, 1, 1)).to_json()
    (tmp_path / "run" / "config.json").write_text(config, encoding="utf-8")
    assert open_run(tmp_path / "run").evaluate() == open_run(runs / "alone").evaluate()
