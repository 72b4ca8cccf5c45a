"""PEFT's adapter format: names, checks and their messages, and logits equal to PEFT's own."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from peft_adapters import BASE, random_adapter
from streams import assert_bit_equal

from moecl_jax.errors import UserError
from moecl_jax.interchange.peft import read_adapter, write_adapter
from moecl_jax.testing import write_model
from moecl_jax.weights.load import load_backbone

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
Q_A = "base_model.model.model.layers.{}.self_attn.q_proj.lora_A.weight"
GATE_B = "base_model.model.model.layers.{}.mlp.gate_proj.lora_B.weight"
NOT_PLAIN = "and only a plain LoRA, B A x beside unchanged weights, can be converted. Merge the"


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return load_backbone(write_model(tmp_path_factory.mktemp("base") / "model"))


@pytest.fixture
def folder(tmp_path, backbone):
    """An adapter on q_proj and gate_proj of the tiny model, of two layers."""
    adapter = random_adapter(backbone.config, ("gate_proj", "q_proj"))
    write_adapter(adapter, tmp_path / "adapter")
    return tmp_path / "adapter"


def edit_config(folder, **changes):
    path = folder / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def zeros(*shape):
    return np.zeros(shape, np.float32)


def edit_tensors(folder, edit):
    tensors = safetensors.numpy.load_file(folder / TENSORS)
    edit(tensors)
    safetensors.numpy.save_file(tensors, folder / TENSORS)


def error_of(folder, config):
    with pytest.raises(UserError) as caught:
        read_adapter(folder, config, BASE)
    return str(caught.value)


def test_tensors_have_peft_s_names_and_orientation(folder, backbone):
    tensors = safetensors.numpy.load_file(folder / TENSORS)
    expert = random_adapter(backbone.config, ("gate_proj", "q_proj")).expert
    assert sorted(tensors) == sorted(
        f"base_model.model.model.layers.{layer}.{module}.lora_{factor}.weight"
        for layer in (0, 1)
        for module in ("self_attn.q_proj", "mlp.gate_proj")
        for factor in "AB"
    )
    assert {array.dtype for array in tensors.values()} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(tensors[Q_A.format(1)], expert["q_proj"]["a"][1].T)
    np.testing.assert_array_equal(tensors[GATE_B.format(0)], expert["gate_proj"]["b"][0].T)
    assert tensors[Q_A.format(0)].shape == (4, 32)
    assert tensors[GATE_B.format(0)].shape == (48, 4)


def test_the_config_says_what_peft_s_readers_ask_for(folder):
    content = json.loads((folder / CONFIG).read_text())
    expected = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": BASE,
        "r": 4,
        "lora_alpha": 16,
        "lora_dropout": 0.05,
        "target_modules": ["gate_proj", "q_proj"],
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    assert {key: content[key] for key in expected} == expected
    assert type(content["lora_alpha"]) is int


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="needs /dev/full")
def test_an_adapter_without_room_is_one_line_and_leaves_the_one_before(folder, backbone):
    before = (folder / TENSORS).read_bytes()
    (folder / f"{TENSORS}.part").symlink_to("/dev/full")
    message = f"cannot write the adapter to {folder}: .*No space left on device"
    with pytest.raises(UserError, match=message):
        write_adapter(random_adapter(backbone.config, ("q_proj",)), folder)
    assert (folder / TENSORS).read_bytes() == before
    assert [path.name for path in folder.glob("*.part")] == []


def test_reading_gives_what_was_written(folder, backbone):
    written = random_adapter(backbone.config, ("gate_proj", "q_proj"))
    read = read_adapter(folder, backbone.config, BASE)
    assert (read.base, read.rank, read.lora_alpha, read.dropout) == (BASE, 4, 16.0, 0.05)
    assert_bit_equal(read.expert, written.expert)


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: name.replace(".weight", ".default.weight"),
        lambda name: name.removeprefix("base_model.model."),
        lambda name: name.replace("model.model.layers", "model.layers"),
    ],
    ids=["adapter name", "no prefix", "base without head"],
)
def test_older_names_are_read(folder, backbone, rename):
    before = read_adapter(folder, backbone.config, BASE)
    tensors = safetensors.numpy.load_file(folder / TENSORS)
    renamed = {rename(name): array for name, array in tensors.items()}
    assert not set(renamed) & set(tensors)
    safetensors.numpy.save_file(renamed, folder / TENSORS)
    assert_bit_equal(read_adapter(folder, backbone.config, BASE).expert, before.expert)


@pytest.mark.parametrize(
    "declared", ["all-linear", r".*\.(q|gate)_proj", None, ["self_attn.q_proj"]]
)
def test_the_tensors_tell_what_is_adapted(folder, backbone, declared):
    edit_config(folder, target_modules=declared)
    adapter = read_adapter(folder, backbone.config, BASE)
    assert list(adapter.expert) == ["gate_proj", "q_proj"]


def test_the_scale_of_rslora_becomes_a_plain_one(folder, backbone):
    edit_config(folder, use_rslora=True)
    adapter = read_adapter(folder, backbone.config, BASE)
    assert adapter.lora_alpha / adapter.rank == 16.0 / 4**0.5


def test_half_precision_becomes_float32(folder, backbone):
    before = read_adapter(folder, backbone.config, BASE).expert["q_proj"]["a"]
    edit_tensors(folder, lambda t: t.update({n: a.astype(np.float16) for n, a in t.items()}))
    after = read_adapter(folder, backbone.config, BASE).expert["q_proj"]["a"]
    assert after.dtype == np.float32
    np.testing.assert_array_equal(after, before.astype(np.float16).astype(np.float32))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "LOHA"}, "peft_type is 'LOHA'; only LORA can be converted. Merge the"),
        ({"task_type": "SEQ_CLS"}, "task_type is 'SEQ_CLS'; expected CAUSAL_LM: other adapters"),
        ({"r": 0}, "r is 0; expected an integer of at least 1"),
        ({"r": "8"}, "r is '8'; expected an integer of at least 1"),
        ({"lora_alpha": None}, "lora_alpha is None; expected a number"),
        ({"lora_alpha": 1e300}, "lora_alpha is 1e+300; expected a number below 1e+09"),
        ({"base_model_name_or_path": ["a"]}, "base_model_name_or_path is ['a']; expected a name"),
        ({"x" * 10**5: "y" * 10**5}, "xxx"),
        ({"lora_dropout": 1.0}, "lora_dropout is 1.0; expected at least 0 and below 1"),
        ({"bias": "all"}, f'bias is "all", {NOT_PLAIN}'),
        ({"use_dora": True}, f"use_dora is true, {NOT_PLAIN}"),
        ({"fan_in_fan_out": True}, f"fan_in_fan_out is true, {NOT_PLAIN}"),
        ({"modules_to_save": ["lm_head"]}, f'modules_to_save is ["lm_head"], {NOT_PLAIN}'),
        ({"rank_pattern": {"q_proj": 2}}, f'rank_pattern is {{"q_proj": 2}}, {NOT_PLAIN}'),
        ({"alpha_pattern": {"q_proj": 2}}, f'alpha_pattern is {{"q_proj": 2}}, {NOT_PLAIN}'),
        ({"layer_replication": [[0, 2]]}, f"layer_replication is [[0, 2]], {NOT_PLAIN}"),
        ({"init_lora_weights": "pissa"}, f'init_lora_weights is "pissa", {NOT_PLAIN}'),
        ({"use_something_new": True}, f"use_something_new is true, {NOT_PLAIN}"),
    ],
)
def test_settings_that_are_not_plain_are_named(folder, backbone, changes, message):
    edit_config(folder, **changes)
    assert error_of(folder, backbone.config).startswith(f"{folder / CONFIG}: {message}")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda t: t.pop(Q_A.format(1)),
            f"tensor '{Q_A.format(1)}' is missing. Each adapted projection needs both factors in "
            f"all 2 layers of {BASE}. Name the base that the adapter was trained in; one on some "
            "layers only",
        ),
        (
            lambda t: [t.pop(n) for n in list(t) if "layers.1." in n and "q_proj" in n],
            f"tensor '{Q_A.format(1)}' (and 1 more of q_proj) is missing.",
        ),
        (
            lambda t: [t.pop(name) for name in list(t) if "q_proj" in name],
            f"tensor '{Q_A.format(0)}' (and 3 more of q_proj) is missing.",
        ),
        (
            lambda t: t.update({"base_model.model.lm_head.lora_A.weight": zeros(4, 32)}),
            "tensor 'base_model.model.lm_head.lora_A.weight' has no place here; expected LoRA",
        ),
        (
            lambda t: t.update({Q_A.format(0).replace("self_attn", "mlp"): zeros(4, 32)}),
            "layers.0.mlp.q_proj.lora_A.weight' has no place here",
        ),
        (
            lambda t: t.update({Q_A.format(2): t[Q_A.format(1)]}),
            f"tensor '{Q_A.format(2)}' belongs to layer 2, and {BASE} has 2 layers, counted",
        ),
        (
            lambda t: t.update({Q_A.format(0).replace("A.", "A.default."): t[Q_A.format(0)]}),
            "lora_A.weight' are the same one",
        ),
        (
            lambda t: t.update({Q_A.format(1): zeros(2, 32)}),
            f"tensor '{Q_A.format(1)}' has shape [2, 32], expected [4, 32] for r = 4 of "
            f"{CONFIG}. All projections must have this rank.",
        ),
        (
            lambda t: t.update({GATE_B.format(1): zeros(48, 2)}),
            f"tensor '{GATE_B.format(1)}' has shape [48, 2], expected [48, 4] for r = 4",
        ),
        (
            lambda t: t.update({GATE_B.format(0): zeros(64, 4)}),
            f"tensor '{GATE_B.format(0)}' has shape [64, 4], expected [48, 4] for {BASE}: the "
            f"adapter was trained in another base (it says '{BASE}'). Name that one.",
        ),
    ],
)
def test_wrong_tensors_are_named(folder, backbone, edit, message):
    edit_tensors(folder, edit)
    error = error_of(folder, backbone.config)
    assert error.startswith(f"{folder / TENSORS}: ")
    assert message in error


def test_an_adapter_without_tensors_is_named(folder, backbone):
    edit_config(folder, target_modules="all-linear")
    edit_tensors(folder, lambda tensors: tensors.clear())
    assert "holds no LoRA factors of gate_proj, up_proj" in error_of(folder, backbone.config)


def test_missing_and_broken_files_are_named(folder, backbone):
    config = backbone.config
    whole = (folder / TENSORS).read_bytes()
    (folder / TENSORS).write_bytes(whole[:-100])
    assert f"{folder / TENSORS}: truncated in tensor" in error_of(folder, config)
    (folder / TENSORS).unlink()
    assert f"{folder / TENSORS} does not exist; copy it" in error_of(folder, config)
    (folder / CONFIG).write_text("[]")
    assert f"{folder / CONFIG}: expected a JSON object" in error_of(folder, config)
    (folder / CONFIG).write_text("{")
    assert f"{folder / CONFIG}: not valid JSON (Expecting" in error_of(folder, config)
    (folder / CONFIG).write_text("[" * 10**5)
    assert f"{folder / CONFIG}: not valid JSON (lists and obj" in error_of(folder, config)
    shutil.rmtree(folder)
    assert f"{folder / CONFIG}: no such file. Name the folder" in error_of(folder, config)


@pytest.mark.parametrize("name", [CONFIG, TENSORS])
def test_what_stands_for_a_file_is_named(folder, backbone, name):
    file = folder / name
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    assert error_of(folder, backbone.config).startswith(f"{file}: holds a Git LFS pointer and not")
    file.unlink()
    file.mkdir()
    assert error_of(folder, backbone.config).startswith(f"{file}: is a folder; expected a file")
    file.rmdir()
    file.symlink_to(file)
    assert error_of(folder, backbone.config).startswith(f"{file}: cannot be read (Too many levels")


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_a_number_that_is_not_finite_is_named(folder, backbone, number):
    def spoil(tensors):
        tensors[GATE_B.format(1)][0, 0] = number

    edit_tensors(folder, spoil)
    expected = f"{folder / TENSORS}: tensor {GATE_B.format(1)!r} holds numbers that are not finite"
    assert error_of(folder, backbone.config).startswith(expected)


def test_an_absurd_rank_is_named(folder, backbone):
    edit_config(folder, r=10**9)
    assert "expected [1000000000, 32] for r = 1000000000" in error_of(folder, backbone.config)


def test_a_layer_of_five_thousand_digits_is_no_layer(folder, backbone):
    edit_tensors(folder, lambda t: t.update({Q_A.format("1" * 5000): zeros(4, 32)}))
    message = error_of(folder, backbone.config)
    assert "has no place here; expected LoRA factors" in message
    assert len(message) < 1000


def test_a_pickled_adapter_is_never_read(folder, backbone):
    (folder / TENSORS).rename(folder / "adapter_model.bin")
    error = error_of(folder, backbone.config)
    assert error.startswith(f"{folder / 'adapter_model.bin'} is a pickle, which can run code")
    assert "safe_serialization=True" in error
