"""Experience replay: a small memory of examples, some of which join each batch.

    L = L_SFT over the task's own batch and examples drawn from the memory, together

The memory is a reservoir, a uniform sample of all examples of the earlier tasks (Chaudhry et al.
2019, "On tiny episodic memories in continual learning", arXiv 1902.10486). Unlike the other methods
it keeps data.
"""

import dataclasses
from typing import Any, ClassVar

from moecl_jax.data.rehearsal import ExamplePolicy, Reservoir
from moecl_jax.methods.base import Traits
from moecl_jax.methods.sequential_lora import SequentialLora
from moecl_jax.settings import Section, setting


@dataclasses.dataclass(frozen=True)
class Options(Section):
    """Hyper-parameters of replay.

    Attributes:
      memory: number of examples that the memory holds of all tasks together.
      batch: number of those that join each batch beside the task's own examples.
    """

    KEY: ClassVar[str] = "replay"
    memory: int = setting(64, least=0, most=10**9, by_task=True)
    batch: int = setting(4, least=0, most=2**16, by_task=True)


class Replay(SequentialLora):
    """One LoRA expert for all tasks, trained on the current task and a memory."""

    name: ClassVar[str] = "replay"
    Options: ClassVar[type[Any]] = Options
    traits = Traits(output="shared")

    @property
    def examples(self) -> ExamplePolicy:
        """The task's own and some out of a reservoir of earlier ones."""
        return Reservoir(self.options.memory, self.options.batch)
