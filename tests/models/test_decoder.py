"""The frozen decoder: equal to transformers' Llama, and blind to how examples are laid out."""

import dataclasses
import functools
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from backbone_files import write_folder
from decoders import SMOLLM2, logits_of, run
from tiny import (
    CONFIG,
    batch_of,
    context_of,
    frozen_params,
    generator_of,
    random_examples,
    random_parameters,
    with_architecture,
)

from moecl_jax.kernels import as_bits
from moecl_jax.methods import TaskParameters
from moecl_jax.methods.forward import forward
from moecl_jax.methods.sequential_lora import SequentialLora
from moecl_jax.models.attention import attention_context
from moecl_jax.models.config import DecoderConfig
from moecl_jax.models.decoder import Block, Decoder
from moecl_jax.models.experts import frozen_layer
from moecl_jax.models.lora import LayerContext, no_term
from moecl_jax.weights.load import load_backbone

FIXTURES = Path(__file__).parents[1] / "fixtures"
LLAMA_2_7B = DecoderConfig(32000, 4096, 11008, 32, 32, 32, 128, 10000.0, 1e-5, False, 4096)


def run_text(config, params, tokens, segments=None, dtype=jnp.float32):
    """Hidden states where each row is one text."""
    tokens = np.asarray(tokens, np.int32)
    positions = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
    segments = np.ones_like(tokens) if segments is None else segments.astype(np.int32)
    return run(config, params, tokens, positions, segments, np.zeros_like(tokens), dtype)


def run_row(tokens, positions, segments, branches):
    """Hidden states of one row of the tiny decoder."""
    layout = (np.array([ids], np.int32) for ids in (tokens, positions, segments, branches))
    return run(CONFIG, frozen_params(), *layout)[0]


def run_alone(tokens):
    return run_text(CONFIG, frozen_params(), [tokens])[0]


@pytest.fixture(scope="module")
def llamas():
    return dict(np.load(FIXTURES / "tiny_llamas.npz"))


def load_tiny(folder, llamas, kind):
    prefix = f"{kind}/state/"
    state = {k.removeprefix(prefix): v for k, v in llamas.items() if k.startswith(prefix)}
    sizes = {"vocab_size": 61, "intermediate_size": 48, "rope_theta": 10000.0}
    return load_backbone(
        write_folder(folder / kind, state, tie_word_embeddings=kind == "tied", **sizes)
    )


@pytest.mark.parametrize("kind", ["tied", "untied"])
def test_logits_equal_those_of_transformers(tmp_path, llamas, kind):
    backbone = load_tiny(tmp_path, llamas, kind)
    real = np.arange(9) < llamas["lengths"][:, None]
    hidden = run_text(backbone.config, backbone.params, llamas["token_ids"], real)
    logits = logits_of(backbone.config, backbone.params, hidden)
    expected = llamas[f"{kind}/logits"]
    np.testing.assert_allclose(logits[real], expected[real], atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["tied", "untied"])
def test_gradient_of_the_embedding_output_equals_that_of_transformers(tmp_path, llamas, kind):
    backbone = load_tiny(tmp_path, llamas, kind)
    config, params = backbone.config, backbone.params
    real = np.arange(9) < llamas["lengths"][:, None]
    # A table with a row for each token of the fixture makes its gradient the embedding output's.
    tokens = np.arange(18).reshape(2, 9)
    table_config = dataclasses.replace(config, vocabulary_size=18)

    def projected(table):
        with_table = {**params, "embedder": {"embedding": table}}
        hidden = run_text(table_config, with_table, tokens, real)
        return jnp.sum(logits_of(config, params, hidden) * llamas["cotangent"])

    table = jnp.asarray(llamas[f"{kind}/embedding_output"].reshape(18, -1))
    gradient = jax.grad(projected)(table).reshape(2, 9, -1)
    expected = llamas[f"{kind}/embedding_output_gradient"]
    bound = 1e-5 * np.abs(expected).max()
    np.testing.assert_allclose(gradient, expected, atol=bound, rtol=0)


@pytest.fixture(scope="module")
def smollm2():
    backbone = load_backbone("smollm2-135m")
    return dataclasses.replace(backbone, params=jax.tree.map(jnp.asarray, backbone.params))


