"""What a continual-learning method must say for itself."""

import abc
import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp

from moecl_jax.data.batching import Batch
from moecl_jax.methods.losses import Objective, Reduction
from moecl_jax.models.config import DecoderConfig
from moecl_jax.models.experts import FeedForward
from moecl_jax.models.experts import lora_layer as lora_ffn
from moecl_jax.models.lora import (
    ATTENTION_TARGETS,
    AttentionTerm,
    Expert,
    init_expert,
    lora_term,
    no_term,
)

Tree = Any
Output = Literal["any", "shared", "lm"]


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
class NoOptions:
    """Of a method without hyper-parameters of its own."""


@dataclasses.dataclass(frozen=True)
class View:
    """What a method's penalty may look at in a training step, beside the shared trees.

    Attributes:
      memory: the method's memory.
      batch: the training batch.
      reports: what the layers' FFN functions reported, stacked on a leading axis L.
      query: `[B, D]` float32, mean frozen word embedding of each prompt.
      logits: of the output layer: of the answers' tokens `[B, K, A, V]`, or class logits `[B, C]`.
      predict: the same logits with other shared trees, without dropout.
    """

    memory: Tree
    batch: Batch
    reports: Mapping[str, jax.Array]
    query: jax.Array
    logits: jax.Array
    predict: Callable[[Tree], jax.Array]


@dataclasses.dataclass(frozen=True)
class TaskEnd:
    """What a method is told when a task is finished, beside its trees.

    Attributes:
      index: place of the task.
      key: for new random values, the task's own.
      importance: for a method with `importance_examples`, the mean squared gradient of an example's
        log-likelihood in the structure of the shared trees; else `{}`.
    """

    index: int
    key: jax.Array
    importance: Tree


@dataclasses.dataclass(frozen=True)
class Method(abc.ABC):
    """Lifecycle hooks of a method; the trainer knows nothing else of it.

    What a method trains is in two trees: `shared`, which every task carries on from the one
    before, and `expert`, a task's own, which is frozen for ever when the task is finished. What it
    keeps of finished tasks to train others by is in a third, `memory`: an input of the step that is
    never trained. Each may be empty.

    Attributes:
      name: by which a config names the method.
      experts: keys of the experts in the layers' tree, all of which act on attention.
      Options: hyper-parameters of this method alone; a config has them in the section `name`.
      rehearsal: whose examples a task trains on beside its own: nobody's, those that a memory of
        examples holds of earlier tasks, or, all tasks being trained at once, everybody's.
      output: what the method needs of the output layer: that all tasks share it (the LM head or
        one classification head), that it is the LM head, or nothing.
      trains_weights: whether the LLM's own weights are trained.
      queries: whether `adapter` wants the prompts' embeddings.
      no_single_lora: why what answers for a task is no single LoRA, which could be exported; empty
        where it is one.
      settings: hyper-parameters.
      config: sizes of the frozen decoder.
      options: an instance of `Options`; its defaults if none is given.
    """

    name: ClassVar[str]
    experts: ClassVar[tuple[str, ...]] = ("expert",)
    Options: ClassVar[type] = NoOptions
    rehearsal: ClassVar[Literal["none", "memory", "joint"]] = "none"
    output: ClassVar[Output] = "any"
    trains_weights: ClassVar[bool] = False
    queries: ClassVar[bool] = False
    no_single_lora: ClassVar[str] = ""
    settings: MethodSettings
    config: DecoderConfig
    options: Any = None

    def __post_init__(self) -> None:
        if self.options is None:
            object.__setattr__(self, "options", self.Options())

    @abc.abstractmethod
    def init_shared(self, key: jax.Array, task_count: int) -> Tree:
        """What all tasks share, before the first of `task_count` tasks."""

    def init_task_expert(self, key: jax.Array) -> Tree:
        """A task's own part, before it is trained; nothing, as a default. `key` is the task's."""
        del key
        return {}

    def feed_forward(self, training: bool) -> FeedForward:
        """The function of a layer's FFN, for training or evaluation: one LoRA, as a default."""
        rate = self.settings.dropout if training else 0.0
        return functools.partial(lora_ffn, scale=self.settings.scale, dropout_rate=rate)

    @abc.abstractmethod
    def adapter(
        self, shared: Tree, expert: Tree, memory: Tree, query: jax.Array | None = None
    ) -> Tree:
        """What the layers receive: a tree whose leaves have a leading axis L.

        Args:
          shared: the shared trees.
          expert: the task's own.
          memory: the method's memory.
          query: where the method `queries`, mean frozen word embedding of each token's prompt,
            `[N, D]` float32.
        """

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

    def parameters(self, frozen: Tree, shared: Tree) -> Tree:
        """The decoder's parameters, which are the frozen ones unless the method trains them."""
        del shared
        return frozen

    def extend_shared(self, saved: Tree, key: jax.Array, task_count: int) -> Tree:
        """`saved` made ready for a stream of `task_count` tasks, when tasks were added."""
        del key, task_count
        return saved

    def init_memory(self, task_count: int) -> Tree:
        """The memory before the first of `task_count` tasks."""
        del task_count
        return {}

    def extend_memory(self, saved: Tree, task_count: int) -> Tree:
        """A memory made ready for a stream of `task_count` tasks, when tasks were added."""
        del task_count
        return saved

    def begin_task(self, shared: Tree, memory: Tree) -> Tree:
        """The memory with which a task trains that begins with these shared trees."""
        del shared
        return memory

    def finish_task(
        self, shared: Tree, expert: Tree, memory: Tree, end: TaskEnd
    ) -> tuple[Tree, Tree, Tree]:
        """What becomes of a task's trees when it is finished.

        Args:
          shared: as trained.
          expert: as trained.
          memory: the one that the task trained with.
          end: what else is known of the task.

        Returns:
          The shared trees that the next task begins with, the finished task's own part, and the
          memory.
        """
        del end
        return shared, expert, memory

    @property
    def separate(self) -> bool:
        """Whether experts of finished tasks stay apart, so that a text must be given to one."""
        return False

    @property
    def importance_examples(self) -> int:
        """How many training examples `finish_task` wants squared gradients of."""
        return 0

    @property
    def replayed(self) -> int:
        """Examples of earlier tasks in each training batch, beside the task's own."""
        return 0

    def penalty(self, shared: Tree, view: View) -> tuple[jax.Array, dict[str, jax.Array]]:
        """What is added to the instruction loss to be differentiated, and metrics.

        Args:
          shared: the shared trees.
          view: all else that it may depend on.

        Returns:
          The term, and metrics with at least `loss_adversarial` and `penalty`, which is the term
          as experts, gate and head see it.
        """
        del shared, view
        return jnp.zeros(()), {"loss_adversarial": jnp.zeros(()), "penalty": jnp.zeros(())}

    def new_expert(self, key: jax.Array, *, attention: bool = True) -> Expert:
        """A LoRA expert that changes nothing yet, on attention's targets too or without them."""
        out = () if attention else ATTENTION_TARGETS
        targets = [name for name in self.settings.targets if name not in out]
        return init_expert(key, self.config, self.settings.rank, targets)
