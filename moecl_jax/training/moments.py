"""Second moments of what goes into the FFN's projections, over a task's training examples.

Methods that keep a new task out of earlier tasks' way ask for them: the update of a projection has
no effect on inputs that are orthogonal to it.

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
    reporting = dataclasses.replace(context, second_moments=True)
    _, reports = forward(parameters, frozen, batch, reporting, seeds=None)
    found = {**reports, "tokens": jnp.count_nonzero(batch.segments)}
    return context.placement.everywhere({name: sums[name] + found[name] for name in sums})


def mean_moments(sums: Sums, targets: Sequence[str]) -> Tree:
    """The means `[L, I, I]` of each target, as NumPy; targets with one input share an array."""
    tokens = np.float32(max(int(sums["tokens"]), 1))
    means = {name: np.asarray(sums[name]) / tokens for name in sums if name != "tokens"}
    return {target: means[MOMENT_OF[target]] for target in targets if target in MOMENT_OF}
