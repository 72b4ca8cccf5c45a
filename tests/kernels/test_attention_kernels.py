"""Attention: XLA's halves against JAX's own, and accelerators' kernels against the reference."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from streams import logged, tiny_config
from tiny import (
    CONFIG,
    OPTIMIZER,
    batch_of,
    context_of,
    frozen_params,
    random_examples,
    random_parameters,
    with_architecture,
)

from moecl_jax.config.default import from_config
from moecl_jax.errors import UserError
from moecl_jax.kernels import use
from moecl_jax.models.attention import (
    AttentionContext,
    AttentionKind,
    attend,
    attention_context,
    check_attention,
)
from moecl_jax.models.decoder import REMAT_POLICIES
from moecl_jax.runs.workdir import load_settings, save_settings
from moecl_jax.training.steps import init_train_state, loss
from moecl_jax.training.trainer import train

TWO_KINDS = {"attention_kinds": (AttentionKind(), AttentionKind(8)), "layer_kinds": (0, 1)}


def inputs(slots: int, dtype: str, **changes) -> tuple[list[jax.Array], AttentionContext, object]:
    """Query, key and value of two rows with three texts and padding, and what goes with them."""
    config = dataclasses.replace(CONFIG, heads=4, kv_heads=2, head_width=16, **changes)
    draw = np.random.default_rng(0)
    shapes = [(2, slots, count, 16) for count in (4, 2, 2)]
    states = [jnp.asarray(draw.standard_normal(shape), dtype) for shape in shapes]
    lengths = np.array([[slots // 2, slots // 4], [slots - 3, 0]])
    segments, positions = np.zeros((2, slots), np.int32), np.zeros((2, slots), np.int32)
    for row, (first, second) in enumerate(lengths):
        segments[row, :first], positions[row, :first] = 2 * row + 1, np.arange(first)
        segments[row, first : first + second] = 2 * row + 2
        positions[row, first : first + second] = np.arange(second)
    context = attention_context(config, positions, segments, np.zeros_like(segments))
    return states, context, config


def reference(*given):
    with use("reference"):
        return values_and_gradients(attend, *given)


def by(implementation):
    return functools.partial(attend, implementation=implementation)


def values_and_gradients(attend, states, context, config):
    """Attention of real tokens, and gradients of a weighted sum of it."""
    real = (context.segments > 0)[:, :, None, None]
    weights = jnp.asarray(np.random.default_rng(1).standard_normal(states[0].shape), jnp.float32)

    def total(query, key, value):
        out = attend(query, key, value, context, config)
        out = jnp.where(real, out.astype(jnp.float32), 0.0)
        return (out * weights).sum(), out

    run = jax.jit(jax.grad(total, argnums=(0, 1, 2), has_aux=True))
    gradients, out = run(*states)
    return out, gradients


@pytest.mark.parametrize("slots", [48, 64, 65, 300])
def test_xla_s_halves_are_jax_s_attention(slots):
    states, context, config = inputs(slots, "float32")

    def by_jax(query, key, value, context, config):
        del config
        return jax.nn.dot_product_attention(query, key, value, mask=context.mask)

    found = values_and_gradients(attend, states, context, config)
    expected = values_and_gradients(by_jax, states, context, config)
    chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("slots", "computed"), [(128, 2), (300, 3), (600, 4)])
def test_weights_over_few_keys_are_saved_for_the_backward_pass(slots, computed):
    """Each half's softmax takes one exponential, and one more where it is computed again."""
    states, context, config = inputs(slots, "bfloat16")
    policy = REMAT_POLICIES["projections"]
    saving = jax.checkpoint(lambda *states: attend(*states, context, config), policy=policy)
    jaxpr = str(jax.make_jaxpr(jax.grad(lambda *states: saving(*states).sum()))(*states))
    assert jaxpr.count("= exp ") == computed


