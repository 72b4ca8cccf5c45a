"""Thousands of damaged models: each is read, or refused in one line, and never anything else.

The number of cases is `hostile.CASES`.
"""

import json

import numpy as np
import pytest
from backbone_files import Q_PROJ, random_state, write_folder, write_gguf
from family_models import CASES, state_of
from gemma_files import vocabulary, write_gemma
from gguf import GGMLQuantizationType
from hostile import damaged_bytes, damaged_json, read_with, refusal, share
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from moecl_jax.models.attention import rotary_frequencies
from moecl_jax.testing import write_model
from moecl_jax.weights.gguf_file import read_gguf
from moecl_jax.weights.gguf_tokenizer import from_gguf
from moecl_jax.weights.load import load_backbone
from moecl_jax.weights.safetensors_file import open_safetensors

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model without a tokenizer."""
    return write_folder(tmp_path_factory.mktemp("one") / "model", random_state())


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("three") / "model", random_state(), shards=3)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A model with a tokenizer."""
    return write_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory):
    file = tmp_path_factory.mktemp("gguf") / "model.gguf"
    return write_gguf(file, random_state(), GGMLQuantizationType.Q8_0)


def accepted_by_the_package(file):
    try:
        with safe_open(file, framework="numpy"):
            return True
    except Exception:
        return False


def check_safetensors(folder, content):
    file = folder / "model.safetensors"

    def read():
        opened = open_safetensors(file)
        assert accepted_by_the_package(file)
        backbone = load_backbone(folder)
        assert opened.keys() >= {Q_PROJ}
        assert all(np.isfinite(leaf).all() for leaf in _leaves(backbone.params))

    read_with(file, content, read)


def check_config(config):
    """What attention computes from a config that was accepted is finite."""
    for kind in config.attention_kinds:
        assert np.isfinite(rotary_frequencies(config, kind) * np.float32(2**31)).all()
    assert np.isfinite(np.float32([config.attention_scale or 1, config.embedding_scale])).all()


def _leaves(tree):
    return [leaf for v in tree.values() for leaf in (_leaves(v) if isinstance(v, dict) else [v])]


@share(0.15)
@given(st.data())
def test_safetensors_with_other_bytes(folder, data):
    whole = (folder / "model.safetensors").read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    check_safetensors(folder, data.draw(damaged_bytes(whole, header)))


@share(0.11)
@given(st.data())
def test_safetensors_with_other_headers(folder, data):
    whole = (folder / "model.safetensors").read_bytes()
    end = 8 + int.from_bytes(whole[:8], "little")
    header = data.draw(damaged_json(json.loads(whole[8:end]))).encode("utf-8", "ignore")
    check_safetensors(folder, len(header).to_bytes(8, "little") + header + whole[end:])


@share(0.11)
@given(st.data())
def test_config_json(folder, data):
    file = folder / "config.json"
    content = data.draw(damaged_json(json.loads(file.read_text())))
    read_with(file, content, lambda: check_config(load_backbone(folder).config))


@share(0.04)
@given(st.data())
def test_config_json_of_a_model_with_more_keys(folder, data):
    """All families and their keys; the weights are those of a plain Llama."""
    file = folder / "config.json"
    kind = data.draw(
        st.sampled_from(["gemma3_text", "qwen2", "qwen3", "mistral", "hunyuan_v1_dense", "llama"])
    )
    llama3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1, "high_freq_factor": 4}
    more = {
        "model_type": kind,
        "layer_types": ["full_attention", "sliding_attention", "full_attention"],
        "sliding_window": 16,
        "sliding_window_pattern": 2,
        "max_window_layers": 1,
        "use_sliding_window": True,
        "query_pre_attn_scalar": 64,
        "rope_local_base_freq": 1e4,
        "hidden_activation": "gelu_pytorch_tanh",
        "rope_scaling": data.draw(
            st.sampled_from(
                [
                    llama3,
                    {"type": "linear", "factor": 2.0},
                    {"type": "dynamic", "alpha": 1000.0, "factor": 1.0},
                    None,
                ]
            )
        ),
    }
    content = data.draw(damaged_json(json.loads(file.read_text()) | more))
    read_with(file, content, lambda: check_config(load_backbone(folder).config))