@pytest.fixture(scope="module")
def smollm2_oracle():
    return dict(np.load(FIXTURES / "smollm2_oracle.npz"))


@pytest.fixture(scope="module")
def smollm2_logits(smollm2):
    """Logits `[S, V]` of a text of up to 32 tokens, compiled once."""

    def logits(tokens):
        row = np.pad(tokens, (0, 32 - len(tokens)))[None]
        hidden = run_text(SMOLLM2, smollm2.params, row)
        return np.asarray(logits_of(SMOLLM2, smollm2.params, hidden))[0, : len(tokens)]

    return logits


@pytest.mark.parametrize("text", range(3))
def test_smollm2_logits_equal_those_of_transformers(smollm2_logits, smollm2_oracle, text):
    logits = smollm2_logits(smollm2_oracle[f"tokens_{text}"])
    found = logits[:, smollm2_oracle["vocabulary_ids"]]
    np.testing.assert_allclose(found, smollm2_oracle[f"logits_{text}"], atol=1e-3, rtol=0)
    top = smollm2_oracle[f"top_ids_{text}"]
    np.testing.assert_allclose(
        logits[-1, top], smollm2_oracle[f"top_logits_{text}"], atol=1e-3, rtol=0
    )


@pytest.mark.parametrize("beside", [0, 2], ids=["alone", "in_a_batch"])
def test_smollm2_continues_as_with_transformers(smollm2, smollm2_oracle, beside):
    plain = context_of(method=SequentialLora, targets=())
    chosen = with_architecture(plain, sizes=SMOLLM2)
    prompts = [smollm2_oracle["greedy_prompt"]]
    prompts += [smollm2_oracle[f"tokens_{text}"] for text in range(1, beside + 1)]
    write = generator_of(chosen, smollm2.params).write
    nothing = TaskParameters({"expert": {}}, {}, {})
    written = write(nothing, prompts, max_tokens=20, batch_size=len(prompts))
    np.testing.assert_array_equal(written[0], smollm2_oracle["greedy_tokens"])


def initial_shapes(config):
    ids = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    membership = jax.ShapeDtypeStruct((1, 2), jnp.float32)
    init = functools.partial(Decoder(config).init, jax.random.key(0))
    return jax.eval_shape(init, ids, ids, ids, ids, membership)["params"]


@pytest.mark.parametrize(
    ("config", "count"), [(SMOLLM2, 134_515_008), (LLAMA_2_7B, 6_738_415_616)], ids=["135m", "7b"]
)
def test_full_size_models_have_the_published_number_of_parameters(config, count):
    assert sum(leaf.size for leaf in jax.tree.leaves(initial_shapes(config))) == count


def test_loaded_parameters_are_those_the_decoder_declares(smollm2):
    assert smollm2.config == SMOLLM2
    chex.assert_trees_all_equal_shapes_and_dtypes(smollm2.params, initial_shapes(SMOLLM2))


def test_scan_equals_the_blocks_one_after_another():
    tokens = jnp.array([3, 1, 4, 1, 5])
    params, zeros = frozen_params(), jnp.zeros((1, 5), jnp.int32)

    @jax.jit
    def one_after_another(params):
        context = attention_context(CONFIG, jnp.arange(5)[None], zeros, zeros)
        x = params["embedder"]["embedding"][tokens]
        for layer in range(CONFIG.layers):
            block = {"params": jax.tree.map(lambda leaf: leaf[layer], params["layers"])}  # noqa: B023
            layer_context = LayerContext(jnp.ones((1, 5)))
            module = Block(CONFIG, frozen_layer, no_term)
            (x, _), _ = module.apply(block, (x, None), None, None, layer_context, context)
        x = x / jnp.sqrt(jnp.mean(x**2, axis=-1, keepdims=True) + CONFIG.norm_epsilon)
        return x * params["final_norm"]["scale"][None]

    np.testing.assert_allclose(run_alone(tokens), one_after_another(params), atol=3e-6, rtol=0)


