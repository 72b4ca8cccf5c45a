"""The train step: pure, top level, compiled once a batch shape.

The step differentiates the active trees alone. The frozen LLM is a plain input: no gradient and
no optimizer state of it exist.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from moecl_jax.data.batching import Batch
from moecl_jax.methods.adversarial_inputs import attacked_gradient
from moecl_jax.methods.base import LossInputs, Method, TaskStart
from moecl_jax.methods.forward import (
    StepContext,
    forward,
    instruction_loss,
    membership_of,
    output_logits,
    prompt_query,
    prompts_of,
    vocabulary_logits,
)
from moecl_jax.methods.next_token import mean_over_examples, next_token_losses
from moecl_jax.methods.parameters import TaskParameters, Tree

Metrics = dict[str, jax.Array]
_PENALTY, _ATTACK = 1, 2  # tell random numbers of a penalty and an attack from dropout's


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
    start: TaskStart | None = None,
) -> TrainState:
    """A fresh state of a task's training.

    All arrays are copies: the step may overwrite the state, and `parameters` stay as they are.

    Args:
      method: continual-learning method, which says with what memory the task trains.
      optimizer: optimizer that `make_optimizer` gives.
      parameters: those that the task begins with.
      key: PRNG key of the task's training.
      start: what the method may ask of the task; None to train with the memory as it is.
    """
    memory = parameters.memory if start is None else method.begin_task(parameters, start)
    memory = copied(memory)
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
      batch: one training batch.
      learning_rate: scalar of this step.
      context: static parts.
      optimizer: optimizer that `make_optimizer` gives.

    Returns:
      The new state, and the metrics `loss` (L of eq. 10: what experts, gate and head minimise),
      `loss_instruction`, `loss_adversarial`, `gradient_norm`, `skipped` and the method's own. A
      step whose loss or gradient is not finite is skipped: it changes the state's `step` alone.
    """
    gradients, metrics = _gradient(state, frozen, batch, context)
    state, of_update = _updated(state, gradients, metrics["loss"], learning_rate, optimizer)
    placement = context.placement
    return placement.keep(state), placement.everywhere({**metrics, **of_update})


@flax.struct.dataclass
class Piece:
    """A part of a batch whose gradients are summed with those of the other parts.

    Attributes:
      instruction_share: its share of what the batch's instruction loss is averaged over: tokens of
        answers, or with classification heads examples.
      example_share: its share of the batch's examples.
      last: whether it is the batch's last, after which parameters are updated.
    """

    instruction_share: jax.Array
    example_share: jax.Array
    last: jax.Array

    @classmethod
    def of(cls, instruction_share: float, example_share: float, last: bool) -> "Piece":
        """A piece with these attributes as NumPy's scalars."""
        values: tuple[Any, ...] = (
            np.float32(instruction_share),
            np.float32(example_share),
            np.bool_(last),
        )
        return cls(*values)


@flax.struct.dataclass
class Sums:
    """Sums over the pieces of a batch so far; zeros before the first.

    Attributes:
      gradients: gradients of what is trained.
      loss: loss, a scalar.
    """

    gradients: TaskParameters
    loss: jax.Array


def no_sums(active: TaskParameters) -> Sums:
    """The sums before the first piece."""
    return Sums(jax.tree.map(jnp.zeros_like, active), jnp.zeros(()))


def train_piece(
    state: TrainState,
    sums: Sums,
    frozen: Tree,
    batch: Batch,
    piece: Piece,
    learning_rate: jax.Array,
    *,
    context: StepContext,
    optimizer: optax.GradientTransformation,
) -> tuple[TrainState, Sums, Metrics]:
    """`train_step` of a batch that is computed in pieces, one call for each.

    A batch in one piece is trained as `train_step` trains it, with the same dropout.

    Args:
      state: state of the task's training.
      sums: what the call for the piece before gave.
      frozen: parameters of the decoder.
      batch: the piece's examples.
      piece: which piece of the batch it is.
      learning_rate: scalar of this step.
      context: static parts.
      optimizer: optimizer that `make_optimizer` gives.

    Returns:
      The state, which changes with the last piece alone; the sums; and the piece's metrics, whose
      sums over all pieces are the batch's. `gradient_norm` and `skipped` are the last one's.
    """
    gradients, metrics = _gradient(state, frozen, batch, context, piece)
    gradients = jax.tree.map(jnp.add, sums.gradients, gradients)
    total = sums.loss + metrics["loss"]
    updated, of_update = _updated(state, gradients, total, learning_rate, optimizer)
    state = _choose(piece.last, updated, state)
    summed = Sums(gradients, total)
    sums = _choose(piece.last, jax.tree.map(jnp.zeros_like, summed), summed)
    placement = context.placement
    return (
        placement.keep(state),
        placement.keep(sums),
        placement.everywhere({**metrics, **of_update}),
    )


