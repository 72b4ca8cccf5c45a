"""Features of texts, by which the task of a text is chosen; `runs.features` says how.

Axes: n texts, D width, B examples of a batch.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moecl_jax import reporting
from moecl_jax.data.batching import Batch, make_batch
from moecl_jax.data.shapes import Need
from moecl_jax.data.tokenize import TokenizedExample
from moecl_jax.methods.forward import membership_of
from moecl_jax.methods.parameters import Tree
from moecl_jax.models.model import Architecture
from moecl_jax.serving.scoring import Scoring

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
    step: FeatureStep, frozen: Tree, texts: Sequence[np.ndarray], scoring: Scoring
) -> np.ndarray:
    """Features `[n, D]` of n texts, at least one, in token ids.

    Args:
      step: the compiled `feature_step`.
      frozen: parameters of the decoder.
      texts: int32 `[P]` each.
      scoring: how batches are laid out.
    """
    features, order = [], []
    for places, shape in scoring.groups([Need(len(text), 0, 1) for text in texts]):
        batch = make_batch(
            [TokenizedExample(texts[place], 0) for place in places],
            (),
            scoring.layout,
            task_index=0,
            class_count=1,
            training=False,
            shape=shape,
        )
        features.append(step(frozen, batch))
        order.append(places)
    found = []
    for of, places in zip(features, order, strict=True):
        found.append(np.asarray(of)[: len(places)])
        reporting.advance(len(places))
    return np.concatenate(found)[np.argsort(np.concatenate(order), kind="stable")]
