"""Settings and their mapping: the same again through Python, JSON and a workdir; changes."""

import dataclasses
import json
from pathlib import Path
from typing import Any, ClassVar

import pytest

from moecl_jax.config.default import from_config, get_config, to_config
from moecl_jax.errors import UserError
from moecl_jax.methods import METHODS, find_method
from moecl_jax.methods.moe_cl import Adversarial, MoeCl
from moecl_jax.methods.replay import Replay
from moecl_jax.models.settings import Lora, ModelSettings
from moecl_jax.runs.settings import Settings, leaves, settings_of
from moecl_jax.runs.workdir import load_settings, save_settings
from moecl_jax.settings import Section, setting

FIELDS = {"source": "jsonl", "train": "a.jsonl", "labels": ("no", "yes")}


def unusual(value: Any) -> Any:
    """Another value of the same type, within any range."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return type(value)(value + 1) if value >= 1 else 0.5 if isinstance(value, float) else 1
    return value


def every_value_changed(method: str) -> Settings:
    content: dict[str, Any] = {}
    for key, value in leaves(Settings(method=method).to_mapping()):
        *path, last = key.split(".")
        section = content
        for name in path:
            section = section.setdefault(name, {})
        section[last] = unusual(value)
    content["evaluation"]["top_p"] = content["ewc"]["decay"] = 0.5
    content["definitions"] = {"spam": FIELDS}
    content["tasks"] = ("spam", "trec")
    return Settings.from_mapping(content)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("make", [lambda method: Settings(method=method), every_value_changed])
def test_settings_survive_their_mapping_json_a_config_and_a_workdir(
    method: str, make: Any, tmp_path: Path
) -> None:
    settings = make(method)
    mapping = settings.to_mapping()
    assert Settings.from_mapping(mapping) == settings
    assert Settings.from_mapping(mapping).to_mapping() == mapping
    assert from_config(to_config(settings)) == settings
    again = Settings.from_mapping(json.loads(json.dumps(mapping)))
    plain = {"spam": FIELDS | {"labels": ["no", "yes"]}} if settings.definitions else {}
    assert again == dataclasses.replace(settings, definitions=plain)
    save_settings(settings, tmp_path)
    assert load_settings(tmp_path) == again
    ours, theirs = settings.method_object(), again.method_object()
    assert (type(ours), ours.lora, ours.options) == (type(theirs), theirs.lora, theirs.options)


def test_what_is_left_out_has_its_default() -> None:
    assert Settings.from_mapping({}) == Settings()
    found = Settings.from_mapping({"lora": {"rank": 2}, "replay": {"memory": 3}})
    assert found.lora == Lora(rank=2)
    assert found.options["replay"] == {"memory": 3, "batch": 4}
    assert found == Settings(lora=Lora(rank=2), options={"replay": {"memory": 3}})
    assert dict(leaves(get_config().to_dict())) == dict(leaves(Settings().to_mapping()))


def test_whole_numbers_stand_for_floats_and_lists_for_tuples() -> None:
    found = Settings.from_mapping(
        {"lora": {"alpha": 2, "targets": ["up_proj"]}, "ewc": {"weight": 3}}
    )
    assert found.lora.targets == ("up_proj",)
    for value, expected in ((found.lora.alpha, 2.0), (found.options["ewc"]["weight"], 3.0)):
        assert (value, type(value)) == (expected, float)


def test_a_section_is_changed_in_part() -> None:
    settings = Settings(model=ModelSettings(path="llama"), lora=Lora(rank=2))
    changed = settings.changed({"model": {"remat": "full"}, "epochs": 5, "lora": Lora(alpha=1.0)})
    assert changed.model == ModelSettings(path="llama", remat="full")
    assert changed.lora == Lora(alpha=1.0)
    assert (changed.epochs, settings.epochs) == (5, 3)
    assert settings.changed({"definitions": {"a": FIELDS}}).definitions == {"a": FIELDS}


def test_a_method_made_in_python_is_what_its_settings_say() -> None:
    method = MoeCl(Lora(rank=2), shared="moving", adversarial=Adversarial(objective="paper"))
    settings = Settings().changed(settings_of(method))
    found = settings.method_object()
    assert (found.lora, found.options) == (method.lora, method.options)
    assert settings.options["adversarial"]["objective"] == "paper"


@dataclasses.dataclass(frozen=True)
class Own(Section):
    KEY: ClassVar[str] = "own"
    strength: float = setting(1.0, least=0)


class OwnReplay(Replay):
    name: ClassVar[str] = "own"
    Options: ClassVar[type[Any]] = Own


class Heir(Replay):
    """Inherits its options, and has them in a section of its own."""

    name: ClassVar[str] = "heir"


def spec_of(method: type[Any]) -> str:
    find_method(method)  # as a trainer that is given the class does
    return f"{method.__module__}:{method.__qualname__}"


def test_a_method_from_outside_has_its_section_and_takes_it_away() -> None:
    spec = spec_of(OwnReplay)
    settings = Settings.from_mapping({"method": spec, "own": {"strength": 2}})
    assert settings.options["own"] == {"strength": 2.0}
    assert settings.method_object().options == Own(2.0)
    assert Settings.from_mapping(settings.to_mapping()) == settings
    assert "own" not in Settings().to_mapping()
    assert settings.changed({"method": "replay"}) == Settings(method="replay")
    assert settings.changed({"method": spec_of(Heir)}).options["heir"] == {"memory": 64, "batch": 4}
    with pytest.raises(UserError, match=r"own\.strength = -1.0 must be at least 0"):
        settings.changed({"own": {"strength": -1.0}})
    with pytest.raises(UserError, match=r"'own\.stength'; did you mean 'own\.strength'"):
        settings.changed({"own": {"stength": 1.0}})


def test_inherited_options_are_named_by_the_heir_s_own_section() -> None:
    with pytest.raises(UserError, match=r"^config: heir\.memory = -1 must be at least 0"):
        Settings.from_mapping({"method": spec_of(Heir), "heir": {"memory": -1}})
    with pytest.raises(UserError, match=r"^config: heir\.memory = -1 must be at least 0"):
        Heir(memory=-1)


@pytest.mark.parametrize("taken", ["lora", "epochs", "definitions", "options"])
def test_a_section_that_is_a_key_already_is_refused(taken: str) -> None:
    method = type("Taken", (OwnReplay,), {"name": taken})
    with pytest.raises(UserError, match=f"method '{taken}': '{taken}' is a config key already"):
        Settings(method=spec_of(method))


def test_a_section_of_another_method_with_other_keys_is_refused() -> None:
    @dataclasses.dataclass(frozen=True)
    class Options:
        adversarial: Own = Own()

    method = type("Clash", (MoeCl,), {"name": "clash", "Options": Options})
    with pytest.raises(UserError, match="method 'clash': 'adversarial' is a config key already"):
        Settings(method=spec_of(method))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist: .* is no workdir"),
        ("{", "is broken: "),
        ("[1]", "is broken: expected an object"),
        ("{}", "is broken: it lacks method, model, seed, tasks. Restore it from a copy"),
        ({"lora": {"rnk": 1}}, r"config\.json: unknown config key 'lora\.rnk'; did you mean"),
        ({"seed": "x"}, r"config\.json: config: seed = 'x' must be a whole number"),
        ({"method": "absent:Gone"}, r"config\.json: .*there is no module 'absent'"),
    ],
)
def test_a_workdir_s_settings_that_cannot_be_read_name_the_file(
    content: str | dict[str, Any] | None, message: str, tmp_path: Path
) -> None:
    if isinstance(content, dict):
        content = json.dumps(Settings().to_mapping() | content)
    if content is not None:
        (tmp_path / "config.json").write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        load_settings(tmp_path)
