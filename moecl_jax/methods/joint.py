"""Joint training: one LoRA on the examples of all tasks at once, shuffled.

Not a continual method but the bound that those are measured by: nothing comes after anything else.
As many epochs over as many examples as the stream has in all; the matrix R has one row, the last.
"""

from typing import ClassVar

from moecl_jax.data.rehearsal import AllTasks, ExamplePolicy
from moecl_jax.methods.base import Traits
from moecl_jax.methods.sequential_lora import SequentialLora


class Joint(SequentialLora):
    """One LoRA expert for all tasks, trained on all of them together."""

    name: ClassVar[str] = "joint"
    traits = Traits(output="shared")

    @property
    def examples(self) -> ExamplePolicy:
        """The examples of all tasks at once."""
        return AllTasks()
