"""What the layers report over a task's training examples, as methods ask for it.

Methods that keep a new task out of earlier tasks' way ask for second moments of what goes into the
FFN's projections: the update of a projection has no effect on inputs that are orthogonal to it.

Axes: L layers, I input width of a projection.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from moecl_jax.data.batching import Batch
from moecl_jax.methods.forward import StepContext, forward
from moecl_jax.methods.parameters import TaskParameters, Tree
from moecl_jax.models.config import DecoderConfig
from moecl_jax.models.experts import MOMENT_OF
from moecl_jax.models.lora import projection_sizes

Sums = dict[str, jax.Array]


def no_moments(sizes: DecoderConfig, targets: Sequence[str]) -> Sums:
    """The sums before the first batch: `[L, I, I]` by report, and the number of tokens."""
    sums = {"tokens": jnp.zeros((), jnp.int32)}
    for target, (width, _) in projection_sizes(sizes).items():
        if target in MOMENT_OF and target in targets:
            sums[MOMENT_OF[target]] = jnp.zeros((sizes.layers, width, width))
    return sums


def moments_step(
    sums: Sums, parameters: TaskParameters, frozen: Tree, batch: Batch, *, context: StepContext
) -> Sums:
    """Adds the real tokens of a batch to the sums, without dropout.

    Args:
      sums: sums over earlier batches, as `no_moments` begins them.
      parameters: parameters of the task.
      frozen: parameters of the frozen decoder.
      batch: training batch.
      context: static parts.
    """
    reporting = dataclasses.replace(context, reported=("second_moments",))
    _, reports = forward(parameters, frozen, batch, reporting, seeds=None)
    found = {**reports, "tokens": jnp.count_nonzero(batch.segments)}
    return context.placement.everywhere({name: sums[name] + found[name] for name in sums})


def mean_moments(sums: Sums, targets: Sequence[str]) -> Tree:
    """The means `[L, I, I]` of each target, as NumPy; targets with one input share an array."""
    tokens = np.float32(max(int(sums["tokens"]), 1))
    means = {name: np.asarray(sums[name]) / tokens for name in sums if name != "tokens"}
    return {target: means[MOMENT_OF[target]] for target in targets if target in MOMENT_OF}


def report_step(
    parameters: TaskParameters, frozen: Tree, batch: Batch, *, context: StepContext
) -> dict[str, jax.Array]:
    """What the layers report of a batch, without dropout; arguments as for `moments_step`."""
    _, reports = forward(parameters, frozen, batch, context, seeds=None)
    return context.placement.everywhere(reports)


def by_example(reports: Sequence[Tree], weights: Sequence[np.ndarray]) -> Tree:
    """Reports `[L, B, ...]` of batches as `[n, L, ...]` of the examples in them.

    Args:
      reports: those of each batch.
      weights: `[B]` of each batch, 1 for an example, 0 for a place that is filled up.
    """
    real = [np.asarray(weight) > 0 for weight in weights]
    return {
        name: np.concatenate(
            [report[name].swapaxes(0, 1)[w] for report, w in zip(reports, real, strict=True)]
        )
        for name in reports[0]
    }
