"""GGUF files: what is in them arrives exactly, and every mistake is named."""

from array import array
from typing import Any

import gguf
import jax
import ml_dtypes
import numpy as np
import pytest
from backbone_files import (
    EXPECTED_CONFIG,
    Q_PROJ,
    TENSORS,
    assert_holds,
    message_of,
    random_state,
    without,
    write_gguf,
)
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize

from moecl_jax.models.config import DecoderConfig
from moecl_jax.weights.gguf import read_gguf
from moecl_jax.weights.load import Backbone, load_backbone, smollm2_file


@pytest.fixture(name="state")
def fixture_state() -> dict[str, np.ndarray]:
    return random_state()


@pytest.mark.parametrize("encoding", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1"])
def test_gguf_arrives_exactly(tmp_path, state, encoding):
    kind = GGMLQuantizationType[encoding]
    backbone = load_backbone(write_gguf(tmp_path / "m.gguf", state, kind))
    assert backbone.config == EXPECTED_CONFIG
    assert backbone.tokenizer is None
    assert_holds(
        backbone,
        {
            name: dequantize(quantize(value, kind), kind) if value.ndim == 2 else value
            for name, value in state.items()
        },
    )


def test_gguf_without_output_projection_is_tied(tmp_path, state):
    state = without(state, "lm_head.weight")
    backbone = load_backbone(write_gguf(tmp_path / "m.gguf", state), ml_dtypes.bfloat16)
    assert backbone.config.tied_embeddings
    rounded = {k: v if "norm" in k else v.astype(ml_dtypes.bfloat16) for k, v in state.items()}
    assert_holds(backbone, rounded)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"architecture": "qwen2"}, ["general.architecture is 'qwen2'", "Supported: llama"]),
        ({"skip_key": "block_count"}, ["llama.block_count is missing"]),
        ({"skip_key": "context_length"}, ["llama.context_length is missing"]),
        (
            {"skip_key": "attention.layer_norm_rms_epsilon"},
            ["llama.attention.layer_norm_rms_epsilon is missing"],
        ),
        ({"extra_keys": {"attention.head_count": "x"}}, ["head_count is 'x'", "positive integer"]),
        ({"extra_keys": {"attention.head_count_kv": 3}}, ["kv_heads (3) must divide heads (4)"]),
        ({"extra_keys": {"rope.scaling.type": "yarn"}}, ["llama.rope.scaling.type is 'yarn'"]),
        ({"extra_keys": {"expert_count": 8}}, ["llama.expert_count is 8", "not supported yet"]),
        ({"extra_keys": {"rope.dimension_count": 4}}, ["llama.rope.dimension_count is 4", "8"]),
        (
            {"extra_tensors": {"rope_freqs.weight": np.ones(4, np.float32)}},
            ["'rope_freqs.weight'", "not supported yet"],
        ),
        (
            {"extra_tensors": {"blk.0.attn_q.bias": np.ones(32, np.float32)}},
            ["tensor 'blk.0.attn_q.bias' is unexpected"],
        ),
        (
            {"extra_tensors": {"counts": np.ones(4, np.int32)}},
            ["tensor 'counts' is unexpected"],
        ),
    ],
)
def test_bad_gguf_is_named(tmp_path, state, arguments, words):
    message = message_of(write_gguf(tmp_path / "m.gguf", state, **arguments))
    for word in (str(tmp_path / "m.gguf"), *words):
        assert word in message


def test_wrong_gguf_tensors_are_named(tmp_path, state):
    message = message_of(write_gguf(tmp_path / "a.gguf", without(state, Q_PROJ)))
    assert "a.gguf: tensor 'blk.1.attn_q.weight' is missing" in message
    state["model.norm.weight"] = np.ones(31, np.float32)
    message = message_of(write_gguf(tmp_path / "b.gguf", state))
    assert "b.gguf: tensor 'output_norm.weight' has shape [31], expected [32]" in message


