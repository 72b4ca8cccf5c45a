"""The interface of a continual-learning method.

A method says six things, each in one function or a few lines:

    what is trained              init_shared, init_expert (and init_memory: what is kept)
    what a layer is given        adapter, with the layer's function in feed_forward
    what is added to the loss    penalty
    what happens at a task's     begin_task, finish_task
      begin and end
    what precedes a prompt       preceding (or votes: answers without the LLM)
    which examples join a batch  examples

and declares in `traits` what it needs and is able to do. The trainer knows nothing else of it.
"""

import abc
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from moecl_jax.data.batching import Batch
from moecl_jax.data.rehearsal import ExamplePolicy, PastTask
from moecl_jax.data.tokenize import TokenizedExample
from moecl_jax.methods.parameters import TaskParameters, Tree
from moecl_jax.methods.preceding import NOTHING, Asked, Preceding
from moecl_jax.models.config import DecoderConfig
from moecl_jax.models.experts import FeedForward, lora_layer
from moecl_jax.models.lora import (
    ATTENTION_TARGETS,
    AttentionTerm,
    Expert,
    init_expert,
    lora_term,
    no_term,
)
from moecl_jax.models.settings import Lora
from moecl_jax.settings import section


@dataclasses.dataclass(frozen=True)
class NoOptions:
    """Options of a method that has none."""


@dataclasses.dataclass(frozen=True)
class Traits:
    """What a method needs and is able to do.

    Attributes:
      output: what the method needs of the output layer: "any" for nothing, "shared" for one that
        all tasks share (the LM head or a shared classification head), "lm" for the LM head.
      reads_query: whether `adapter` wants the mean word embedding of each token's prompt.
      trains_llm: whether the LLM's own weights are trained.
      expert_per_task: whether experts of finished tasks stay apart, so that a text must be given to
        the right one.
      settled: whether what answers for a finished task never changes again, so that its accuracy
        need not be measured a second time (a classification head of all tasks changes all the
        same).
      experts: keys of the experts in what `adapter` gives; all of them act on attention.
      reads_moments: whether it asks for second moments of the projections' inputs, which are there
        for the FFN's projections alone.
      trains: whether anything is trained. Where nothing is, a task takes no step, and the label
        that scores highest is the answer: no model was taught to write labels and nothing else.
      precedes: whether `preceding` puts anything before prompts.
      votes: whether `votes` scores labels, by the frozen model's features of texts alone. It then
        is the only function that answers; there are no free-form tasks.
      no_single_lora: why what answers for a task is no single LoRA, which could be exported; empty
        where it is one.
    """

    output: Literal["any", "shared", "lm"] = "any"
    reads_query: bool = False
    trains_llm: bool = False
    expert_per_task: bool = False
    settled: bool = False
    experts: tuple[str, ...] = ("expert",)
    reads_moments: bool = False
    trains: bool = True
    precedes: bool = False
    votes: bool = False
    no_single_lora: str = ""


@flax.struct.dataclass
class Penalty:
    """What a method adds to the instruction loss.

    Attributes:
      term: scalar that is added and differentiated.
      reported: the term as experts, gate and head see it, for the logged loss; None where that is
        `term` itself.
      adversarial: scalar, the adversarial loss L_GAN for the log.
      metrics: further arrays for the log, by name.
    """

    term: jax.Array
    reported: jax.Array | None = None
    adversarial: jax.Array = flax.struct.field(default_factory=lambda: jnp.zeros(()))
    metrics: Mapping[str, jax.Array] = flax.struct.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class LossInputs:
    """What a penalty may look at in a training step, beside the parameters.

    Attributes:
      batch: the training batch.
      reports: what the layers' FFN functions reported, stacked on a leading axis L.
      query: `[B, D]` float32, mean frozen word embedding of each prompt.
      logits: logits of the answers' tokens `[B, K, A, V]`, or class logits `[B, C]`.
      predict: gives the same logits with other shared trees, without dropout.
      key: PRNG key of the step, for a penalty that draws.
      over_answers: factor of a mean over the answers' tokens. It is 1, unless the batch is a piece
        of a larger one: a penalty counts by the piece's share of the examples, such a mean by its
        share of the tokens.
    """

    batch: Batch
    reports: Mapping[str, jax.Array]
    query: jax.Array
    logits: jax.Array
    predict: Callable[[Tree], jax.Array]
    key: jax.Array
    over_answers: jax.Array | float = 1.0


