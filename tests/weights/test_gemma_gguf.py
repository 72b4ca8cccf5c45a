"""Gemma 3 from GGUF: what is in the file arrives, as it does from a folder."""

import jax
import numpy as np
import pytest
from backbone_files import message_of
from family_models import CASES, state_of, write_folder
from gemma_files import write_gemma
from gguf import GGMLQuantizationType

from moecl_jax.models.config import AttentionKind, RotaryScaling
from moecl_jax.weights.families.gemma3 import Gemma3
from moecl_jax.weights.load import load_backbone

# llama.cpp scales attention by the width of a head, whatever config.json said.
TINY = CASES["Gemma 3"] | {"query_pre_attn_scalar": 16}
PATTERN = {"attention.sliding_window_pattern": 2, "rope.freq_base_swa": 50.0}
ROWS = {"vocab_size": TINY["vocab_size"]}

# As Q4_K_M stores the real model.
ENCODINGS = {
    "token_embd": GGMLQuantizationType.Q8_0,
    "attn_q": GGMLQuantizationType.Q5_0,
    "attn_k": GGMLQuantizationType.Q5_0,
    "attn_v": GGMLQuantizationType.Q8_0,
    "attn_output": GGMLQuantizationType.Q4_K,
    "ffn_gate": GGMLQuantizationType.Q5_0,
    "ffn_up": GGMLQuantizationType.Q4_K,
    "ffn_down": GGMLQuantizationType.Q6_K,
}


def test_the_file_gives_what_the_folder_gives(tmp_path):
    """The folder's logits are those of transformers' model: see test_families.py."""
    folder = load_backbone(write_folder(tmp_path / "model", TINY))
    file = write_gemma(tmp_path / "m.gguf", TINY, state_of(TINY), keys=PATTERN | ROWS)
    backbone = load_backbone(file)
    assert backbone.config == folder.config
    # A norm's scale is rounded once more on its way through w.
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=2e-7)  # noqa: E731
    jax.tree.map(close, backbone.params, folder.params)
    kernels = {
        "file": backbone.params["layers"]["attention"],
        "folder": folder.params["layers"]["attention"],
    }
    for name in ("q_proj", "k_proj"):  # nothing is permuted
        np.testing.assert_array_equal(*(each[name]["kernel"] for each in kernels.values()))


def test_a_file_that_says_little_has_the_defaults_of_the_architecture(tmp_path):
    file = write_gemma(tmp_path / "m.gguf", TINY, state_of(TINY), keys=ROWS)
    config = load_backbone(file).config
    assert config.attention_kinds == (AttentionKind(3, 10_000.0),)  # every sixth would be full
    assert (config.rope_theta, config.activation, config.qk_norm) == (
        5000.0,
        "gelu_tanh",
        "before_rotary",
    )
    assert config.post_norms and config.tied_embeddings and config.attention_scale == 0.25
    assert config.embedding_scale == 32**0.5


def test_a_file_without_a_window_has_full_layers_alone(tmp_path):
    keys = ROWS | {"attention.sliding_window": None}
    config = load_backbone(write_gemma(tmp_path / "m.gguf", TINY, state_of(TINY), keys=keys)).config
    assert config.attention_kinds == (AttentionKind(),) and config.layer_kinds == ()


@pytest.mark.parametrize("said", [{"rope.scaling.type": "linear"}, {}])
def test_a_factor_stretches_the_full_layers(tmp_path, said):
    """As in the models of 4B and more; llama.cpp's scaling is linear where no type is said."""
    keys = PATTERN | ROWS | said | {"rope.scaling.factor": 8.0}
    config = load_backbone(write_gemma(tmp_path / "m.gguf", TINY, state_of(TINY), keys=keys)).config
    assert config.attention_kinds == (
        AttentionKind(scaling=RotaryScaling(8.0)),
        AttentionKind(3, 50.0),
    )
    keys = keys | {"rope.scaling.type": "none"}
    other = write_gemma(tmp_path / "n.gguf", TINY, state_of(TINY), keys=keys)
    assert load_backbone(other).config.attention_kinds[0] == AttentionKind()


