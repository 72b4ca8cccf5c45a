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
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from moecl_jax.kernels import (
    SAVED,
    affine,
    as_bits,
    embedding,
    from_bits,
    save_for_backward,
    vocabulary_logits,
)
from moecl_jax.models.attention import (
    AttentionContext,
    attend,
    attention_context,
    cached_attention_context,
    rotate,
)
from moecl_jax.models.config import DecoderConfig
from moecl_jax.models.experts import ACTIVATIONS, FeedForward, FrozenFfn, frozen_layer
from moecl_jax.models.lora import Adapter, AttentionTerm, LayerContext, no_term

REMAT_POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "projections": jax.checkpoint_policies.save_only_these_names(SAVED),
}


@flax.struct.dataclass
class KeyValueCache:
    """Keys, rotated, and values of all layers, `[L, R, G, C, K]`.

    A token is in the slot of its position. On a CPU bfloat16 is kept as its bits, as frozen weights
    are: XLA would make all of a bfloat16 cache float32 and back for each token.
    """

    key: jax.Array
    value: jax.Array

    def write(
        self, layer: jax.Array, key: jax.Array, value: jax.Array, slots: jax.Array
    ) -> "KeyValueCache":
        """Puts `[R, S, G, K]` into one layer's `slots` `[R, S]`."""
        rows = jnp.arange(slots.shape[0])[:, None]

        def put(cached: jax.Array, new: jax.Array) -> jax.Array:
            stored = as_bits(new) if cached.dtype == jnp.uint16 else new
            return cached.at[layer, rows, :, slots].set(stored)

        return KeyValueCache(put(self.key, key), put(self.value, value))

    def read(self, layer: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Keys and values of one layer, `[R, C, G, K]` each."""

        def get(cached: jax.Array) -> jax.Array:
            of_layer: jax.Array = from_bits(cached[layer])
            return of_layer.transpose(0, 2, 1, 3)

        return get(self.key), get(self.value)


def empty_cache(config: DecoderConfig, rows: int, slots: int, dtype: Any) -> KeyValueCache:
    """A cache of all layers for `rows` texts of at most `slots` tokens."""
    shape = (config.layers, rows, config.kv_heads, slots, config.head_width)
    empty = jnp.zeros(shape, dtype)
    empty = as_bits(empty) if jax.default_backend() == "cpu" else empty
    return KeyValueCache(empty, empty)


@flax.struct.dataclass
class Prefix:
    """Tokens that stand before each text of a batch.

    Attributes:
      key: keys, rotated, of all layers, `[L, P, G, K]`.
      value: values, likewise.
      length: scalar, how many of the P slots are tokens.
    """

    key: jax.Array
    value: jax.Array
    length: jax.Array

    @classmethod
    def of(cls, cache: KeyValueCache, length: jax.Array) -> "Prefix":
        """The first row of a cache, of which so many slots are tokens."""

        def first(cached: jax.Array) -> jax.Array:
            of_row: jax.Array = from_bits(cached[:, 0])
            return of_row.transpose(0, 2, 1, 3)

        return cls(first(cache.key), first(cache.value), length)

    def into(self, cache: KeyValueCache) -> KeyValueCache:
        """A cache with these tokens in the first slots of each row."""

        def put(cached: jax.Array, new: jax.Array) -> jax.Array:
            stored = as_bits(new) if cached.dtype == jnp.uint16 else new
            stored = stored.transpose(0, 2, 1, 3)[:, None]
            return cached.at[:, :, :, : stored.shape[3]].set(stored)

        return KeyValueCache(put(cache.key, self.key), put(cache.value, self.value))


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
    """A linear map; parameter `kernel` `[I, O]`, in full or quantised, and `bias` `[O]` or none."""

    features: int
    use_bias: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, dtype: Any = None) -> jax.Array:
        """Maps `[N, I]` to `[N, O]`, in `dtype` (default: that of `x`)."""
        shape = (x.shape[-1], self.features)
        if self.is_initializing():
            self.param("kernel", nn.initializers.normal(0.02), shape, x.dtype)
        kernel: Any = self.get_variable("params", "kernel")
        bias = None
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,), x.dtype)
        return affine(x, kernel, bias, dtype)


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
        embedded = embedding(self.embedding, tokens)
        return embedded if self.scale == 1.0 else embedded * self.scale

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Logits `[M, V]` in float32 of `[M, D]` against the table itself (tied embeddings)."""
        return vocabulary_logits(hidden, self.embedding)


class Attention(nn.Module):
    """Grouped-query self-attention with rotary embedding."""

    config: DecoderConfig
    term: AttentionTerm
    implementation: str = "xla"

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        adapter: Adapter,
        layer: LayerContext,
        context: AttentionContext,
        cache: KeyValueCache | None,
        index: jax.Array | None,
        prefix: tuple[jax.Array, jax.Array] | None = None,
    ) -> tuple[jax.Array, KeyValueCache | None]:
        """Maps `[N, D]` to `[N, D]`, and gives the cache with the new tokens in layer `index`.

        `prefix` are keys and values `[P, G, K]` of this layer that stand before those of each row.
        """
        config = self.config
        rows, _, slots, _ = context.mask.shape

        def project(name: str, features: int, states: jax.Array) -> jax.Array:
            projection = Projection(features, name in config.attention_bias, name=name)
            out = projection(states, jnp.float32)
            term = self.term(name, states, adapter, layer)
            return out if term is None else out + term

        def heads(name: str, count: int) -> jax.Array:
            return project(name, count * config.head_width, x).reshape(-1, count, config.head_width)

        def positioned(states: jax.Array, norm: str) -> jax.Array:
            if config.qk_norm == "none":
                # Not saved before the rotation: XLA's CPU backend rotates a layer's slice of what
                # is saved nine times as slowly as an array.
                return save_for_backward(rotate(states, context), x.dtype)
            states = save_for_backward(states, states.dtype)
            normalise = RMSNorm(config.norm_epsilon, name=norm)
            if config.qk_norm == "before_rotary":
                return rotate(normalise(states), context)
            return normalise(rotate(states, context))

        def in_rows(states: jax.Array) -> jax.Array:
            flat = context.in_rows(states.reshape(len(states), -1)).astype(x.dtype)
            return flat.reshape(rows, slots, *states.shape[1:])

        query = in_rows(positioned(heads("q_proj", config.heads), "q_norm"))
        key = in_rows(positioned(heads("k_proj", config.kv_heads), "k_norm"))
        value = in_rows(save_for_backward(heads("v_proj", config.kv_heads), x.dtype))
        if cache is not None and index is not None and context.cache_slots is not None:
            cache = cache.write(index, key, value, context.cache_slots)
            key, value = cache.read(index)
        if prefix is not None:
            key, value = (
                jnp.concatenate([jnp.broadcast_to(first, (rows, *first.shape)), own], axis=1)
                for first, own in zip(prefix, (key, value), strict=True)
            )
        out = attend(query, key, value, context, config, self.implementation)
        out = context.computed(out.reshape(rows * slots, -1))
        out = project("o_proj", config.width, out)
        return save_for_backward(out, x.dtype).astype(x.dtype), cache


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


