"""A model family of a user's own: named or passed, checked, and read like a built-in one."""

import dataclasses
import json
import pkgutil
import sys

import jax
import numpy as np
import pytest
from backbone_files import random_state, without, write_folder, write_gguf

from moecl_jax.errors import UserError
from moecl_jax.testing import write_model
from moecl_jax.weights import families
from moecl_jax.weights.families import FAMILIES, Family, register
from moecl_jax.weights.families.llama import Llama
from moecl_jax.weights.load import load_backbone, load_model

SOURCE = '''
from moecl_jax.weights.families import Family
from moecl_jax.weights.families.llama import Llama


class Own(Llama):
    """A Llama whose config.json need not say its context."""

    model_type = "own"
    defaults = {"max_position_embeddings": 77}


class Nameless(Family):
    qk_norm = "before_rotary"


class Unsure(Llama):
    model_type = "unsure"
    qk_norm = "sometimes"


class Misnamed(Llama):
    model_type = "misnamed"
    tensors = {("layers", "attention", "q_norm"): "q"}


class Other:
    pass
'''


@pytest.fixture
def user_module(tmp_path, monkeypatch):
    """A user's file in the working directory, by the name of its module."""
    (tmp_path / "own_family.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield "own_family"
    sys.modules.pop("own_family", None)


@pytest.fixture
def registry():
    before = dict(FAMILIES)
    yield FAMILIES
    FAMILIES.clear()
    FAMILIES.update(before)


def change_config(folder, **changes):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return folder


@pytest.mark.parametrize("model_type", ["own", "mistral", None])
def test_a_family_in_a_users_file_reads_any_folder(tmp_path, user_module, model_type):
    llama = load_model(write_model(tmp_path / "llama"), dtype="float32")
    folder = change_config(write_model(tmp_path / "own"), model_type=model_type)
    named = load_model(folder, dtype="float32", family=f"{user_module}:Own")
    passed = load_model(folder, dtype="float32", family=sys.modules[user_module].Own)
    for model in (named, passed):
        assert model.sizes == dataclasses.replace(llama.sizes, context_length=77)
        jax.tree.map(np.testing.assert_array_equal, model.params, llama.params)
    assert named.fingerprint == passed.fingerprint != llama.fingerprint
    assert sys.modules[user_module].Own.model_type not in FAMILIES


def test_messages_name_the_family_of_a_user(tmp_path, user_module):
    state = random_state()
    del state["lm_head.weight"]
    folder = write_folder(tmp_path / "m", state | {"extra": state["model.norm.weight"]})
    change_config(folder, tie_word_embeddings=True)
    with pytest.raises(UserError, match="'extra' is unexpected: a own model of 3 layers"):
        load_backbone(folder, family=f"{user_module}:Own")


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ("Own", 'expected "package.module:Class"'),
        ("no_such_file:Own", "there is no module 'no_such_file'"),
        ("own_family:Missing", r"own_family.py has no 'Missing'. It has: Own, Nameless"),
        ("own_family:Other", "Other does not inherit from moecl_jax.weights.families.base.Family"),
        ("own_family:Nameless", "the class Nameless lacks model_type"),
        ("own_family:Unsure", "Unsure.qk_norm is 'sometimes'; expected one of 'none', 'before_"),
        ("own_family:Misnamed", r"Misnamed.tensors has \('layers', 'attention', 'q_norm'\), which"),
    ],
)
@pytest.mark.usefixtures("user_module")
def test_an_unusable_family_is_refused(named, message):
    """Before anything is read: there is no such folder."""
    with pytest.raises(UserError, match=f"^model family '{named}': .*{message}"):
        load_backbone("no_such_folder", family=named)


def test_the_documented_family_is_read(tmp_path, repository, user_module):
    page = repository / "docs" / "developer" / "adding_a_family.md"
    document = page.read_text(encoding="utf-8")
    example = document.split("```python\n")[1].split("```")[0]
    (tmp_path / f"{user_module}.py").write_text(example)
    state = {
        name.replace("post_attention_layernorm", "second_norm"): values
        for name, values in random_state().items()
    }
    for layer in range(3):
        for name, size in (("q", 32), ("k", 16), ("v", 16)):
            bias = np.full(size, layer, np.float32)
            state[f"model.layers.{layer}.self_attn.{name}_proj.bias"] = bias
    folder = write_folder(tmp_path / "m", state, model_type="my_llama", rms_norm_eps=None)
    backbone = load_backbone(folder, family=f"{user_module}:MyLlama")
    assert backbone.config.attention_bias == ("q_proj", "k_proj", "v_proj")
    biases = backbone.params["layers"]["attention"]["k_proj"]["bias"]
    np.testing.assert_array_equal(biases[:, 0], [0, 1, 2])


def test_what_is_passed_must_be_a_family():
    for wrong in (3, Llama(), dict):
        with pytest.raises(UserError, match=r"^model family: "):
            load_backbone("no_such_folder", family=wrong)


def test_a_registered_family_is_found_by_model_type(tmp_path, registry):
    folder = change_config(write_model(tmp_path / "m"), model_type="mine")
    with pytest.raises(UserError, match="model_type is 'mine', which is not supported"):
        load_backbone(folder)
    for _ in range(2):  # as when a notebook's cell is run again

        @register
        class Mine(Llama):
            model_type = "mine"
            gguf_architecture = "mine"

    assert registry["mine"] is Mine
    assert load_backbone(folder).config == load_backbone(folder, family=Llama).config
    state = without(random_state(), "lm_head.weight")
    file = write_gguf(tmp_path / "m.gguf", state)
    assert load_backbone(file).fingerprint == load_backbone(file, family=Llama).fingerprint
    with pytest.raises(UserError, match="'llama', and the gguf_architecture of the family mine is"):
        load_backbone(file, family=Mine)


def test_a_family_without_a_gguf_architecture_reads_no_gguf(tmp_path, user_module):
    """It is not inherited: what a Llama with a difference computes is not in that reader."""
    file = write_gguf(tmp_path / "m.gguf", random_state())
    with pytest.raises(UserError, match=r"m.gguf: the family own is not read from GGUF files"):
        load_backbone(file, family=f"{user_module}:Own")


@pytest.mark.parametrize("attribute", ["model_type", "gguf_architecture"])
def test_a_name_is_given_once(registry, attribute):
    attributes = {"model_type": "mine"} | {attribute: "llama"}
    with pytest.raises(UserError, match=f"Mine and Llama both have the {attribute} 'llama'"):
        register(type("Mine", (Family,), attributes))
    assert registry["llama"] is Llama


def test_a_family_is_found_by_being_there():
    shared = {"base", "rope", "values"}
    files = {module.name for module in pkgutil.iter_modules(families.__path__)} - shared
    assert files == {family.__module__.rsplit(".")[-1] for family in FAMILIES.values()}
    assert all(name == family.model_type for name, family in FAMILIES.items())
