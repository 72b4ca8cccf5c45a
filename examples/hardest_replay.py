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
        return [
            (int(t), int(p)) for t, p in zip(memory["task"], memory["place"], strict=True) if t >= 0
        ]


class HardestReplay(Replay):
    """One LoRA for all tasks, trained on the current one and the hardest examples of earlier ones."""

    name = "hardest_replay"

    @property
    def examples(self):
        """Those that the memory names join each batch."""
        return Kept(self.options.batch)

    def init_memory(self, sizes, task_count):
        """Place, task and loss of each example kept; task -1 where there is none yet."""
        size = self.options.memory
        empty = np.zeros(size, np.int32)
        return {"task": empty - 1, "place": empty, "loss": empty.astype(np.float32)}

    def finish_task(self, parameters, end):
        """Adds the examples of the task, and keeps the hardest of each."""
        losses, memory = end.losses(), parameters.memory
        task = np.append(memory["task"], np.full(len(losses), end.index))
        place = np.append(memory["place"], np.arange(len(losses)))
        loss = np.append(memory["loss"], losses)
        # How many examples of its own task are harder, by which all tasks are kept alike.
        rank = np.array(
            [np.sum((task == t) & (loss > value)) for t, value in zip(task, loss, strict=True)]
        )
        best = np.lexsort((rank, task < 0))[: self.options.memory]
        kept = {"task": task[best], "place": place[best], "loss": loss[best]}
        kept = {name: values.astype(memory[name].dtype) for name, values in kept.items()}
        return parameters.replace(memory=kept)
