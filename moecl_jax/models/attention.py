"""Attention over rows in which several examples lie, and what its layers share.

Axes: R rows, S slots a row, N slots that are computed, C keys a query may see, H query heads, G key
and value heads, K head width.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from moecl_jax.errors import UserError
from moecl_jax.kernels.linear import dot, rounded_and_named
from moecl_jax.models.config import AttentionKind, DecoderConfig

_SPLASH_BLOCK = 128  # slots that splash attention takes at a time
_LONG = 64  # slots of a row; of shorter ones, halves take longer to compile and save nothing
_FEW_KEYS = 256  # with more, attention's weights would be more than all else that is kept


@flax.struct.dataclass
class AttentionContext:
    """What all layers' attention shares.

    With several kinds of attention, mask, cos and sin have a leading axis for the kind.

    Attributes:
      mask: `[R, 1, S, C]`, which of C keys each query sees; C is S, or the slots of a cache.
      cos: `[N, 1, K]`.
      sin: `[N, 1, K]`.
      cache_slots: `[R, S]`, where in a cache keys and values are written; `None` without one.
      segments: `[R, S]`, of which text a token is, 0 for padding; `None` with a cache.
      places: `[R * S]`, where each slot lies among the N that are computed, N if nowhere; and
        `[N]`, the reverse. `None` where all are computed.
    """

    mask: jax.Array
    cos: jax.Array
    sin: jax.Array
    cache_slots: jax.Array | None = None
    segments: jax.Array | None = None
    places: tuple[jax.Array, jax.Array] | None = None

    def in_rows(self, x: jax.Array) -> jax.Array:
        """The computed slots' `[N, F]` in their rows, `[R * S, F]`; 0 in the others."""
        return x if self.places is None else _rearranged(x, *self.places)

    def computed(self, x: jax.Array) -> jax.Array:
        """The computed slots' `[N, F]` out of their rows, `[R * S, F]`."""
        return x if self.places is None else _rearranged(x, *self.places[::-1])

    def of_kind(self, kind: jax.Array | None) -> "AttentionContext":
        """That of the layers of one kind; `None` where there is but one."""
        if kind is None:
            return self
        mask, cos, sin = self.mask[kind], self.cos[kind], self.sin[kind]
        return dataclasses.replace(self, mask=mask, cos=cos, sin=sin)


@jax.custom_vjp
def _rearranged(x: jax.Array, source: jax.Array, back: jax.Array) -> jax.Array:
    """Rows of a matrix in another order: row i is row source[i] of `x`, or 0 if there is none.

    The default gradient of this would add the rows one by one.

    Args:
      x: `[M, F]`.
      source: `[P]`, each row of `x` at most once.
      back: `[M]`, where in the result each row of `x` is, P if nowhere.
    """
    del back
    return x.at[source].get(mode="fill", fill_value=0)


def _rearrange(
    x: jax.Array, source: jax.Array, back: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _rearranged(x, source, back), (source, back)


def _rearrange_back(
    places: tuple[jax.Array, jax.Array], cotangent: jax.Array
) -> tuple[jax.Array, None, None]:
    source, back = places
    return _rearranged(cotangent, back, source), None, None


_rearranged.defvjp(_rearrange, _rearrange_back)


def attention_context(
    config: DecoderConfig,
    positions: jax.Array,
    segments: jax.Array,
    branches: jax.Array,
    computed: jax.Array | None = None,
) -> AttentionContext:
    """Mask and rotary factors from `[R, S]` positions, segments and branches.

    `computed` `[N]` are the slots that the layers compute, `None` for all.

    A token sees itself and the tokens before it in its row that belong to the same segment and
    either to the prompt or to its own branch; and none that a sliding window, counted in
    positions, leaves behind. Padding sees padding, so that no row of the softmax is empty.
    """
    slots = positions.shape[1]
    causal = jnp.tril(jnp.ones((slots, slots), bool))[None]
    same_segment = segments[:, :, None] == segments[:, None, :]
    visible = (branches[:, None, :] == 0) | (branches[:, :, None] == branches[:, None, :])
    distance = positions[:, :, None] - positions[:, None, :]
    mask = causal & same_segment & visible
    positions, places = positions.reshape(-1), None
    if computed is not None:
        count = len(computed)
        nowhere = jnp.full(positions.size, count, jnp.int32)
        places = nowhere.at[computed].set(jnp.arange(count, dtype=jnp.int32)), computed
        positions = positions[computed]
    context = _context_of_kinds(config, mask, distance, positions)
    return dataclasses.replace(context, segments=segments, places=places)


def cached_attention_context(
    config: DecoderConfig, positions: jax.Array, slots: int
) -> AttentionContext:
    """The same where keys come from a cache: a token sees the slots up to its own position."""
    distance = positions[:, :, None] - jnp.arange(slots)[None, None]
    context = _context_of_kinds(config, distance >= 0, distance, positions.reshape(-1))
    return dataclasses.replace(context, cache_slots=positions)


def _context_of_kinds(
    config: DecoderConfig, mask: jax.Array, distance: jax.Array, positions: jax.Array
) -> AttentionContext:
    """Applies each kind's window to a mask `[R, S, C]`, given how far back each key lies.

    `positions` are those of the N slots that are computed.
    """
    contexts = []
    for kind in config.attention_kinds:
        seen = mask if kind.window is None else mask & (distance < kind.window)
        angle = positions[:, None].astype(jnp.float32) * rotary_frequencies(config, kind)
        angle = jnp.concatenate([angle, angle], axis=-1)[:, None, :]
        contexts.append(AttentionContext(seen[:, None], jnp.cos(angle), jnp.sin(angle)))
    if len(contexts) == 1:
        return contexts[0]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *contexts)


