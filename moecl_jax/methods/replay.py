"""Experience replay: a small memory of examples, some of which join each batch.

    L = L_SFT over the task's own batch and examples drawn from the memory, together

The memory is a reservoir, a uniform sample of all examples of the earlier tasks (Chaudhry et al.
2019, "On tiny episodic memories in continual learning", arXiv 1902.10486). Unlike the other methods
it keeps data.
"""

import dataclasses
from typing import ClassVar, Literal

from moecl_jax.errors import UserError
from moecl_jax.methods.base import Output
from moecl_jax.methods.sequential_lora import SequentialLora


@dataclasses.dataclass(frozen=True)
class Options:
    """Hyper-parameters of replay.

    Attributes:
      memory: examples it holds of all tasks together.
      batch: of those, drawn for each batch beside the task's own examples.
    """

    memory: int = 64
    batch: int = 4

    def __post_init__(self) -> None:
        for name in ("memory", "batch"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} = {getattr(self, name)} must be at least 0")


class Replay(SequentialLora):
    """One LoRA expert for all tasks, trained on the current task and a memory."""

    name: ClassVar[str] = "replay"
    Options: ClassVar[type] = Options
    rehearsal: ClassVar[Literal["none", "memory", "joint"]] = "memory"
    output: ClassVar[Output] = "shared"

    @property
    def replayed(self) -> int:
        """Examples of the memory in each batch."""
        return int(self.options.batch)
