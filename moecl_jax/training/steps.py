"""The train and evaluation steps: pure, top level, compiled once a batch shape.

The step differentiates the active trees alone. The frozen LLM is a plain input: no gradient and
no optimizer state of it exist.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import chex
import flax.struct
import jax
import jax.numpy as jnp
import optax

from moecl_jax.data.batching import Batch
from moecl_jax.methods.base import Method, Tree, View
from moecl_jax.methods.losses import answer_loss, classification_loss
from moecl_jax.methods.mixed import mixed_adapter
from moecl_jax.models.decoder import Decoder
from moecl_jax.models.heads import answer_log_probabilities, class_logits
from moecl_jax.models.sharding import ONE_DEVICE, Placement

Head = Literal["lm", "classification"]
Metrics = dict[str, jax.Array]


@flax.struct.dataclass
class Active:
    """Everything that is trained while one task is, or that answers for it, or for several.

    Attributes:
      shared: the method's tree that all tasks share.
      expert: the task's own tree; or a tuple of several tasks', in evaluation.
      head: `[D, C]` kernel of the task's classification head, or `{}` with the LM head; or a tuple.
      memory: the method's memory, which answers are given with and which is never trained; `{}`
        where this is what a step differentiates.
    """

    shared: Tree
    expert: Tree
    head: Any
    memory: Tree = flax.struct.field(default_factory=dict)


def together(actives: Sequence[Active]) -> Active:
    """What answers for several tasks in the same batch, out of what answers for each."""
    return dataclasses.replace(
        actives[0],
        expert=tuple(active.expert for active in actives),
        head=tuple(active.head for active in actives),
    )


@flax.struct.dataclass
class TrainState:
    """State of one task's training.

    Attributes:
      step: steps done on this task.
      key: key of this task; each step folds its number in.
      active: what is trained.
      optimizer_state: of `active` alone.
      memory: the method's memory, the same in all steps.
    """

    step: jax.Array
    key: jax.Array
    active: Active
    optimizer_state: optax.OptState
    memory: Tree = flax.struct.field(default_factory=dict)

    @property
    def answering(self) -> Active:
        """What is trained together with the memory."""
        return dataclasses.replace(self.active, memory=self.memory)


@dataclasses.dataclass(frozen=True)
class Learner:
    """The static parts of a step: hashable, so that a step is compiled once for each.

    Attributes:
      method: how the experts are used and what is added to the loss.
      head: "lm" or "classification".
      dtype: of activations.
      remat: policy of the decoder.
      weight_decay: of AdamW.
      clip_norm: gradients are scaled down to this global norm; 0 leaves them alone.
      placement: of arrays on the devices.
      attention: a name of `ATTENTIONS`.
    """

    method: Method
    head: Head
    dtype: Any
    remat: str
    weight_decay: float
    clip_norm: float
    placement: Placement = ONE_DEVICE
    attention: str = "xla"

    @property
    def optimizer(self) -> optax.GradientTransformation:
        """AdamW less its learning rate, which is an argument of the step."""
        clip = optax.clip_by_global_norm(self.clip_norm) if self.clip_norm else optax.identity()
        decay = optax.add_decayed_weights(self.weight_decay)
        return optax.chain(clip, optax.scale_by_adam(), decay)

    def decoder(self, training: bool) -> Decoder:
        """The frozen decoder with the method's experts in it."""
        branches = not training and self.attention == "splash"  # which that kernel does not know
        return Decoder(
            self.method.config,
            self.dtype,
            self.method.feed_forward(training),
            self.method.attention_term(training),
            self.remat if training else "none",
            self.placement.split_tokens,
            "xla" if branches else self.attention,
        )


def init_train_state(learner: Learner, active: Active, key: jax.Array) -> TrainState:
    """A fresh optimizer for `active`; its memory becomes the one that the task trains with."""
    memory = learner.method.begin_task(active.shared, active.memory)
    trained = dataclasses.replace(active, memory={})
    state = learner.optimizer.init(trained)
    return TrainState(jnp.zeros((), jnp.int32), key, trained, state, memory)


