"""Products of matrices of which one is frozen or low-rank.

Axes: N tokens, B examples, I and O input and output widths of a projection, r rank, M hidden
states, D width, V vocabulary.
"""

import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint

from moecl_jax.kernels.dispatch import kernel
from moecl_jax.kernels.saved import named
from moecl_jax.kernels.storage import QuantizedKernel, StoredKernel, from_bits

Factors = Mapping[str, jax.Array]  # `a` [I, r], `b` [r, O], and optionally `weights` [N, r]


@kernel
def dense(kernel: StoredKernel, dtype: Any) -> jax.Array:
    """A kernel `[I, O]` in full, in `dtype`: integers times their scales where it is quantised."""
    if not isinstance(kernel, QuantizedKernel):
        return kernel.astype(dtype)
    values = kernel.values
    if values.dtype == jnp.uint8:
        # Not a concatenation, for which XLA's CPU backend branches at every integer.
        halves = values[None] >> jnp.array([0, 4], jnp.uint8)[:, None, None] & 15
        values = halves.reshape(-1, values.shape[1]).astype(jnp.int8) - 8
    grouped = values.reshape(len(kernel.scale), -1, values.shape[1]).astype(jnp.float32)
    scale = from_bits(kernel.scale).astype(jnp.float32)
    return (grouped * scale[:, None]).reshape(values.shape).astype(dtype)


@kernel
def dot(x: jax.Array, kernel: StoredKernel, dtype: Any = None, kernel_axis: int = -2) -> jax.Array:
    """Product of matrices, summed in float32, whose backward pass stays in the operands' dtype.

    The default derivative of a bfloat16 product with a float32 accumulator multiplies float32
    by bfloat16, which has no fast kernel. Gradients that nobody asks for, such as a frozen
    kernel's, are dead code to XLA and are never computed. A quantised kernel has none; both passes
    expand it anew, so that it is never kept in full.

    Args:
      x: `[..., N, I]`.
      kernel: `[..., I, O]`; cast to the dtype of `x`.
      dtype: dtype of the result; that of `x` by default.
      kernel_axis: -1 where the kernel is `[..., O, I]`.

    Returns:
      `[..., N, O]`.
    """
    return _dot(x, kernel, dtype, kernel_axis)


@kernel
def affine(
    x: jax.Array, kernel: StoredKernel, bias: jax.Array | None = None, dtype: Any = None
) -> jax.Array:
    """A frozen projection: x W, or x W + bias.

    Args:
      x: `[N, I]`.
      kernel: W `[I, O]` as it is stored: an array, its bits, or quantised.
      bias: `[O]`, an array or its bits, or `None`.
      dtype: dtype of the result; that of `x` by default.

    Returns:
      `[N, O]`.
    """
    if bias is None:
        return dot(x, from_bits(kernel), dtype)
    out = dot(x, from_bits(kernel), jnp.float32) + from_bits(bias)[None].astype(jnp.float32)
    return out.astype(dtype or x.dtype)


@kernel
def embedding(table: jax.Array, tokens: jax.Array) -> jax.Array:
    """Rows of a stored table: `[N, D]` of a table `[V, D]`, or its bits, and ids `[N]`."""
    embedded: jax.Array = from_bits(table[tokens])
    return embedded


@kernel
def vocabulary_logits(hidden: jax.Array, table: jax.Array) -> jax.Array:
    """Products of hidden states and all embeddings, for a decoder with tied embeddings.

    XLA's CPU backend multiplies bfloat16 in loops alone. Elsewhere it would first make all of the
    table float32, so a table of bits is multiplied block by block.

    Args:
      hidden: `[M, D]`.
      table: the token embedding `[V, D]`, or its bits.

    Returns:
      `[M, V]` in float32.
    """
    if table.dtype != jnp.uint16:
        return dot(hidden, table, jnp.float32, -1)
    blocks = math.gcd(len(table), 64)
    blocked = table.reshape(blocks, -1, table.shape[1])

    @jax.checkpoint
    def of_block(block: jax.Array) -> jax.Array:
        return dot(hidden, from_bits(block), jnp.float32, -1)

    parts = lax.map(of_block, blocked)
    return parts.transpose(1, 0, 2).reshape(len(hidden), -1)


@kernel
def to_rank(x: jax.Array, factors: Factors) -> jax.Array:
    """The first half of `low_rank`, x A, which is saved for the backward pass.

    Args:
      x: `[N, I]`.
      factors: `a` `[I, r]`.

    Returns:
      `[N, r]` in float32.
    """
    return named(dot(x, factors["a"], jnp.float32))


