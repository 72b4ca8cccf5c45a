"""The configs: every leaf is read, every file loads, mistakes are named."""

import ast
import dataclasses
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ml_collections import ConfigDict
from streams import ROOT, tiny_config, tiny_settings

from moecl_jax.config.default import from_config
from moecl_jax.config.file import load_config
from moecl_jax.data.batching import BatchLayout
from moecl_jax.errors import UserError
from moecl_jax.methods import METHODS, Traits
from moecl_jax.methods.forward import StepContext
from moecl_jax.methods.options import to_sections
from moecl_jax.methods.stream import StartingValues
from moecl_jax.models.sharding import AXES
from moecl_jax.runs.settings import SECTIONS, Settings, leaves
from moecl_jax.serving.evaluator import Evaluator
from moecl_jax.serving.session import model_of
from moecl_jax.settings import Section
from moecl_jax.training.schedule import Schedule
from moecl_jax.training.task_training import TrainingSteps
from moecl_jax.training.trainer import train

CONFIGS = ROOT / "configs"


def option_classes() -> Iterator[type[Any]]:
    """The dataclasses of the methods' options, those inside others too."""
    for method in METHODS.values():
        yield method.Options
        for field in dataclasses.fields(method.Options):
            if dataclasses.is_dataclass(field.default):
                yield type(field.default)


SECTION_CLASSES = [Settings, *SECTIONS.values(), *dict.fromkeys(option_classes())]


def handed_on(frame: Any) -> bool:
    """Whether a value is read only to check, copy or save it, by the innermost function."""
    while frame.f_globals["__name__"] in ("dataclasses", "copy"):
        frame = frame.f_back
    place = (frame.f_globals["__name__"], frame.f_code.co_name)
    return place[0] in ("moecl_jax.settings", "moecl_jax.methods.options") or place in (
        ("moecl_jax.runs.settings", "__post_init__"),
        ("moecl_jax.runs.settings", "to_mapping"),
        ("moecl_jax.runs.workdir", "load_settings"),
    )


@pytest.mark.slow
def test_every_leaf_of_the_default_config_is_read(tmp_path, monkeypatch):
    runs = {
        way: tiny_settings(tmp_path / way, tasks=("two",), epochs=1, moe_cl__shared=way)
        for way in ("snapshot", "frozen", "projected")
    }
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("w1 w2\n\nw3 w4", encoding="utf-8")
    switched_on = {
        "adversarial_inputs": {"attack": "pgd", "steps": 1},
        "self_supervised": {"texts": str(tmp_path / "texts"), "steps": 1},
    }
    runs["frozen"] = runs["frozen"].changed(switched_on)
    own = {"moe_cl", "adversarial"}  # those of other methods: the test below
    others = {name for each in METHODS.values() for name in to_sections(each, each.Options())} - own
    seen = set()

    def noted(self, name):
        if name in type(self).__dataclass_fields__ and not handed_on(sys._getframe(1)):
            key = type(self).KEY
            seen.add(f"{key}.{name}" if key else name)
        return object.__getattribute__(self, name)

    monkeypatch.setattr(Section, "__getattribute__", noted)
    for way, settings in runs.items():
        train(settings, tmp_path / way / "run")
    monkeypatch.undo()
    default = load_config(str(CONFIGS / "default.py")).to_dict()
    unread = {key for key, _ in leaves(default)} - seen
    assert {key for key in unread if key.partition(".")[0] not in others} == set()


def test_every_setting_that_was_read_is_used():
    """No attribute of a settings class is filled and then left alone."""
    sources = [path.read_text() for path in (ROOT / "moecl_jax").rglob("*.py")]
    read = {
        node.attr
        for source in sources
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }
    read |= set(AXES)  # a mesh's sizes are read by the names of its axes
    parts = (StepContext, StartingValues, TrainingSteps, Schedule, BatchLayout, Traits)
    for settings in (*SECTION_CLASSES, *parts):
        assert set(settings.__dataclass_fields__) - read == set(), settings


@pytest.mark.parametrize("section", SECTION_CLASSES, ids=lambda cls: cls.__qualname__)
def test_every_key_is_explained_in_its_section_s_docstring(section):
    _, _, attributes = (inspect.getdoc(section) or "").partition("Attributes:\n")
    lines = [line for line in attributes.splitlines() if line.startswith("  ") and line[2] != " "]
    explained = [line.strip().partition(": ") for line in lines]
    assert [name for name, _, _ in explained] == [f.name for f in dataclasses.fields(section)]
    assert all(len(text) > 10 for _, _, text in explained)


def test_every_leaf_of_the_default_config_is_in_a_section_that_explains_it():
    explained = {
        f"{cls.KEY}.{field.name}" if cls.KEY else field.name
        for cls in SECTION_CLASSES
        for field in dataclasses.fields(cls)
    }
    default = load_config(str(CONFIGS / "default.py")).to_dict()
    assert {key for key, _ in leaves(default)} - explained == set()


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
        ({"method": "magic"}, "method = 'magic' is not one of ewc, few_shot, gain_lora, "),
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


def build(config):
    """Model, method and tasks of a config, as they meet for a training."""
    settings = from_config(config)
    return Evaluator(
        model_of(settings), settings.method_object(), settings.task_objects(), settings
    )


def test_schedules():
    constant = Schedule(1.0, "constant", 0.0)
    assert [constant(step, 4) for step in range(4)] == [1.0] * 4
    linear = Schedule(1.0, "linear", 0.5)
    assert [linear(step, 4) for step in range(4)] == [0.5, 1.0, 1.0, 0.5]
    cosine = Schedule(2.0, "cosine", 0.0)
    assert [cosine(step, 4) for step in (0, 2)] == pytest.approx([2.0, 1.0])


def test_config_is_the_only_room_that_knows_the_config():
    """Below it nothing takes a ConfigDict."""
    users = {
        path.relative_to(ROOT / "moecl_jax").parent
        for path in (ROOT / "moecl_jax").rglob("*.py")
        if "ml_collections" in path.read_text(encoding="utf-8")
    }
    assert users == {Path("config")}
