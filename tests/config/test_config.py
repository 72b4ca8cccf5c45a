"""The configs: every leaf is read, every file loads, mistakes are named."""

import ast
from collections.abc import Mapping
from pathlib import Path

import pytest
from ml_collections import ConfigDict
from moecl_jax.config.experiment import Schedule, build
from streams import ROOT, tiny_config

from moecl_jax.config.file import load_config
from moecl_jax.errors import UserError
from moecl_jax.training.trainer import train

CONFIGS = ROOT / "configs"


class Recorder:
    """A config that notes which leaves were read."""

    def __init__(self, config, seen, prefix=""):
        self._config, self._seen, self._prefix = config, seen, prefix

    def __getattr__(self, name):
        if name.startswith("to_"):  # copies and comparisons of the whole do not use a value
            return getattr(self._config, name)
        value = self._config[name]
        if isinstance(value, ConfigDict):
            return Recorder(value, self._seen, f"{self._prefix}{name}.")
        self._seen.add(self._prefix + name)
        return value


def leaves(tree, prefix=""):
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key


def test_every_leaf_of_the_default_config_is_read(tmp_path):
    config = tiny_config(tmp_path, tasks=("two",), epochs=1)
    seen = set()
    train(Recorder(config, seen), tmp_path / "run")
    default = load_config(str(CONFIGS / "default.py")).to_dict()
    assert set(leaves(default)) - seen == set()


def test_every_setting_that_was_read_is_used():
    """No attribute of a settings class is filled and then left alone."""
    sources = [path.read_text() for path in (ROOT / "moecl_jax").rglob("*.py")]
    read = {
        node.attr
        for source in sources
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }
    from moecl_jax.config.experiment import Experiment, Training

    from moecl_jax.data.batching import BatchLayout
    from moecl_jax.methods import MethodSettings
    from moecl_jax.training.steps import Learner

    for settings in (MethodSettings, Learner, Training, Experiment, Schedule, BatchLayout):
        assert set(settings.__dataclass_fields__) - read == set(), settings


@pytest.mark.parametrize(
    "name",
    [
        "default.py",
        "quickstart.py",
        *(f"mtl5.py:order={order}" for order in (1, 2, 3)),
        "mtl5.py:order=2,base=llama-2-7b",
        "mtl5_shared_smollm2.py:order=3",
    ],
)
def test_config_files_load_and_have_the_default_s_keys(name):
    config = load_config(str(CONFIGS / name))
    default = load_config(str(CONFIGS / "default.py"))
    extra = {"definitions"}
    assert set(config) == set(default)
    for section in set(config) - extra:
        if isinstance(config[section], ConfigDict):
            assert set(config[section]) == set(default[section])


def test_mtl5_orders_and_base():
    config = load_config(str(CONFIGS / "mtl5.py:order=3,base=llama-2-7b"))
    assert config.tasks == ("yahoo", "amazon", "agnews", "dbpedia")
    assert config.model.path == "llama-2-7b"


@pytest.mark.parametrize("argument", ["order=4", "orders=1", "1"])
def test_a_wrong_argument_is_named(argument):
    with pytest.raises(UserError, match=argument.rpartition("=")[2]):
        load_config(str(CONFIGS / f"mtl5.py:{argument}"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head": "regression"}, "head = 'regression' is not one of lm, classification"),
        ({"method": "magic"}, "method = 'magic' is not one of moe_cl, per_task, "),
        ({"model__remat": "some"}, "model.remat = 'some' is not one of auto, none, full, pro"),
        ({"model__dtype": "int8"}, "model.dtype = 'int8'"),
        ({"lora__targets": ("w1_proj",)}, "lora.targets = 'w1_proj' is not one of gate_proj"),
        ({"lora__rank": 0}, "lora.rank = 0 must be at least 1"),
        ({"lora__dropout": 1.0}, "lora.dropout = 1.0 must be below 1"),
        ({"adversarial__objective": "gan"}, "adversarial.objective = 'gan'"),
        ({"batch__size": 0}, "batch.size = 0 must be at least 1"),
        ({"optimizer__schedule": "step"}, "optimizer.schedule = 'step'"),
        ({"selection": "first"}, "selection = 'first'"),
        ({"data__max_length": 4096}, "exceeds the 2048 positions"),
        ({"epochs": 0}, "epochs = 0 must be at least 1"),
        ({"tasks": ("two", "three")}, "tasks names 'three', which is neither in the catalog"),
        ({"tasks": ("two", "two")}, "none twice"),
    ],
)
def test_values_out_of_range_are_named(tmp_path, change, message):
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        build(tiny_config(tmp_path, **change))


def test_schedules():
    constant = Schedule(1.0, "constant", 0.0)
    assert [constant(step, 4) for step in range(4)] == [1.0] * 4
    linear = Schedule(1.0, "linear", 0.5)
    assert [linear(step, 4) for step in range(4)] == [0.5, 1.0, 1.0, 0.5]
    cosine = Schedule(2.0, "cosine", 0.0)
    assert [cosine(step, 4) for step in (0, 2)] == pytest.approx([2.0, 1.0])


def test_configs_are_the_only_users_of_the_config():
    """Below experiment.py nothing takes a ConfigDict apart but what hands it on."""
    allowed = {"default_config.py", "config_file.py", "workdir.py", "experiment.py"}
    allowed |= {"train.py", "inference.py", "convert.py", "export.py"}
    allowed |= {"adapters.py", "prompts.py", "sweep.py"}
    users = {
        Path(path).name
        for path in (ROOT / "moecl_jax").rglob("*.py")
        if "ml_collections" in path.read_text()
    }
    assert users <= allowed
