"""Architecture of a frozen decoder, independent of the file format it was read from."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Sizes and constants of a Llama-family decoder.

    Attributes:
      vocabulary_size: rows of the token embedding.
      width: size D of the residual stream.
      ffn_width: size F of the hidden layer of the SwiGLU feed-forward network.
      layers: number L of blocks.
      heads: query heads H.
      kv_heads: key and value heads; divides `heads`.
      head_width: size K of one head.
      rope_theta: base of the rotary embedding.
      norm_epsilon: epsilon of RMSNorm.
      tied_embeddings: whether the output projection is the token embedding.
      context_length: positions the model was trained on.
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

    def __post_init__(self) -> None:
        if self.heads % self.kv_heads:
            raise ValueError(f"kv_heads ({self.kv_heads}) must divide heads ({self.heads})")
