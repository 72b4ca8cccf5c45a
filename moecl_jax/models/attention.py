"""What layers of attention share: masks over rows of several texts, and rotary embedding.

Axes: R rows, S slots a row, N slots that are computed, C keys a query may see, H query heads, G key
and value heads, K head width.
"""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from moecl_jax.errors import UserError
from moecl_jax.kernels import attention, rearranged
from moecl_jax.models.config import AttentionKind, DecoderConfig


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
        return x if self.places is None else rearranged(x, *self.places)

    def computed(self, x: jax.Array) -> jax.Array:
        """The computed slots' `[N, F]` out of their rows, `[R * S, F]`."""
        return x if self.places is None else rearranged(x, *self.places[::-1])

    def of_kind(self, kind: jax.Array | None) -> "AttentionContext":
        """That of the layers of one kind; `None` where there is but one."""
        if kind is None:
            return self
        mask, cos, sin = self.mask[kind], self.cos[kind], self.sin[kind]
        return dataclasses.replace(self, mask=mask, cos=cos, sin=sin)


def attention_context(
    config: DecoderConfig,
    positions: jax.Array,
    segments: jax.Array,
    branches: jax.Array,
    computed: jax.Array | None = None,
    prefix: tuple[int, jax.Array] | None = None,
) -> AttentionContext:
    """Mask and rotary factors from `[R, S]` positions, segments and branches.

    `computed` `[N]` are the slots that the layers compute, `None` for all. `prefix` is the number
    of keys that stand before those of each row, and the scalar number of those that are tokens:
    all texts see them, whose positions go on from theirs.

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
    if prefix is not None:
        slots_before, tokens_before = prefix
        before = jnp.arange(slots_before)[None, None]
        seen = (segments[:, :, None] > 0) & (before < tokens_before)
        mask = jnp.concatenate([seen, mask], axis=-1)
        distance = jnp.concatenate([positions[:, :, None] - before, distance], axis=-1)
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
        unscaled = np.zeros_like(frequency)
        if kind.scaling.band is not None:
            shortest, longest = kind.scaling.band
            turns = frequency / (2 * np.pi)
            unscaled = np.clip((turns - 1 / longest) / (1 / shortest - 1 / longest), 0, 1)
        frequency = unscaled * frequency + (1 - unscaled) * frequency / kind.scaling.factor
    return frequency.astype(np.float32)[None]


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    context: AttentionContext,
    config: DecoderConfig,
    implementation: str = "xla",
) -> jax.Array:
    """Scaled dot-product attention of one layer.

    Args:
      query: `[R, S, H, K]`.
      key: `[R, C, G, K]`.
      value: `[R, C, G, K]`.
      context: context with the mask of this kind of layer.
      config: sizes and constants of the decoder.
      implementation: a name of `kernels.ATTENTIONS`, which `check_attention` has let pass.

    Returns:
      `[R, S, H, K]`.
    """
    kinds = config.attention_kinds
    return attention(
        query,
        key,
        value,
        context.mask,
        scale=config.attention_scale or config.head_width**-0.5,
        causal=key.shape[1] == query.shape[1] and context.cache_slots is None,
        segments=context.segments,
        window=kinds[0].window if len(kinds) == 1 else None,
        implementation=implementation,
    )


def check_attention(name: str, config: DecoderConfig, dtype: Any, devices: int) -> None:
    """Refuses what an implementation of attention cannot do.

    Args:
      name: key of `kernels.ATTENTIONS`.
      config: sizes and constants of the decoder.
      dtype: dtype of activations.
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


def rotate(x: jax.Array, context: AttentionContext) -> jax.Array:
    """Rotary embedding of `[N, heads, K]` (arXiv 2104.09864), halves rotated as in Llama."""
    first, second = jnp.split(x, 2, axis=-1)
    return x * context.cos + jnp.concatenate([-second, first], axis=-1) * context.sin
