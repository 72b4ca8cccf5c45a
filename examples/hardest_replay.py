"""Replay of the examples that were hardest when their task was finished.

    L = L_SFT over the task's own batch and examples drawn from the memory, together

The memory holds the examples with the highest loss at the end of their task: the hardest of each
finished task, then the second hardest of each, and so on until it is full. So all tasks have the
same share of it.
"""

import dataclasses

import numpy as np

from moecl_jax import Replay
from moecl_jax.data import ExamplePolicy


@dataclasses.dataclass(frozen=True)
class Kept(ExamplePolicy):
    """The examples that the method's memory names join the batches of later tasks.

    Attributes:
      joined: number of examples that join each batch.
    """

    joined: int = 4

    def stored(self, memory, past, seed):
        """Task and place in it of each example that the memory names."""
        return [(int(task), int(place)) for task, place in memory["kept"] if task >= 0]


class HardestReplay(Replay):
    """One LoRA for all tasks, trained with the hardest examples of earlier ones."""

    name = "hardest_replay"

    @property
    def examples(self):
        """Those that the memory names join each batch."""
        return Kept(self.options.batch)

    def init_memory(self, sizes, task_count):
        """Task, place and loss of each example kept; task -1 where there is none yet."""
        size = self.options.memory
        return {"kept": np.full((size, 2), -1, np.int32), "loss": np.zeros(size, np.float32)}

    def finish_task(self, parameters, end):
        """Adds the examples of the task, and keeps the hardest of each."""
        losses, memory = end.losses(), parameters.memory
        new = [(end.index, place) for place in range(len(losses))]
        kept = np.concatenate([memory["kept"], new]).astype(np.int32)
        loss = np.append(memory["loss"], losses).astype(np.float32)
        # How many examples of the same task are harder: the fewer, the sooner it is kept.
        task = kept[:, 0]
        harder = np.sum((task[:, None] == task) & (loss > loss[:, None]), axis=1)
        best = np.lexsort((harder, task < 0))[: self.options.memory]
        return parameters.replace(memory={"kept": kept[best], "loss": loss[best]})
