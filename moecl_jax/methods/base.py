"""What a continual-learning method must say for itself."""

import abc
import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from moecl_jax.data.batching import Batch
from moecl_jax.losses import Objective, Reduction
from moecl_jax.models.config import DecoderConfig
from moecl_jax.models.lora import (
    ATTENTION_TARGETS,
    AttentionTerm,
    Expert,
    init_expert,
    lora_term,
    no_term,
)
from moecl_jax.models.moe_ffn import FeedForward

Tree = Any


@dataclasses.dataclass(frozen=True)
class MethodSettings:
    """Hyper-parameters of all methods; each reads those that concern it.

    Attributes:
      rank: r of every expert.
      lora_alpha: the experts' scale is lora_alpha / r.
      dropout: rate on the inputs of A.
      targets: adapted projections, out of `lora.TARGETS`.
      task_attention: whether a task's own expert adapts attention too, or the shared one alone.
      objective: of the adversarial loss.
      adversarial_alpha: its weight alpha in eq. 10.
      adversarial_reduction: over layers.
    """

    rank: int
    lora_alpha: float
    dropout: float
    targets: tuple[str, ...]
    objective: Objective
    adversarial_alpha: float
    adversarial_reduction: Reduction = "mean"
    task_attention: bool = True

    @property
    def scale(self) -> float:
        """C = lora_alpha / r."""
        return self.lora_alpha / self.rank


@dataclasses.dataclass(frozen=True)
class Method(abc.ABC):
    """Lifecycle hooks of a method; the trainer knows nothing else of it.

    What a method trains is in two trees: `shared`, which every task carries on from the one
    before, and `expert`, a task's own, which is frozen for ever when the task is finished.
    Either may be empty.

    Attributes:
      name: by which a config names the method.
      experts: keys of the experts in the layers' tree, all of which act on attention.
      settings: hyper-parameters.
      config: sizes of the frozen decoder.
    """

    name: ClassVar[str]
    experts: ClassVar[tuple[str, ...]]
    settings: MethodSettings
    config: DecoderConfig

    @abc.abstractmethod
    def init_shared(self, key: jax.Array, task_count: int) -> Tree:
        """What all tasks share, before the first of `task_count` tasks."""

    @abc.abstractmethod
    def init_task_expert(self, key: jax.Array) -> Tree:
        """A task's own part, before it is trained; `key` is the task's."""

    @abc.abstractmethod
    def feed_forward(self, training: bool) -> FeedForward:
        """The function of a layer's FFN, for training or evaluation."""

    @abc.abstractmethod
    def adapter(self, shared: Tree, expert: Tree) -> Tree:
        """What the layers receive: a tree whose leaves have a leading axis L."""

    def attention_term(self, training: bool) -> AttentionTerm:
        """What is added to attention's projections, for training or evaluation."""
        if not set(self.settings.targets) & set(ATTENTION_TARGETS):
            return no_term
        return functools.partial(
            lora_term,
            experts=self.experts,
            scale=self.settings.scale,
            dropout_rate=self.settings.dropout if training else 0.0,
        )

    def extend_shared(self, saved: Tree, key: jax.Array, task_count: int) -> Tree:
        """`saved` made ready for a stream of `task_count` tasks, when tasks were added."""
        del key, task_count
        return saved

    def penalty(
        self, shared: Tree, reports: Mapping[str, jax.Array], batch: Batch
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """What is added to the instruction loss to be differentiated, and metrics.

        Args:
          shared: the shared trees.
          reports: what the layers' FFN functions reported, stacked on a leading axis L.
          batch: the training batch.

        Returns:
          The term, and metrics with at least `loss_adversarial` and `penalty`, which is the term
          as experts, gate and head see it.
        """
        del shared, reports, batch
        return jnp.zeros(()), {"loss_adversarial": jnp.zeros(()), "penalty": jnp.zeros(())}

    def new_expert(self, key: jax.Array, *, attention: bool = True) -> Expert:
        """A LoRA expert that changes nothing yet, on attention's targets too or without them."""
        out = () if attention else ATTENTION_TARGETS
        targets = [name for name in self.settings.targets if name not in out]
        return init_expert(key, self.config, self.settings.rank, targets)