@share(0.07)
@given(st.data())
def test_the_index(sharded, data):
    file = sharded / "model.safetensors.index.json"
    content = data.draw(damaged_json(json.loads(file.read_text())))
    read_with(file, content, lambda: load_backbone(sharded))


@pytest.fixture(scope="module")
def gemma_file(tmp_path_factory):
    """A model with a tokenizer."""
    config = CASES["Gemma 3"]
    keys = {"vocab_size": config["vocab_size"], "attention.sliding_window_pattern": 2}
    tokenizer = dict(vocabulary())
    for key in ("tokens", "scores", "token_type"):  # no bytes, so that the file is small
        values = tokenizer[f"tokenizer.ggml.{key}"]
        tokenizer[f"tokenizer.ggml.{key}"] = values[:12] + values[12 + 256 :]
    file = tmp_path_factory.mktemp("gemma") / "model.gguf"
    return write_gemma(file, config, state_of(config), keys=keys, tokenizer=tokenizer)


@share(0.11)
@given(st.data())
def test_gguf_files(gguf_file, gemma_file, data):
    file = data.draw(st.sampled_from([gguf_file, gemma_file]))
    content = data.draw(damaged_bytes(file.read_bytes(), 2_500))
    read_with(file, content, lambda: load_backbone(file))


METADATA = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "gpt-2",
    "tokenizer.ggml.tokens": ["<s>", "</s>", "<tool>", "a", "b", "Ġ", "ab", "Ġab"],
    "tokenizer.ggml.token_type": [3, 3, 4, 1, 1, 1, 1, 1],
    "tokenizer.ggml.merges": ["a b", "Ġ ab"],
    "tokenizer.ggml.bos_token_id": 0,
    "tokenizer.ggml.eos_token_id": 1,
    "tokenizer.ggml.unknown_token_id": 2,
    "tokenizer.ggml.padding_token_id": 1,
    "tokenizer.ggml.add_bos_token": True,
    "tokenizer.chat_template": "{{ messages }}",
}


@share(0.04)
@given(st.data())
def test_tokenizers_of_gguf_files(gguf_file, data):
    text = data.draw(damaged_json(data.draw(st.sampled_from([METADATA, vocabulary()]))))
    try:
        metadata = json.loads(text)
    except (ValueError, RecursionError):
        return  # metadata is no text
    if isinstance(metadata, dict):
        refusal(lambda: from_gguf(metadata, gguf_file))


@share(0.07)
@given(st.data())
def test_tokenizer_folders(tiny, data):
    name = data.draw(st.sampled_from(["tokenizer.json", "tokenizer.json", "tokenizer_config.json"]))
    content = json.loads((tiny / name).read_text())
    if name == "tokenizer.json":
        content |= {
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [{"Sequence": {"id": "A", "type_id": 0}}],
                "pair": [{"Sequence": {"id": "A", "type_id": 0}}],
                "special_tokens": {"<eos>": {"id": "<eos>", "ids": [0], "tokens": ["<eos>"]}},
            },
        }
    read_with(tiny / name, data.draw(damaged_json(content)), lambda: load_backbone(tiny))


def test_the_undamaged_files_are_read(folder, sharded, tiny, gguf_file, gemma_file):
    """After all the damage, which must have been undone."""
    assert load_backbone(folder).fingerprint == load_backbone(sharded).fingerprint
    assert load_backbone(tiny).tokenizer is not None
    assert load_backbone(gemma_file).tokenizer.tokenize("the") == ["t", "he"]
    assert read_gguf(gguf_file)[0]["general.architecture"] == "llama"
