"""Useful FLOPs: the arithmetic that a step must do, by a formula and not by a profiler.

Only matrix products count; a multiplication with its addition is two FLOPs. For one batch let

    T  real tokens                            W  frozen weights of all layers' projections
    P  pairs of a token and a key it sees     A  trained weights that multiply every token: the
       (itself included), over all layers        experts' factors and the gate, all layers
    M  predicted answer tokens                H  query heads, K head width
    B  examples                               D  width, F ffn width, V vocabulary, L layers

    forward  = 2 T W + 2 T A +  4 P H K + 2 M D V
    training = 4 T W + 6 T A + 12 P H K + 4 M D V + 4 B L D F

A frozen matrix costs its forward product and the gradient of its input, but no gradient of its own.
A trained matrix costs both gradients, and so do the two products of attention (scores and values).
The last term is the input of the discriminator: one frozen down projection of the mean of each
example. Only MoE-CL has it.

Not counted because it is not necessary:
- padding, and what the backward pass computes again;
- a second product with each frozen matrix for the second expert;
- logits at tokens that predict nothing, and the second logits of a token that several continuations
  share.

Not counted because it is small: the embedding (a look-up), norms, softmax, rotary embedding,
activations, dropout, the low-rank term and the discriminator on the B pooled vectors, the loss and
the optimizer.

Counted although no result depends on it: the input gradients of the first layer's attention, gate
and up projections, which no FFN expert needs but a scan over layers computes (1% at 30 layers), and
the last layer at tokens that predict nothing.
"""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from moecl_jax.data.batching import Batch
from moecl_jax.methods.parameters import Tree
from moecl_jax.models.config import DecoderConfig
from moecl_jax.models.lora import projection_sizes

COUNTED_METHODS = ("moe_cl", "per_task", "sequential_lora")
"""Methods that the formula holds for. Others do more, such as running a teacher or old experts."""


@dataclasses.dataclass(frozen=True)
class Work:
    """The numbers of a batch that its useful FLOPs depend on, whatever its layout.

    Attributes:
      positions: position of each real token in its text, `[T]`, which is also the number of earlier
        tokens that it sees.
      predicted: M, the number of tokens at which logits over the vocabulary are needed.
      examples: B, the number of examples.
    """

    positions: np.ndarray
    predicted: int
    examples: int

    @property
    def tokens(self) -> int:
        """T, the number of real tokens."""
        return self.positions.size

    @classmethod
    def of_batch(cls, batch: Batch) -> "Work":
        """Counts the work of a training or evaluation step.

        The tokens of a continuation see the prompt and their own continuation.

        Args:
          batch: the batch of the step.
        """
        predicted = np.unique(batch.answer_positions[batch.answer_mask > 0]).size
        positions = np.asarray(batch.positions)[np.asarray(batch.segments) > 0]
        return cls(positions, predicted, int(np.count_nonzero(batch.weights)))

    @classmethod
    def of_generation(cls, lengths: Sequence[int], written: int) -> "Work":
        """Counts the work of reading prompts and writing tokens after each of them.

        The last token that is written is not read again.

        Args:
          lengths: number of tokens in each prompt.
          written: number of tokens written after each prompt.
        """
        positions = [np.arange(length + written - 1) for length in lengths]
        return cls(np.concatenate(positions), written * len(lengths), len(lengths))


@dataclasses.dataclass(frozen=True)
class Formula:
    """The formula of useful FLOPs for one model and method.

    Attributes:
      config: sizes of the frozen decoder.
      trained_weights: A, the number of trained weights that multiply every token.
      pooled: whether a discriminator is trained on the mean of each example.
    """

    config: DecoderConfig
    trained_weights: int
    pooled: bool

    @classmethod
    def of(cls, config: DecoderConfig, adapter: Tree, shared: Tree) -> "Formula":
        """Makes the formula from the parameters of a method, or their shapes.

        Args:
          config: sizes of the frozen decoder.
          adapter: trainable parameters that the layers receive; each multiplies every token once.
          shared: parameters of the method that all tasks share.
        """
        weights = sum(leaf.size for leaf in jax.tree.leaves(adapter))
        return cls(config, weights, "discriminator" in shared)

    @property
    def frozen_weights(self) -> int:
        """W, the number of frozen weights in the projections of all layers."""
        sizes = projection_sizes(self.config).values()
        return self.config.layers * sum(inputs * outputs for inputs, outputs in sizes)

    def pairs(self, positions: np.ndarray) -> int:
        """Counts P, the pairs of a token and a key it sees, over all layers.

        Args:
          positions: position of each token in its text, `[T]`. In a layer with a sliding window a
            token sees at most as many keys as the window has.
        """
        config = self.config
        total = 0
        for kind in config.layer_kinds or (0,) * config.layers:
            window = config.attention_kinds[kind].window
            seen = positions.astype(np.int64) + 1
            total += int((seen if window is None else np.minimum(seen, window)).sum())
        return total

    def forward(self, work: Work) -> int:
        """Counts the FLOPs of an evaluation step, or of generating texts."""
        linear = 2 * work.tokens * (self.frozen_weights + self.trained_weights)
        return linear + 4 * self._attention(work) + 2 * self._logits(work)

    def training(self, work: Work) -> int:
        """Counts the FLOPs of a training step."""
        config = self.config
        linear = work.tokens * (4 * self.frozen_weights + 6 * self.trained_weights)
        pooled = 4 * work.examples * config.layers * config.width * config.ffn_width
        rest = 12 * self._attention(work) + 4 * self._logits(work)
        return linear + rest + (pooled if self.pooled else 0)

    def _attention(self, work: Work) -> int:
        return self.pairs(work.positions) * self.config.heads * self.config.head_width

    def _logits(self, work: Work) -> int:
        return work.predicted * self.config.width * self.config.vocabulary_size
