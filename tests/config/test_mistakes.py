"""Wrong keys and values are named, with what was meant, wherever settings come from."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ml_collections import ConfigDict
from streams import ROOT

import moecl_jax
from moecl_jax.config.default import from_config, get_config
from moecl_jax.config.file import load_settings
from moecl_jax.errors import UserError
from moecl_jax.models.lora import FFN_TARGETS
from moecl_jax.models.model import Model
from moecl_jax.models.settings import Lora
from moecl_jax.runs.settings import OptimizerSettings, Settings
from moecl_jax.testing import write_model
from moecl_jax.training.trainer import Trainer
from moecl_jax.weights.load import load_model

Source = Callable[[str, Any, Path, Model], Settings]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load_model(write_model(tmp_path_factory.mktemp("model")), dtype="float32")


def nested(key: str, value: Any) -> dict[str, Any]:
    """`{"lora": {"rank": 4}}` of "lora.rank" and 4."""
    for part in reversed(key.split(".")):
        value = {part: value}
    assert isinstance(value, dict)
    return value


def from_command_line(key: str, value: Any, folder: Path, model: Model) -> Settings:
    del folder, model
    return load_settings(str(ROOT / "configs" / "default.py"), [f"--config.{key}={value}"])


def from_file(key: str, value: Any, folder: Path, model: Model) -> Settings:
    del model
    lines = ["from moecl_jax.config.default import get_config as default", "def get_config():"]
    lines += ["  config = default()", f"  config.{key} = {value!r}", "  return config"]
    (folder / "file.py").write_text("\n".join(lines), encoding="utf-8")
    return load_settings(str(folder / "file.py"))


def from_json(key: str, value: Any, folder: Path, model: Model) -> Settings:
    del model
    (folder / "config.json").write_text(json.dumps(nested(key, value)), encoding="utf-8")
    return load_settings(str(folder / "config.json"))


def from_notebook(key: str, value: Any, folder: Path, model: Model) -> Settings:
    del folder, model
    return from_config(ConfigDict(nested(key, value)))


def from_mapping(key: str, value: Any, folder: Path, model: Model) -> Settings:
    del folder, model
    return Settings.from_mapping(nested(key, value))


def from_keywords(key: str, value: Any, folder: Path, model: Model) -> Settings:
    del folder
    return Trainer(model, **nested(key, value)).settings


SOURCES = (from_command_line, from_file, from_json, from_notebook, from_mapping, from_keywords)
sources = pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.__name__)


def error_of(source: Source, key: str, value: Any, folder: Path, model: Model) -> str:
    with pytest.raises(UserError) as caught:
        source(key, value, folder, model)
    return str(caught.value)


@sources
@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("optimizer.lr", "optimizer.learning_rate"),
        ("optimizer.learning_rat", "optimizer.learning_rate"),
        ("sed", "seed"),
        ("lora.alfa", "lora.alpha"),
        ("moe_cl.objective", "adversarial.objective"),
        ("replay.memry", "replay.memory"),
    ],
)
def test_a_wrong_key_is_an_error_that_says_what_was_meant(
    source: Source, key: str, meant: str, tmp_path: Path, model: Model
) -> None:
    error = error_of(source, key, 1, tmp_path, model)
    assert f"unknown config key {key!r}" in error
    assert f"did you mean {meant!r}?" in error


@sources
def test_a_right_key_is_taken(source: Source, tmp_path: Path, model: Model) -> None:
    assert source("optimizer.learning_rate", 1, tmp_path, model).optimizer.learning_rate == 1.0
    assert source("replay.memory", 7, tmp_path, model).options["replay"]["memory"] == 7
    assert source("adversarial.alpha", 1, tmp_path, model).options["adversarial"]["alpha"] == 1.0


A_LIST = "must be a list of values, such as"
PYTHON = (from_notebook, from_mapping, from_keywords)


@pytest.mark.parametrize("source", PYTHON, ids=lambda source: source.__name__)
@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("seed", "one", "seed = 'one' must be a whole number"),
        ("seed", True, "seed = True must be a whole number"),
        ("epochs", 1.5, "epochs = 1.5 must be a whole number"),
        ("epochs", {"a": 1}, "epochs = {'a': 1} must be a whole number"),
        ("shared_head", 1, "shared_head = 1 must be True or False"),
        ("selection", 1, "selection = 1 must be a text"),
        ("tasks", "trec", f"tasks = 'trec' {A_LIST} ('trec', 'sms_spam')"),
        ("tasks", (1,), "tasks = 1 must be a text"),
        ("lora", 4, "lora = 4 must be a section of keys and values"),
        ("lora.rank", {"a": 1}, "lora.rank = {'a': 1} must be a whole number"),
        ("lora.targets", "gate_proj", f"lora.targets = 'gate_proj' {A_LIST} {FFN_TARGETS}"),
        ("moe_cl", 1, "moe_cl = 1 must be a section of keys and values"),
        ("o_lora.composed", "yes", "o_lora.composed = 'yes' must be True or False"),
        ("adversarial.alpha", "big", "adversarial.alpha = 'big' must be a number"),
        ("definitions", 3, "definitions = 3 must map names to tasks' fields"),
        ("definitions.spam", 3, "definitions.spam = 3 must map fields to values"),
        ("optimizer.learning_rate", "fast", "optimizer.learning_rate = 'fast' must be a number"),
        (
            "optimizer.learning_rate",
            float("nan"),
            "optimizer.learning_rate = nan must be a finite number",
        ),
    ],
)
def test_a_value_of_another_type_names_its_key(
    source: Source, key: str, value: Any, message: str, tmp_path: Path, model: Model
) -> None:
    assert error_of(source, key, value, tmp_path, model) == f"config: {message}"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("seed", "one", "config.seed=one: invalid literal for int()"),
        ("shared_head", "maybe", "config.shared_head=maybe: "),
        ("optimizer.learning_rate", "fast", "config.optimizer.learning_rate=fast: "),
        ("o_lora.composed", "3", "config.o_lora.composed=3: "),
    ],
)
def test_a_value_of_another_type_on_the_command_line_names_its_key(
    key: str, value: str, message: str, tmp_path: Path, model: Model
) -> None:
    assert message in error_of(from_command_line, key, value, tmp_path, model)


@pytest.mark.parametrize("source", (from_file, from_json), ids=lambda source: source.__name__)
@pytest.mark.parametrize("key", ["seed", "optimizer.learning_rate", "replay.memory"])
def test_a_value_of_another_type_in_a_file_names_the_file(
    source: Source, key: str, tmp_path: Path, model: Model
) -> None:
    error = error_of(source, key, "much", tmp_path, model)
    assert str(tmp_path) in error
    assert key.rpartition(".")[2] in error


@sources
@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("seed", -1, "config: seed = -1 must be at least 0"),
        ("epochs", 0, "config: epochs = 0 must be at least 1"),
        ("lora.rank", 0, "config: lora.rank = 0 must be at least 1"),
        ("lora.dropout", 1.0, "config: lora.dropout = 1.0 must be below 1"),
        ("evaluation.top_p", 0.0, "config: evaluation.top_p = 0.0 must be above 0"),
        ("optimizer.warmup_fraction", 2.0, "optimizer.warmup_fraction = 2.0 must be at most 1"),
        ("batch.layout", "tight", "config: batch.layout = 'tight' is not one of packed, padded"),
        ("replay.memory", -1, "config: replay.memory = -1 must be at least 0"),
        ("adversarial.objective", "gan", "adversarial.objective = 'gan' is not one of paper, "),
        ("ewc.decay", 2.0, "config: ewc.decay = 2.0 must be at most 1"),
    ],
)
def test_a_value_out_of_its_range_names_its_key(
    source: Source, key: str, value: Any, message: str, tmp_path: Path, model: Model
) -> None:
    assert message in error_of(source, key, value, tmp_path, model)


@pytest.mark.parametrize("method", ["moe_cll", "Replay", "magic:"])
def test_a_method_that_is_not_there_is_named(method: str, tmp_path: Path, model: Model) -> None:
    for source in (from_command_line, from_file, from_json, from_notebook, from_mapping):
        assert repr(method) in error_of(source, "method", method, tmp_path, model)
    with pytest.raises(UserError, match=repr(method)):
        Trainer(model, method)
    with pytest.raises(UserError, match="did you mean 'moe_cl'"):
        get_config("moe_cll")
    with pytest.raises(UserError, match="method = 3 must be"):
        Settings.from_mapping({"method": 3})


def test_settings_are_checked_however_they_are_made() -> None:
    """Not by `from_mapping` alone: what is made in Python fails where it is made."""
    with pytest.raises(UserError, match=r"lora\.rank = 0"):
        Lora(rank=0)
    with pytest.raises(UserError, match="epochs = 0"):
        Settings(epochs=0)
    with pytest.raises(UserError, match=r"unknown config key 'optimizer\.lr'; did you mean"):
        Settings(optimizer={"lr": 1e-3})
    assert Settings(optimizer={"learning_rate": 1}).optimizer == OptimizerSettings(1.0)
    with pytest.raises(UserError, match=r"'replay\.memry'; did you mean 'replay\.memory'"):
        Settings(options={"replay": {"memry": 1}})
    with pytest.raises(UserError, match="unknown config key 'repaly'; did you mean 'replay'"):
        Settings(options={"repaly": {"memory": 1}})
    with pytest.raises(UserError, match="epochs = 0"):
        Settings().changed({"epochs": 0})
    with pytest.raises(UserError, match="unknown config key 'options'"):
        Settings.from_mapping({"options": {}})


def test_a_method_s_own_arguments_are_checked() -> None:
    with pytest.raises(UserError, match=r"'replay\.memry'; did you mean 'replay\.memory'"):
        moecl_jax.Replay(memry=3)
    with pytest.raises(UserError, match=r"replay\.memory = 1\.5 must be a whole number"):
        moecl_jax.Replay(memory=1.5)
    with pytest.raises(UserError, match=r"adversarial\.objective = 'gan'"):
        moecl_jax.MoeCl(adversarial={"objective": "gan"})
    assert moecl_jax.MoeCl(adversarial={"objective": "off"}).options.adversarial.objective == "off"
    with pytest.raises(UserError, match=r"adversarial = 3 must be a section"):
        moecl_jax.MoeCl(adversarial=3)


def test_a_task_s_fields_are_checked_where_the_settings_meet_their_tasks() -> None:
    fields = {"source": "jsonl", "train": "a.jsonl", "labels": ("no", "yes"), "metrc": "x"}
    settings = Settings(tasks=("spam",), definitions={"spam": fields})
    with pytest.raises(UserError, match="unknown field 'metrc'; did you mean 'metric'"):
        settings.task_objects()


def test_a_trainer_s_tasks_are_checked(model: Model) -> None:
    with pytest.raises(UserError, match="at least one task, none twice; it holds \\[\\]"):
        Trainer(model).fit([])
