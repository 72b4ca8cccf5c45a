"""The frozen LLM with a method's experts in it: hidden states, logits, the instruction loss.

Axes: B examples, N computed tokens, K continuations, A answer tokens, C classes, L layers, D width,
V vocabulary, M chosen positions.
"""

import dataclasses
import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp

from moecl_jax.data.batching import Batch
from moecl_jax.methods import mixed
from moecl_jax.methods.adversarial_inputs import AdversarialInputs, Prompts
from moecl_jax.methods.base import Method
from moecl_jax.methods.losses import answer_loss, classification_loss
from moecl_jax.methods.next_token import SelfSupervised
from moecl_jax.methods.parameters import TaskParameters, Tree
from moecl_jax.methods.stream import Head
from moecl_jax.models.decoder import Decoder, Prefix
from moecl_jax.models.heads import answer_log_probabilities, class_logits
from moecl_jax.models.model import Architecture
from moecl_jax.models.sharding import Placement


@dataclasses.dataclass(frozen=True)
class StepContext:
    """The static parts of a step: what is compiled into it.

    Attributes:
      architecture: sizes, dtype and placement of the frozen LLM, and how it is computed.
      method: continual-learning method.
      head: "lm" or "classification".
      reported: what the layers report beside what they do: keyword arguments of the method's
        `feed_forward` that are switched on, such as "second_moments".
      attack: what training does to the word embeddings.
      self_supervised: what else is trained on the texts.
    """

    architecture: Architecture
    method: Method
    head: Head
    reported: tuple[str, ...] = ()
    attack: AdversarialInputs = AdversarialInputs()
    self_supervised: SelfSupervised = SelfSupervised()

    @property
    def placement(self) -> Placement:
        """Where arrays lie on the devices."""
        return self.architecture.placement

    def decoder(self, training: bool) -> Decoder:
        """The frozen decoder with the method's experts in it."""
        feed_forward: Any = self.method.feed_forward(training)
        if self.reported:
            feed_forward = functools.partial(feed_forward, **dict.fromkeys(self.reported, True))
        return self.architecture.decoder(
            feed_forward,
            self.method.attention_term(training),
            training=training,
        )


def forward(
    parameters: TaskParameters,
    frozen: Tree,
    batch: Batch,
    context: StepContext,
    *,
    seeds: jax.Array | None,
    prefix: Prefix | None = None,
    shift: jax.Array | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Final hidden states `[N, D]` and the layers' reports.

    Args:
      parameters: parameters of the task, or of several (`mixed.together`).
      frozen: parameters of the frozen decoder.
      batch: one batch.
      context: static parts.
      seeds: `[L]` uint32 for dropout in training; None in evaluation.
      prefix: tokens before each text; None for none.
      shift: `[N, D]` float32, what is added to the word embeddings; None for nothing.
    """
    chex.assert_equal_shape([batch.tokens, batch.positions, batch.segments, batch.branches])
    batch = context.placement.split_rows(batch)
    membership = membership_of(batch)
    out: Any = context.decoder(training=seeds is not None).apply(
        {"params": context.method.llm_weights(frozen, parameters.shared)},
        batch.tokens,
        batch.positions,
        batch.segments,
        batch.branches,
        membership,
        _adapter(parameters, frozen, batch, membership, context),
        seeds,
        batch.slots,
        None if seeds is None else places_of(batch),
        prefix,
        shift,
    )
    return out


def places_of(batch: Batch) -> jax.Array:
    """A number `[N]` for each computed token: its example's place in the whole batch, and its own.

    So what is drawn for a token does not depend on how examples are packed, or on which share a
    piece.
    """
    count = batch.weights.shape[0]
    members = jnp.arange(count) if batch.members is None else batch.members
    example = members[jnp.maximum(batch.flat(batch.segments) - 1, 0)].astype(jnp.uint32)
    return (example << 16) + batch.flat(batch.positions).astype(jnp.uint32)


def _adapter(
    parameters: TaskParameters,
    frozen: Tree,
    batch: Batch,
    membership: jax.Array,
    context: StepContext,
) -> Tree:
    """What the layers are given."""
    method = context.method
    if mixed.is_mixed(parameters):
        return mixed.adapter(method, parameters, membership, batch.task_index)
    query = None
    if method.traits.reads_query:
        query = membership.T @ prompt_query(frozen, batch, context)
    return method.adapter(parameters, query)


def output_logits(
    parameters: TaskParameters, hidden: jax.Array, frozen: Tree, batch: Batch, context: StepContext
) -> jax.Array:
    """Logits of the answers' tokens, nowhere else, `[B, K, A, V]`; or class logits `[B, C]`."""
    if context.head == "classification":
        head = mixed.head(parameters, batch.task_index)
        return class_logits(hidden, batch.last_token, head, batch.class_count)
    at = hidden[batch.answer_positions.reshape(-1)]
    logits = vocabulary_logits(parameters, at, frozen, context)
    return logits.reshape(*batch.answer_targets.shape, -1)


def instruction_loss(logits: jax.Array, batch: Batch, context: StepContext) -> jax.Array:
    """L_SFT of the output layer's logits."""
    if context.head == "classification":
        return classification_loss(logits, batch.labels, batch.weights)
    index = jnp.arange(batch.answer_targets.size).reshape(batch.answer_targets.shape)
    flat = logits.reshape(-1, logits.shape[-1])
    log_probabilities, _ = answer_log_probabilities(flat, batch.answer_targets, index)
    return answer_loss(log_probabilities, batch.answer_mask)


def vocabulary_logits(
    parameters: TaskParameters, hidden: jax.Array, frozen: Tree, context: StepContext
) -> jax.Array:
    """The LLM's own logits `[M, V]` in float32 of hidden states `[M, D]`."""
    weights = context.method.llm_weights(frozen, parameters.shared)
    decoder = context.architecture.frozen_decoder()
    logits: Any = decoder.apply({"params": weights}, hidden, method="logits")
    return logits


def prompt_query(frozen: Tree, batch: Batch, context: StepContext) -> jax.Array:
    """Mean frozen word embedding of each prompt, `[B, D]` float32."""
    prompts = prompts_of(frozen, batch, context)
    total = prompts.members @ prompts.embedded.astype(jnp.float32)
    return total / jnp.maximum(prompts.members.sum(axis=1, keepdims=True), 1.0)


def prompts_of(frozen: Tree, batch: Batch, context: StepContext) -> Prompts:
    """The prompts of a batch, with their frozen word embeddings."""
    decoder = context.architecture.frozen_decoder()
    words: Any = decoder.apply({"params": frozen}, batch.flat(batch.tokens), method="embed")
    members = membership_of(batch) * (batch.flat(batch.branches)[None] == 0)
    return Prompts(words, members, places_of(batch))


def membership_of(batch: Batch) -> jax.Array:
    """`[B, N]` float32, 1 where a token is a real token of an example."""
    examples = jnp.arange(1, batch.weights.shape[0] + 1)
    return (batch.flat(batch.segments)[None] == examples[:, None]).astype(jnp.float32)