def test_damaged_gguf_is_named(tmp_path, state):
    file = write_gguf(tmp_path / "m.gguf", state)
    content = file.read_bytes()
    last = max(gguf.GGUFReader(file).tensors, key=lambda tensor: tensor.data_offset).name
    for kept, words in (
        # Past the last tensor the writer pads to a multiple of 32 bytes.
        (len(content) - 64, ["truncated in tensor", repr(last)]),
        (1000, ["truncated in its header", "it has 1000 bytes"]),
        (0, ["the file is empty"]),
    ):
        file.write_bytes(content[:kept])
        message = message_of(file)
        for word in (str(file), *words):
            assert word in message
    file.write_bytes(b"X" + content[1:])
    assert "not a GGUF file" in message_of(file)
    file.write_bytes(content[:4] + b"\x09" + content[5:])
    assert "GGUF version 9 is not supported; expected 2 or 3" in message_of(file)


@pytest.fixture(name="smollm2", scope="module")
def fixture_smollm2() -> Backbone:
    return load_backbone("smollm2-135m", ml_dtypes.bfloat16)


def test_smollm2_loads(smollm2):
    assert smollm2.config == DecoderConfig(
        vocabulary_size=49152,
        width=576,
        ffn_width=1536,
        layers=30,
        heads=9,
        kv_heads=3,
        head_width=64,
        rope_theta=100000.0,
        norm_epsilon=1e-5,
        tied_embeddings=True,
        context_length=8192,
    )
    assert sum(leaf.size for leaf in jax.tree.leaves(smollm2.params)) == 134_515_008
    assert smollm2.params["layers"]["attention"]["k_proj"]["kernel"].shape == (30, 576, 192)
    assert smollm2.source == "smollm2-135m"


def test_header_is_read_as_the_gguf_package_reads_it():
    metadata, tensors = read_gguf(smollm2_file())
    reader = gguf.GGUFReader(smollm2_file())
    fields = {k: v.contents() for k, v in reader.fields.items() if not k.startswith("GGUF.")}
    metadata = {k: list(v) if isinstance(v, array) else v for k, v in metadata.items()}
    assert metadata == fields
    assert list(tensors) == [tensor.name for tensor in reader.tensors]
    for tensor in reader.tensors:
        assert tensors[tensor.name].shape == tuple(tensor.shape[::-1])
        np.testing.assert_array_equal(
            tensors[tensor.name].stored, tensor.data.ravel().view(np.uint8)
        )


def test_smollm2_is_what_transformers_reads(smollm2, repository):
    """Sums against a ramp, by transformers' own GGUF reader: see the fixture's script."""
    backbone = load_backbone("smollm2-135m")
    assert backbone.fingerprint == smollm2.fingerprint == "473c2b122e5ed4a9"
    oracle = np.load(repository / "tests/fixtures/smollm2_oracle.npz")
    assert len(oracle["parameter_names"]) == 272
    for name, expected in zip(oracle["parameter_names"], oracle["parameter_sums"], strict=True):
        # The first, the second, the last and those outside the layers; all would take seconds.
        if not name.startswith("model.layers.") or name.split(".")[2] in ("0", "1", "29"):
            values = hugging_face_tensor(backbone.params, name).ravel().astype(np.float64)
            found = values @ (np.arange(values.size) / values.size)
            np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-6, err_msg=name)


def hugging_face_tensor(params: dict[str, Any], name: str) -> np.ndarray:
    """One tensor [out, in] of a state dict, by its Hugging Face name."""
    if name == "model.embed_tokens.weight":
        return params["embedder"]["embedding"]
    if name == "model.norm.weight":
        return params["final_norm"]["scale"]
    layer, short = name.removeprefix("model.layers.").removesuffix(".weight").split(".", 1)
    value = params["layers"]
    for key in next(row[1] for row in TENSORS if row[0] == short).split("/"):
        value = value[key]
    return value[int(layer)].T
