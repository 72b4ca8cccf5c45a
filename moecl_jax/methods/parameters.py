"""The parameters of one task: what is trained while the task is, and what answers for it later."""

from typing import Any

import flax.struct

Tree = Any  # nested dictionaries of arrays


class TaskParameters(flax.struct.PyTreeNode):
    """Everything beside the frozen LLM that answers for one task.

    Attributes:
      shared: tree that all tasks share, carried on from task to task.
      expert: tree of the task alone, frozen for ever when the task is finished.
      head: kernel `[D, C]` of the task's classification head; `{}` with the LM head.
      memory: what the method keeps of finished tasks to train others by. It is an input of the
        step and never trained; `{}` where this is what a step differentiates.
    """

    shared: Tree
    expert: Tree
    head: Any
    memory: Tree = flax.struct.field(default_factory=dict)
