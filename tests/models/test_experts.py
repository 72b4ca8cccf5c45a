"""The dual-expert FFN: equal to its equations, exact under dropout, and frozen where B is zero."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import (
    CONFIG,
    batch_of,
    context_of,
    frozen_params,
    random_examples,
    random_parameters,
    starting_of,
)

from moecl_jax.kernels import dot, dropout, use
from moecl_jax.methods.forward import forward
from moecl_jax.methods.moe_cl import MoeCl
from moecl_jax.methods.sequential_lora import SequentialLora
from moecl_jax.models.decoder import Decoder
from moecl_jax.models.experts import (
    FrozenFfn,
    frozen_layer,
    lora_layer,
    moe_layer,
)
from moecl_jax.models.lora import FFN_TARGETS, LayerContext, site_seed

TOKENS, WIDTH, FFN, RANK, SCALE = 7, 6, 10, 3, 2.0
SHAPES = {"gate_proj": (WIDTH, FFN), "up_proj": (WIDTH, FFN), "down_proj": (FFN, WIDTH)}
# Two examples of three tokens and one, and three tokens of padding.
MEMBERSHIP = np.array([[1, 1, 1, 0, 0, 0, 0], [0, 0, 0, 1, 0, 0, 0]], np.float32)
SUBSETS = [FFN_TARGETS, ("gate_proj", "down_proj"), ("up_proj",)]


def problem(targets=FFN_TARGETS):
    """Frozen kernels, input `[N, D]` and an adapter, all random float32."""
    generator = np.random.default_rng(0)

    def normal(*shape):
        return generator.standard_normal(shape).astype(np.float32)

    def expert():
        return {
            name: {"a": normal(inputs, RANK), "b": normal(RANK, outputs)}
            for name, (inputs, outputs) in SHAPES.items()
            if name in targets
        }

    kernels = {name: normal(*shape) for name, shape in SHAPES.items()}
    adapter = {"shared": expert(), "task": expert(), "gate": normal(2, WIDTH)}
    return kernels, 0.5 * normal(TOKENS, WIDTH), adapter


def expert_output(xp, kernels, x, expert, drop):
    """z_e of eq. 3 and 4, in full; `drop(values, site)` with site 0 for x and 1 for a_e."""

    def projection(name, values, dropped):
        out = values @ kernels[name]
        if name in expert:
            out = out + SCALE * (dropped @ expert[name]["a"] @ expert[name]["b"])
        return out

    gate = projection("gate_proj", x, drop(x, 0))
    activation = gate / (1 + xp.exp(-gate)) * projection("up_proj", x, drop(x, 0))
    return projection("down_proj", activation, drop(activation, 1))


def undropped(values, *_):
    return values


def naive(xp, kernels, x, adapter, drop=undropped):
    """out (eq. 7 and 8) and mean over real tokens of z_s (eq. 5), each expert in full.

    `drop(values, expert, site)` with expert 0 for the shared one.
    """
    shared, task = (
        expert_output(
            xp,
            kernels,
            x,
            adapter[name],
            lambda values, site, index=index: drop(values, index, site),
        )
        for index, name in enumerate(("shared", "task"))
    )
    exponentials = xp.exp(x @ adapter["gate"].T)
    beta = exponentials / exponentials.sum(axis=1, keepdims=True)
    pooled = (MEMBERSHIP @ shared) / MEMBERSHIP.sum(axis=1, keepdims=True)
    return beta[:, :1] * shared + beta[:, 1:] * task, pooled


def in_float64(tree):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


def frozen_of(kernels):
    return FrozenFfn(
        **{
            name: lambda x, dtype, kernel=kernel: dot(x, jnp.asarray(kernel), dtype)
            for name, kernel in kernels.items()
        }
    )


@functools.partial(jax.jit, static_argnames="rate")
def library(kernels, x, adapter, seed=None, rate=0.0):
    """The implementation's out and pooled."""
    context = LayerContext(jnp.asarray(MEMBERSHIP), seed)
    out, report = moe_layer(
        frozen_of(kernels), x, adapter, context, scale=SCALE, dropout_rate=rate, adversarial=True
    )
    return out, report["shared_pooled"]


def assert_close(found, expected, tolerance):
    """Within `tolerance` of the expected array's largest number."""
    bound = tolerance * np.abs(expected).max()
    np.testing.assert_allclose(found, expected, atol=bound, rtol=0)


@pytest.mark.parametrize("form", ["fast", "reference"])
@pytest.mark.parametrize("targets", SUBSETS, ids="-".join)
def test_output_and_pooled_equal_the_equations_in_float64(targets, form):
    kernels, x, adapter = problem(targets)
    expected = naive(np, *in_float64((kernels, x, adapter)))
    with use(form):
        found = library(kernels, x, adapter)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == jnp.float32
        assert_close(ours, theirs, 1e-6)