@pytest.mark.slow
def test_recomputation_changes_neither_values_nor_gradients():
    plain = context_of(dropout=0.5)
    batch = batch_of(random_examples([5, 3]), "lm", training=True)
    seeds = jnp.arange(CONFIG.layers, dtype=jnp.uint32)
    projection = np.random.default_rng(2).standard_normal((32, CONFIG.width))

    @functools.partial(jax.jit, static_argnums=2)
    @jax.value_and_grad
    def with_gradients(active, params, context):
        hidden, reports = forward(active, params, batch, context, seeds=seeds)
        return jnp.sum(hidden * projection) + reports["shared_pooled"].sum()

    values = {}
    for remat in ("none", "full", "projections"):
        chosen = with_architecture(plain, remat=remat)
        values[remat] = with_gradients(random_parameters(plain), frozen_params(), chosen)
    largest = max(float(abs(leaf).max()) for leaf in jax.tree.leaves(values["none"]))
    assert largest > 1
    for remat in ("full", "projections"):
        chex.assert_trees_all_close(values[remat], values["none"], rtol=1e-6, atol=1e-6 * largest)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_weights_stored_as_bits_give_the_same_bits(tied):
    config = dataclasses.replace(CONFIG, tied_embeddings=tied)
    params = frozen_params(config, jnp.bfloat16)
    bits = as_bits(params)
    assert bits["layers"]["attention"]["q_proj"]["kernel"].dtype == jnp.uint16
    assert bits["final_norm"]["scale"].dtype == jnp.float32
    hidden, from_bits = (
        run_text(config, stored, [[3, 1, 4, 1, 5]], dtype=jnp.bfloat16) for stored in (params, bits)
    )
    assert hidden.dtype == jnp.bfloat16
    np.testing.assert_array_equal(from_bits, hidden)
    np.testing.assert_array_equal(
        logits_of(config, bits, hidden), logits_of(config, params, hidden)
    )


def test_padding_changes_nothing():
    padded = run_row(
        tokens=[3, 1, 4, 1, 5, 7, 8, 9, 0],
        positions=[0, 1, 2, 3, 4, 0, 1, 2, 0],
        segments=[1, 1, 1, 1, 1, 0, 0, 0, 0],
        branches=[0, 0, 0, 0, 0, 0, 1, 2, 0],
    )
    assert np.isfinite(padded).all()
    np.testing.assert_allclose(padded[:5], run_alone([3, 1, 4, 1, 5]), atol=1e-5, rtol=0)


def test_examples_in_one_row_do_not_see_each_other():
    packed = run_row(
        tokens=[3, 1, 4, 1, 5, 9, 2, 6, 0],
        positions=[0, 1, 2, 3, 4, 0, 1, 2, 0],
        segments=[1, 1, 1, 1, 1, 2, 2, 2, 0],
        branches=[0, 0, 0, 0, 0, 0, 0, 0, 0],
    )
    np.testing.assert_allclose(packed[:5], run_alone([3, 1, 4, 1, 5]), atol=1e-5, rtol=0)
    # What follows a text does not change it, so all texts here may have five tokens.
    np.testing.assert_allclose(packed[5:8], run_alone([9, 2, 6, 0, 0])[:3], atol=1e-5, rtol=0)


def branched(positions):
    """Prompt 3 1 4 with the answers 1 5 and 9 2 as branches."""
    return run_row(
        tokens=[3, 1, 4, 1, 5, 9, 2, 0, 0],
        positions=[*positions, 0, 0],
        segments=[1, 1, 1, 1, 1, 1, 1, 0, 0],
        branches=[0, 0, 0, 1, 1, 2, 2, 0, 0],
    )


def test_each_branch_is_as_if_it_alone_followed_the_prompt():
    hidden = branched([0, 1, 2, 3, 4, 3, 4])
    np.testing.assert_allclose(hidden[:5], run_alone([3, 1, 4, 1, 5]), atol=1e-5, rtol=0)
    np.testing.assert_allclose(hidden[5:7], run_alone([3, 1, 4, 9, 2])[3:], atol=1e-5, rtol=0)


def test_a_branch_whose_positions_do_not_restart_is_another_text():
    hidden = branched([0, 1, 2, 3, 4, 5, 6])
    assert np.abs(hidden[5:7] - run_alone([3, 1, 4, 9, 2])[3:]).max() > 1e-2
