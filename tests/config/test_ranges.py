"""Every number of a config has a range, and whatever a config holds gives settings or one line."""

import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from messages import is_one_line
from ml_collections import ConfigDict
from streams import ROOT

from moecl_jax.config.default import from_config
from moecl_jax.config.file import load_settings
from moecl_jax.errors import UserError
from moecl_jax.methods import METHODS
from moecl_jax.models.settings import Lora
from moecl_jax.runs.settings import SECTIONS, Settings, leaves
from moecl_jax.serving.evaluator import Evaluator
from moecl_jax.testing import write_model
from moecl_jax.weights.load import load_model

CASES = 400
"""Generated configs of each kind."""


def numbers() -> Iterator[tuple[str, Any]]:
    """Key and field of every number of all sections and of all methods' options."""
    sections: dict[str, type[Any]] = {"": Settings, **SECTIONS}
    for name, method in METHODS.items():
        sections[name] = method.Options
        for field in dataclasses.fields(method.Options):
            if dataclasses.is_dataclass(field.default):
                sections[field.name] = type(field.default)
    for name, described in sections.items():
        for field in dataclasses.fields(described):
            if type(field.default) in (int, float):
                yield f"{name}.{field.name}".lstrip("."), field


NUMBERS = dict(numbers())


def nested(key: str, value: Any) -> dict[str, Any]:
    for part in reversed(key.split(".")):
        value = {part: value}
    assert isinstance(value, dict)
    return value


def test_there_are_numbers_in_every_part_of_a_config() -> None:
    assert len(NUMBERS) > 35
    assert {"seed", "mesh.fsdp", "lora.alpha", "adversarial.alpha", "ewc.weight"} <= set(NUMBERS)
    known = {key for key, value in leaves(Settings().to_mapping()) if type(value) in (int, float)}
    assert known == set(NUMBERS)


@pytest.mark.parametrize("key", NUMBERS)
def test_every_number_has_a_lower_and_an_upper_limit(key: str) -> None:
    limits = NUMBERS[key].metadata.get("limits", {})
    limits = {kind: limit for kind, limit in limits.items() if limit is not None}
    assert len(limits.keys() & {"least", "above"}) == 1
    assert len(limits.keys() & {"most", "below"}) == 1
    outside = {
        "least": lambda limit: limit - 1,
        "above": lambda limit: limit,
        "most": lambda limit: limit * 2 + 1,
        "below": lambda limit: limit,
    }
    kind = type(NUMBERS[key].default)
    for name, limit in limits.items():
        error = error_of(key, kind(outside[name](limit)))
        assert all(str(each) in error for each in limits.values())  # the whole range is told
    no_numbers = [math.nan, math.inf, -math.inf, None, "1", [1], {"a": 1}, True]
    for value in [10**30, -(10**30), 10**5000, 1e300, -1e300, *no_numbers]:
        error_of(key, value)


def error_of(key: str, value: Any) -> str:
    with pytest.raises(UserError) as caught:
        Settings.from_mapping(nested(key, value))
    assert str(caught.value).startswith(f"config: {key} = ")
    assert is_one_line(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("lora.targets", (), "lora.targets = () must name at least one projection, or"),
        ("lora.targets", ("up_proj", "up_proj"), "must hold none of them twice"),
        ("lora.alpha", 0.0, "lora.alpha = 0.0 must be above 0 and at most 1000000.0"),
        ("lora.rank", 10**9, "lora.rank = 1000000000 must be at most 65536 and at least 1"),
        ("optimizer.learning_rate", 1e9, "learning_rate = 1000000000.0 must be at most 10"),
        ("optimizer.warmup_fraction", -0.1, "warmup_fraction = -0.1 must be at least 0 and at"),
        ("batch.size", 10**9, "batch.size = 1000000000 must be at most 65536 and at least 1"),
        ("epochs", 10**20, "epochs = 100000000000000000000 must be at most 1000000"),
        ("seed", -1, "seed = -1 must be at least 0 and below 9223372036854775808"),
        ("seed", 2**64, "seed = 18446744073709551616 must be below 9223372036854775808"),
        ("data.validation_fraction", 1.0, "validation_fraction = 1.0 must be below 1 and at"),
        ("adversarial.alpha", -1.0, "adversarial.alpha = -1.0 must be at least 0"),
        ("model.path", "a\0b", "model.path = 'a\\x00b' must not hold a NUL"),
        ("model.path", ["x" * 10**6], "model.path = ['xxx"),
    ],
)
def test_values_that_train_nothing_or_nonsense_are_refused(
    key: str, value: Any, message: str
) -> None:
    with pytest.raises(UserError) as caught:
        Settings.from_mapping(nested(key, value))
    assert message in str(caught.value)
    assert is_one_line(caught.value)


def test_a_rank_above_the_model_s_width_is_refused(tmp_path: Path) -> None:
    model = load_model(write_model(tmp_path), dtype="float32")
    width = min(model.sizes.width, model.sizes.ffn_width)
    run = Settings(tasks=("sms_spam",), lora=Lora(rank=width))
    tasks = run.task_objects()
    with pytest.raises(UserError, match=f"lora.rank = {width + 1} exceeds the model's width of"):
        changed = run.changed({"lora": {"rank": width + 1}})
        Evaluator(model, changed.method_object(), tasks, changed)


