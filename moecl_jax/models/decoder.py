"""A frozen decoder of Llama's kind (arXiv 2302.13971) with a hook for low-rank experts.

What model families add to Llama is told by `DecoderConfig`; what is off there costs nothing here.

Axes: R rows, S slots a row, N = R * S tokens, D width, F ffn width, H query heads, G key and
value heads, K head width, L layers, V vocabulary.

Several examples may share a row. `segments` tells them apart (0 is padding); `branches` tells
apart alternative continuations of one example, which all see its prompt (branch 0) but not one
another. Masks come from these alone, never from token ids.
"""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from moecl_jax.models.config import AttentionKind, DecoderConfig
from moecl_jax.models.linear import dot, from_bits
from moecl_jax.models.lora import Adapter, AttentionTerm, LayerContext, no_term
from moecl_jax.models.moe_ffn import ACTIVATIONS, FeedForward, FrozenFfn, frozen_ffn

PROJECTED = "projected"  # what a frozen projection gives

REMAT_POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "projections": jax.checkpoint_policies.save_only_these_names(PROJECTED),
}


@flax.struct.dataclass
class AttentionContext:
    """What all layers' attention shares.

    With several kinds of attention, mask, cos and sin have a leading axis for the kind.

    Attributes:
      mask: `[R, 1, S, C]`, which of C keys each query sees; C is S, or the slots of a cache.
      cos: `[R, S, 1, K]`.
      sin: `[R, S, 1, K]`.
      cache_slots: `[R, S]`, where in a cache keys and values are written; `None` without one.
    """

    mask: jax.Array
    cos: jax.Array
    sin: jax.Array
    cache_slots: jax.Array | None = None

    def of_kind(self, kind: jax.Array | None) -> "AttentionContext":
        """That of the layers of one kind; `None` where there is but one."""
        if kind is None:
            return self
        return AttentionContext(self.mask[kind], self.cos[kind], self.sin[kind], self.cache_slots)


@flax.struct.dataclass
class KeyValueCache:
    """Keys, rotated, and values `[R, C, G, K]` of one layer; `[L, R, C, G, K]` of all.

    A token is in the slot of its position.
    """

    key: jax.Array
    value: jax.Array

    def write(self, key: jax.Array, value: jax.Array, slots: jax.Array) -> "KeyValueCache":
        """Puts `[R, S, G, K]` into one layer's `slots` `[R, S]`."""
        rows = jnp.arange(slots.shape[0])[:, None]
        return KeyValueCache(
            self.key.at[rows, slots].set(key), self.value.at[rows, slots].set(value)
        )


def empty_cache(config: DecoderConfig, rows: int, slots: int, dtype: Any) -> KeyValueCache:
    """A cache of all layers for `rows` texts of at most `slots` tokens."""
    shape = (config.layers, rows, slots, config.kv_heads, config.head_width)
    return KeyValueCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))