def whole(x: jax.Array) -> jax.Array:
    """All tokens on one device."""
    return x


class Block(nn.Module):
    """One pre-norm transformer block."""

    config: DecoderConfig
    feed_forward: FeedForward
    attention_term: AttentionTerm
    split: Callable[[jax.Array], jax.Array] = whole
    attention: str = "xla"

    @nn.compact
    def __call__(
        self,
        carry: tuple[jax.Array, KeyValueCache | None],
        adapter: Adapter,
        seed: jax.Array | None,
        of_all_layers: LayerContext,
        attention_context: AttentionContext,
        kind: jax.Array | None = None,
        index: jax.Array | None = None,
        prefix: tuple[jax.Array, jax.Array] | None = None,
    ) -> tuple[tuple[jax.Array, KeyValueCache | None], dict[str, jax.Array]]:
        """Maps the residual stream `[N, D]` and the cache; gives the adapter's report.

        The cache is handed on whole, and layer `index` writes its own part of it in place.
        """
        x, cache = carry
        x = save_for_backward(x, x.dtype)
        norm = functools.partial(RMSNorm, self.config.norm_epsilon)
        layer = dataclasses.replace(of_all_layers, seed=seed)
        kept = cache is not None or prefix is not None
        implementation = "xla" if kept else self.attention
        attention = Attention(self.config, self.attention_term, implementation, name="attention")
        normed = norm(name="input_norm")(x)
        out, cache = attention(
            normed, adapter, layer, attention_context.of_kind(kind), cache, index, prefix
        )
        out = norm(name="attention_output_norm")(out) if self.config.post_norms else out
        x = self.split(x + out)
        feed_forward = FeedForwardLayer(self.config, self.feed_forward, name="feed_forward")
        out, report = feed_forward(norm(name="post_attention_norm")(x), adapter, layer)
        out = norm(name="feed_forward_output_norm")(out) if self.config.post_norms else out
        return (self.split(x + out), cache), report


