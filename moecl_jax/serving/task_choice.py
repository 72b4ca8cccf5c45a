"""Features of texts, by which the task of a text is chosen; `runs.features` says how.

Axes: n texts, D width, B examples of a batch.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moecl_jax.data.batching import Batch, BatchLayout, chunks, make_batch
from moecl_jax.data.tokenize import TokenizedExample
from moecl_jax.methods.forward import membership_of
from moecl_jax.methods.parameters import Tree
from moecl_jax.models.model import Architecture

FeatureStep = Callable[[Tree, Batch], Any]


def feature_step(frozen: Tree, batch: Batch, *, architecture: Architecture) -> jax.Array:
    """Features `[B, D]` in float32 of a batch's texts; 0 where the batch is filled up."""
    membership = membership_of(batch)
    out: Any = architecture.frozen_decoder().apply(
        {"params": frozen},
        batch.tokens,
        batch.positions,
        batch.segments,
        batch.branches,
        membership,
        computed=batch.slots,
    )
    hidden, _ = out
    lengths = jnp.maximum(membership.sum(axis=1, keepdims=True), 1.0)
    features = membership @ hidden.astype(jnp.float32) / lengths
    return architecture.placement.everywhere(features)


def extract(
    step: FeatureStep, frozen: Tree, texts: Sequence[np.ndarray], layout: BatchLayout
) -> np.ndarray:
    """Features `[n, D]` of n texts, at least one, in token ids.

    Args:
      step: the compiled `feature_step`.
      frozen: parameters of the decoder.
      texts: int32 `[P]` each.
      layout: how batches are laid out.
    """
    features = []
    for chunk in chunks(range(len(texts)), layout.batch_size):
        examples = [TokenizedExample(texts[index], 0) for index in chunk]
        batch = make_batch(examples, (), layout, task_index=0, class_count=1, training=True)
        features.append((step(frozen, batch), len(chunk)))
    return np.concatenate([np.asarray(batch)[:count] for batch, count in features])