def train_step(
    state: TrainState, frozen: Tree, batch: Batch, learning_rate: jax.Array, *, learner: Learner
) -> tuple[TrainState, Metrics]:
    """One update of experts, gate, head and discriminator together.

    Args:
      state: state of the task's training.
      frozen: parameters of the decoder.
      batch: one training batch; parts of it on a leading axis are computed one after another.
      learning_rate: scalar of this step.
      learner: static parts.

    Returns:
      The new state, and the metrics `loss` (L of eq. 10: what experts, gate and head minimise),
      `loss_instruction`, `loss_adversarial`, `gradient_norm` and the method's own.
    """
    gradients, metrics = _gradients(state, frozen, batch, learner)
    metrics["gradient_norm"] = optax.tree.norm(gradients)
    updates, optimizer_state = learner.optimizer.update(
        gradients, state.optimizer_state, state.active
    )
    active = jax.tree.map(lambda p, u: p - learning_rate * u, state.active, updates)
    advanced = dataclasses.replace(
        state, step=state.step + 1, active=active, optimizer_state=optimizer_state
    )
    return learner.placement.keep(advanced), learner.placement.everywhere(metrics)


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
    state: TrainState, frozen: Tree, batch: Batch, learner: Learner
) -> tuple[Active, Metrics]:
    """Gradients and metrics of a batch, or their sums over its parts."""
    gradient = jax.grad(loss, has_aux=True)
    if batch.tokens.ndim == 2:
        whole: tuple[Active, Metrics] = gradient(state.active, state, frozen, batch, learner)
        return whole
    examples = batch.weights.sum(axis=1)
    averaged = batch.answer_mask.sum(axis=(1, 2, 3)) if learner.head == "lm" else examples
    index = jnp.arange(len(examples))
    parts = Part(index, averaged / averaged.sum(), examples / examples.sum())

    def of_part(each: tuple[Batch, Part]) -> tuple[Active, Metrics]:
        found: tuple[Active, Metrics] = gradient(
            state.active, state, frozen, each[0], learner, each[1]
        )
        return found

    def add(total: Any, each: tuple[Batch, Part]) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, of_part(each)), None

    shapes = jax.eval_shape(of_part, jax.tree.map(lambda leaf: leaf[0], (batch, parts)))
    nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    summed: tuple[Active, Metrics] = jax.lax.scan(add, nothing, (batch, parts))[0]
    return summed


def loss(
    active: Active,
    state: TrainState,
    frozen: Tree,
    batch: Batch,
    learner: Learner,
    part: Part | None = None,
) -> tuple[jax.Array, Metrics]:
    """What is differentiated: instruction loss plus the method's penalty; and metrics.

    A mean over the batch is the sum of its parts' means, each times the part's share.
    """
    key = jax.random.fold_in(state.key, state.step)
    key = key if part is None else jax.random.fold_in(key, part.index)
    layers = (learner.method.config.layers,)
    seeds = jax.random.bits(key, layers, jnp.uint32)
    answering = dataclasses.replace(active, memory=state.memory)
    hidden, reports = forward(answering, frozen, batch, learner, seeds=seeds)
    logits = output_logits(answering, hidden, frozen, batch, learner)
    instruction = instruction_loss(logits, batch, learner)

    def predict(shared: Tree) -> jax.Array:
        other = dataclasses.replace(answering, shared=shared)
        states, _ = forward(other, frozen, batch, learner, seeds=None)
        return output_logits(other, states, frozen, batch, learner)

    query = prompt_query(frozen, batch, learner)
    view = View(state.memory, batch, reports, query, logits, predict)
    penalty, metrics = learner.method.penalty(active.shared, view)
    if part is not None:
        instruction = instruction * part.instruction_share
        penalty, metrics = jax.tree.map(lambda x: x * part.example_share, (penalty, metrics))
    seen = instruction + metrics.pop("penalty")
    return instruction + penalty, {"loss": seen, "loss_instruction": instruction, **metrics}


def importance_step(active: Active, frozen: Tree, batch: Batch, *, learner: Learner) -> Tree:
    """Squared gradient of an example's log-likelihood, in the structure of the shared trees.

    A sample of the diagonal of the empirical Fisher information.

    Args:
      active: trees of the task.
      frozen: parameters of the decoder.
      batch: one example.
      learner: static parts.
    """

    def log_likelihood(shared: Tree) -> jax.Array:
        chosen = dataclasses.replace(active, shared=shared)
        hidden, _ = forward(chosen, frozen, batch, learner, seeds=None)
        logits = output_logits(chosen, hidden, frozen, batch, learner)
        tokens = batch.answer_mask.sum() if learner.head == "lm" else 1.0
        return -tokens * instruction_loss(logits, batch, learner)

    squares = jax.tree.map(jnp.square, jax.grad(log_likelihood)(active.shared))
    return learner.placement.keep(squares)


