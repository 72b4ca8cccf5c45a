"""Architecture of a frozen decoder, independent of the file format it was read from."""

import dataclasses
from typing import Literal

# What a file of a model may ask for: far more than any model has, and far from where float32
# arithmetic overflows or gives NaN.
MOST_LAYERS = 10_000
MOST_SIZE = 2**31 - 1
LEAST_NUMBER, MOST_NUMBER = 1e-30, 1e30
LEAST_ROPE_THETA = 1.0
MOST_NORM_EPSILON = 1.0


@dataclasses.dataclass(frozen=True)
class RotaryScaling:
    """Rotary positions stretched after pretraining.

    Attributes:
      factor: what frequencies are divided by.
      band: wavelengths [positions] (shortest, longest), as in Llama 3.1: a frequency of a shorter
        wavelength keeps its value, one of a longer wavelength is divided by `factor`, and those
        between change over linearly in frequency. `None` divides all.
    """

    factor: float
    band: tuple[float, float] | None = None


@dataclasses.dataclass(frozen=True)
class AttentionKind:
    """How the layers of one kind attend.

    Attributes:
      window: how many positions a token sees, its own among them; `None` for all before it.
      rope_theta: base of the rotary embedding; `None` for the decoder's.
      scaling: how rotary frequencies are scaled, if at all.
    """

    window: int | None = None
    rope_theta: float | None = None
    scaling: RotaryScaling | None = None


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Sizes and constants of a decoder; the defaults of what is optional are a plain Llama's.

    Attributes:
      vocabulary_size: rows of the token embedding.
      width: size D of the residual stream.
      ffn_width: size F of the hidden layer of the gated feed-forward network.
      layers: number L of blocks.
      heads: query heads H.
      kv_heads: key and value heads; divides `heads`.
      head_width: size K of one head.
      rope_theta: base of the rotary embedding.
      norm_epsilon: epsilon of RMSNorm.
      tied_embeddings: whether the output projection is the token embedding.
      context_length: positions the model was trained on.
      activation: activation of the feed-forward network's gate.
      attention_bias: the attention projections that add a bias, of q_proj, k_proj, v_proj, o_proj.
      qk_norm: whether queries and keys are normalised, and on which side of the rotary embedding.
      post_norms: whether the outputs of attention and feed-forward network are normalised too.
      embedding_scale: what token embeddings are multiplied by.
      attention_scale: what attention scores are multiplied by; `None` for K ** -0.5.
      attention_kinds: the kinds of attention that layers have.
      layer_kinds: each layer's index into `attention_kinds`; empty when there is one kind.
    """

    vocabulary_size: int
    width: int
    ffn_width: int
    layers: int
    heads: int
    kv_heads: int
    head_width: int
    rope_theta: float = 10000.0
    norm_epsilon: float = 1e-5
    tied_embeddings: bool = False
    context_length: int = 2048
    # A backbone's fingerprint leaves out what follows where it has its default.
    _: dataclasses.KW_ONLY
    activation: Literal["silu", "gelu_tanh"] = "silu"
    attention_bias: tuple[str, ...] = ()
    qk_norm: Literal["none", "before_rotary", "after_rotary"] = "none"
    post_norms: bool = False
    embedding_scale: float = 1.0
    attention_scale: float | None = None
    attention_kinds: tuple[AttentionKind, ...] = (AttentionKind(),)
    layer_kinds: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.heads % self.kv_heads:
            raise ValueError(f"kv_heads ({self.kv_heads}) must divide heads ({self.heads})")
        if self.head_width % 2:
            raise ValueError(f"head_width ({self.head_width}) must be even")
        expected = self.layers if len(self.attention_kinds) > 1 else 0
        if len(self.layer_kinds) != expected:
            raise ValueError(f"layer_kinds has {len(self.layer_kinds)} entries, not {expected}")
