"""The gated activation of a feed-forward network, and weighted sums of several.

Axes: N tokens, F ffn width, E experts.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from moecl_jax.kernels.dispatch import kernel


@kernel
def gated_activation(
    gate: jax.Array, up: jax.Array, activation: Callable[[jax.Array], jax.Array], dtype: Any
) -> jax.Array:
    """activation(gate) * up.

    The gradients of both operands are rounded to `dtype`, in which products take them anyway.

    Args:
      gate: `[N, F]` in float32.
      up: `[N, F]` in float32.
      activation: applied to each element, such as `jax.nn.silu`.
      dtype: dtype of the result, as the next product takes it.

    Returns:
      `[N, F]`.
    """
    gate, up = _round_gradient(gate, dtype), _round_gradient(up, dtype)
    return _computed_once((activation(gate) * up).astype(dtype))


@kernel
def weighted_sum(activations: Sequence[jax.Array], weights: jax.Array) -> jax.Array:
    """Sum of the experts' activations, each times its weight for the token.

    It is computed as the last one and weighted differences to it: of two weights, but one needs a
    gradient then. So a gradient of `weights` is right along changes that keep the rows' sums, such
    as those of a softmax, and no other.

    Args:
      activations: E arrays `[N, F]` in float32.
      weights: `[N, E]` in float32, rows of sum 1.

    Returns:
      `[N, F]` in float32.
    """
    *others, mixed = activations
    for index, activation in enumerate(others):
        mixed = mixed + _scaled(weights[:, index : index + 1], activation - activations[-1])
    return mixed


@jax.custom_vjp
def _scaled(weight: jax.Array, x: jax.Array) -> jax.Array:
    """`weight` `[N, 1]` times `x` `[N, F]`."""
    return weight * x


def _scale_forward(
    weight: jax.Array, x: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return weight * x, (weight, x)


def _scale_backward(
    residuals: tuple[jax.Array, jax.Array], cotangent: jax.Array
) -> tuple[jax.Array, jax.Array]:
    weight, x = residuals
    products = x * cotangent
    if jax.default_backend() == "cpu":
        # XLA hands a sum to YNNPACK together with the product, and first makes float32 copies of
        # all that it reads; a matrix product is handed over alone.
        return products @ jnp.ones((x.shape[1], 1), x.dtype), weight * cotangent
    return products.sum(axis=1, keepdims=True), weight * cotangent


_scaled.defvjp(_scale_forward, _scale_backward)


def _computed_once(x: jax.Array) -> jax.Array:
    """`x`; on a CPU it and its gradient are computed once, not anew in each loop that reads them.

    There such loops take as long as their arrays take to read and write. Accelerators fuse them.
    """
    return lax.optimization_barrier(x) if jax.default_backend() == "cpu" else x


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _round_gradient(x: jax.Array, dtype: Any) -> jax.Array:
    """`x`, with a gradient that is rounded to `dtype`."""
    del dtype
    return x


def _forward(x: jax.Array, dtype: Any) -> tuple[jax.Array, None]:
    return _round_gradient(x, dtype), None


def _backward(dtype: Any, _: None, cotangent: jax.Array) -> tuple[jax.Array]:
    return (_computed_once(cotangent.astype(dtype)).astype(cotangent.dtype),)


_round_gradient.defvjp(_forward, _backward)
