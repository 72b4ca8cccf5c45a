"""Matrix products with a frozen or low-rank operand, and how frozen weights lie in memory."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def dot(x: jax.Array, kernel: jax.Array, dtype: Any = None) -> jax.Array:
    """Product of 2-D operands that stays in the operands' dtype in the backward pass too.

    The default derivative of a bfloat16 product with a float32 accumulator multiplies float32
    by bfloat16, which has no fast kernel. Gradients that nobody asks for, such as a frozen
    kernel's, are dead code to XLA and are never computed.

    Args:
      x: `[N, I]`.
      kernel: `[I, O]`; cast to the dtype of `x`.
      dtype: of the result; the default is that of `x`.

    Returns:
      `[N, O]`.
    """
    return _product(x, kernel.astype(x.dtype), 1, 0).astype(dtype or x.dtype)


def as_bits(tree: Any) -> Any:
    """Frozen bfloat16 weights as their uint16 bits, for backends without bfloat16 arithmetic.

    XLA's CPU backend rewrites a slice of a bfloat16 array as a slice of a float32 one, so that a
    scan over layers converts every layer's weights to float32 in every step. Bits are sliced as
    they are: on two cores that is 1.6 times the matrix product rate, and no float32 copy.
    """

    def view(leaf: jax.Array) -> jax.Array:
        return leaf.view(jnp.uint16) if leaf.dtype == jnp.bfloat16 else leaf

    return jax.tree.map(view, tree)


def from_bits(array: jax.Array) -> jax.Array:
    """The bfloat16 array that `as_bits` stored; any other array as it is."""
    if array.dtype != jnp.uint16:
        return array
    return lax.bitcast_convert_type(array, jnp.bfloat16)


def _product(a: jax.Array, b: jax.Array, a_axis: int, b_axis: int) -> jax.Array:
    dimensions = (((a_axis,), (b_axis,)), ((), ()))
    return lax.dot_general(a, b, dimensions, preferred_element_type=jnp.float32)


def _forward(
    x: jax.Array, kernel: jax.Array, dtype: Any
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return dot(x, kernel, dtype), (x, kernel)


def _backward(
    dtype: Any, residuals: tuple[jax.Array, jax.Array], cotangent: jax.Array
) -> tuple[jax.Array, jax.Array]:
    del dtype
    x, kernel = residuals
    cotangent = cotangent.astype(x.dtype)
    x_cotangent = _product(cotangent, kernel.astype(x.dtype), 1, 1).astype(x.dtype)
    if kernel.shape[1] < kernel.shape[0]:
        # XLA's CPU backend takes 12 times as long for a tall product as for a wide one, and would
        # undo a mere transposition.
        wide = lax.optimization_barrier(_product(cotangent, x, 0, 0))
        return x_cotangent, wide.T.astype(kernel.dtype)
    return x_cotangent, _product(x, cotangent, 0, 0).astype(kernel.dtype)


dot.defvjp(_forward, _backward)