class RMSNorm(nn.Module):
    """Root-mean-square normalisation in float32 (arXiv 1910.07467)."""

    epsilon: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalises the last axis; the result has the dtype of `x`."""
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32)
        wide = x.astype(jnp.float32)
        wide = wide * jax.lax.rsqrt(jnp.mean(wide**2, axis=-1, keepdims=True) + self.epsilon)
        return (wide * scale.reshape((1,) * (x.ndim - 1) + (-1,))).astype(x.dtype)


class Projection(nn.Module):
    """A linear map; parameter `kernel` `[I, O]`, and `bias` `[O]` if it has one."""

    features: int
    use_bias: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, dtype: Any = None) -> jax.Array:
        """Maps `[N, I]` to `[N, O]`, in `dtype` (default: that of `x`)."""
        shape = (x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.normal(0.02), shape, x.dtype)
        if not self.use_bias:
            return checkpoint_name(dot(x, from_bits(kernel), dtype), PROJECTED)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), x.dtype)
        out = dot(x, from_bits(kernel), jnp.float32) + from_bits(bias)[None].astype(jnp.float32)
        return checkpoint_name(out.astype(dtype or x.dtype), PROJECTED)


class Embedder(nn.Module):
    """The token embedding; parameter `embedding` `[V, D]`."""

    vocabulary_size: int
    width: int
    dtype: Any
    scale: float

    def setup(self) -> None:
        """Declares the table."""
        shape = (self.vocabulary_size, self.width)
        self.embedding = self.param("embedding", nn.initializers.normal(0.02), shape, self.dtype)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Embeds `[N]` ids to `[N, D]`."""
        embedded = from_bits(self.embedding[tokens])
        return embedded if self.scale == 1.0 else embedded * self.scale

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Logits `[M, V]` in float32 of `[M, D]` against the table itself (tied embeddings)."""
        return dot(hidden, from_bits(self.embedding).T, jnp.float32)


class Attention(nn.Module):
    """Grouped-query self-attention with rotary embedding."""

    config: DecoderConfig
    term: AttentionTerm

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        adapter: Adapter,
        layer: LayerContext,
        context: AttentionContext,
        cache: KeyValueCache | None,
    ) -> tuple[jax.Array, KeyValueCache | None]:
        """Maps `[N, D]` to `[N, D]`, and gives the layer's cache with the new tokens in it."""
        config = self.config
        rows, slots = context.cos.shape[:2]

        def project(name: str, features: int, states: jax.Array) -> jax.Array:
            projection = Projection(features, name in config.attention_bias, name=name)
            out = projection(states, jnp.float32)
            term = self.term(name, states, adapter, layer)
            return (out if term is None else out + term).astype(x.dtype)

        def heads(name: str, count: int) -> jax.Array:
            projected = project(name, count * config.head_width, x)
            return projected.reshape(rows, slots, count, config.head_width)

        def positioned(states: jax.Array, norm: str) -> jax.Array:
            if config.qk_norm == "none":
                return rotate(states, context)
            normalise = RMSNorm(config.norm_epsilon, name=norm)
            if config.qk_norm == "before_rotary":
                return rotate(normalise(states), context)
            return normalise(rotate(states, context))

        query = positioned(heads("q_proj", config.heads), "q_norm")
        key = positioned(heads("k_proj", config.kv_heads), "k_norm")
        value = heads("v_proj", config.kv_heads)
        if cache is not None and context.cache_slots is not None:
            cache = cache.write(key, value, context.cache_slots)
            key, value = cache.key, cache.value
        out = jax.nn.dot_product_attention(
            query, key, value, mask=context.mask, scale=config.attention_scale
        )
        return project("o_proj", config.width, out.reshape(rows * slots, -1)), cache