@dataclasses.dataclass(frozen=True)
class TaskStart:
    """What a method may ask when a task begins, or when its training goes on.

    Attributes:
      index: place of the task in the stream, from 0.
      key: PRNG key of this task's beginning, for new random values.
      sizes: sizes of the frozen decoder.
      inputs: gives the second moments of what goes into each adapted projection of the FFN, with
        the parameters that the task begins with: for each target `[L, I, I]` float32, the mean of
        x x^T over the tokens of the task's training examples, without dropout. I is the
        projection's input width. gate_proj and up_proj have the same input, and share an array.
        Where a layer has two experts, the input of down_proj is the shared expert's activation.
    """

    index: int
    key: jax.Array
    sizes: DecoderConfig
    inputs: Callable[[], Tree] = dict


Loss = Callable[[Tree, Batch], jax.Array]
"""The instruction loss of a task's own tree and a batch."""


@dataclasses.dataclass(frozen=True)
class TaskEnd:
    """What a method may ask when a task is finished.

    Attributes:
      index: place of the task in the stream, from 0.
      key: PRNG key of this task's end, for new random values.
      sizes: sizes of the frozen decoder.
      past: the tasks finished before, in their order.
      labels: `[n]` int, class of each training example of this task; 0 in a free-form task.
      losses: gives minus the log-probability of the right answer of each training example, `[n]`
        float64, with the trained parameters. Answers of several tokens count with their sum.
      mean_of_gradients: given a count and a function, the mean over so many random training
        examples of the function of each leaf of the gradient. The gradient is that of an example's
        log-likelihood, in the structure of the shared trees.
      inputs: gives what `TaskStart.inputs` gives, with the trained parameters.
      reports: given the name of a keyword argument of the method's `feed_forward`, which then is
        switched on, what the layers report of each training example with the trained parameters and
        without dropout: arrays `[n, L, ...]` by name, the examples in any order.
      queries: gives the mean frozen word embedding of the prompt of each training example, in any
        order, `[n, D]` float32.
      over_kept: given a task's own tree, a function, a number of batches and one of rounds, the
        tree after so many rounds of the function. It is given the tree, the `Loss` of a finished
        task without dropout, and so many batches, along a leading axis, of those of the task's
        examples that `examples` keeps. The tasks take turns, the ended one among them. The function
        is compiled. A round with a result that is not finite changes nothing.
      seed: seed of the run.
      examples: gives the n training examples. What a method keeps of them is in its checkpoints:
        its `examples` policy must say which it keeps.
      features: given places of training examples, what the frozen model makes of their texts alone,
        `[m, D]` float32.
      demonstrations: given places of training examples, the ids of each one's prompt and answer, as
        they precede other prompts.
    """

    index: int
    key: jax.Array
    sizes: DecoderConfig
    past: Sequence[PastTask] = ()
    labels: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int32))
    losses: Callable[[], np.ndarray] = lambda: np.zeros(0)
    mean_of_gradients: Callable[[int, Callable[[jax.Array], jax.Array]], Tree] = lambda *_: {}
    inputs: Callable[[], Tree] = dict
    reports: Callable[[str], Mapping[str, np.ndarray]] = lambda _: {}
    queries: Callable[[], np.ndarray] = lambda: np.zeros((0, 0), np.float32)
    over_kept: Callable[[Tree, Callable[[Tree, Loss, Batch], Tree], int, int], Tree] = (
        lambda own, *_: own
    )
    seed: int = 0
    examples: Callable[[], Sequence[TokenizedExample]] = tuple
    features: Callable[[Sequence[int]], np.ndarray] = lambda _: np.zeros((0, 0), np.float32)
    demonstrations: Callable[[Sequence[int]], list[np.ndarray]] = lambda _: []