def rotary_frequencies(config: DecoderConfig, kind: AttentionKind) -> np.ndarray:
    """Angle a position [radians] of each pair of a head's axes, `[1, K / 2]` in float32."""
    exponent = np.arange(0, config.head_width, 2) / config.head_width
    frequency: np.ndarray = (kind.rope_theta or config.rope_theta) ** -exponent
    if kind.scaling is not None:
        kept = np.zeros_like(frequency)
        if kind.scaling.band is not None:
            shortest, longest = kind.scaling.band
            turns = frequency / (2 * np.pi)
            kept = np.clip((turns - 1 / longest) / (1 / shortest - 1 / longest), 0, 1)
        frequency = kept * frequency + (1 - kept) * frequency / kind.scaling.factor
    return frequency.astype(np.float32)[None]


def attend_by_xla(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    context: AttentionContext,
    config: DecoderConfig,
) -> jax.Array:
    """Scaled dot-product attention, softmax in float32.

    The first half of a long row's queries leaves out the keys of the second, which they do not see.

    Laid out for XLA's CPU backend: head first, the queries of a key's group in one product. There
    it took 0.6 of the time of `jax.nn.dot_product_attention`, and takes less in halves: products of
    many matrices keep one core busy, and those of both halves two.

    Args:
      query: `[R, S, H, K]`.
      key: `[R, C, G, K]`.
      value: `[R, C, G, K]`.
      context: with the mask of this kind of layer.
      config: of the decoder, for the scale of the scores.

    Returns:
      `[R, S, H, K]`.
    """
    slots = query.shape[1]
    if context.cache_slots is not None or slots % 2 or slots < _LONG:
        return _attend(query, key, value, context.mask, config)
    halves = []
    for start, stop in ((0, slots // 2), (slots // 2, slots)):
        mask = context.mask[:, :, start:stop, :stop]
        halves.append(_attend(query[:, start:stop], key[:, :stop], value[:, :stop], mask, config))
    return jnp.concatenate(halves, axis=1)


def _attend(
    query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array, config: DecoderConfig
) -> jax.Array:
    """`attend_by_xla` of queries that all may see each key, but for the mask `[R, 1, S, C]`."""
    rows, slots, heads, width = query.shape
    groups = key.shape[2]
    grouped = query.reshape(rows, slots, groups, heads // groups, width).transpose(0, 2, 3, 1, 4)
    grouped = grouped.reshape(rows * groups, -1, width)
    key, value = (x.transpose(0, 2, 1, 3).reshape(rows * groups, -1, width) for x in (key, value))
    scores = dot(grouped, key, jnp.float32, -1)
    scores = _scale(config) * scores.reshape(rows, heads, slots, -1)
    lowest = jnp.finfo(jnp.float32).min
    few = scores.shape[-1] <= _FEW_KEYS
    softmax = functools.partial(_softmax, dtype=value.dtype) if few else jax.nn.softmax
    weights = softmax(jnp.where(mask, scores, lowest)).astype(value.dtype)
    weights = weights.reshape(grouped.shape[0], grouped.shape[1], -1)
    out = dot(weights, value).reshape(rows, heads, slots, width)
    return out.transpose(0, 2, 1, 3)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _softmax(scores: jax.Array, dtype: Any) -> jax.Array:
    """Softmax of the last axis, rounded to `dtype`, which `--remat=projections` keeps."""
    return rounded_and_named(jax.nn.softmax(scores), dtype)


def _softmax_forward(scores: jax.Array, dtype: Any) -> tuple[jax.Array, jax.Array]:
    weights = rounded_and_named(jax.nn.softmax(scores), dtype)
    return weights, weights


def _softmax_backward(dtype: Any, weights: jax.Array, cotangent: jax.Array) -> tuple[jax.Array]:
    del dtype
    products = weights * cotangent
    return (products - weights * products.sum(axis=-1, keepdims=True),)


_softmax.defvjp(_softmax_forward, _softmax_backward)


def attend_by_cudnn(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    context: AttentionContext,
    config: DecoderConfig,
) -> jax.Array:
    """As `attend_by_xla`, by cuDNN's fused kernel: on NVIDIA GPUs, in bfloat16."""
    return jax.nn.dot_product_attention(
        query, key, value, mask=context.mask, scale=_scale(config), implementation="cudnn"
    )


def attend_by_splash(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    context: AttentionContext,
    config: DecoderConfig,
) -> jax.Array:
    """As `attend_by_xla`, by JAX's splash kernel for TPUs, which no score leaves.

    It knows texts and windows, but not branches: each text must have at most one continuation. All
    layers must be of one kind. Elsewhere than on a TPU it is interpreted, which is for tests.
    """
    from jax.experimental.pallas.ops.tpu import splash_attention as splash  # slow to import

    segments = context.segments
    assert segments is not None, "splash attention reads no cache"
    (kind,) = config.attention_kinds
    slots = query.shape[1]
    filled = -slots % _SPLASH_BLOCK
    shape = (slots + filled, slots + filled)
    mask: splash.Mask = splash.CausalMask(shape)
    if kind.window is not None:
        mask = splash.LocalMask(shape, (kind.window - 1, 0), 0)
    attend = splash.make_splash_mha_single_device(
        splash.MultiHeadMask([mask] * query.shape[2]),
        interpret=jax.default_backend() != "tpu",
    )
    query = (query.astype(jnp.float32) * _scale(config)).astype(query.dtype)
    heads_first = [
        jnp.pad(x, ((0, 0), (0, filled), (0, 0), (0, 0))).transpose(0, 2, 1, 3)
        for x in (query, key, value)
    ]
    texts = jnp.pad(segments, ((0, 0), (0, filled)))
    out = jax.vmap(attend)(*heads_first, splash.SegmentIds(texts, texts))
    return out.transpose(0, 2, 1, 3)[:, :slots].astype(query.dtype)


ATTENTIONS: dict[str, Callable[..., jax.Array]] = {
    "xla": attend_by_xla,
    "cudnn": attend_by_cudnn,
    "splash": attend_by_splash,
}
MADE_FOR = {"cudnn": "gpu", "splash": "tpu"}  # JAX's backends


def check_attention(name: str, config: DecoderConfig, dtype: Any, devices: int) -> None:
    """Refuses what one of `ATTENTIONS` cannot do.

    Args:
      name: of `ATTENTIONS`.
      config: of the decoder.
      dtype: of activations.
      devices: that the model is on.

    Raises:
      UserError: the backend, the dtype, the decoder or the number of devices does not suit.
    """
    reason = None
    if name == "cudnn" and jax.default_backend() != "gpu":
        reason = f"needs an NVIDIA GPU, and JAX runs on {jax.default_backend()}"
    elif name == "cudnn" and jnp.dtype(dtype) != jnp.bfloat16:
        reason = f"needs bfloat16; model.dtype is {jnp.dtype(dtype).name}"
    elif name == "splash" and len(config.attention_kinds) > 1:
        reason = "needs a model whose layers all attend in the same way"
    elif name == "splash" and devices > 1:
        reason = f"is for one device, and the mesh has {devices}"
    if reason:
        raise UserError(f"attention '{name}' {reason}; set model.attention = 'xla'")


def _scale(config: DecoderConfig) -> float:
    """Of the scores."""
    return config.attention_scale or config.head_width**-0.5


def rotate(x: jax.Array, context: AttentionContext) -> jax.Array:
    """Rotary embedding of `[N, heads, K]` (arXiv 2104.09864), halves rotated as in Llama."""
    first, second = jnp.split(x, 2, axis=-1)
    return x * context.cos + jnp.concatenate([-second, first], axis=-1) * context.sin