def test_attention_of_the_largest_model_has_another_scale():
    """27B: width 5376 over 32 heads of width 128."""
    sizes = {"num_attention_heads": 32, "hidden_size": 5376, "head_dim": 128, "sliding_window": 4}
    for layers, scalar in ((62, 168), (48, 128)):
        values = Gemma3().from_gguf(sizes | {"num_hidden_layers": layers})
        assert values["query_pre_attn_scalar"] == scalar


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"final_logit_softcapping": 30.0}, "gemma3.final_logit_softcapping is 30.0, which is not"),
        ({"attn_logit_softcapping": 50.0}, "gemma3.attn_logit_softcapping is 50.0, which is not"),
        ({"attention.sliding_window": 0}, "sliding_window is 0; expected one positive integer"),
        ({"attention.sliding_window": "x"}, "gemma3.attention.sliding_window is 'x'; expected"),
        ({"attention.sliding_window_pattern": 0}, "sliding_window_pattern is 0; expected one"),
        ({"rope.freq_base_swa": 0.5}, "gemma3.rope.freq_base_swa is 0.5; expected one positive"),
        ({"rope.scaling.factor": 0.5}, "gemma3.rope.scaling.factor is 0.5; expected one positive"),
        ({"rope.scaling.type": "yarn"}, "gemma3.rope.scaling.type is 'yarn', which is not"),
        ({"vocab_size": None}, "the metadata key gemma3.vocab_size is missing"),
        ({"vocab_size": 60}, "tensor 'token_embd.weight' has shape [61, 32], expected [60, 32]"),
        ({"attention.key_length": 8}, "attention.value_length is 16, which is not supported"),
    ],
)
def test_what_is_not_implemented_is_refused(tmp_path, keys, words):
    file = write_gemma(tmp_path / "m.gguf", TINY, state_of(TINY), keys=PATTERN | ROWS | keys)
    message = message_of(file)
    assert message.startswith(f"{file}: ") and words in message


@pytest.mark.parametrize("lost", ["attn_q_norm", "post_ffw_norm"])
def test_a_norm_that_is_missing_is_named(tmp_path, lost):
    names = {"attn_q_norm": "self_attn.q_norm", "post_ffw_norm": "post_feedforward_layernorm"}
    state = {k: v for k, v in state_of(TINY).items() if f"1.{names[lost]}" not in k}
    message = message_of(write_gemma(tmp_path / "m.gguf", TINY, state, keys=PATTERN | ROWS))
    assert f"tensor 'blk.1.{lost}.weight' is missing" in message


# Quantised tensors, against the block formats as ggml-quants.c of llama.cpp has them.


def half(block: bytes) -> float:
    return float(np.frombuffer(block, np.float16)[0])


def numbers_of_q8_0(block: bytes) -> list[float]:
    """A scale, and 32 numbers of 8 bits."""
    return [half(block[:2]) * value for value in np.frombuffer(block[2:], np.int8).tolist()]


def numbers_of_q5_0(block: bytes) -> list[float]:
    """A scale, the fifth bits of 32 numbers, and their lower four: those of two in a byte."""
    high = int.from_bytes(block[2:6], "little")
    low = [byte & 15 for byte in block[6:]] + [byte >> 4 for byte in block[6:]]
    return [half(block[:2]) * ((low[place] | (high >> place & 1) << 4) - 16) for place in range(32)]


