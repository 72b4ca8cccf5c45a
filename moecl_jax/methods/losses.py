"""The losses of MoE-CL (arXiv 2509.18133).

Axes: B examples, K continuations, A answer tokens, C classes, L layers, T tasks, D width.
"""

from typing import Literal, get_args

import chex
import jax
import jax.numpy as jnp

Objective = Literal["paper", "original", "confusion", "off"]
OBJECTIVES = get_args(Objective)
Reduction = Literal["mean", "sum"]
REDUCTIONS = get_args(Reduction)


def classification_loss(logits: jax.Array, labels: jax.Array, weights: jax.Array) -> jax.Array:
    """Cross-entropy of the class logits, averaged over the real examples.

        L_SFT = - sum_b w_b log softmax(logits_b)[label_b] / sum_b w_b

    Args:
      logits: `[B, C]` float32.
      labels: `[B]` int.
      weights: `[B]`, 0 for filled-up places.
    """
    chex.assert_rank([logits, labels, weights], [2, 1, 1])
    chex.assert_equal_shape_prefix([logits, labels, weights], 1)
    return _weighted_mean(_cross_entropy(logits, labels), weights)


def answer_loss(log_probabilities: jax.Array, mask: jax.Array) -> jax.Array:
    """Instruction loss: negative log-likelihood of the answers, averaged over their tokens.

        L_SFT = - sum_{b,k,a} m_bka log p(token_bka | prompt, tokens before) / sum m

    Args:
      log_probabilities: `[B, K, A]` of the answers' tokens.
      mask: `[B, K, A]`, 1 for a token of an answer, 0 for prompt and padding.
    """
    chex.assert_rank([log_probabilities, mask], 3)
    chex.assert_equal_shape([log_probabilities, mask])
    return -_weighted_mean(log_probabilities, mask)


def adversarial_losses(
    pooled: jax.Array,
    discriminator: jax.Array,
    task_index: jax.Array,
    weights: jax.Array,
    objective: Objective,
    reduction: Reduction = "mean",
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What the task discriminator and the shared expert each minimise (eq. 5, 6 and 10).

    With logits o_ib = Phi_i mean(z_s)_ib of layer i and example b, and CE averaged over both (or,
    by `reduction`, over examples only and summed over layers):

        discriminator, all objectives but `original`:  L_GAN = CE(o, t)
        shared expert
          `paper`       - L_GAN, unbounded below
          `confusion`   CE(o, uniform), the mean of -log softmax(o) over tasks; bounded below
        `original`      L_GAN = CE(softmax(o), t), the softmax taken twice, for both; so
                        the released code of the paper; bounded, with weak gradients

    Neither's gradient reaches the other: the discriminator sees a constant input, the shared
    expert a constant discriminator. For `paper` and `original` that is gradient reversal.

    Args:
      pooled: `[L, B, D]` float32, the shared expert's mean output over real tokens.
      discriminator: Phi, `[L, T, D]`.
      task_index: scalar t.
      weights: `[B]`, 0 for filled-up places.
      objective: `paper`, `original` or `confusion`.
      reduction: of both losses over the layers.

    Returns:
      The discriminator's loss, the shared expert's loss, and the discriminator's accuracy in each
      layer `[L]`.
    """
    chex.assert_rank([pooled, discriminator, task_index, weights], [3, 3, 0, 1])
    chex.assert_equal_shape_prefix([pooled, discriminator], 1)
    chex.assert_equal(pooled.shape[2], discriminator.shape[2])

    def logits(features: jax.Array, phi: jax.Array) -> jax.Array:
        out = jnp.einsum("lbd,ltd->lbt", features, phi)
        return jax.nn.softmax(out, axis=-1) if objective == "original" else out

    labels = jnp.broadcast_to(task_index, pooled.shape[:2])
    layer_weights = jnp.broadcast_to(weights[None, :], labels.shape)
    seen_by_discriminator = logits(jax.lax.stop_gradient(pooled), discriminator)
    seen_by_expert = logits(pooled, jax.lax.stop_gradient(discriminator))
    loss = _weighted_mean(_cross_entropy(seen_by_discriminator, labels), layer_weights)
    if objective == "confusion":
        to_uniform = -jax.nn.log_softmax(seen_by_expert, axis=-1).mean(axis=-1)
        expert_loss = _weighted_mean(to_uniform, layer_weights)
    else:
        expert_loss = -_weighted_mean(_cross_entropy(seen_by_expert, labels), layer_weights)
    if reduction == "sum":
        loss, expert_loss = loss * len(pooled), expert_loss * len(pooled)
    right = (jnp.argmax(seen_by_discriminator, axis=-1) == labels).astype(jnp.float32)
    accuracy = jnp.sum(right * layer_weights, axis=1) / jnp.maximum(jnp.sum(weights), 1.0)
    return loss, expert_loss, accuracy


def _cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """-log softmax(logits)[label] over the last axis."""
    chosen = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - chosen


def _weighted_mean(values: jax.Array, weights: jax.Array) -> jax.Array:
    return jnp.sum(values * weights) / jnp.maximum(jnp.sum(weights), 1.0)