class Decoder(nn.Module):
    """The frozen decoder; what is trained comes in as an argument.

    Attributes:
      config: the architecture.
      dtype: dtype of activations and products; norms, softmax and logits are float32.
      feed_forward: what happens inside the FFN; the default is the frozen model itself.
      attention_term: what is added to attention's projections; the default adds nothing.
      remat: "none", or a name of `REMAT_POLICIES`: what is recomputed in the backward pass.
      split: gives each device its part of the tokens' states `[N, D]`.
      attention: a name of `kernels.ATTENTIONS`, where no cache is read.
    """

    config: DecoderConfig
    dtype: Any = jnp.float32
    feed_forward: FeedForward = frozen_layer
    attention_term: AttentionTerm = no_term
    remat: str = "none"
    split: Callable[[jax.Array], jax.Array] = whole
    attention: str = "xla"

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
            in_axes=(0, 0, nn.broadcast, nn.broadcast, 0, 0, 0),
            length=config.layers,
        )(config, self.feed_forward, self.attention_term, self.split, self.attention)
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
        computed: jax.Array | None = None,
        places: jax.Array | None = None,
        prefix: Prefix | None = None,
        shift: jax.Array | None = None,
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
          computed: `[N]`, which of the R * S slots are computed; `None` for all.
          places: `[N]` uint32, by which dropout tells tokens apart; `None` for their order.
          prefix: tokens before each text, whose positions go on from theirs; `None` for none.
          shift: `[N, D]` float32, what is added to the word embeddings; `None` for nothing.

        Returns:
          `[N, D]`, after the final norm, and the layers' reports stacked on a leading axis L.
        """
        before = None
        if prefix is not None:
            before = prefix.key.shape[1], prefix.length
            positions = positions + prefix.length
        context = attention_context(self.config, positions, segments, branches, computed, before)
        tokens = tokens.reshape(-1) if computed is None else tokens.reshape(-1)[computed]
        x = self.embedder(tokens)
        if shift is not None:
            x = (x.astype(jnp.float32) + shift).astype(x.dtype)
        x = self.split(x)
        kinds = layer_kinds(self.config)
        layer = LayerContext(membership, places=places)
        first = None if prefix is None else (prefix.key, prefix.value)
        (x, _), reports = self.layers((x, None), adapter, seeds, layer, context, kinds, None, first)
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
          cache: keys and values of all layers.
          adapter: pytree of the experts, as `__call__` takes it.

        Returns:
          `[N, D]`, after the final norm, and the cache with the tokens in it.
        """
        context = cached_attention_context(self.config, positions, cache.key.shape[3])
        x = self.embedder(tokens.reshape(-1))
        nothing_pooled = LayerContext(jnp.zeros((0, x.shape[0])))
        kinds = layer_kinds(self.config)
        indices = jnp.arange(self.config.layers)
        out: Any = self.layers(
            (x, cache), adapter, None, nothing_pooled, context, kinds, indices, None
        )
        (x, cache), _ = out
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