@pytest.mark.parametrize("window", [None, 24])
@pytest.mark.parametrize("slots", [128, 192])
def test_splash_is_the_reference(slots, window):
    """Interpreted; rows that its blocks do not fill are padded."""
    kinds = (AttentionKind(window),)
    given = inputs(slots, "float32", attention_kinds=kinds, attention_scale=0.3)
    expected = reference(*given)
    chex.assert_trees_all_close(values_and_gradients(by("splash"), *given), expected, atol=1e-5)


def test_cudnn_is_the_reference_by_what_it_is_given(monkeypatch):
    """Mask, scale and layout; JAX's own implementation stands in for the kernel."""
    asked, attend = [], jax.nn.dot_product_attention

    def stand_in(*arrays, implementation, **settings):
        asked.append(implementation)
        return attend(*arrays, implementation="xla", **settings)

    monkeypatch.setattr(jax.nn, "dot_product_attention", stand_in)
    given = inputs(48, "float32", attention_scale=0.3)
    expected = reference(*given)
    chex.assert_trees_all_close(values_and_gradients(by("cudnn"), *given), expected, atol=1e-5)
    assert asked == ["cudnn"]


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="cuDNN needs an NVIDIA GPU")
def test_cudnn_is_the_reference_on_a_gpu():
    given = inputs(128, "bfloat16")
    expected = reference(*given)
    chex.assert_trees_all_close(values_and_gradients(by("cudnn"), *given), expected, atol=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("head", ["lm", "classification"])
def test_a_training_step_is_the_same_with_splash(head):
    """Evaluation, whose prompts have several continuations, stays with XLA."""
    plain, found = context_of(head), []
    active = random_parameters(plain)
    batch = batch_of(random_examples((9, 5, 14)), head, training=True)
    for attention in ("xla", "splash"):
        chosen = with_architecture(plain, attention=attention)
        assert chosen.decoder(training=False).attention == "xla"
        state = init_train_state(chosen.method, OPTIMIZER, active, jax.random.key(0))
        gradient = jax.jit(jax.grad(loss, has_aux=True), static_argnums=4)
        found.append(gradient(state.active, state, frozen_params(), batch, chosen))
    chex.assert_trees_all_close(*found, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "changes", "dtype", "devices", "backend", "message"),
    [
        ("cudnn", {}, "bfloat16", 1, "tpu", "'cudnn' needs an NVIDIA GPU, and JAX runs on tpu"),
        ("cudnn", {}, "float32", 1, "gpu", "needs bfloat16; model.dtype is float32"),
        ("splash", TWO_KINDS, "float32", 1, "tpu", "layers all attend in the same way"),
        ("splash", {}, "float32", 8, "tpu", "is for one device, and the mesh has 8"),
    ],
)
def test_what_a_kernel_cannot_do_is_refused(
    name, changes, dtype, devices, backend, message, monkeypatch
):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    config = dataclasses.replace(CONFIG, **changes)
    with pytest.raises(UserError, match=message):
        check_attention(name, config, dtype, devices)


@pytest.mark.slow
def test_a_kernel_is_chosen_by_the_config_and_a_run_is_read_without_it(tmp_path):
    # Without dropout the two experts stay alike, and rounding cannot tell the gate which is better.
    config = tiny_config(tmp_path, tasks=("two",), epochs=1, lora__dropout=0.0)
    reference = train(from_config(config), tmp_path / "xla")
    config.model.attention = "cudnn"
    with pytest.raises(UserError, match=r"set model\.attention = 'xla'"):
        train(from_config(config), tmp_path / "cudnn")
    config.model.attention = "splash"
    results = train(from_config(config), tmp_path / "splash")
    assert results["accuracy_matrix"] == reference["accuracy_matrix"]
    for found, expected in zip(logged(tmp_path / "splash"), logged(tmp_path / "xla"), strict=True):
        np.testing.assert_allclose(found["loss"], expected["loss"], rtol=1e-3)
    save_settings(from_config(config), tmp_path)
    assert load_settings(tmp_path).model.attention == "xla"
