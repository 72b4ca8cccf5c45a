"""What a method asks of a task's end by functions of its own, each of which is compiled once."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moecl_jax.data.tokenize import TokenizedExample
from moecl_jax.methods.parameters import TaskParameters, Tree
from moecl_jax.methods.stream import StreamState
from moecl_jax.training.kept import Kept, Update, kept_round, over_kept
from moecl_jax.training.pieces import Cutter
from moecl_jax.training.steps import gradient_step


@dataclasses.dataclass(frozen=True)
class Asked:
    """What is computed at a task's end by a method's functions.

    Attributes:
      cutter: cuts examples into batches.
      compiled: compiled steps by the method's function, which are kept from task to task.
      index: place of the task.
      examples: what an epoch of it passes over.
      stream: state of the stream before the task.
      parameters: the selected parameters.
      stored: gives task and place of the examples that are kept, those of this task among them.
    """

    cutter: Cutter
    compiled: dict[Any, Callable[..., Any]]
    index: int
    examples: Sequence[TokenizedExample]
    stream: StreamState
    parameters: TaskParameters
    stored: Callable[[], Sequence[tuple[int, int]]]

    def mean_of_gradients(self, count: int, transform: Callable[[jax.Array], jax.Array]) -> Tree:
        """The mean over examples of a function of the gradients: see `TaskEnd`."""
        evaluator, placement = self.cutter.evaluator, self.cutter.evaluator.model.placement
        count = min(count, len(self.examples))
        generator = np.random.default_rng((evaluator.settings.seed, self.index, *b"importance"))
        step = self._step(gradient_step, transform=transform)
        parameters, total = placement.put(self.parameters), None
        for place in generator.permutation(len(self.examples))[:count]:
            batch = self.cutter.alone(self.index, self.examples[place])
            found = step(parameters, evaluator.model.params, batch)
            total = found if total is None else jax.tree.map(jnp.add, total, found)
        return placement.host(jax.tree.map(lambda leaf: leaf / count, total))

    def over_kept(self, own: Tree, update: Update, count: int, rounds: int) -> Tree:
        """A tree after rounds of a function over finished tasks' kept examples: see `TaskEnd`."""
        evaluator, stored = self.cutter.evaluator, self.stored()
        heads = {
            task: evaluator.starting.task(self.stream, evaluator.names[task], task).head
            for task in {task for task, _ in stored}
        }
        heads[self.index] = self.parameters.head
        seed = (evaluator.settings.seed, self.index)
        kept = Kept(self.cutter, stored, self.parameters, heads, seed)
        return over_kept(kept, self._step(kept_round, update=update), own, count, rounds)

    def _step(self, function: Callable[..., Any], **given: Callable[..., Any]) -> Any:
        """A step with a function of the method's, compiled when it is first called."""
        [key] = given.values()
        if key not in self.compiled:
            context = self.cutter.evaluator.context
            self.compiled[key] = jax.jit(functools.partial(function, context=context, **given))
        return self.compiled[key]
