"""A frozen LLM, ready to be adapted: what compiled steps know of it, and its weights."""

import dataclasses
from typing import Any

import jax.numpy as jnp

from moecl_jax.models.config import DecoderConfig
from moecl_jax.models.decoder import Decoder
from moecl_jax.models.experts import FeedForward
from moecl_jax.models.light_tokenizer import AnyTokenizer
from moecl_jax.models.lora import AttentionTerm
from moecl_jax.models.sharding import ONE_DEVICE, Placement


@dataclasses.dataclass(frozen=True)
class Architecture:
    """What a compiled step knows of a model: all but the weights. Hashable.

    Attributes:
      sizes: sizes and constants of the decoder.
      dtype: dtype of activations and products, float32 or bfloat16.
      remat: "none", or a key of `moecl_jax.models.decoder.REMAT_POLICIES`: what training
        recomputes in the backward pass.
      attention: a key of `moecl_jax.models.attention.ATTENTIONS`: what computes attention.
      placement: where arrays lie on the devices.
    """

    sizes: DecoderConfig
    dtype: Any = jnp.float32
    remat: str = "none"
    attention: str = "xla"
    placement: Placement = ONE_DEVICE

    def decoder(
        self, feed_forward: FeedForward, attention_term: AttentionTerm, *, training: bool
    ) -> Decoder:
        """The frozen decoder with a method's experts in it.

        Args:
          feed_forward: what happens inside the FFN.
          attention_term: what is added to attention's projections.
          training: whether gradients are taken. Evaluation recomputes nothing, and its batches
            have branches, which splash attention does not know: it uses "xla" in its place.
        """
        branches = not training and self.attention == "splash"
        return Decoder(
            self.sizes,
            self.dtype,
            feed_forward,
            attention_term,
            self.remat if training else "none",
            self.placement.split_tokens,
            "xla" if branches else self.attention,
        )

    def frozen_decoder(self) -> Decoder:
        """The decoder without experts: for word embeddings, logits, and the model's own answers."""
        return Decoder(self.sizes, self.dtype)


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A frozen LLM on its devices, with its tokenizer. Made by `moecl_jax.load_model`.

    Attributes:
      architecture: all that a compiled step knows of it; its fields are properties here too.
      params: nested dict of the decoder's parameters, placed on the devices. Names and shapes are
        those of `moecl_jax.weights.load.Backbone`. Quantised kernels are `QuantizedKernel`s, and
        on a CPU bfloat16 arrays are their uint16 bits; the decoder reads both.
      tokenizer: the LLM's tokenizer; None if its files hold none.
      fingerprint: 16 hexadecimal digits that identify architecture and weights as stored, whatever
        the dtype, the quantisation, the file's name, or how it is cut into shards.
      source: what was loaded, as the user named it.
      quantization: "none", or a key of `moecl_jax.kernels.linear.QUANTIZATIONS`.
    """

    architecture: Architecture
    params: Any = dataclasses.field(repr=False)
    tokenizer: AnyTokenizer | None = dataclasses.field(repr=False)
    fingerprint: str
    source: str
    quantization: str = "none"

    @property
    def sizes(self) -> DecoderConfig:
        """Sizes and constants of the decoder."""
        return self.architecture.sizes

    @property
    def dtype(self) -> Any:
        """Dtype of activations and products, float32 or bfloat16."""
        return self.architecture.dtype

    @property
    def remat(self) -> str:
        """What training recomputes: "none", or a key of `REMAT_POLICIES`; never "auto"."""
        return self.architecture.remat

    @property
    def attention(self) -> str:
        """What computes attention, a key of `ATTENTIONS`."""
        return self.architecture.attention

    @property
    def placement(self) -> Placement:
        """Where arrays lie on the devices."""
        return self.architecture.placement

    def decoder(
        self, feed_forward: FeedForward, attention_term: AttentionTerm, *, training: bool
    ) -> Decoder:
        """The frozen decoder with a method's experts in it; see `Architecture.decoder`."""
        return self.architecture.decoder(feed_forward, attention_term, training=training)