def summed(pieces: Sequence[Metrics]) -> Metrics:
    """The metrics of a batch out of those of its pieces; not fetched from the device."""
    if len(pieces) == 1:
        return pieces[0]
    total = jax.tree.map(lambda *parts: functools.reduce(jnp.add, parts), *pieces)
    return {**total, **{name: pieces[-1][name] for name in ("gradient_norm", "skipped")}}


def _updated(
    state: TrainState,
    gradients: TaskParameters,
    total: jax.Array,
    learning_rate: jax.Array,
    optimizer: optax.GradientTransformation,
) -> tuple[TrainState, Metrics]:
    """The state after an update, and `gradient_norm` and `skipped`."""
    norm = optax.tree.norm(gradients)
    finite = jnp.isfinite(norm) & jnp.isfinite(total)
    updates, optimizer_state = optimizer.update(gradients, state.optimizer_state, state.active)
    active = jax.tree.map(lambda p, u: p - learning_rate * u, state.active, updates)
    active, optimizer_state = _choose(
        finite, (active, optimizer_state), (state.active, state.optimizer_state)
    )
    advanced = dataclasses.replace(
        state, step=state.step + 1, active=active, optimizer_state=optimizer_state
    )
    return advanced, {"gradient_norm": norm, "skipped": ~finite}


def _choose(first: jax.Array, one: Any, other: Any) -> Any:
    """One of two trees."""
    return jax.tree.map(lambda a, b: jnp.where(first, a, b), one, other)


def _gradient(
    state: TrainState, frozen: Tree, batch: Batch, context: StepContext, piece: Piece | None = None
) -> tuple[TaskParameters, Metrics]:
    """Gradients and metrics of `loss`, or of what an attack makes of it."""

    def of(active: TaskParameters, shift: jax.Array | None) -> tuple[jax.Array, Metrics]:
        return loss(active, state, frozen, batch, context, piece, shift)

    if not context.attack.on:
        found: tuple[TaskParameters, Metrics] = jax.grad(of, has_aux=True)(state.active, None)
        return found
    key = jax.random.fold_in(jax.random.fold_in(state.key, state.step), _ATTACK)
    prompts = prompts_of(frozen, batch, context)
    gradients, metrics = attacked_gradient(of, state.active, context.attack, prompts, key)
    return gradients, dict(metrics)


def loss(
    active: TaskParameters,
    state: TrainState,
    frozen: Tree,
    batch: Batch,
    context: StepContext,
    piece: Piece | None = None,
    shift: jax.Array | None = None,
) -> tuple[jax.Array, Metrics]:
    """What is differentiated: instruction loss, the method's penalty, next tokens; and metrics.

    A mean over the batch is the sum of its pieces' means, each times the piece's share. `shift`
    `[N, D]` is added to the word embeddings.
    """
    key = jax.random.fold_in(state.key, state.step)
    layers = (context.architecture.sizes.layers,)
    seeds = jax.random.bits(key, layers, jnp.uint32)
    answering = active.replace(memory=state.memory)
    hidden, reports = forward(answering, frozen, batch, context, seeds=seeds, shift=shift)
    logits = output_logits(answering, hidden, frozen, batch, context)
    instruction = instruction_loss(logits, batch, context)

    def predict(shared: Tree) -> jax.Array:
        other = answering.replace(shared=shared)
        states, _ = forward(other, frozen, batch, context, seeds=None)
        return output_logits(other, states, frozen, batch, context)

    query = prompt_query(frozen, batch, context)
    over_answers = 1.0 if piece is None else piece.instruction_share / piece.example_share
    penalty_key = jax.random.fold_in(key, _PENALTY)
    inputs = LossInputs(batch, reports, query, logits, predict, penalty_key, over_answers)
    penalty = context.method.penalty(answering, inputs)
    weight = context.self_supervised.weight
    texts = _text_loss(answering, hidden, frozen, batch, context) if weight else jnp.zeros(())
    if piece is not None:
        instruction = instruction * piece.instruction_share
        penalty, texts = jax.tree.map(lambda x: x * piece.example_share, (penalty, texts))
    seen = penalty.term if penalty.reported is None else penalty.reported
    metrics = {
        "loss": instruction + seen + weight * texts,
        "loss_instruction": instruction,
        "loss_adversarial": penalty.adversarial,
        **({"loss_next_token": texts} if weight else {}),
        **penalty.metrics,
    }
    return instruction + penalty.term + weight * texts, metrics


def _text_loss(
    answering: TaskParameters, hidden: jax.Array, frozen: Tree, batch: Batch, context: StepContext
) -> jax.Array:
    """The next-token loss on the batch's prompts."""

    def logits_of(states: jax.Array) -> jax.Array:
        return vocabulary_logits(answering, states, frozen, context)

    losses, follows = next_token_losses(hidden, batch, logits_of)
    return mean_over_examples(losses, follows, membership_of(batch), batch.weights)


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
