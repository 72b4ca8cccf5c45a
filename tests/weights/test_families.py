"""Model families: equal to transformers' torch models, whatever config.json calls things."""

import dataclasses
import functools
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from backbone_files import random_state
from backbone_files import write_folder as write_llama
from family_models import (
    CASES,
    LENGTHS,
    Results,
    parity,
    parse_config,
    run,
    text,
    texts_logits,
    with_lora,
    write_folder,
)
from flax import traverse_util

from moecl_jax.errors import UserError
from moecl_jax.kernels import as_bits
from moecl_jax.models.attention import (
    attention_context,
    cached_attention_context,
    rotary_frequencies,
)
from moecl_jax.models.config import AttentionKind, DecoderConfig, RotaryScaling
from moecl_jax.models.decoder import Decoder, empty_cache
from moecl_jax.weights.families import FAMILIES
from moecl_jax.weights.load import load_backbone

# A third of the time; the same arithmetic.
QUICK_COMPILATION = {"xla_backend_optimization_level": 0}

FILE = Path("model/config.json")
SLIDES = [case for case in CASES if any(word in case for word in ("Mistral", "window", "Gemma"))]


@functools.cache
def loaded(case):
    with tempfile.TemporaryDirectory() as folder:
        return load_backbone(write_folder(Path(folder) / "model", CASES[case]))


@functools.cache
def found(case):
    return run(loaded(case), QUICK_COMPILATION)


@pytest.fixture(scope="module")
def shipped():
    return dict(np.load(Path(__file__).parents[1] / "fixtures" / "families.npz"))


@pytest.mark.parametrize("case", CASES)
def test_logits_and_gradients_equal_those_of_transformers(shipped, case):
    values = {k.split("/")[1]: v for k, v in shipped.items() if k.split("/")[0] == case}
    measured = parity(found(case), Results(values.pop("logits"), values))
    assert max(measured) <= 1e-5, measured


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore:.*rope_parameters")
@pytest.mark.parametrize("case", CASES)
def test_a_folder_that_transformers_saved_gives_what_torch_gives(tmp_path, case):
    from oracles.family_oracle import torch_model, torch_results

    model = torch_model(CASES[case])
    model.save_pretrained(tmp_path)
    saved, written = load_backbone(tmp_path), loaded(case)
    assert saved.config == written.config
    # The architecture and the bytes of every tensor: so what the other folder gives holds here.
    assert saved.fingerprint == written.fingerprint
    measured = parity(found(case), torch_results(model))
    assert max(measured) <= 1e-5, measured


@pytest.mark.parametrize("case", SLIDES)
def test_a_cache_gives_what_the_whole_text_gives(shipped, case):
    backbone = loaded(case)
    decoder, adapter = with_lora(backbone.config)
    split, length = 3, LENGTHS[0]
    tokens, positions = text(0)[None], np.arange(length, dtype=np.int32)[None]

    @functools.partial(jax.jit, compiler_options=QUICK_COMPILATION)
    def decode(params, tokens, positions, cache):
        variables = {"params": params}
        hidden, cache = decoder.apply(variables, tokens, positions, cache, adapter, method="decode")
        return decoder.apply(variables, hidden, method="logits"), cache

    cache = empty_cache(backbone.config, 1, length + 2, jnp.float32)
    parts = []
    for begin, end in [(0, split), *((at, at + 1) for at in range(split, length))]:
        where = slice(begin, end)
        logits, cache = decode(backbone.params, tokens[:, where], positions[:, where], cache)
        parts.append(logits)
    whole = shipped[f"{case}/logits"][:length]
    np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize("case", ["Qwen2", "Gemma 3"])
