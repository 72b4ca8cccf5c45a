"""Products and what is saved: against float64, and nothing widened to float32 on a CPU."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moecl_jax.kernels import SAVED, dot, save_for_backward

# x [..., N, I] and kernel [..., I, O], wide and narrow; attention's two products are batched.
SHAPES = [((6, 5), (5, 3)), ((6, 3), (3, 5)), ((2, 6, 5), (2, 5, 3)), ((2, 6, 3), (2, 3, 5))]


# The low-rank products and attention's. (Small ones are widened in any case.)
LARGE = [((512, 64), (64, 8)), ((512, 8), (8, 64)), ((4, 192, 64), (4, 64, 96))]


def operands(shapes, axis, dtype):
    keys = jax.random.split(jax.random.key(0), 3)
    x, kernel = (
        jax.random.normal(key, shape, dtype) for key, shape in zip(keys, shapes, strict=False)
    )
    cotangent = jax.random.normal(keys[2], (*x.shape[:-1], kernel.shape[-1]), jnp.float32)
    return x, kernel if axis == -2 else kernel.swapaxes(-1, -2), cotangent


def both_passes(x, kernel, cotangent, axis):
    out, pull = jax.vjp(lambda x, kernel: dot(x, kernel, jnp.float32, axis), x, kernel)
    return out, *pull(cotangent)


@pytest.mark.parametrize("dtype, error", [("float32", 1e-6), ("bfloat16", 2.0**-7)])
@pytest.mark.parametrize("axis", [-2, -1])
@pytest.mark.parametrize("shapes", SHAPES)
def test_values_and_gradients_are_those_of_float64(shapes, axis, dtype, error):
    x, kernel, cotangent = operands(shapes, axis, dtype)
    found = jax.jit(both_passes, static_argnums=3)(x, kernel, cotangent, axis)

    wide = [np.asarray(a, np.float64) for a in (x, kernel, cotangent.astype(dtype))]
    plain = wide[1] if axis == -2 else wide[1].swapaxes(-1, -2)
    kernel_gradient = wide[0].swapaxes(-1, -2) @ wide[2]
    expected = (
        wide[0] @ plain,
        wide[2] @ plain.swapaxes(-1, -2),
        kernel_gradient if axis == -2 else kernel_gradient.swapaxes(-1, -2),
    )
    for got, want in zip(found, expected, strict=True):
        assert got.shape == want.shape
        np.testing.assert_allclose(
            np.asarray(got, np.float64), want, rtol=error, atol=error * np.abs(want).max()
        )
    assert [a.dtype for a in found] == [jnp.float32, x.dtype, kernel.dtype]


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="reads what XLA makes for a CPU")
@pytest.mark.parametrize("axis", [-2, -1])
@pytest.mark.parametrize("shapes", LARGE)
def test_no_product_s_operand_is_widened(shapes, axis):
    x, kernel, cotangent = operands(shapes, axis, jnp.bfloat16)
    compiled = jax.jit(both_passes, static_argnums=3).lower(x, kernel, cotangent, axis).compile()

    text = compiled.as_text()
    types = dict(re.findall(r"(%[\w.\-]+) = (\w+)\[", text))
    products = re.findall(r" dot\((%[\w.\-]+), (%[\w.\-]+)\)", text)
    assert len(products) == 3
    assert {types[name] for pair in products for name in pair} == {"bf16"}


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_what_is_saved_is_rounded_and_its_gradient_is_not(dtype):
    x, _, cotangent = operands(((6, 5), (5, 5)), -2, jnp.float32)
    out, pull = jax.vjp(lambda x: save_for_backward(x, dtype), x)

    np.testing.assert_array_equal(out, x.astype(dtype).astype(jnp.float32))
    np.testing.assert_array_equal(pull(cotangent)[0], cotangent)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="reads what XLA makes for a CPU")
def test_what_layers_save_in_bfloat16_is_never_widened_for_all_of_them():
    policy = jax.checkpoint_policies.save_only_these_names(SAVED)

    def layer(x, kernels):
        wide = save_for_backward(x @ kernels[0], jnp.bfloat16)
        return save_for_backward(jnp.sin(wide) @ kernels[1], jnp.float32), None

    def loss(kernels):
        x, _ = jax.lax.scan(jax.checkpoint(layer, policy=policy), jnp.ones((96, 48)), kernels)
        return x.sum()

    kernels = jnp.ones((7, 48, 160)), jnp.ones((7, 160, 48))
    text = jax.jit(jax.grad(loss)).lower(kernels).compile().as_text()
    assert set(re.findall(r"(\w+)\[7,96,160\]", text)) == {"u16"}
