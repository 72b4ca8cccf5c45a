"""Self-supervised learning: text without labels is trained by predicting each of its next tokens.

As an auxiliary of any method, on the texts of the batch (Radford et al. 2018, "Improving language
understanding by generative pre-training"):

    L + weight mean over examples, and over the tokens i of their prompts, of - log p(i + 1 | .. i)

and before the first task, on other texts, as continued pre-training (`training.pretraining`). Axes:
B examples, N computed tokens, D width.
"""

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp

from moecl_jax.data.batching import Batch
from moecl_jax.methods.losses import weighted_mean
from moecl_jax.settings import Section, setting

_CHUNK = 256  # tokens whose logits over the vocabulary are in memory at a time


@dataclasses.dataclass(frozen=True)
class SelfSupervised(Section):
    """Self-supervised learning, with any method.

    Attributes:
      weight: coefficient of the next-token loss on the prompts of each training batch; 0 is none.
      texts: folder of text files (.txt), in it or below, on which what all tasks share is trained
        by next tokens before the first task; "" for none.
      steps: number of steps of that training, each of batch.size texts of data.max_length tokens.
    """

    KEY: ClassVar[str] = "self_supervised"
    weight: float = setting(0.0, least=0, most=1e6, by_task=True)
    texts: str = ""
    steps: int = setting(200, least=0, most=10**9)


def next_tokens(batch: Batch) -> tuple[jax.Array, jax.Array]:
    """The token that follows each in its prompt, and whether there is one.

    With two examples in a row, the first with an answer token in branch 1:

        tokens     5 6 7 8 | 4 3
        branches   0 0 0 1 | 0 0
        next       6 7 - - | 3 -

    Returns:
      `[N]` ids, and `[N]` float32, 1 where the next token is one of the same prompt.
    """
    grids = (batch.tokens, batch.segments, batch.positions, batch.branches)
    now = [batch.flat(grid) for grid in grids]
    tokens, segments, positions, branches = (jnp.roll(flat, -1) for flat in now)
    follows = (segments > 0) & (segments == now[1]) & (positions == now[2] + 1) & (branches == 0)
    return tokens, follows.astype(jnp.float32)


def next_token_losses(
    hidden: jax.Array, batch: Batch, logits_of: Callable[[jax.Array], jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """- log p of the token that follows each, and whether there is one; both `[N]` float32.

    Logits are computed of a few tokens at a time, and again in the backward pass.

    Args:
      hidden: `[N, D]`, final hidden states.
      batch: the batch that they are of.
      logits_of: gives the logits `[M, V]` over the vocabulary of hidden states `[M, D]`.
    """
    targets, follows = next_tokens(batch)
    count = len(targets)
    spare = -count % _CHUNK

    @jax.checkpoint
    def of_chunk(chunk: tuple[jax.Array, jax.Array]) -> jax.Array:
        states, following = chunk
        logits = logits_of(states)
        chosen = jnp.take_along_axis(logits, following[:, None], axis=1)[:, 0]
        return jax.nn.logsumexp(logits, axis=1) - chosen

    chunks = (
        jnp.pad(hidden, ((0, spare), (0, 0))).reshape(-1, _CHUNK, hidden.shape[1]),
        jnp.pad(targets, (0, spare)).reshape(-1, _CHUNK),
    )
    losses: jax.Array = jax.lax.map(of_chunk, chunks)
    return losses.reshape(-1)[:count] * follows, follows


def mean_over_examples(
    losses: jax.Array, follows: jax.Array, membership: jax.Array, weights: jax.Array
) -> jax.Array:
    """The mean over real examples of each one's mean loss.

    Args:
      losses: `[N]`, 0 where no token follows.
      follows: `[N]`, 1 where one does.
      membership: `[B, N]`, 1 where a token is one of an example.
      weights: `[B]`, 1 for an example, 0 for a place that is filled up.
    """
    of_each = (membership @ losses) / jnp.maximum(membership @ follows, 1.0)
    return weighted_mean(of_each, weights)
