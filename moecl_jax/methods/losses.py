"""The instruction losses, and what losses are made of.

Axes: B examples, K continuations, A answer tokens, C classes.
"""

import chex
import jax
import jax.numpy as jnp


def classification_loss(logits: jax.Array, labels: jax.Array, weights: jax.Array) -> jax.Array:
    """Cross-entropy of the class logits, averaged over the real examples.

        L_SFT = - sum_b w_b log softmax(logits_b)[label_b] / sum_b w_b

    Args:
      logits: `[B, C]` float32, class logits.
      labels: `[B]` int, the right class of each example.
      weights: `[B]`, 1 for an example, 0 for a place that is filled up.
    """
    chex.assert_rank([logits, labels, weights], [2, 1, 1])
    chex.assert_equal_shape_prefix([logits, labels, weights], 1)
    return weighted_mean(cross_entropy(logits, labels), weights)


def answer_loss(log_probabilities: jax.Array, mask: jax.Array) -> jax.Array:
    """Instruction loss: negative log-likelihood of the answers, averaged over their tokens.

        L_SFT = - sum_{b,k,a} m_bka log p(token_bka | prompt, tokens before) / sum m

    Args:
      log_probabilities: `[B, K, A]` of the answers' tokens.
      mask: `[B, K, A]`, 1 for a token of an answer, 0 for prompt and padding.
    """
    chex.assert_rank([log_probabilities, mask], 3)
    chex.assert_equal_shape([log_probabilities, mask])
    return -weighted_mean(log_probabilities, mask)


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """-log softmax(logits)[label] over the last axis."""
    chosen = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - chosen


def weighted_mean(values: jax.Array, weights: jax.Array) -> jax.Array:
    """Sum of the values, each times its weight, by the sum of the weights or 1 if that is less."""
    return jnp.sum(values * weights) / jnp.maximum(jnp.sum(weights), 1.0)