class FeedForwardLayer(nn.Module):
    """Holds the frozen projections of a gated network and hands them to `feed_forward`."""

    config: DecoderConfig
    feed_forward: FeedForward

    def setup(self) -> None:
        """Declares the frozen projections."""
        self.gate_proj = Projection(self.config.ffn_width)
        self.up_proj = Projection(self.config.ffn_width)
        self.down_proj = Projection(self.config.width)

    def __call__(
        self, x: jax.Array, adapter: Any, context: LayerContext
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Maps `[N, D]` to `[N, D]` and what the adapter reports of this layer."""
        activation = ACTIVATIONS[self.config.activation]
        frozen = FrozenFfn(self.gate_proj, self.up_proj, self.down_proj, activation)
        return self.feed_forward(frozen, x, adapter, context)


class Block(nn.Module):
    """One pre-norm transformer block."""

    config: DecoderConfig
    feed_forward: FeedForward
    attention_term: AttentionTerm

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        adapter: Adapter,
        seed: jax.Array | None,
        cache: KeyValueCache | None,
        membership: jax.Array,
        attention_context: AttentionContext,
        kind: jax.Array | None = None,
    ) -> tuple[jax.Array, tuple[dict[str, jax.Array], KeyValueCache | None]]:
        """Maps the residual stream `[N, D]`; gives the adapter's report and the layer's cache."""
        norm = functools.partial(RMSNorm, self.config.norm_epsilon)
        layer = LayerContext(membership, seed)
        attention = Attention(self.config, self.attention_term, name="attention")
        normed = norm(name="input_norm")(x)
        out, cache = attention(normed, adapter, layer, attention_context.of_kind(kind), cache)
        x = x + (norm(name="attention_output_norm")(out) if self.config.post_norms else out)
        feed_forward = FeedForwardLayer(self.config, self.feed_forward, name="feed_forward")
        out, report = feed_forward(norm(name="post_attention_norm")(x), adapter, layer)
        x = x + (norm(name="feed_forward_output_norm")(out) if self.config.post_norms else out)
        return x, (report, cache)


class Decoder(nn.Module):
    """The frozen decoder; what is trained comes in as an argument.

    Attributes:
      config: the architecture.
      dtype: of activations and products; norms, softmax and logits are float32.
      feed_forward: what happens inside the FFN; the default is the frozen model itself.
      attention_term: what is added to attention's projections; the default adds nothing.
      remat: "none", or a name of `REMAT_POLICIES`: what is recomputed in the backward pass.
    """

    config: DecoderConfig
    dtype: Any = jnp.float32
    feed_forward: FeedForward = frozen_ffn
    attention_term: AttentionTerm = no_term
    remat: str = "none"

    def setup(self) -> None:
        """Declares the embedding, the scanned blocks and the output projection."""
        config = self.config
        self.embedder = Embedder(
            config.vocabulary_size, config.width, self.dtype, config.embedding_scale
        )
        block = Block
        if self.remat != "none":
            block = nn.remat(Block, policy=REMAT_POLICIES[self.remat], prevent_cse=False)
        self.layers = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, 0, 0, nn.broadcast, nn.broadcast, 0),
            length=config.layers,
        )(config, self.feed_forward, self.attention_term)
        self.final_norm = RMSNorm(config.norm_epsilon)
        if not config.tied_embeddings:
            self.lm_head = Projection(config.vocabulary_size)

    def __call__(
        self,
        tokens: jax.Array,
        positions: jax.Array,
        segments: jax.Array,
        branches: jax.Array,
        membership: jax.Array,
        adapter: Any = None,
        seeds: jax.Array | None = None,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Final hidden states.

        Args:
          tokens: `[R, S]` ids.
          positions: `[R, S]`, position of each token in its own text.
          segments: `[R, S]`, 0 for padding, else which example of the row.
          branches: `[R, S]`, 0 for the prompt, else which continuation.
          membership: `[B, N]`, 1 where a token is a real token of an example.
          adapter: pytree with leading axis L, passed slice by slice to the layers.
          seeds: `[L]` uint32 for dropout; `None` in evaluation.

        Returns:
          `[N, D]`, after the final norm, and the layers' reports stacked on a leading axis L.
        """
        context = attention_context(self.config, positions, segments, branches, self.dtype)
        x = self.embedder(tokens.reshape(-1))
        kinds = layer_kinds(self.config)
        x, (reports, _) = self.layers(x, adapter, seeds, None, membership, context, kinds)
        x = self.final_norm(x)
        if self.is_initializing():
            self.logits(x)
        return x, reports

    def decode(
        self, tokens: jax.Array, positions: jax.Array, cache: KeyValueCache, adapter: Any = None
    ) -> tuple[jax.Array, KeyValueCache]:
        """Hidden states of further tokens of texts whose earlier tokens are in a cache.

        Rows may have different lengths. What is padded at a row's end goes into slots that no
        real token sees before its own key and value are there.

        Args:
          tokens: `[R, S]` ids, one text a row.
          positions: `[R, S]`, ascending by one.
          cache: of all layers.
          adapter: as in a call.

        Returns:
          `[N, D]`, after the final norm, and the cache with the tokens in it.
        """
        context = cached_attention_context(self.config, positions, cache.key.shape[2], self.dtype)
        x = self.embedder(tokens.reshape(-1))
        nothing_pooled = jnp.zeros((0, x.shape[0]))
        kinds = layer_kinds(self.config)
        out: Any = self.layers(x, adapter, None, cache, nothing_pooled, context, kinds)
        x, (_, cache) = out
        return self.final_norm(x), cache

    def embed(self, tokens: jax.Array) -> jax.Array:
        """Word embeddings `[N, D]` of ids `[N]`."""
        return self.embedder(tokens)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Vocabulary logits `[M, V]` in float32 of hidden states `[M, D]`."""
        if self.config.tied_embeddings:
            return self.embedder.logits(hidden)
        return self.lm_head(hidden, jnp.float32)


def layer_kinds(config: DecoderConfig) -> jax.Array | None:
    """Each layer's kind of attention `[L]`; `None` where there is but one."""
    return jnp.array(config.layer_kinds, jnp.int32) if config.layer_kinds else None


def attention_context(
    config: DecoderConfig,
    positions: jax.Array,
    segments: jax.Array,
    branches: jax.Array,
    dtype: Any,
) -> AttentionContext:
    """Mask and rotary factors from `[R, S]` positions, segments and branches.

    A token sees itself and the tokens before it in its row that belong to the same segment and
    either to the prompt or to its own branch; and none that a sliding window, counted in
    positions, leaves behind. Padding sees padding, so that no row of the softmax is empty.
    """
    slots = positions.shape[1]
    causal = jnp.tril(jnp.ones((slots, slots), bool))[None]
    same_segment = segments[:, :, None] == segments[:, None, :]
    visible = (branches[:, None, :] == 0) | (branches[:, :, None] == branches[:, None, :])
    distance = positions[:, :, None] - positions[:, None, :]
    return _context_of_kinds(config, causal & same_segment & visible, distance, positions, dtype)


def cached_attention_context(
    config: DecoderConfig, positions: jax.Array, slots: int, dtype: Any
) -> AttentionContext:
    """The same where keys come from a cache: a token sees the slots up to its own position."""
    distance = positions[:, :, None] - jnp.arange(slots)[None, None]
    context = _context_of_kinds(config, distance >= 0, distance, positions, dtype)
    return dataclasses.replace(context, cache_slots=positions)


def _context_of_kinds(
    config: DecoderConfig, mask: jax.Array, distance: jax.Array, positions: jax.Array, dtype: Any
) -> AttentionContext:
    """Applies each kind's window to a mask `[R, S, C]`, given how far back each key lies."""
    contexts = []
    for kind in config.attention_kinds:
        seen = mask if kind.window is None else mask & (distance < kind.window)
        angle = positions[..., None].astype(jnp.float32) * rotary_frequencies(config, kind)
        angle = jnp.concatenate([angle, angle], axis=-1)[:, :, None, :]
        cos, sin = jnp.cos(angle).astype(dtype), jnp.sin(angle).astype(dtype)
        contexts.append(AttentionContext(seen[:, None], cos, sin))
    if len(contexts) == 1:
        return contexts[0]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *contexts)


def rotary_frequencies(config: DecoderConfig, kind: AttentionKind) -> np.ndarray:
    """Angle a position [radians] of each pair of a head's axes, `[1, 1, K / 2]` in float32."""
    exponent = np.arange(0, config.head_width, 2) / config.head_width
    frequency: np.ndarray = (kind.rope_theta or config.rope_theta) ** -exponent
    if kind.scaling is not None:
        kept = np.zeros_like(frequency)
        if kind.scaling.band is not None:
            shortest, longest = kind.scaling.band
            turns = frequency / (2 * np.pi)
            kept = np.clip((turns - 1 / longest) / (1 / shortest - 1 / longest), 0, 1)
        frequency = kept * frequency + (1 - kept) * frequency / kind.scaling.factor
    return frequency.astype(np.float32)[None, None]


def rotate(x: jax.Array, context: AttentionContext) -> jax.Array:
    """Rotary embedding of `[R, S, heads, K]` (arXiv 2104.09864), halves rotated as in Llama."""
    first, second = jnp.split(x, 2, axis=-1)
    return x * context.cos + jnp.concatenate([-second, first], axis=-1) * context.sin
