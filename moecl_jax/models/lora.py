"""Low-rank adapters (LoRA, arXiv 2106.09685) and their dropout.

Axes: L layers, N tokens, I and O input and output widths of a projection, r rank.
An expert is a dict from projection name to `{"a": [I, r], "b": [r, O]}`, stacked to
`[L, I, r]` and `[L, r, O]` where it is stored.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from moecl_jax.models.config import DecoderConfig
from moecl_jax.models.linear import dot

FFN_TARGETS = ("gate_proj", "up_proj", "down_proj")

Factors = Mapping[str, jax.Array]
Expert = Mapping[str, Factors]


def init_expert(
    key: jax.Array, config: DecoderConfig, rank: int, targets: Sequence[str]
) -> dict[str, dict[str, jax.Array]]:
    """An expert that leaves the frozen model unchanged: A Kaiming-uniform (a = sqrt 5), B zero.

    Kaiming-uniform with a = sqrt 5 is the uniform distribution on +-1/sqrt(I).

    Args:
      key: PRNG key.
      config: sizes of the frozen decoder.
      rank: r.
      targets: names out of `FFN_TARGETS`.

    Returns:
      `{target: {"a": [L, I, r], "b": [L, r, O]}}` in float32.
    """
    expert = {}
    for target, target_key in zip(FFN_TARGETS, jax.random.split(key, 3), strict=True):
        if target not in targets:
            continue
        inputs, outputs = config.width, config.ffn_width
        if target == "down_proj":
            inputs, outputs = outputs, inputs
        bound = inputs**-0.5
        shape = (config.layers, inputs, rank)
        expert[target] = {
            "a": jax.random.uniform(target_key, shape, jnp.float32, -bound, bound),
            "b": jnp.zeros((config.layers, rank, outputs), jnp.float32),
        }
    return expert


def low_rank(
    x: jax.Array, factors: Factors, scale: float, weight: jax.Array | None = None
) -> jax.Array:
    """The adapter's own term: scale * weight * (x A) B.

    Args:
      x: `[N, I]`.
      factors: `a` `[I, r]` and `b` `[r, O]`.
      scale: lora_alpha / r.
      weight: optional `[N, 1]`, applied to the r-wide middle, where it is cheapest.

    Returns:
      `[N, O]` in float32.
    """
    middle = dot(x, factors["a"], jnp.float32) * scale
    if weight is not None:
        middle = middle * weight
    return dot(middle.astype(x.dtype), factors["b"], jnp.float32)


def dropout(x: jax.Array, rate: float, seed: jax.Array | None) -> jax.Array:
    """Zeroes each element with probability `rate` and scales the rest by 1 / (1 - rate).

    The mask is a hash of (seed, element index), several times cheaper on CPU than threefry
    bits: Murmur3's 32-bit finalizer, a bijection in which each input bit flips each output bit
    with probability near one half.

    Args:
      x: `[N, I]`.
      rate: in [0, 1).
      seed: uint32 scalar; `None` (evaluation) returns `x`.
    """
    if seed is None or rate == 0.0:
        return x
    index = jax.lax.iota(jnp.uint32, x.size).reshape(x.shape)
    keep = mix(index ^ mix(seed)) >= jnp.uint32(round(rate * 2**32))
    scaled = x.astype(jnp.float32) * (1.0 / (1.0 - rate))  # 1 / 0.95 is not a bfloat16
    return jnp.where(keep, scaled, 0.0).astype(x.dtype)


def mix(bits: jax.Array) -> jax.Array:
    """Murmur3's 32-bit finalizer (public domain, A. Appleby), on uint32."""
    bits = (bits ^ (bits >> 16)) * jnp.uint32(0x85EBCA6B)
    bits = (bits ^ (bits >> 13)) * jnp.uint32(0xC2B2AE35)
    return bits ^ (bits >> 16)