def evaluation_step(
    active: Active, frozen: Tree, batch: Batch, *, learner: Learner
) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
    """Scores of each example's labels.

    Returns:
      Scores `[B, C]` or `[B, K]`, the lowest finite value where there is no such label: class
      logits, or with the LM head the log-probability of each label's text and its end; and
      whether the label is the answer, `[B, C]` or `[B, K]`: the highest logit, or with the LM
      head whether greedy decoding writes exactly this label's text and ends. (Greedy decoding
      from the prompt gives a text if and only if, with that text fed, every token of it is the
      most probable one.) And what the layers' FFN functions report of each example, `[L, B]`.
    """
    hidden, reports = forward(active, frozen, batch, learner, seeds=None)
    lowest = jnp.finfo(jnp.float32).min
    if learner.head == "lm":
        logits = _vocabulary_logits(active, hidden[batch.predicted], frozen, learner)
        log_probabilities, greedy = answer_log_probabilities(
            logits, batch.answer_targets, batch.answer_index
        )
        real = batch.answer_mask > 0
        exists = real.any(axis=-1)
        scores = jnp.where(real, log_probabilities, 0.0).sum(axis=-1)
        answered = exists & (greedy | ~real).all(axis=-1)
        return learner.placement.everywhere((jnp.where(exists, scores, lowest), answered, reports))
    logits = output_logits(active, hidden, frozen, batch, learner)
    best = jax.nn.one_hot(jnp.argmax(logits, axis=-1), logits.shape[1], dtype=bool)
    return learner.placement.everywhere((logits, best, reports))


def forward(
    active: Active, frozen: Tree, batch: Batch, learner: Learner, *, seeds: jax.Array | None
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Final hidden states `[N, D]` and the layers' reports; `seeds` `[L]` means training."""
    chex.assert_equal_shape([batch.tokens, batch.positions, batch.segments, batch.branches])
    batch = learner.placement.split_rows(batch)
    membership = membership_of(batch)
    out: Any = learner.decoder(training=seeds is not None).apply(
        {"params": learner.method.parameters(frozen, active.shared)},
        batch.tokens,
        batch.positions,
        batch.segments,
        batch.branches,
        membership,
        _adapter(active, frozen, batch, membership, learner),
        seeds,
        batch.slots,
    )
    return out


def _adapter(
    active: Active, frozen: Tree, batch: Batch, membership: jax.Array, learner: Learner
) -> Tree:
    """What the layers receive."""
    method = learner.method
    if isinstance(active.expert, tuple):
        task = jax.nn.one_hot(batch.task_index, len(active.expert))
        choice = membership.T @ task
        return mixed_adapter(method, active.shared, active.expert, active.memory, choice)
    query = membership.T @ prompt_query(frozen, batch, learner) if method.queries else None
    return method.adapter(active.shared, active.expert, active.memory, query)


def output_logits(
    active: Active, hidden: jax.Array, frozen: Tree, batch: Batch, learner: Learner
) -> jax.Array:
    """Logits of the answers' tokens, nowhere else, `[B, K, A, V]`; or class logits `[B, C]`."""
    if learner.head == "classification":
        head = active.head
        if isinstance(head, tuple):
            head = jnp.stack(head)[batch.task_index]
        return class_logits(hidden, batch.last_token, head, batch.class_count)
    at = hidden[batch.answer_positions.reshape(-1)]
    logits = _vocabulary_logits(active, at, frozen, learner)
    return logits.reshape(*batch.answer_targets.shape, -1)


def instruction_loss(logits: jax.Array, batch: Batch, learner: Learner) -> jax.Array:
    """L_SFT of the output layer's logits."""
    if learner.head == "classification":
        return classification_loss(logits, batch.labels, batch.weights)
    index = jnp.arange(batch.answer_targets.size).reshape(batch.answer_targets.shape)
    flat = logits.reshape(-1, logits.shape[-1])
    log_probabilities, _ = answer_log_probabilities(flat, batch.answer_targets, index)
    return answer_loss(log_probabilities, batch.answer_mask)


def _vocabulary_logits(active: Active, hidden: jax.Array, frozen: Tree, learner: Learner) -> Any:
    """The LLM's own logits `[M, V]` of hidden states `[M, D]`."""
    decoder = Decoder(learner.method.config, learner.dtype)
    parameters = learner.method.parameters(frozen, active.shared)
    logits: Any = decoder.apply({"params": parameters}, hidden, method="logits")
    return logits


def prompt_query(frozen: Tree, batch: Batch, learner: Learner) -> jax.Array:
    """Mean frozen word embedding of each prompt, `[B, D]` float32."""
    prompt = membership_of(batch) * (batch.flat(batch.branches)[None] == 0)
    decoder = Decoder(learner.method.config, learner.dtype)
    words: Any = decoder.apply({"params": frozen}, batch.flat(batch.tokens), method="embed")
    total = prompt @ words.astype(jnp.float32)
    return total / jnp.maximum(prompt.sum(axis=1, keepdims=True), 1.0)


def membership_of(batch: Batch) -> jax.Array:
    """`[B, N]` float32, 1 where a token is a real token of an example."""
    examples = jnp.arange(1, batch.weights.shape[0] + 1)
    return (batch.flat(batch.segments)[None] == examples[:, None]).astype(jnp.float32)