def test_weights_stored_as_bits_give_the_same_bits(tmp_path, case):
    backbone = load_backbone(write_folder(tmp_path / "model", CASES[case]), jnp.bfloat16)
    decoder, adapter = with_lora(backbone.config, jnp.bfloat16)
    stored = jax.tree.map(jnp.asarray, backbone.params)
    apply = functools.partial(texts_logits, decoder, packed=True)
    run = jax.jit(apply, compiler_options=QUICK_COMPILATION)
    logits = run(stored, adapter)
    np.testing.assert_array_equal(logits, run(as_bits(stored), adapter))
    assert np.abs(logits - found(case).packed.logits).max() < 0.3


def test_the_documented_table_has_every_case(repository):
    table = (repository / "docs" / "notes" / "parity.md").read_text(encoding="utf-8")
    for case, config in CASES.items():
        assert f"| {case} | `{config['model_type']}` |" in table


def test_the_program_does_not_grow_with_depth():
    """Neither plain nor with two kinds of layers."""
    for case in ("Llama 2", "Gemma 3"):
        config = loaded(case).config
        programs = []
        for layers in (3, 12):
            kinds = config.layer_kinds * (layers // 3)
            deep = dataclasses.replace(config, layers=layers, layer_kinds=kinds)
            decoder, adapter = with_lora(deep)
            params = abstract_params(deep)
            traced = jax.make_jaxpr(functools.partial(texts_logits, decoder, packed=True))
            programs.append(str(traced(params, adapter)).count(" = "))
        assert programs[0] == programs[1]


def abstract_params(config):
    ids, membership = jnp.zeros((1, 2), jnp.int32), jnp.zeros((1, 2))
    init = functools.partial(Decoder(config).init, jax.random.key(0))
    return jax.eval_shape(init, ids, ids, ids, ids, membership)["params"]


# What the published config.json files hold, less what is no part of the architecture.
PUBLISHED = {
    "Llama-2-7B": (
        {
            "model_type": "llama",
            "hidden_act": "silu",
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "max_position_embeddings": 4096,
            "num_attention_heads": 32,
            "num_hidden_layers": 32,
            "num_key_value_heads": 32,
            "pretraining_tp": 1,
            "rms_norm_eps": 1e-5,
            "rope_scaling": None,
            "tie_word_embeddings": False,
            "vocab_size": 32000,
        },
        6_738_415_616,
    ),
    "Llama-3.1-8B": (
        {
            "model_type": "llama",
            "attention_bias": False,
            "hidden_act": "silu",
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "max_position_embeddings": 131072,
            "mlp_bias": False,
            "num_attention_heads": 32,
            "num_hidden_layers": 32,
            "num_key_value_heads": 8,
            "pretraining_tp": 1,
            "rms_norm_eps": 1e-5,
            "rope_scaling": {
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
                "rope_type": "llama3",
            },
            "rope_theta": 500000.0,
            "tie_word_embeddings": False,
            "vocab_size": 128256,
        },
        8_030_261_248,
    ),
    "Mistral-7B-v0.1": (
        {
            "model_type": "mistral",
            "hidden_act": "silu",
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "max_position_embeddings": 32768,
            "num_attention_heads": 32,
            "num_hidden_layers": 32,
            "num_key_value_heads": 8,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "sliding_window": 4096,
            "tie_word_embeddings": False,
            "vocab_size": 32000,
        },
        7_241_732_096,
    ),
    "Qwen2-7B": (
        {
            "model_type": "qwen2",
            "hidden_act": "silu",
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "max_position_embeddings": 131072,
            "max_window_layers": 28,
            "num_attention_heads": 28,
            "num_hidden_layers": 28,
            "num_key_value_heads": 4,
            "rms_norm_eps": 1e-6,
            "rope_theta": 1000000.0,
            "sliding_window": 131072,
            "tie_word_embeddings": False,
            "use_sliding_window": False,
            "vocab_size": 152064,
        },
        7_615_616_512,
    ),
    "Qwen3-8B": (
        {
            "model_type": "qwen3",
            "attention_bias": False,
            "head_dim": 128,
            "hidden_act": "silu",
            "hidden_size": 4096,
            "intermediate_size": 12288,
            "max_position_embeddings": 40960,
            "max_window_layers": 36,
            "num_attention_heads": 32,
            "num_hidden_layers": 36,
            "num_key_value_heads": 8,
            "rms_norm_eps": 1e-6,
            "rope_scaling": None,
            "rope_theta": 1000000,
            "sliding_window": None,
            "tie_word_embeddings": False,
            "use_sliding_window": False,
            "vocab_size": 151936,
        },
        8_190_735_360,
    ),
    "Gemma-3-1B": (
        {
            "model_type": "gemma3_text",
            "attention_bias": False,
            "attn_logit_softcapping": None,
            "cache_implementation": "hybrid",
            "final_logit_softcapping": None,
            "head_dim": 256,
            "hidden_activation": "gelu_pytorch_tanh",
            "hidden_size": 1152,
            "intermediate_size": 6912,
            "max_position_embeddings": 32768,
            "num_attention_heads": 4,
            "num_hidden_layers": 26,
            "num_key_value_heads": 1,
            "query_pre_attn_scalar": 256,
            "rms_norm_eps": 1e-6,
            "rope_local_base_freq": 10000,
            "rope_scaling": None,
            "rope_theta": 1000000,
            "sliding_window": 512,
            "sliding_window_pattern": 6,
            "vocab_size": 262144,
        },
        999_885_952,
    ),
    # Its count is that of these sizes; the published one is rounded.
    "Hunyuan-7B": (
        {
            "model_type": "hunyuan_v1_dense",
            "attention_bias": False,
            "head_dim": 128,
            "hidden_act": "silu",
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "max_position_embeddings": 32768,
            "num_attention_heads": 32,
            "num_hidden_layers": 32,
            "num_key_value_heads": 8,
            "rms_norm_eps": 1e-5,
            "rope_scaling": {
                "alpha": 1000.0,
                "beta_fast": 32,
                "beta_slow": 1,
                "factor": 1.0,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
                "type": "dynamic",
            },
            "rope_theta": 10000.0,
            "tie_word_embeddings": True,
            "use_cla": False,
            "use_qk_norm": True,
            "vocab_size": 128167,
        },
        7_504_568_320,
    ),
}


@pytest.mark.parametrize("model", PUBLISHED)
def test_full_size_models_have_the_published_number_of_parameters(model):
    raw, count = PUBLISHED[model]
    shapes = abstract_params(parse_config(raw, FILE))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == count


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore:.*rope_parameters")
@pytest.mark.parametrize("model", PUBLISHED)
def test_full_size_models_have_the_tensors_of_transformers(model):
    from oracles.family_oracle import torch_shapes

    raw, count = PUBLISHED[model]
    config = parse_config(raw, FILE)
    shapes = traverse_util.flatten_dict(abstract_params(config))
    names = FAMILIES[raw["model_type"]]().tensor_names(config)
    assert names.keys() == shapes.keys()
    ours = {}
    for path, name in names.items():
        stacked = path[0] == "layers"
        shape = shapes[path].shape[1:] if stacked else shapes[path].shape
        for layer in range(config.layers if stacked else 1):
            ours[name.format(layer=layer)] = shape[::-1] if path[-1] == "kernel" else shape
    theirs = torch_shapes(raw)
    assert ours == theirs
    assert sum(np.prod(shape) for shape in theirs.values()) == count


def test_scaled_frequencies_are_those_of_llama_3_1():
    config = parse_config(PUBLISHED["Llama-3.1-8B"][0], FILE)
    assert config.attention_kinds == (AttentionKind(scaling=RotaryScaling(8.0, (2048.0, 8192.0))),)
    frequencies = rotary_frequencies(config, config.attention_kinds[0])[0]
    plain = 500000.0 ** -(np.arange(64) / 64)
    # Of 64 wavelengths 2 pi / plain, the first 29 are below 2048, and from the 36th above 8192.
    np.testing.assert_allclose(frequencies[:29], plain[:29], rtol=1e-7)
    np.testing.assert_allclose(frequencies[35:], plain[35:] / 8, rtol=1e-7)
    # The 31st: its wavelength is 2 pi * 500000 ** (30 / 64) = 2948.3026, so it turns
    # 8192 / 2948.3026 = 2.778548 times; (2.778548 - 1) / (4 - 1) = 0.592849 of it is kept.
    np.testing.assert_allclose(frequencies[30], plain[30] * (0.592849 + 0.407151 / 8), rtol=1e-5)


def test_linear_scaling_divides_every_frequency():
    config = DecoderConfig(8, 8, 8, 1, 1, 1, 4, rope_theta=100.0)
    kind = AttentionKind(scaling=RotaryScaling(4.0))
    np.testing.assert_allclose(rotary_frequencies(config, kind), [[0.25, 0.025]], rtol=1e-7)


def test_alpha_stretches_the_base_of_hunyuan():
    config = parse_config(PUBLISHED["Hunyuan-7B"][0], FILE)
    assert config.rope_theta == pytest.approx(10000 * 1000 ** (128 / 126))
    assert config.rope_theta == pytest.approx(11_158_839.92)
    assert config.attention_kinds == (AttentionKind(),)


def test_gemma_has_five_local_layers_to_a_global_one():
    config = parse_config(PUBLISHED["Gemma-3-1B"][0], FILE)
    full, local = AttentionKind(), AttentionKind(512, rope_theta=10000.0)
    assert config.attention_kinds == (full, local)
    assert config.layer_kinds == (1, 1, 1, 1, 1, 0) * 4 + (1, 1)
    assert (config.rope_theta, config.embedding_scale) == (1e6, 1152**0.5)
    assert (config.attention_scale, config.activation) == (1 / 16, "gelu_tanh")
    assert config.tied_embeddings and config.post_norms
    assert config.qk_norm == "before_rotary"


def changed(model, **settings):
    return parse_config(PUBLISHED[model][0] | settings, FILE)


def test_old_and_new_keys_mean_the_same():
    new = changed(
        "Gemma-3-1B",
        rope_theta=None,
        rope_local_base_freq=None,
        sliding_window_pattern=None,
        layer_types=["sliding_attention" if (i + 1) % 6 else "full_attention" for i in range(26)],
        rope_parameters={
            "full_attention": {"rope_type": "default", "rope_theta": 1000000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        },
    )
    assert new == changed("Gemma-3-1B")
    old = PUBLISHED["Llama-3.1-8B"][0]
    parameters = old["rope_scaling"] | {"rope_theta": 500000.0}
    new = changed("Llama-3.1-8B", rope_theta=None, rope_scaling=None, rope_parameters=parameters)
    assert new == changed("Llama-3.1-8B")


def test_windows():
    assert changed("Mistral-7B-v0.1").attention_kinds == (AttentionKind(4096),)
    assert changed("Mistral-7B-v0.1", sliding_window=None).attention_kinds == (AttentionKind(),)
    assert changed("Qwen2-7B").attention_kinds == (AttentionKind(),)
    some = changed("Qwen2-7B", use_sliding_window=True, max_window_layers=20)
    assert some.attention_kinds == (AttentionKind(), AttentionKind(131072))
    assert some.layer_kinds == (0,) * 20 + (1,) * 8
    every = changed("Qwen2-7B", use_sliding_window=True, max_window_layers=0)
    assert (every.attention_kinds, every.layer_kinds) == ((AttentionKind(131072),), ())
    # A plain Llama has none, whatever stands in its file.
    assert changed("Llama-2-7B", sliding_window=7).attention_kinds == (AttentionKind(),)


def test_biases():
    assert changed("Llama-2-7B").attention_bias == ()
    every = ("q_proj", "k_proj", "v_proj", "o_proj")
    assert changed("Llama-2-7B", attention_bias=True).attention_bias == every
    assert changed("Qwen2-7B").attention_bias == every[:3]
    assert changed("Qwen3-8B", attention_bias=True).attention_bias == every


@pytest.mark.parametrize(
    ("model", "settings", "message"),
    [
        ("Gemma-3-1B", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping is 50.0"),
        ("Gemma-3-1B", {"use_bidirectional_attention": True}, "use_bidirectional_attention is"),
        ("Gemma-3-1B", {"rope_parameters": {"rope_theta": 1.0}}, "no keys but 'full_attention'"),
        (
            "Gemma-3-1B",
            {"rope_parameters": {"full_attention": {"rope_theta": 5.0}}},
            r"disagree: .*'rope_theta': 1000000.0, .*full_attention.rope_theta': 5.0",
        ),
        ("Gemma-3-1B", {"sliding_window": None}, "sliding_window is None; expected a positive"),
        ("Qwen3-8B", {"layer_types": ["full_attention"]}, "expected 36 entries"),
        ("Qwen3-8B", {"layer_types": ["chunked_attention"] * 36}, "'sliding_attention'"),
        ("Qwen2-7B", {"use_sliding_window": "yes"}, "use_sliding_window is 'yes'"),
        ("Qwen2-7B", {"rope_scaling": {"type": "yarn", "factor": 4.0}}, "'yarn'.*not supported"),
        ("Hunyuan-7B", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "with alpha"),
        ("Hunyuan-7B", {"head_dim": 2}, "division by zero"),
        (
            "Llama-3.1-8B",
            {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}},
            "the values disagree: .*'rope_type': 'default'.*'rope_type': 'llama3'",
        ),
    ],
)
def test_what_is_not_supported_is_named(model, settings, message):
    with pytest.raises(UserError, match=f"^model/config.json: .*{message}"):
        changed(model, **settings)


def test_a_window_counts_positions_of_its_own_text():
    config = dataclasses.replace(
        changed("Mistral-7B-v0.1"), head_width=2, attention_kinds=(AttentionKind(2),)
    )
    # A prompt of three tokens with two answers as branches, then another text, then padding.
    context = attention_context(
        config,
        positions=jnp.array([[0, 1, 2, 3, 4, 3, 0, 1, 0]]),
        segments=jnp.array([[1, 1, 1, 1, 1, 1, 2, 2, 0]]),
        branches=jnp.array([[0, 0, 0, 1, 1, 2, 0, 0, 0]]),
    )
    expected = [
        [1, 0, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0, 0, 0],
        [0, 1, 1, 0, 0, 0, 0, 0, 0],
        [0, 0, 1, 1, 0, 0, 0, 0, 0],
        [0, 0, 0, 1, 1, 0, 0, 0, 0],
        [0, 0, 1, 0, 0, 1, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 1, 0, 0],
        [0, 0, 0, 0, 0, 0, 1, 1, 0],
        [0, 0, 0, 0, 0, 0, 0, 0, 1],
    ]
    np.testing.assert_array_equal(context.mask[0, 0], np.array(expected, bool))
    cached = cached_attention_context(config, jnp.array([[0, 1], [3, 4]]), 5)
    expected = [[[1, 0, 0, 0, 0], [1, 1, 0, 0, 0]], [[0, 0, 1, 1, 0], [0, 0, 0, 1, 1]]]
    np.testing.assert_array_equal(cached.mask[:, 0], np.array(expected, bool))


def test_fingerprints_of_plain_llamas_stay_and_others_differ(tmp_path):
    """A backbone in a workdir is known by its fingerprint, also after an update."""
    plain = load_backbone(write_llama(tmp_path / "plain", random_state()))
    assert plain.fingerprint == "dd68be4384f946ed"
    linear = {"type": "linear", "factor": 2.0}
    scaled = load_backbone(write_llama(tmp_path / "b", random_state(), rope_scaling=linear))
    gelu = load_backbone(
        write_llama(tmp_path / "c", random_state(), hidden_act="gelu_pytorch_tanh")
    )
    assert len({plain.fingerprint, scaled.fingerprint, gelu.fingerprint}) == 3