class Method(abc.ABC):
    """A continual-learning method.

    What a method trains is in two trees: `shared`, which every task carries on from the one before,
    and `expert`, a task's own. What it keeps of finished tasks to train others by is in a third,
    `memory`. Each may be empty, and is a nested dictionary of arrays. A leaf whose shape depends on
    the number of tasks grows when tasks are added to a stream: what was there stays in its leading
    corner, and the rest is as `init_shared` or `init_memory` has it.

    Attributes:
      name: name of the method in configs and results.
      Options: dataclass of hyper-parameters of this method alone. A config has them in the section
        `name`; a field that is a dataclass itself is a section of its own, named as the field.
      traits: what the method needs and is able to do.
      lora: hyper-parameters of the low-rank experts.
      options: an instance of `Options`.
    """

    name: ClassVar[str]
    Options: ClassVar[type[Any]] = NoOptions
    traits: Traits = Traits()

    def __init__(self, lora: Lora | None = None, options: Any = None, **values: Any):
        """A method with its hyper-parameters.

        Args:
          lora: hyper-parameters of the experts; the defaults if none are given.
          options: an instance of `Options`; or give its fields by name, as in
            `MoeCl(shared="moving")`.
          **values: fields of `Options`.

        Raises:
          UserError: a field is unknown, or a value is out of its range.
        """
        self.lora = Lora() if lora is None else lora
        self.options = section(self.Options, self.name, values) if options is None else options

    @property
    def examples(self) -> ExamplePolicy:
        """Which examples a task trains on; its own, as a default."""
        return ExamplePolicy()

    @abc.abstractmethod
    def init_shared(self, key: jax.Array, sizes: DecoderConfig, task_count: int) -> Tree:
        """The tree that all tasks share, before the first of `task_count` tasks."""

    def init_expert(self, key: jax.Array, sizes: DecoderConfig) -> Tree:
        """A task's own tree before it is trained; empty as a default. `key` is the task's."""
        del key, sizes
        return {}

    def start_expert(self, expert: Tree, memory: Tree) -> Tree:
        """What a task's own tree starts as, by the memory; as a default the fresh one.

        Args:
          expert: what `init_expert` gave.
          memory: memory of the moment; `{}` where there is none.
        """
        del memory
        return expert

    def trainable(self, expert: Tree) -> Tree:
        """A task's own tree as it is trained, of one that is finished maybe; itself as a default.

        For learning that goes on with a finished task.
        """
        return expert

    def init_memory(self, sizes: DecoderConfig, task_count: int) -> Tree:
        """The memory before the first of `task_count` tasks; empty as a default."""
        del sizes, task_count
        return {}

    @abc.abstractmethod
    def adapter(self, parameters: TaskParameters, query: jax.Array | None = None) -> Tree:
        """What the layers are given: a tree whose leaves have a leading axis L.

        Args:
          parameters: parameters of the task that is trained or answered for.
          query: where the method reads it, mean frozen word embedding of each token's prompt,
            `[N, D]` float32.
        """

    def answering(self, parameters: TaskParameters) -> TaskParameters:
        """What answers for one task, in the same structure whether the task is finished or not.

        So that one program scores both. As a default the parameters as they are.
        """
        return parameters

    def preceding(self, parameters: TaskParameters, asked: Asked) -> Preceding:
        """What is put before the prompts of texts, where `traits.precedes` is set.

        A text's own pieces must not depend on the texts beside it.

        Args:
          parameters: parameters of the task that is asked. `answering` should take out of them what
            only this function reads, so that programs do not depend on its shapes.
          asked: the texts.
        """
        del parameters, asked
        return NOTHING

    def votes(
        self, parameters: TaskParameters, features: np.ndarray, class_count: int
    ) -> np.ndarray:
        """Scores of a task's labels, where `traits.votes` is set: the highest is the answer.

        Args:
          parameters: parameters of the task that is asked.
          features: what the frozen model makes of each text alone, `[n, D]` float32.
          class_count: C, the task's labels.

        Returns:
          `[n, C]` float32, finite; their softmax are the probabilities.
        """
        del parameters, features, class_count
        raise NotImplementedError(f"{type(self).__name__} votes, and says not how")

    def adapters(self, parameters: TaskParameters, experts: Sequence[Tree]) -> list[Tree]:
        """What the layers are given for each of several tasks, by their own trees.

        What is one object in all of them is multiplied once in a batch of several tasks.
        """
        return [self.adapter(parameters.replace(expert=expert)) for expert in experts]

    def feed_forward(self, training: bool) -> FeedForward:
        """The function of a layer's FFN, for training or evaluation; one LoRA as a default."""
        rate = self.lora.dropout if training else 0.0
        return functools.partial(lora_layer, scale=self.lora.scale, dropout_rate=rate)

    def attention_term(self, training: bool) -> AttentionTerm:
        """What is added to attention's projections, for training or evaluation."""
        if not set(self.lora.targets) & set(ATTENTION_TARGETS):
            return no_term
        return functools.partial(
            lora_term,
            experts=self.traits.experts,
            scale=self.lora.scale,
            dropout_rate=self.lora.dropout if training else 0.0,
        )

    def llm_weights(self, frozen: Tree, shared: Tree) -> Tree:
        """The decoder's parameters: the frozen ones, unless the method trains them."""
        del shared
        return frozen

    def penalty(self, parameters: TaskParameters, inputs: LossInputs) -> Penalty:
        """What is added to the instruction loss; nothing as a default.

        Args:
          parameters: those being trained, with the memory of the task.
          inputs: all else that the term may depend on.
        """
        del parameters, inputs
        return Penalty(jnp.zeros(()))

    def begin_task(self, parameters: TaskParameters, start: TaskStart) -> Tree:
        """The memory with which a task trains.

        It is asked anew when training goes on after an interruption, and must then give the same:
        it is a function of its arguments alone. Shapes are those of the memory that is given.

        Args:
          parameters: parameters that the task begins with.
          start: what else may be asked of the task.
        """
        del start
        return parameters.memory

    def finish_task(self, parameters: TaskParameters, end: TaskEnd) -> TaskParameters:
        """What the parameters become when their task is finished.

        Args:
          parameters: trained parameters, with the memory that the task trained with, as NumPy.
          end: what else may be asked of the task.

        Returns:
          The shared tree that the next task begins with, the finished task's own tree, its head as
          it was given, and the memory.
        """
        del end
        return parameters

    def continue_task(self, parameters: TaskParameters) -> TaskParameters:
        """The parameters with which the training of a finished task goes on, on more data.

        Before the first step they must answer as the task does. As a default they are what answers:
        `finish_task` left the structures as they are in training.

        Args:
          parameters: those that answer for the task now.

        Raises:
          UserError: they are not what the task can be trained with.
        """
        return parameters

    def without_task(self, memory: Tree, index: int) -> Tree:
        """The memory less what it has of one finished task, which is removed.

        The other tasks must be answered as before, bit for bit. As a default the memory itself:
        it has nothing of a single task.

        Args:
          memory: memory of a moment after the task was finished, as NumPy.
          index: place of the task in the stream.

        Raises:
          UserError: the task cannot be removed, because others are answered with what is its own.
        """
        del index
        return memory

    def new_expert(self, key: jax.Array, sizes: DecoderConfig, *, attention: bool = True) -> Expert:
        """A LoRA expert that changes nothing yet, with attention's targets or without them."""
        out = () if attention else ATTENTION_TARGETS
        targets = [name for name in self.lora.targets if name not in out]
        return init_expert(key, sizes, self.lora.rank, targets)


def blank(tree: Tree) -> Tree:
    """Zeros in the shapes of a tree, which may be one of shapes alone."""
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), tree)
