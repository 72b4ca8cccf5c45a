"""Dropout whose mask is a hash of each element's place."""

import jax
import jax.numpy as jnp

from moecl_jax.kernels.dispatch import kernel
from moecl_jax.kernels.reference import hash_bits


@kernel
def dropout(
    x: jax.Array, rate: float, seed: jax.Array | None, places: jax.Array | None = None
) -> jax.Array:
    """Zeroes each element with probability `rate` and scales the rest by 1 / (1 - rate).

    The mask is a hash of (seed, row, column), many times cheaper on CPU than threefry bits: what
    Murmur3's finalizer makes of row and of column is added, and the sum mixed by one more
    multiplication, the only one for each element.

    Args:
      x: `[N, I]`.
      rate: probability in [0, 1).
      seed: uint32 scalar; `None` (evaluation) returns `x`.
      places: `[N]` uint32 that the hash takes for the rows' numbers; `None` for those themselves.
    """
    if seed is None or rate == 0.0:
        return x
    rows, columns = (jax.lax.iota(jnp.uint32, size) for size in x.shape)
    rows = rows if places is None else places
    # Both depend on the seed, and what is dropped is multiplied by 0, not chosen to be 0: a scan's
    # derivative takes arrays that are the same in all layers out of the loop, for each to read.
    rows, columns = hash_bits(rows + hash_bits(seed)), hash_bits(columns) + seed
    bits = rows[:, None] + columns[None, :]
    keep = (bits ^ (bits >> 15)) * jnp.uint32(0x85EBCA6B) >= jnp.uint32(round(rate * 2**32))
    scaled = x.astype(jnp.float32) * (1.0 / (1.0 - rate))  # 1 / 0.95 is not a bfloat16
    return (scaled * keep).astype(x.dtype)
