"""Rows of a matrix in another order."""

import jax

from moecl_jax.kernels.dispatch import kernel


@kernel
def rearranged(x: jax.Array, source: jax.Array, back: jax.Array) -> jax.Array:
    """Rows of a matrix in another order: row i is row source[i] of `x`, or 0 if there is none.

    The default gradient of this would add the rows one by one. Here it is the way back.

    Args:
      x: `[M, F]`.
      source: `[P]`, each row of `x` at most once; M for none.
      back: `[M]`, where in the result each row of `x` is, P if nowhere.

    Returns:
      `[P, F]`.
    """
    return _rearranged(x, source, back)


@jax.custom_vjp
def _rearranged(x: jax.Array, source: jax.Array, back: jax.Array) -> jax.Array:
    del back
    return x.at[source].get(mode="fill", fill_value=0)


def _forward(
    x: jax.Array, source: jax.Array, back: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _rearranged(x, source, back), (source, back)


def _backward(
    places: tuple[jax.Array, jax.Array], cotangent: jax.Array
) -> tuple[jax.Array, None, None]:
    source, back = places
    return _rearranged(cotangent, back, source), None, None


_rearranged.defvjp(_forward, _backward)
