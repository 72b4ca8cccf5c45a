"""GGUF files: what is in them arrives exactly, and every mistake is named."""

import struct
import tracemalloc
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

from moecl_jax.errors import UserError
from moecl_jax.models.config import DecoderConfig
from moecl_jax.weights.gguf_file import read_gguf
from moecl_jax.weights.load import Backbone, load_backbone
from moecl_jax.weights.packaged import packaged_file


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


def test_a_tensor_is_the_same_in_pieces(tmp_path, state, monkeypatch):
    whole = load_backbone(write_gguf(tmp_path / "m.gguf", state, GGMLQuantizationType.Q4_1))
    monkeypatch.setattr("moecl_jax.weights.gguf_file._PIECE", 3 * 32)
    pieces = load_backbone(tmp_path / "m.gguf")
    jax.tree.map(np.testing.assert_array_equal, pieces.params, whole.params)


def test_the_first_of_several_damaged_tensors_is_named(tmp_path, state):
    damaged = [name for name in state if state[name].ndim == 2]
    for name in damaged:
        state[name][-1, -1] = np.nan
    file = write_gguf(tmp_path / "m.gguf", state)
    for _ in range(5):
        assert "tensor 'token_embd.weight' holds" in message_of(file)


def test_gguf_without_output_projection_is_tied(tmp_path, state):
    state = without(state, "lm_head.weight")
    backbone = load_backbone(write_gguf(tmp_path / "m.gguf", state), ml_dtypes.bfloat16)
    assert backbone.config.tied_embeddings
    rounded = {k: v if "norm" in k else v.astype(ml_dtypes.bfloat16) for k, v in state.items()}
    assert_holds(backbone, rounded)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            {"architecture": "qwen2"},
            ["general.architecture is 'qwen2'", "Supported: gemma3, llama"],
        ),
        ({"skip_key": "block_count"}, ["llama.block_count is missing"]),
        ({"skip_key": "context_length"}, ["llama.context_length is missing"]),
        (
            {"skip_key": "attention.layer_norm_rms_epsilon"},
            ["llama.attention.layer_norm_rms_epsilon is missing"],
        ),
        ({"extra_keys": {"attention.head_count": "x"}}, ["head_count is 'x'", "positive integer"]),
        ({"extra_keys": {"attention.head_count_kv": 3}}, ["kv_heads (3) must divide heads (4)"]),
        ({"extra_keys": {"rope.scaling.type": "yarn"}}, ["llama.rope.scaling.type is 'yarn'"]),
        (
            {"extra_keys": {"block_count": 10_000_000}},
            ["llama.block_count is 10000000; expected one positive integer, at most 10000"],
        ),
        ({"extra_keys": {"block_count": 9_999}}, ["missing", "in a model of 9999 layers"]),
        ({"extra_keys": {"context_length": 2**31}}, ["llama.context_length is 2147483648"]),
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


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def header(keys: dict[str, tuple[int, bytes]], tensors: int = 0) -> bytes:
    """A header with these keys, each a type and the bytes of its value."""
    content = b"GGUF" + struct.pack("<IQQ", 3, tensors, len(keys))
    return content + b"".join(
        text(key) + struct.pack("<I", kind) + value for key, (kind, value) in keys.items()
    )


def array_of(kind: int, length: int, content: bytes = b"") -> tuple[int, bytes]:
    return 9, struct.pack("<IQ", kind, length) + content


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            header({"a": array_of(9, 1, array_of(9, 1)[1] * 5000)}),
            "metadata key 'a' is an array of arrays, before byte 49. The file is damaged",
        ),
        (
            header({"a": array_of(77, 1)}),
            "metadata key 'a' is an array of the unknown type 77, before byte 49",
        ),
        (header({"a": (77, b"1")}), "metadata key 'a' has the unknown type 77, before byte 37"),
        (
            header({"a": array_of(8, 2**60)}),
            "truncated in its header: it has 49 bytes, expected at",
        ),
        (
            header({"a": array_of(5, 2**63)}),
            "truncated in its header: it has 49 bytes, expected at",
        ),
        (header({"a": (8, b"\xff" * 8)}), "truncated in its header: it has 45 bytes"),
        (header({}, tensors=2**62), "truncated in its header: it has 24 bytes, expected at least"),
        (
            header({"a": (8, struct.pack("<Q", 2) + b"\xff\xfe")}),
            "a string is not UTF-8, before byte 47",
        ),
        (
            header({"a": (0, b"1"), "b": (0, b"1")}).replace(b"b", b"a"),
            "metadata key 'a' is there twice, before byte 47",
        ),
        (
            header({"general.alignment": (4, struct.pack("<I", 48))}),
            "general.alignment is 48; expected a power of two",
        ),
        (
            header({}, tensors=1) + text("w") + struct.pack("<I", 2**31) + bytes(99),
            "tensor 'w' has 2147483648 axes, not 1 to 4, before byte 37",
        ),
        (
            header({}, tensors=1) + text("w") + struct.pack("<IQIQ", 1, 4, 0, 32) + bytes(99),
            "tensor 'w' begins at byte 32 of the data; expected 0",
        ),
        (
            header({}, tensors=1) + text("w") + struct.pack("<IQIQ", 1, 0, 0, 0) + bytes(99),
            "tensor 'w' has shape [0], but F32 stores rows in blocks of 1 numbers",
        ),
    ],
)
def test_damaged_headers_are_named(tmp_path, content, words):
    file = tmp_path / "m.gguf"
    file.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_gguf(file)
    assert str(caught.value).startswith(f"{file}: {words}")
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("kind", range(13))
def test_a_header_takes_less_memory_than_ten_times_the_file(tmp_path, kind):
    """Arrays of every type, as long as the file allows and of what takes most."""
    sizes = "BbHhIif???Qqd"  # struct's letters in the order of the types
    item = text("\u0100") if kind == 8 else b"\x81" * struct.calcsize(sizes[kind])
    items = [item] * 200_000
    file = tmp_path / "m.gguf"
    file.write_bytes(header({"a": array_of(kind, len(items), b"".join(items))}))
    tracemalloc.start()
    try:
        if kind == 9:
            with pytest.raises(UserError, match="is an array of arrays"):
                read_gguf(file)
        else:
            assert len(read_gguf(file)[0]["a"]) == len(items)
        assert tracemalloc.get_traced_memory()[1] < 10 * file.stat().st_size
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("part", [1, 2])
def test_a_part_of_a_model_is_named(tmp_path, part):
    """The second part of a split file has no other metadata than this."""
    split = {"split.no": (2, struct.pack("<H", part - 1)), "split.count": (2, b"\x03\x00")}
    file = tmp_path / f"model-0000{part}-of-00003.gguf"
    file.write_bytes(header(split))
    assert message_of(file).startswith(
        f"{file}: is part {part} of 3 files of one model, which are read only when joined. Join "
        "them with llama.cpp, beginning at the first: llama-gguf-split --merge "
        "model-00001-of-00003.gguf joined.gguf"
    )


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
    metadata, tensors = read_gguf(packaged_file("smollm2-135m"))
    reader = gguf.GGUFReader(packaged_file("smollm2-135m"))
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
