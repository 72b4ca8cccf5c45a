"""Frozen kernels in 8 and 4 bits: what is stored, what it gives, and runs on it."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from streams import evaluator_of, tiny_config
from tiny import (
    CONFIG,
    batch_of,
    context_of,
    frozen_params,
    random_examples,
    random_parameters,
    with_architecture,
)

from moecl_jax.config.default import from_config
from moecl_jax.errors import UserError
from moecl_jax.kernels import (
    QuantizedKernel,
    as_bits,
    dense,
    dot,
    one_by_one,
    quantize,
    quantize_layers,
)
from moecl_jax.methods.forward import forward
from moecl_jax.models.sharding import Placement
from moecl_jax.serving.session import model_of, open_run
from moecl_jax.training.trainer import train


def test_a_worked_kernel_in_4_bits():
    kernel = jnp.array([[3.0], [-1.5], [0.6], [0.1]])
    found = quantize(kernel, 4)
    # 3 / 7.5 = 0.4; in steps of it 7.5, -3.75, 1.5 and 0.25 become 7, -4, 2 and 0; 8 is added to
    # each; the bytes hold the first and third, the second and fourth.
    np.testing.assert_allclose(found.scale, [[0.4]], rtol=1e-6)
    assert found.values.tolist() == [[15 + 16 * 10], [4 + 16 * 8]]
    np.testing.assert_allclose(dense(found, jnp.float32), [[2.8], [-1.6], [0.8], [0.0]], rtol=1e-6)


@pytest.mark.parametrize("bits", [8, 4])
def test_no_weight_is_further_off_than_half_a_step_of_its_group(bits):
    kernel = np.random.default_rng(0).standard_normal((96, 5)).astype(np.float32)
    kernel[32:64, 2] = 0.0
    found = quantize(jnp.asarray(kernel), bits)
    groups = kernel.astype(np.float64).reshape(3, 32, 5)
    steps = np.abs(groups).max(axis=1) / (2 ** (bits - 1) - 0.5)
    np.testing.assert_allclose(found.scale, steps, rtol=1e-6)
    error = np.abs(np.asarray(dense(found, jnp.float32)).reshape(groups.shape) - groups)
    assert (error <= 0.5001 * steps[:, None]).all()
    assert error.max() > 0.4 * steps.min()
    assert found.values.nbytes == kernel.size * bits // 8


@pytest.mark.parametrize("bits", [8, 4])
def test_a_product_and_its_gradient_are_those_of_the_expanded_kernel(bits):
    generator = np.random.default_rng(1)
    x = jnp.asarray(generator.standard_normal((7, 64)), jnp.float32)
    kernel = quantize(jnp.asarray(generator.standard_normal((64, 6)), jnp.float32), bits)
    full = np.asarray(dense(kernel, jnp.float32), np.float64)
    cotangent = generator.standard_normal((7, 6))
    product, pull = jax.vjp(lambda x: dot(x, kernel), x)
    np.testing.assert_allclose(product, np.asarray(x, np.float64) @ full, rtol=1e-5, atol=1e-5)
    (gradient,) = pull(jnp.asarray(cotangent, jnp.float32))
    np.testing.assert_allclose(gradient, cotangent @ full.T, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["none", "full", "projections"])
@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_a_decoder_is_that_of_its_expanded_kernels(quantization, remat):
    chosen = with_architecture(context_of(dropout=0.5), remat=remat)
    batch = batch_of(random_examples([5, 3]), "lm", training=True)
    seeds = jnp.arange(CONFIG.layers, dtype=jnp.uint32)

    @jax.jit
    @jax.value_and_grad
    def with_gradients(active, params):
        hidden, reports = forward(active, params, batch, chosen, seeds=seeds)
        return jnp.sum(hidden[:, 0]) + reports["shared_pooled"].sum()

    quantized = quantize_layers(frozen_params(), quantization)
    expand = functools.partial(dense, dtype=jnp.float32)
    full = expanded(quantized, jax.vmap(expand))
    found = with_gradients(random_parameters(chosen), quantized)
    expected = with_gradients(random_parameters(chosen), full)
    largest = max(float(abs(leaf).max()) for leaf in jax.tree.leaves(expected))
    assert largest > 1
    chex.assert_trees_all_close(found, expected, rtol=1e-6, atol=1e-6 * largest)


def expanded(tree, expand):
    """A tree with each quantised kernel in full."""
    is_leaf = lambda leaf: isinstance(leaf, QuantizedKernel)  # noqa: E731
    return jax.tree.map(lambda leaf: expand(leaf) if is_leaf(leaf) else leaf, tree, is_leaf=is_leaf)


def test_the_layers_kernels_alone_are_quantised():
    params = as_bits(quantize_layers(frozen_params(CONFIG, jnp.bfloat16), "int8"))
    flat = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(params)}
    small = {name for name, leaf in flat.items() if leaf.dtype == jnp.int8}
    assert len(small) == 7
    assert all("layers" in name and "kernel" in name for name in small)
    assert flat["['lm_head']['kernel']"].dtype == jnp.uint16
    host = quantize_layers(frozen_params(CONFIG, jnp.bfloat16), "int8", over_layers=one_by_one)
    chex.assert_trees_all_equal(as_bits(host), params)


@pytest.mark.slow
def test_a_run_on_a_quantised_llm_goes_on_and_answers(tmp_path):
    config = tiny_config(tmp_path, tasks=("two",), model__quantization="int4")
    results = train(from_config(config), tmp_path / "run")
    frozen = model_of(from_config(config)).params
    assert frozen["layers"]["attention"]["q_proj"]["kernel"].values.dtype == jnp.uint8
    answered = open_run(tmp_path / "run").evaluate("test")["tasks"]["two"]
    assert answered["accuracy"] == results["accuracy_matrix"][0][0]
    with config.unlocked():
        config.model.quantization = "none"
    with pytest.raises(UserError, match=r"begun with model\.quantization = 'int4', and now"):
        train(from_config(config), tmp_path / "run")


def test_weights_that_are_trained_cannot_be_quantised(tmp_path):
    config = tiny_config(tmp_path, method="sequential_full", model__quantization="int8")
    with pytest.raises(UserError, match="trains the LLM's own weights, which cannot be quantised"):
        evaluator_of(from_config(config))


def test_integers_and_scales_lie_as_the_kernel_would():
    placement = Placement.over({"data": 1, "fsdp": 4, "tensor": 2})
    kernel = quantize(jnp.ones((256, 6), jnp.float32), 4)
    tree = placement.put({"q_proj": {"kernel": kernel}, "o_proj": {"kernel": kernel}})
    for part in ("values", "scale"):
        into, out = (getattr(tree[name]["kernel"], part) for name in ("q_proj", "o_proj"))
        assert into.sharding.spec == PartitionSpec("fsdp", "tensor")
        assert out.sharding.spec == PartitionSpec("tensor", None)
