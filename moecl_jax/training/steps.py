"""The train step: pure, top level, compiled once a batch shape.

The step differentiates the active trees alone. The frozen LLM is a plain input: no gradient and
no optimizer state of it exist.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from moecl_jax.data.batching import Batch
from moecl_jax.methods.base import LossInputs, Method
from moecl_jax.methods.forward import (
    StepContext,
    forward,
    instruction_loss,
    output_logits,
    prompt_query,
)
from moecl_jax.methods.parameters import TaskParameters, Tree

Metrics = dict[str, jax.Array]


@flax.struct.dataclass
class TrainState:
    """State of one task's training.

    Attributes:
      step: number of steps done on this task.
      key: PRNG key of this task; each step folds its number in.
      active: what is trained, its memory left empty.
      optimizer_state: the optimizer's state, of `active` alone.
      memory: the method's memory, the same in all steps.
    """

    step: jax.Array
    key: jax.Array
    active: TaskParameters
    optimizer_state: optax.OptState
    memory: Tree = flax.struct.field(default_factory=dict)

    @property
    def answering(self) -> TaskParameters:
        """What is trained together with the memory."""
        return self.active.replace(memory=self.memory)


def make_optimizer(weight_decay: float, clip_norm: float) -> optax.GradientTransformation:
    """AdamW less its learning rate, which is an argument of the step.

    Args:
      weight_decay: weight decay of AdamW.
      clip_norm: gradients are scaled down to this global norm; 0 leaves them alone.
    """
    clip = optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity()
    return optax.chain(clip, optax.scale_by_adam(), optax.add_decayed_weights(weight_decay))


def init_train_state(
    method: Method,
    optimizer: optax.GradientTransformation,
    parameters: TaskParameters,
    key: jax.Array,
) -> TrainState:
    """A fresh state of a task's training.

    All arrays are copies: the step may overwrite the state, and `parameters` stay as they are.

    Args:
      method: continual-learning method, which says with what memory the task trains.
      optimizer: optimizer that `make_optimizer` gives.
      parameters: those that the task begins with.
      key: PRNG key of the task's training.
    """
    memory = copied(method.begin_task(parameters))
    active = copied(parameters.replace(memory={}))
    return TrainState(jnp.zeros((), jnp.int32), key, active, optimizer.init(active), memory)


def copied(tree: Any) -> Any:
    """A copy on the device, which a step that is given the original cannot overwrite."""
    return jax.tree.map(jnp.copy, tree)


def train_step(
    state: TrainState,
    frozen: Tree,
    batch: Batch,
    learning_rate: jax.Array,
    *,
    context: StepContext,
    optimizer: optax.GradientTransformation,
) -> tuple[TrainState, Metrics]:
    """One update of experts, gate, head and discriminator together.

    Args:
      state: state of the task's training.
      frozen: parameters of the decoder.
      batch: one training batch; parts of it on a leading axis are computed one after another.
      learning_rate: scalar of this step.
      context: static parts.
      optimizer: optimizer that `make_optimizer` gives.

    Returns:
      The new state, and the metrics `loss` (L of eq. 10: what experts, gate and head minimise),
      `loss_instruction`, `loss_adversarial`, `gradient_norm` and the method's own.
    """
    gradients, metrics = _gradients(state, frozen, batch, context)
    metrics["gradient_norm"] = optax.tree.norm(gradients)
    updates, optimizer_state = optimizer.update(gradients, state.optimizer_state, state.active)
    active = jax.tree.map(lambda p, u: p - learning_rate * u, state.active, updates)
    advanced = dataclasses.replace(
        state, step=state.step + 1, active=active, optimizer_state=optimizer_state
    )
    return context.placement.keep(advanced), context.placement.everywhere(metrics)


@flax.struct.dataclass
class Part:
    """A part of a batch whose gradients are summed with those of the other parts.

    Attributes:
      index: which.
      instruction_share: its share of what the batch's instruction loss is averaged over: tokens of
        answers, or with classification heads examples.
      example_share: its share of the batch's examples.
    """

    index: jax.Array
    instruction_share: jax.Array
    example_share: jax.Array


def _gradients(
    state: TrainState, frozen: Tree, batch: Batch, context: StepContext
) -> tuple[TaskParameters, Metrics]:
    """Gradients and metrics of a batch, or their sums over its parts."""
    gradient = jax.grad(loss, has_aux=True)
    if batch.tokens.ndim == 2:
        whole: tuple[TaskParameters, Metrics] = gradient(
            state.active, state, frozen, batch, context
        )
        return whole
    examples = batch.weights.sum(axis=1)
    averaged = batch.answer_mask.sum(axis=(1, 2, 3)) if context.head == "lm" else examples
    index = jnp.arange(len(examples))
    parts = Part(index, averaged / averaged.sum(), examples / examples.sum())

    def of_part(each: tuple[Batch, Part]) -> tuple[TaskParameters, Metrics]:
        found: tuple[TaskParameters, Metrics] = gradient(
            state.active, state, frozen, each[0], context, each[1]
        )
        return found

    def add(total: Any, each: tuple[Batch, Part]) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, of_part(each)), None

    shapes = jax.eval_shape(of_part, jax.tree.map(lambda leaf: leaf[0], (batch, parts)))
    nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    summed: tuple[TaskParameters, Metrics] = jax.lax.scan(add, nothing, (batch, parts))[0]
    return summed


def loss(
    active: TaskParameters,
    state: TrainState,
    frozen: Tree,
    batch: Batch,
    context: StepContext,
    part: Part | None = None,
) -> tuple[jax.Array, Metrics]:
    """What is differentiated: instruction loss plus the method's penalty; and metrics.

    A mean over the batch is the sum of its parts' means, each times the part's share.
    """
    key = jax.random.fold_in(state.key, state.step)
    key = key if part is None else jax.random.fold_in(key, part.index)
    layers = (context.architecture.sizes.layers,)
    seeds = jax.random.bits(key, layers, jnp.uint32)
    answering = active.replace(memory=state.memory)
    hidden, reports = forward(answering, frozen, batch, context, seeds=seeds)
    logits = output_logits(answering, hidden, frozen, batch, context)
    instruction = instruction_loss(logits, batch, context)

    def predict(shared: Tree) -> jax.Array:
        other = answering.replace(shared=shared)
        states, _ = forward(other, frozen, batch, context, seeds=None)
        return output_logits(other, states, frozen, batch, context)

    query = prompt_query(frozen, batch, context)
    inputs = LossInputs(batch, reports, query, logits, predict)
    penalty = context.method.penalty(answering, inputs)
    if part is not None:
        instruction = instruction * part.instruction_share
        penalty = jax.tree.map(lambda x: x * part.example_share, penalty)
    seen = penalty.term if penalty.reported is None else penalty.reported
    metrics = {
        "loss": instruction + seen,
        "loss_instruction": instruction,
        "loss_adversarial": penalty.adversarial,
        **penalty.metrics,
    }
    return instruction + penalty.term, metrics


def gradient_step(
    parameters: TaskParameters,
    frozen: Tree,
    batch: Batch,
    *,
    context: StepContext,
    transform: Callable[[jax.Array], jax.Array],
) -> Tree:
    """A function of the gradient of an example's log-likelihood, in the shared tree's structure.

    With `jnp.square` it is a sample of the diagonal of the empirical Fisher information.

    Args:
      parameters: parameters of the task.
      frozen: parameters of the frozen decoder.
      batch: one example.
      context: static parts.
      transform: what is computed of each leaf of the gradient.
    """

    def log_likelihood(shared: Tree) -> jax.Array:
        chosen = parameters.replace(shared=shared)
        hidden, _ = forward(chosen, frozen, batch, context, seeds=None)
        logits = output_logits(chosen, hidden, frozen, batch, context)
        tokens = batch.answer_mask.sum() if context.head == "lm" else 1.0
        return -tokens * instruction_loss(logits, batch, context)

    transformed = jax.tree.map(transform, jax.grad(log_likelihood)(parameters.shared))
    return context.placement.keep(transformed)