@kernel
def from_rank(
    middle: jax.Array, factors: Factors, scale: float, weight: jax.Array | None, dtype: Any
) -> jax.Array:
    """The second half of `low_rank`: scale * weight * middle B.

    Args:
      middle: x A, `[N, r]` in float32.
      factors: `b` `[r, O]`, and optionally `weights` `[N, r]` for each token.
      scale: lora_alpha / r.
      weight: `[N, 1]`, applied to the r-wide middle, where it is cheapest, or `None`.
      dtype: dtype of the product's operands.

    Returns:
      `[N, O]` in float32.
    """
    middle = middle * scale
    for factor in (weight, factors.get("weights")):
        middle = middle if factor is None else middle * factor
    return dot(middle.astype(dtype), factors["b"], jnp.float32)


@kernel
def low_rank(
    x: jax.Array, factors: Factors, scale: float, weight: jax.Array | None = None
) -> jax.Array:
    """A low-rank adapter's own term: scale * weight * (x A) B (LoRA, arXiv 2106.09685).

    Args:
      x: `[N, I]`.
      factors: `a` `[I, r]` and `b` `[r, O]`, and optionally `weights` `[N, r]` for each token.
      scale: lora_alpha / r.
      weight: `[N, 1]`, or `None` for 1.

    Returns:
      `[N, O]` in float32.
    """
    return from_rank(to_rank(x, factors), factors, scale, weight, x.dtype)


@kernel
def mean_over_tokens(values: jax.Array, membership: jax.Array) -> jax.Array:
    """Mean over each example's real tokens, as a product of matrices.

    Args:
      values: `[N, F]`.
      membership: `[B, N]`, 1 where a token is a real token of an example, else 0.

    Returns:
      `[B, F]` in float32; 0 for an example without tokens.
    """
    total = dot(membership.astype(values.dtype), values, jnp.float32)
    return total / jnp.maximum(membership.sum(axis=1, keepdims=True), 1.0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _dot(x: jax.Array, kernel: StoredKernel, dtype: Any, kernel_axis: int) -> jax.Array:
    return _product(x, dense(kernel, x.dtype), -1, kernel_axis).astype(dtype or x.dtype)


def _product(a: jax.Array, b: jax.Array, a_axis: int, b_axis: int) -> jax.Array:
    """Contracts one axis of the last two each, over the leading axes one by one; in float32."""
    leading = tuple(range(a.ndim - 2))
    axes = ((a.ndim + a_axis,), (b.ndim + b_axis,))
    return lax.dot_general(a, b, (axes, (leading, leading)), preferred_element_type=jnp.float32)


def _transposed(x: jax.Array) -> jax.Array:
    """The last two axes exchanged; on a CPU in memory too.

    XLA's CPU backend has no bfloat16 kernel for a product over the first operand's rows. It would
    make both operands float32, and undo a mere transposition.
    """
    x = x.swapaxes(-1, -2)
    if jax.default_backend() != "cpu":
        return x
    return with_layout_constraint(x, Layout(tuple(range(x.ndim))))


def _forward(
    x: jax.Array, kernel: StoredKernel, dtype: Any, kernel_axis: int
) -> tuple[jax.Array, tuple[jax.Array, StoredKernel]]:
    return _dot(x, kernel, dtype, kernel_axis), (x, kernel)


def _backward(
    dtype: Any, kernel_axis: int, residuals: tuple[jax.Array, StoredKernel], cotangent: jax.Array
) -> tuple[jax.Array, jax.Array | None]:
    del dtype
    x, kernel = residuals
    cotangent = cotangent.astype(x.dtype)
    x_cotangent = _product(cotangent, dense(kernel, x.dtype), -1, -3 - kernel_axis).astype(x.dtype)
    if isinstance(kernel, QuantizedKernel):
        return x_cotangent, None
    narrow = cotangent.shape[-1] < x.shape[-1]  # a wide product is faster than a tall one
    first, second = (cotangent, x) if narrow else (x, cotangent)
    gradient = _product(_transposed(first), second, -1, -2)
    if narrow == (kernel_axis == -2):
        gradient = lax.optimization_barrier(gradient).swapaxes(-1, -2)  # XLA would make it tall
    return x_cotangent, gradient.astype(kernel.dtype)


_dot.defvjp(_forward, _backward)
