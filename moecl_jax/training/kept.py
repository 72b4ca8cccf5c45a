"""Rounds of a function over the examples that are kept of finished tasks, as methods ask for them.

Each round has one task's turn and some batches of its kept examples in a random order. If they are
too few for so many batches, they begin again.
"""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moecl_jax import reporting, stopping
from moecl_jax.data.batching import Batch
from moecl_jax.methods.base import Loss
from moecl_jax.methods.forward import StepContext, forward, instruction_loss, output_logits
from moecl_jax.methods.parameters import TaskParameters, Tree
from moecl_jax.training.pieces import Cutter

Update = Callable[[Tree, Loss, Batch], Tree]
Round = Callable[[Tree, TaskParameters, Tree, Batch], tuple[Tree, jax.Array]]


def kept_round(
    own: Tree,
    parameters: TaskParameters,
    frozen: Tree,
    batches: Batch,
    *,
    context: StepContext,
    update: Update,
) -> tuple[Tree, jax.Array]:
    """A task's own tree after an update on one task, and whether that was finite.

    Args:
      own: the tree.
      parameters: what the task is answered with, its own tree left out.
      frozen: parameters of the frozen decoder.
      batches: batches of the task along a leading axis.
      context: static parts.
      update: the function.
    """

    def loss(tree: Tree, batch: Batch) -> jax.Array:
        chosen = parameters.replace(expert=tree)
        hidden, _ = forward(chosen, frozen, batch, context, seeds=None)
        logits = output_logits(chosen, hidden, frozen, batch, context)
        return instruction_loss(logits, batch, context)

    updated = update(own, loss, batches)
    finite = jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(updated)]).all()
    kept = jax.tree.map(lambda new, old: jnp.where(finite, new, old), updated, own)
    return context.placement.keep(kept), context.placement.everywhere(finite)


@dataclasses.dataclass(frozen=True)
class Kept:
    """The kept examples of finished tasks.

    Attributes:
      cutter: has the tasks' examples and cuts them into batches.
      stored: task and place in it of each kept example.
      parameters: what tasks are answered with, but for their own trees and heads.
      heads: classification head of each task, by its place.
      seed: seed of the order of examples.
    """

    cutter: Cutter
    stored: Sequence[tuple[int, int]]
    parameters: TaskParameters
    heads: Mapping[int, Any]
    seed: Sequence[int]

    def batches(self, task: int, number: int, count: int) -> Batch:
        """So many batches of a task along a leading axis, for the round of this number."""
        places = [place for owner, place in self.stored if owner == task]
        generator = np.random.default_rng((*self.seed, number, *b"kept"))
        examples = [self.cutter.examples[task][place] for place in generator.permutation(places)]
        made = itertools.cycle(self.cutter.of_one_shape(task, examples))
        return jax.tree.map(lambda *leaves: np.stack(leaves), *itertools.islice(made, count))


def over_kept(kept: Kept, step: Round, own: Tree, count: int, rounds: int) -> Tree:
    """A tree after rounds over kept examples; without any it stays as it is.

    Args:
      kept: the examples.
      step: the compiled `kept_round`.
      own: the tree.
      count: batches of a round.
      rounds: number of rounds.
    """
    model = kept.cutter.evaluator.model
    answering = {
        task: model.placement.put(kept.parameters.replace(expert={}, head=kept.heads[task]))
        for task in sorted({task for task, _ in kept.stored})
    }
    own, finite = model.placement.put(own), []
    for number, task in zip(range(rounds), itertools.cycle(answering), strict=False):
        stopping.check()
        batches = kept.batches(task, number, count)
        own, well = step(own, answering[task], model.params, batches)
        finite.append(well)
    skipped = len(finite) - int(sum(map(int, finite)))
    if skipped:
        reporting.current().message(
            f"note: {skipped} of {rounds} rounds over kept examples gave numbers that are not "
            "finite, and changed nothing; lower the learning rates of these rounds"
        )
    return model.placement.host(own)
