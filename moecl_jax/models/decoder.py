"""A frozen decoder of the Llama family (arXiv 2302.13971) with a hook for low-rank experts.

Axes: R rows, S slots a row, N = R * S tokens, D width, F ffn width, H query heads, G key and
value heads, K head width, L layers, V vocabulary.

Several examples may share a row. `segments` tells them apart (0 is padding); `branches` tells
apart alternative continuations of one example, which all see its prompt (branch 0) but not one
another. Masks come from these alone, never from token ids.
"""

import functools
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from moecl_jax.models.config import DecoderConfig
from moecl_jax.models.linear import dot, from_bits
from moecl_jax.models.moe_ffn import FeedForward, FrozenFfn, LayerContext, frozen_ffn

REMAT_POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


@flax.struct.dataclass
class AttentionContext:
    """What all layers' attention shares: mask `[R, 1, S, S]`, cos and sin `[R, S, 1, K]`."""

    mask: jax.Array
    cos: jax.Array
    sin: jax.Array


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
    """A linear map without bias; parameter `kernel` `[I, O]`."""

    features: int

    @nn.compact
    def __call__(self, x: jax.Array, dtype: Any = None) -> jax.Array:
        """Maps `[N, I]` to `[N, O]`, in `dtype` (default: that of `x`)."""
        shape = (x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.normal(0.02), shape, x.dtype)
        return dot(x, from_bits(kernel), dtype)


class Embedder(nn.Module):
    """The token embedding; parameter `embedding` `[V, D]`."""

    vocabulary_size: int
    width: int
    dtype: Any

    def setup(self) -> None:
        """Declares the table."""
        shape = (self.vocabulary_size, self.width)
        self.embedding = self.param("embedding", nn.initializers.normal(0.02), shape, self.dtype)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Embeds `[N]` ids to `[N, D]`."""
        return from_bits(self.embedding[tokens])

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Logits `[M, V]` in float32 of `[M, D]` against the table itself (tied embeddings)."""
        return dot(hidden, from_bits(self.embedding).T, jnp.float32)


class Attention(nn.Module):
    """Grouped-query self-attention with rotary embedding."""

    config: DecoderConfig

    @nn.compact
    def __call__(self, x: jax.Array, context: AttentionContext) -> jax.Array:
        """Maps `[N, D]` to `[N, D]`."""
        config = self.config
        rows, slots = context.cos.shape[:2]

        def heads(name: str, count: int) -> jax.Array:
            projected = Projection(count * config.head_width, name=name)(x)
            return projected.reshape(rows, slots, count, config.head_width)

        query = rotate(heads("q_proj", config.heads), context)
        key = rotate(heads("k_proj", config.kv_heads), context)
        value = heads("v_proj", config.kv_heads)
        out = jax.nn.dot_product_attention(query, key, value, mask=context.mask)
        return Projection(config.width, name="o_proj")(out.reshape(rows * slots, -1))


class FeedForwardLayer(nn.Module):
    """Holds the frozen SwiGLU projections and hands them to `feed_forward`."""

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
        frozen = FrozenFfn(self.gate_proj, self.up_proj, self.down_proj)
        return self.feed_forward(frozen, x, adapter, context)


class Block(nn.Module):
    """One pre-norm transformer block."""

    config: DecoderConfig
    feed_forward: FeedForward

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        adapter: Any,
        seed: jax.Array | None,
        membership: jax.Array,
        attention_context: AttentionContext,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Maps the residual stream `[N, D]` and gives the adapter's report."""
        norm = functools.partial(RMSNorm, self.config.norm_epsilon)
        attention = Attention(self.config, name="attention")
        x = x + attention(norm(name="input_norm")(x), attention_context)
        feed_forward = FeedForwardLayer(self.config, self.feed_forward, name="feed_forward")
        normed = norm(name="post_attention_norm")(x)
        out, report = feed_forward(normed, adapter, LayerContext(membership, seed))
        return x + out, report


class Decoder(nn.Module):
    """The frozen decoder; what is trained comes in as an argument.

    Attributes:
      config: the architecture.
      dtype: of activations and products; norms, softmax and logits are float32.
      feed_forward: what happens inside the FFN; the default is the frozen model itself.
      remat: "none", or a name of `REMAT_POLICIES`: what is recomputed in the backward pass.
    """

    config: DecoderConfig
    dtype: Any = jnp.float32
    feed_forward: FeedForward = frozen_ffn
    remat: str = "none"

    def setup(self) -> None:
        """Declares the embedding, the scanned blocks and the output projection."""
        config = self.config
        self.embedder = Embedder(config.vocabulary_size, config.width, self.dtype)
        block = Block
        if self.remat != "none":
            block = nn.remat(Block, policy=REMAT_POLICIES[self.remat], prevent_cse=False)
        self.layers = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, 0, nn.broadcast, nn.broadcast),
            length=config.layers,
        )(config, self.feed_forward)
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
          adapter: pytree with leading axis L, passed slice by slice to `feed_forward`.
          seeds: `[L]` uint32 for dropout; `None` in evaluation.

        Returns:
          `[N, D]`, after the final norm, and the layers' reports stacked on a leading axis L.
        """
        context = attention_context(self.config, positions, segments, branches, self.dtype)
        x = self.embedder(tokens.reshape(-1))
        x, reports = self.layers(x, adapter, seeds, membership, context)
        x = self.final_norm(x)
        if self.is_initializing():
            self.logits(x)
        return x, reports

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Vocabulary logits `[M, V]` in float32 of hidden states `[M, D]`."""
        if self.config.tied_embeddings:
            return self.embedder.logits(hidden)
        return self.lm_head(hidden, jnp.float32)


def attention_context(
    config: DecoderConfig,
    positions: jax.Array,
    segments: jax.Array,
    branches: jax.Array,
    dtype: Any,
) -> AttentionContext:
    """Mask and rotary factors from `[R, S]` positions, segments and branches.

    A token sees itself and the tokens before it in its row that belong to the same segment and
    either to the prompt or to its own branch. Padding sees padding, so that no row of the
    softmax is empty.
    """
    slots = positions.shape[1]
    causal = jnp.tril(jnp.ones((slots, slots), bool))[None]
    same_segment = segments[:, :, None] == segments[:, None, :]
    visible = (branches[:, None, :] == 0) | (branches[:, :, None] == branches[:, None, :])
    mask = (causal & same_segment & visible)[:, None]
    half = jnp.arange(0, config.head_width, 2, dtype=jnp.float32) / config.head_width
    frequency = config.rope_theta**-half
    angle = positions[..., None].astype(jnp.float32) * frequency[None, None]
    angle = jnp.concatenate([angle, angle], axis=-1)[:, :, None, :]
    return AttentionContext(mask, jnp.cos(angle).astype(dtype), jnp.sin(angle).astype(dtype))


def rotate(x: jax.Array, context: AttentionContext) -> jax.Array:
    """Rotary embedding of `[R, S, heads, K]` (arXiv 2104.09864), halves rotated as in Llama."""
    first, second = jnp.split(x, 2, axis=-1)
    return x * context.cos + jnp.concatenate([-second, first], axis=-1) * context.sin
