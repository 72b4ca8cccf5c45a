"""The plain twin of each kernel: its mathematics in `jnp`, in float32, and nothing else.

Read these to know what a kernel computes; arguments, shapes and results are described at the fast
function of the same name. Numbers are widened to float32, computed, and rounded once to the
dtype of the result. JAX derives all gradients.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from moecl_jax.kernels.storage import QuantizedKernel, StoredKernel, from_bits

Factors = Mapping[str, jax.Array]


def dense(kernel: StoredKernel, dtype: Any) -> jax.Array:
    """W = s q, the integers q and the scale s of their group of inputs."""
    if not isinstance(kernel, QuantizedKernel):
        return kernel.astype(dtype)
    integers = kernel.values.astype(jnp.int32)
    if kernel.values.dtype == jnp.uint8:
        integers = jnp.concatenate([integers % 16 - 8, integers // 16 - 8])
    group = len(integers) // len(kernel.scale)
    scale = jnp.repeat(from_bits(kernel.scale), group, axis=0)
    return (scale.astype(jnp.float32) * integers).astype(dtype)


def dot(x: jax.Array, kernel: StoredKernel, dtype: Any = None, kernel_axis: int = -2) -> jax.Array:
    """X W, or x W^T where W's last axis is the inputs'; W is rounded to the dtype of x."""
    weights = dense(kernel, x.dtype)
    weights = weights.swapaxes(-1, -2) if kernel_axis == -1 else weights
    product = x.astype(jnp.float32) @ weights.astype(jnp.float32)
    return product.astype(dtype or x.dtype)


def affine(
    x: jax.Array, kernel: StoredKernel, bias: jax.Array | None = None, dtype: Any = None
) -> jax.Array:
    """X W + bias."""
    out = dot(x, from_bits(kernel), jnp.float32)
    if bias is not None:
        out = out + from_bits(bias).astype(jnp.float32)[None]
    return out.astype(dtype or x.dtype)


def embedding(table: jax.Array, tokens: jax.Array) -> jax.Array:
    """The tokens' rows of the table."""
    rows: jax.Array = from_bits(table)[tokens]
    return rows


def vocabulary_logits(hidden: jax.Array, table: jax.Array) -> jax.Array:
    """H E^T."""
    return dot(hidden, from_bits(table), jnp.float32, -1)


def to_rank(x: jax.Array, factors: Factors) -> jax.Array:
    """X A."""
    return dot(x, factors["a"], jnp.float32)


def from_rank(
    middle: jax.Array, factors: Factors, scale: float, weight: jax.Array | None, dtype: Any
) -> jax.Array:
    """Scale * weight * (x A) B."""
    middle = middle * scale
    if weight is not None:
        middle = middle * weight
    if "weights" in factors:
        middle = middle * factors["weights"]
    return dot(middle.astype(dtype), factors["b"], jnp.float32)


def low_rank(
    x: jax.Array, factors: Factors, scale: float, weight: jax.Array | None = None
) -> jax.Array:
    """Scale * weight * (x A) B."""
    return from_rank(to_rank(x, factors), factors, scale, weight, x.dtype)


def mean_over_tokens(values: jax.Array, membership: jax.Array) -> jax.Array:
    """sum_n m_bn v_n / sum_n m_bn, 0 where no token is a member."""
    counts = membership.sum(axis=1, keepdims=True)
    return membership @ values.astype(jnp.float32) / jnp.maximum(counts, 1.0)


def gated_activation(
    gate: jax.Array, up: jax.Array, activation: Callable[[jax.Array], jax.Array], dtype: Any
) -> jax.Array:
    """act(gate) * up."""
    return (activation(gate) * up).astype(dtype)


def weighted_sum(activations: Sequence[jax.Array], weights: jax.Array) -> jax.Array:
    """sum_e weights_e a_e."""
    return jnp.einsum("enf,ne->nf", jnp.stack(list(activations)), weights)


def dropout(
    x: jax.Array, rate: float, seed: jax.Array | None, places: jax.Array | None = None
) -> jax.Array:
    """X / (1 - rate) where the hash of an element's place is at least rate * 2^32, else 0."""
    if seed is None or rate == 0.0:
        return x
    row, column = jnp.indices(x.shape, jnp.uint32)
    row = row if places is None else places[:, None]
    place = hash_bits(row + hash_bits(seed)) + hash_bits(column) + seed
    place = (place ^ (place >> 15)) * jnp.uint32(0x85EBCA6B)
    dropped = place < jnp.uint32(round(rate * 2**32))
    return jnp.where(dropped, 0.0, x.astype(jnp.float32) / (1.0 - rate)).astype(x.dtype)


def hash_bits(bits: jax.Array) -> jax.Array:
    """Murmur3's 32-bit finalizer (public domain, A. Appleby), on uint32."""
    bits = (bits ^ (bits >> 16)) * jnp.uint32(0x85EBCA6B)
    bits = (bits ^ (bits >> 13)) * jnp.uint32(0xC2B2AE35)
    return bits ^ (bits >> 16)


def save_for_backward(x: jax.Array, dtype: Any) -> jax.Array:
    """X rounded to `dtype`."""
    return x.astype(dtype).astype(x.dtype)


def rearranged(x: jax.Array, source: jax.Array, back: jax.Array) -> jax.Array:
    """Row i is x[source[i]], or 0 if x has no such row."""
    del back
    exists = source < len(x)
    return jnp.where(exists[:, None], x[jnp.where(exists, source, 0)], 0)


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: jax.Array,
    *,
    scale: float,
    causal: bool,
    segments: jax.Array | None = None,
    window: int | None = None,
    implementation: str = "xla",
) -> jax.Array:
    """Softmax over the keys that the mask shows of (scale * q . k), times v."""
    del causal, segments, window, implementation
    q, k, v = (x.astype(jnp.float32) for x in (query, key, value))
    share = query.shape[2] // key.shape[2]
    k, v = jnp.repeat(k, share, axis=2), jnp.repeat(v, share, axis=2)
    scores = scale * jnp.einsum("rshk,rchk->rhsc", q, k)
    weights = jax.nn.softmax(jnp.where(mask, scores, -jnp.inf), axis=-1)
    return jnp.einsum("rhsc,rchk->rshk", weights, v).astype(query.dtype)
