"""Which values a layer saves for its backward pass, where `--remat=projections` asks for it."""

import functools
from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name

from moecl_jax.kernels.dispatch import kernel
from moecl_jax.kernels.storage import as_bits, from_bits

SAVED = "saved_for_backward"  # the name that a checkpoint policy saves


@kernel
def save_for_backward(x: jax.Array, dtype: Any) -> jax.Array:
    """`x` rounded to `dtype`, which `--remat=projections` saves for the backward pass.

    Bfloat16 is saved as its bits: to write one layer's bfloat16 into what is saved of all, XLA's
    CPU backend would convert that of all to float32 and back, in every layer. The gradient is not
    rounded.

    Args:
      x: an array of floating point numbers.
      dtype: that it is rounded to and saved in.

    Returns:
      An array of the shape and dtype of `x`.
    """
    return _saved(x, dtype)


def rounded_and_named(x: jax.Array, dtype: Any) -> jax.Array:
    """The value of `save_for_backward`, for the forward rule of a `custom_vjp`.

    There the derivative of `save_for_backward` would hide the name from the checkpoint policy.
    """
    return from_bits(named(as_bits(x.astype(dtype)))).astype(x.dtype)


def named(x: jax.Array) -> jax.Array:
    """`x` as it is, saved for the backward pass."""
    return checkpoint_name(x, SAVED)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _saved(x: jax.Array, dtype: Any) -> jax.Array:
    return rounded_and_named(x, dtype)


@_saved.defjvp
def _saved_jvp(
    dtype: Any, primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    return rounded_and_named(*primals, dtype), tangents[0]
