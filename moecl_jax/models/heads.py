"""From hidden states to answers: a linear head a task, or the LLM's own output layer.

Axes: N tokens, B examples, K continuations, A answer tokens, C classes (of the widest task),
D width, V vocabulary.
"""

import jax
import jax.numpy as jnp


def init_head(key: jax.Array, width: int, classes: int) -> jax.Array:
    """Kernel `[D, classes]`, uniform on +-1/sqrt(D), each column its own draw.

    A column depends on `key` and its index alone, so that padding a head for a wider task
    leaves its first columns as they were.
    """
    bound = width**-0.5

    def column(index: jax.Array) -> jax.Array:
        folded = jax.random.fold_in(key, index)
        return jax.random.uniform(folded, (width,), jnp.float32, -bound, bound)

    return jax.vmap(column, out_axes=1)(jnp.arange(classes))


def class_logits(
    hidden: jax.Array, last_token: jax.Array, head: jax.Array, class_count: jax.Array
) -> jax.Array:
    """Logits of a task's classes at each example's last prompt token.

    Args:
      hidden: `[N, D]`.
      last_token: `[B]` flat positions.
      head: `[D, C]`, padded to the widest task of the stream; or `[B, D, C]`, each example's.
      class_count: scalar, or `[B]`; columns from there on are masked out.

    Returns:
      `[B, C]` float32; masked classes have the lowest finite value.
    """
    states = hidden[last_token].astype(jnp.float32)
    logits = states @ head if head.ndim == 2 else jnp.einsum("bd,bdc->bc", states, head)
    real = jnp.arange(head.shape[-1])[None, :] < jnp.reshape(class_count, (-1, 1))
    return jnp.where(real, logits, jnp.finfo(jnp.float32).min)


def answer_log_probabilities(
    logits: jax.Array, targets: jax.Array, index: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Log-probability of each answer token, and whether it is the greedy choice.

    Args:
      logits: `[P, V]` float32, at the positions that predict the answers.
      targets: `[B, K, A]`.
      index: `[B, K, A]`, which of the P positions predicts each of them.

    Returns:
      `[B, K, A]` float32 and `[B, K, A]` bool.
    """
    log_normaliser = jax.nn.logsumexp(logits, axis=-1)
    greedy = jnp.argmax(logits, axis=-1)
    return logits[index, targets] - log_normaliser[index], greedy[index] == targets
