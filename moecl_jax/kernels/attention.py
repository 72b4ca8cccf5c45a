"""Scaled dot-product attention over rows in which several texts may lie.

Axes: R rows, S slots a row, C keys a query may see, H query heads, G key and value heads, K head
width.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from moecl_jax.kernels.dispatch import kernel
from moecl_jax.kernels.linear import dot
from moecl_jax.kernels.saved import rounded_and_named

_SPLASH_BLOCK = 128  # slots that splash attention takes at a time
_LONG = 64  # slots of a row; of shorter ones, halves take longer to compile and save nothing
_FEW_KEYS = 256  # with more, attention's weights would be more than all else that is saved


@kernel
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
    """softmax(scale * q k + mask) v, softmax in float32.

    A group of H / G query heads shares a head of keys and values.

    Args:
      query: `[R, S, H, K]`.
      key: `[R, C, G, K]`.
      value: `[R, C, G, K]`.
      mask: `[R, 1, S, C]`, which keys each query sees; at least one.
      scale: factor of the scores.
      causal: whether the keys are those of the queries' own slots, and the mask hides later ones.
      segments: `[R, S]`, of which text a token is, 0 for padding. "splash" needs it, and hides by
        it what the mask hides.
      window: how many slots a query sees, its own among them; `None` for all before it. "splash"
        hides by it what the mask hides.
      implementation: a name of `ATTENTIONS`.

    Returns:
      `[R, S, H, K]`.
    """
    attend = ATTENTIONS[implementation]
    settings = {"scale": scale, "causal": causal, "segments": segments, "window": window}
    return attend(query, key, value, mask, **settings)


def _by_xla(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: jax.Array,
    *,
    scale: float,
    causal: bool,
    segments: jax.Array | None,
    window: int | None,
) -> jax.Array:
    """Attention by XLA, on any processor.

    The first half of a long row's queries leaves out the keys of the second, which they do not see.

    Laid out for XLA's CPU backend: head first, the queries of a key's group in one product. There
    it took 0.6 of the time of `jax.nn.dot_product_attention`, and takes less in halves: products of
    many matrices keep one core busy, and those of both halves two.
    """
    del segments, window
    slots = query.shape[1]
    if not causal or slots % 2 or slots < _LONG:
        return _attend(query, key, value, mask, scale)
    halves = []
    for start, stop in ((0, slots // 2), (slots // 2, slots)):
        seen = mask[:, :, start:stop, :stop]
        halves.append(_attend(query[:, start:stop], key[:, :stop], value[:, :stop], seen, scale))
    return jnp.concatenate(halves, axis=1)


def _attend(
    query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array, scale: float
) -> jax.Array:
    """`_by_xla` of queries that all may see each key, but for the mask `[R, 1, S, C]`."""
    rows, slots, heads, width = query.shape
    groups = key.shape[2]
    grouped = query.reshape(rows, slots, groups, heads // groups, width).transpose(0, 2, 3, 1, 4)
    grouped = grouped.reshape(rows * groups, -1, width)
    key, value = (x.transpose(0, 2, 1, 3).reshape(rows * groups, -1, width) for x in (key, value))
    scores = dot(grouped, key, jnp.float32, -1)
    scores = scale * scores.reshape(rows, heads, slots, -1)
    lowest = jnp.finfo(jnp.float32).min
    few = scores.shape[-1] <= _FEW_KEYS
    softmax = functools.partial(_softmax, dtype=value.dtype) if few else jax.nn.softmax
    weights = softmax(jnp.where(mask, scores, lowest)).astype(value.dtype)
    weights = weights.reshape(grouped.shape[0], grouped.shape[1], -1)
    out = dot(weights, value).reshape(rows, heads, slots, width)
    return out.transpose(0, 2, 1, 3)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _softmax(scores: jax.Array, dtype: Any) -> jax.Array:
    """Softmax of the last axis, rounded to `dtype`, which `--remat=projections` saves."""
    return rounded_and_named(jax.nn.softmax(scores), dtype)


def _softmax_forward(scores: jax.Array, dtype: Any) -> tuple[jax.Array, jax.Array]:
    weights = rounded_and_named(jax.nn.softmax(scores), dtype)
    return weights, weights


def _softmax_backward(dtype: Any, weights: jax.Array, cotangent: jax.Array) -> tuple[jax.Array]:
    del dtype
    products = weights * cotangent
    return (products - weights * products.sum(axis=-1, keepdims=True),)


_softmax.defvjp(_softmax_forward, _softmax_backward)


def _by_cudnn(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: jax.Array,
    *,
    scale: float,
    causal: bool,
    segments: jax.Array | None,
    window: int | None,
) -> jax.Array:
    """Attention by cuDNN's fused kernel: on NVIDIA GPUs, in bfloat16."""
    del causal, segments, window  # the mask says it all
    return jax.nn.dot_product_attention(
        query, key, value, mask=mask, scale=scale, implementation="cudnn"
    )


def _by_splash(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: jax.Array,
    *,
    scale: float,
    causal: bool,
    segments: jax.Array | None,
    window: int | None,
) -> jax.Array:
    """Attention by JAX's splash kernel for TPUs: the score matrix stays on the chip.

    It knows texts and windows, but not branches: each text must have at most one continuation.
    Elsewhere than on a TPU it is interpreted, which is for tests.
    """
    from jax.experimental.pallas.ops.tpu import splash_attention as splash  # slow to import

    assert causal and segments is not None, "splash attention reads no cache"
    del mask
    slots = query.shape[1]
    filled = -slots % _SPLASH_BLOCK
    shape = (slots + filled, slots + filled)
    seen: splash.Mask = splash.CausalMask(shape)
    if window is not None:
        seen = splash.LocalMask(shape, (window - 1, 0), 0)
    attend = splash.make_splash_mha_single_device(
        splash.MultiHeadMask([seen] * query.shape[2]),
        interpret=jax.default_backend() != "tpu",
    )
    query = (query.astype(jnp.float32) * scale).astype(query.dtype)
    heads_first = [
        jnp.pad(x, ((0, 0), (0, filled), (0, 0), (0, 0))).transpose(0, 2, 1, 3)
        for x in (query, key, value)
    ]
    texts = jnp.pad(segments, ((0, 0), (0, filled)))
    out = jax.vmap(attend)(*heads_first, splash.SegmentIds(texts, texts))
    return out.transpose(0, 2, 1, 3)[:, :slots].astype(query.dtype)


ATTENTIONS: dict[str, Callable[..., jax.Array]] = {
    "xla": _by_xla,
    "cudnn": _by_cudnn,
    "splash": _by_splash,
}
MADE_FOR = {"cudnn": "gpu", "splash": "tpu"}  # JAX's backends