def test_bfloat16_input_stays_near_the_equations():
    kernels, x, adapter = problem()
    kernels, x = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), (kernels, x))
    expected = naive(np, *in_float64((kernels, x, adapter)))
    out, pooled = library(kernels, x, adapter)
    assert (out.dtype, pooled.dtype) == (jnp.bfloat16, jnp.float32)
    assert_close(out.astype(jnp.float32), expected[0], 0.02)
    assert_close(pooled, expected[1], 0.02)


@pytest.mark.parametrize("favoured", [0, 1], ids=["shared", "task"])
def test_gate_row_0_weighs_the_shared_expert_and_row_1_the_task_s(favoured):
    kernels, x, adapter = problem()
    x = np.abs(x) + 1
    gate = np.zeros((2, WIDTH), np.float32)
    gate[favoured] = 20
    out, _ = library(kernels, x, {**adapter, "gate": gate})
    chosen = adapter[("shared", "task")[favoured]]
    alone = expert_output(np, *in_float64((kernels, x, chosen)), undropped)
    assert_close(out, alone, 1e-6)


def drop_by_the_library(rate, seed):
    return lambda values, expert, site: dropout(values, rate, site_seed(seed, expert, site))


def test_output_is_exact_under_dropout():
    kernels, x, adapter = problem()
    seed, rate = jnp.uint32(5), 0.3
    expected = naive(jnp, kernels, jnp.asarray(x), adapter, drop_by_the_library(rate, seed))
    found = library(kernels, x, adapter, seed, rate=rate)
    without = library(kernels, x, adapter)
    for ours, theirs, plain in zip(found, expected, without, strict=True):
        assert_close(ours, theirs, 2e-6)
        assert np.abs(ours - plain).max() > 0.1 * np.abs(plain).max()


@pytest.mark.parametrize("form", ["fast", "reference"])
@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_every_gradient_equals_that_of_the_equations(rate, form):
    kernels, x, adapter = problem()
    generator = np.random.default_rng(1)
    projections = [generator.standard_normal(shape) for shape in ((TOKENS, WIDTH), (2, WIDTH))]
    seed = jnp.uint32(5)

    def projected(outputs):
        return sum(jnp.sum(o * p) for o, p in zip(outputs, projections, strict=True))

    def by_the_equations(adapter, x):
        return projected(naive(jnp, kernels, x, adapter, drop_by_the_library(rate, seed)))

    def by_the_library(adapter, x):
        return projected(library(kernels, x, adapter, seed, rate=rate))

    expected = jax.jit(jax.grad(by_the_equations, argnums=(0, 1)))(adapter, x)
    with use(form):
        found = jax.jit(jax.grad(by_the_library, argnums=(0, 1)))(adapter, x)
    chex.assert_trees_all_equal_shapes(found, expected)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert_close(ours, theirs, 1e-5)


def test_one_expert_adds_its_low_rank_term_to_each_projection():
    kernels, x, adapter = problem()
    context = LayerContext(jnp.asarray(MEMBERSHIP), None)
    expert = {"expert": adapter["task"]}
    out, report = lora_layer(
        frozen_of(kernels), jnp.asarray(x), expert, context, scale=SCALE, dropout_rate=0.0
    )
    assert report == {}
    merged = {
        name: kernel + SCALE * adapter["task"][name]["a"] @ adapter["task"][name]["b"]
        for name, kernel in kernels.items()
    }
    gate, up = x @ merged["gate_proj"], x @ merged["up_proj"]
    expected = (gate / (1 + np.exp(-gate)) * up) @ merged["down_proj"]
    assert_close(out, expected, 2e-6)


def test_experts_with_b_zero_leave_the_frozen_layer():
    kernels, x, adapter = problem()
    for expert in ("shared", "task"):
        for factors in adapter[expert].values():
            factors["b"] = np.zeros_like(factors["b"])
    out, _ = library(kernels, x, adapter, jnp.uint32(5), rate=0.5)
    context = LayerContext(jnp.asarray(MEMBERSHIP), None)
    expected, _ = frozen_layer(frozen_of(kernels), jnp.asarray(x), {}, context)
    assert_close(out, expected, 1e-6)


@pytest.mark.parametrize("method", [MoeCl, SequentialLora])
def test_new_experts_leave_the_frozen_decoder(method):
    chosen, params = context_of("lm", method, dropout=0.5), frozen_params()
    batch = batch_of(random_examples([5, 3]), "lm", training=True)
    starting = starting_of(chosen)
    active = jax.jit(lambda: starting.begin(starting.shared(2), 0))()
    seeds = jnp.arange(CONFIG.layers, dtype=jnp.uint32)
    run = jax.jit(functools.partial(forward, context=chosen))
    hidden, _ = run(active, params, batch, seeds=seeds)
    layout = (batch.tokens, batch.positions, batch.segments, batch.branches)
    membership = jnp.zeros((1, batch.tokens.size))
    expected, _ = jax.jit(Decoder(CONFIG).apply)({"params": params}, *layout, membership)
    assert_close(hidden, expected, 1e-6)
    changed, _ = run(random_parameters(chosen), params, batch, seeds=seeds)
    assert np.abs(changed - expected).max() > 0.1
