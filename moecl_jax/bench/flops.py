"""The arithmetic that a step must do: useful FLOPs, by a formula and not by a profiler.

Only products of matrices count, two FLOPs for a multiplication with its addition. For one batch

    T  real tokens                            W  frozen weights of all layers' projections
    P  pairs of a token and a key it sees     A  trained weights that all tokens meet: the
       (itself among them), over all layers      experts' factors and the gate, all layers
    M  predicted answer tokens                H  query heads, K head width
    B  examples                               D  width, F ffn width, V vocabulary, L layers

    forward  = 2 T W + 2 T A +  4 P H K + 2 M D V
    training = 4 T W + 6 T A + 12 P H K + 4 M D V + 4 B L D F

Frozen matrices cost the forward product and the gradient of their input, no gradient of their own;
trained ones and the two products of attention (scores, values) cost both gradients. The last term
is the discriminator's input, one frozen down projection of each example's mean (MoE-CL only).

Not counted, since it need not be done: padding; what the backward pass recomputes; the products
with frozen matrices once more for the second expert; logits where nothing is predicted, or
twice where continuations share a place. Not counted, since it is small: the embedding (a
look-up), norms, softmax, rotary embedding, activations, dropout, the low-rank term and the
discriminator on the B pooled vectors, loss and optimizer. Counted though nobody needs it: the input
gradients of the first layer's attention, gate and up projections, with which no gradient of FFN
experts is computed (1% at 30 layers; a scan over layers computes them); and the last layer at
tokens that predict nothing.
"""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from moecl_jax.data.batching import Batch
from moecl_jax.methods.base import Tree
from moecl_jax.models.config import DecoderConfig
from moecl_jax.models.lora import projection_sizes

COUNTED = ("moe_cl", "per_task", "sequential_lora")
"""Methods whose arithmetic this is: others have more, such as a teacher or earlier experts."""


@dataclasses.dataclass(frozen=True)
class Work:
    """What there is to do in a batch, whatever its layout.

    Attributes:
      positions: `[T]`, place of each real token in its text: it sees so many others.
      predicted: M, places where the vocabulary's logits are needed.
      examples: B.
    """

    positions: np.ndarray
    predicted: int
    examples: int

    @property
    def tokens(self) -> int:
        """T."""
        return self.positions.size

    @classmethod
    def of_batch(cls, batch: Batch) -> "Work":
        """Of a training or evaluation step; a continuation's tokens see prompt and themselves."""
        predicted = np.unique(batch.answer_positions[batch.answer_mask > 0]).size
        positions = np.asarray(batch.positions)[np.asarray(batch.segments) > 0]
        return cls(positions, predicted, int(np.count_nonzero(batch.weights)))

    @classmethod
    def of_writing(cls, lengths: Sequence[int], written: int) -> "Work":
        """Of reading prompts and writing after each; the last token written is not read."""
        positions = [np.arange(length + written - 1) for length in lengths]
        return cls(np.concatenate(positions), written * len(lengths), len(lengths))


@dataclasses.dataclass(frozen=True)
class Formula:
    """The formula for one model and method.

    Attributes:
      config: sizes of the frozen decoder.
      trained_weights: A.
      pooled: whether a discriminator is trained.
    """

    config: DecoderConfig
    trained_weights: int
    pooled: bool

    @classmethod
    def of(cls, config: DecoderConfig, adapter: Tree, shared: Tree) -> "Formula":
        """From the trees of a method, or their shapes.

        Args:
          config: sizes of the frozen decoder.
          adapter: what the layers receive, whose every weight meets every token once.
          shared: the method's shared trees.
        """
        weights = sum(leaf.size for leaf in jax.tree.leaves(adapter))
        return cls(config, weights, "discriminator" in shared)

    @property
    def frozen_weights(self) -> int:
        """W."""
        sizes = projection_sizes(self.config).values()
        return self.config.layers * sum(inputs * outputs for inputs, outputs in sizes)

    def pairs(self, positions: np.ndarray) -> int:
        """P, in all layers; a sliding window ends what is seen."""
        config = self.config
        total = 0
        for kind in config.layer_kinds or (0,) * config.layers:
            window = config.attention_kinds[kind].window
            seen = positions.astype(np.int64) + 1
            total += int((seen if window is None else np.minimum(seen, window)).sum())
        return total

    def forward(self, work: Work) -> int:
        """FLOPs of evaluating a batch, or of reading and writing texts."""
        linear = 2 * work.tokens * (self.frozen_weights + self.trained_weights)
        return linear + 4 * self._attention(work) + 2 * self._logits(work)

    def training(self, work: Work) -> int:
        """FLOPs of a training step."""
        config = self.config
        linear = work.tokens * (4 * self.frozen_weights + 6 * self.trained_weights)
        pooled = 4 * work.examples * config.layers * config.width * config.ffn_width
        rest = 12 * self._attention(work) + 4 * self._logits(work)
        return linear + rest + (pooled if self.pooled else 0)

    def _attention(self, work: Work) -> int:
        return self.pairs(work.positions) * self.config.heads * self.config.head_width

    def _logits(self, work: Work) -> int:
        return work.predicted * self.config.width * self.config.vocabulary_size