def test_the_keys_beside_an_unknown_one_are_listed() -> None:
    keys = "adversarial, adversarial_inputs, batch,"
    with pytest.raises(UserError, match=f"'qqqqqq'; the keys are {keys}") as caught:
        Settings.from_mapping({"qqqqqq": 1})
    assert "adversarial.alpha" not in str(caught.value)
    with pytest.raises(UserError, match="unknown config key 'zzz"):
        Settings.from_mapping({"z" * 10**6: 1})
    for values in (None, [1], 3):
        with pytest.raises(UserError, match="must be a section of keys and values"):
            Settings.from_mapping(values)  # type: ignore[arg-type]


def test_a_key_with_a_dot_in_a_definition_is_no_trace(tmp_path: Path) -> None:
    content = Settings().to_mapping() | {"definitions": {"sms_spam": {"text_fields": {"a.b": 1}}}}
    (tmp_path / "config.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(UserError, match=r"config\.json: .*dots.*a\.b"):
        load_settings(str(tmp_path / "config.json"))


# Generated configs: any value that JSON can hold, for any key.

KEYS = [
    *("", "seed.", ".", "options", "lora.rank.x", "qqq", "definitions.x", "definitions.x.labels"),
    *(key for key, _ in leaves(Settings().to_mapping())),
    *(key for key, value in Settings().to_mapping().items() if isinstance(value, dict)),
    *("definitions.sms_spam.source", "definitions.sms_spam.text_fields", "definitions.sms_spam"),
]
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([10**30, -(10**30), 2**63, 2**31, 10**99]),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=9),
    st.sampled_from(["x" * 20_000, "moe_cl", "a:b", "json", "trec", "\0", "\n", "lm", ":", "a:"]),
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)
generated = settings(
    max_examples=CASES,
    derandomize=True,
    deadline=10_000,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def loads_or_says_why(load: Any) -> None:
    try:
        found = load()
        found.task_objects()
        found.method_object()
    except UserError as error:
        assert is_one_line(error), str(error)[:2000]


def put(content: dict[str, Any], key: str, value: Any) -> None:
    *path, last = key.split(".")
    for part in path:
        inner = content.setdefault(part, {})
        content = inner if isinstance(inner, dict) else {}
    content[last] = value


@pytest.mark.slow
@generated
@given(changes=st.lists(st.tuples(st.sampled_from(KEYS), values), min_size=1, max_size=3))
def test_any_mapping_gives_settings_or_an_error(changes: list[tuple[str, Any]]) -> None:
    content: dict[str, Any] = {}
    for key, value in changes:
        put(content, key, value)
    loads_or_says_why(lambda: Settings.from_mapping(content))


@pytest.mark.slow
@generated
@given(change=st.tuples(st.sampled_from(KEYS), values), cut=st.integers(0, 5000))
def test_any_config_json_gives_settings_or_an_error(
    tmp_path: Path, change: tuple[str, Any], cut: int
) -> None:
    content = Settings().to_mapping()
    put(content, *change)
    text = json.dumps(content)
    file = tmp_path / "config.json"
    file.write_text(text if cut > len(text) else text[:cut] + text[cut + 1 :], encoding="utf-8")
    loads_or_says_why(lambda: load_settings(str(file)))


@pytest.mark.slow
@generated
@given(
    key=st.sampled_from(KEYS),
    value=st.one_of(
        values.map(repr), st.text(max_size=9), st.sampled_from(["(" * 5000, "9" * 5000])
    ),
)
def test_any_override_gives_settings_or_an_error(key: str, value: str) -> None:
    file = str(ROOT / "configs" / "default.py")
    loads_or_says_why(lambda: load_settings(file, [f"--config.{key}={value}"]))


@pytest.mark.slow
@generated
@given(
    key=st.sampled_from([key for key in KEYS if key.strip(".") and ".." not in key]), value=values
)
def test_any_config_dict_gives_settings_or_an_error(key: str, value: Any) -> None:
    content: dict[str, Any] = {}
    put(content, key.strip("."), value)
    try:
        config = ConfigDict(content)
    except Exception:  # ml_collections does not hold every mapping
        return
    loads_or_says_why(lambda: from_config(config))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("config.lora = None", "lora = None must be a section of keys and values"),
        ("config.lora = 4", "own.py, line 4: TypeError: .*lora"),
        ("config.seed = None", "seed = None must be a whole number"),
        ("config.data.max_length = None", "data.max_length = None must be a whole number"),
        ("config.method = None", "method = None must be a method's name"),
        ("del config['optimizer']", ""),
    ],
)
def test_a_config_file_with_a_hole_is_read_or_named(
    tmp_path: Path, line: str, message: str
) -> None:
    lines = ["from moecl_jax.config.default import get_config as default", "def get_config():"]
    lines += ["  config = default()", f"  {line}", "  return config"]
    file = tmp_path / "own.py"
    file.write_text("\n".join(lines), encoding="utf-8")
    if not message:  # what a file leaves out has its default
        assert load_settings(str(file)) == Settings()
        return
    with pytest.raises(UserError, match=message) as caught:
        load_settings(str(file))
    assert is_one_line(caught.value)