def numbers_of_q4_k(block: bytes) -> list[float]:
    """Two scales, eight pairs of six bits in twelve bytes, and 8 groups of 32 numbers of four."""
    scale, least, packed, low = half(block[:2]), half(block[2:4]), block[4:16], block[16:]
    numbers = []
    for group in range(8):
        if group < 4:
            factor, minimum = packed[group] & 63, packed[group + 4] & 63
        else:
            factor = packed[group + 4] & 15 | packed[group - 4] >> 6 << 4
            minimum = packed[group + 4] >> 4 | packed[group] >> 6 << 4
        for place in range(32):
            byte = low[group // 2 * 32 + place]
            value = byte >> 4 if group % 2 else byte & 15
            numbers.append(scale * factor * value - least * minimum)
    return numbers


def numbers_of_q6_k(block: bytes) -> list[float]:
    """Lower four bits, upper two bits, sixteen scales of eight bits, and a scale of theirs."""
    low, high = block[:128], block[128:192]
    factors, scale = np.frombuffer(block[192:208], np.int8).tolist(), half(block[208:])
    numbers = []
    for half_block in range(2):
        for quarter in range(4):
            for place in range(32):
                byte = low[64 * half_block + 32 * (quarter % 2) + place]
                bits = high[32 * half_block + place] >> 2 * quarter & 3
                value = (byte >> 4 if quarter > 1 else byte & 15) | bits << 4
                factor = factors[8 * half_block + 2 * quarter + place // 16]
                numbers.append(scale * factor * (value - 32))
    return numbers


BLOCKS = {
    "Q8_0": (34, numbers_of_q8_0, [0]),
    "Q5_0": (22, numbers_of_q5_0, [0]),
    "Q4_K": (144, numbers_of_q4_k, [0, 2]),
    "Q6_K": (210, numbers_of_q6_k, [208]),
}


def random_blocks(encoding: str, rows: int, blocks: int, seed: int) -> np.ndarray:
    """Rows of blocks whose bits are random, and whose scales are small numbers."""
    size, _, scales = BLOCKS[encoding]
    generator = np.random.default_rng(seed)
    content = generator.integers(0, 256, (rows, blocks, size), np.uint8)
    for begin in scales:
        numbers = generator.uniform(-0.01, 0.01, (rows, blocks, 1)).astype(np.float16)
        content[..., begin : begin + 2] = numbers.view(np.uint8)
    return content.reshape(rows, -1)


def decoded(encoding: str, rows: np.ndarray) -> np.ndarray:
    """The numbers of rows of blocks, one block after the other."""
    size, numbers_of, _ = BLOCKS[encoding]
    return np.array(
        [
            [n for begin in range(0, len(row), size) for n in numbers_of(row[begin : begin + size])]
            for row in (row.tobytes() for row in rows)
        ],
        np.float32,
    )


PLACES = {
    "attn_q": "attention/q_proj",
    "attn_k": "attention/k_proj",
    "attn_v": "attention/v_proj",
    "attn_output": "attention/o_proj",
    "ffn_gate": "feed_forward/gate_proj",
    "ffn_up": "feed_forward/up_proj",
    "ffn_down": "feed_forward/down_proj",
}


def test_every_type_of_the_real_model_arrives(tmp_path):
    config = TINY | {"hidden_size": 256, "intermediate_size": 256, "head_dim": 64}
    state, raw = state_of(config), {}
    for seed, (target, kind) in enumerate(ENCODINGS.items()):
        rows = {"attn_k": 64, "attn_v": 64, "token_embd": 61}.get(target, 256)
        blocks = 1 if kind.name.endswith("_K") else 8  # of 256 numbers, or of 32
        layers = ["token_embd"] if target == "token_embd" else [f"blk.{n}.{target}" for n in (0, 2)]
        for name in layers:
            raw[f"{name}.weight"] = random_blocks(kind.name, rows, blocks, seed)
    for target in ("attn_output", "ffn_up", "ffn_down"):  # types that gguf cannot quantise to
        kind = ENCODINGS[target].name
        raw[f"blk.1.{target}.weight"] = random_blocks(kind, 256, 1, seed=99)
    file = write_gemma(
        tmp_path / "m.gguf", config, state, keys=PATTERN | ROWS, encodings=ENCODINGS, raw=raw
    )
    params = load_backbone(file).params
    for name, rows in raw.items():
        target = name.split(".")[-2]
        numbers = decoded(ENCODINGS[target].name, rows)
        if target == "token_embd":
            found = params["embedder"]["embedding"]
        else:
            room, projection = PLACES[target].split("/")
            found = params["layers"][room][projection]["kernel"][int(name.split(".")[1])].T
        np.testing.assert_allclose(found, numbers, rtol=1e-6, atol=1e-7, err_msg=name)
        assert np.abs(numbers).max() > 0.01
    # What the gguf package has quantised is as near as the type allows, and norms are as written.
    for name, target, steps in (("q_proj", "attn_q", 16), ("v_proj", "attn_v", 127)):
        weight = state[f"model.layers.1.self_attn.{name}.weight"]
        found = params["layers"]["attention"][name]["kernel"][1].T
        largest = np.abs(weight).reshape(-1, 32).max(1).repeat(32).reshape(weight.shape)
        assert (np.abs(found - weight) <= 1.01 * largest / steps).all(), target
    norm = state["model.layers.1.post_feedforward_layernorm.weight"]
    scale = params["layers"]["feed_forward_output_norm"]["scale"][1]
    np.testing.assert_allclose(scale, 1 + norm, rtol=0, atol=2e-7)
