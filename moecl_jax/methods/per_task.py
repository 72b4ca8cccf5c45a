"""One LoRA expert a task, none shared: nothing is forgotten, and nothing is carried over.

Backward transfer is 0 by construction: what answers for a finished task is frozen with it (but for
a classification head, where all tasks share one). This is the per-task tuning that the MoE-CL paper
(arXiv 2509.18133) compares with.
"""

import dataclasses
from typing import Any, ClassVar

import jax

from moecl_jax.data.rehearsal import ExamplePolicy
from moecl_jax.methods.base import Method, TaskEnd, Traits
from moecl_jax.methods.meta import Meta
from moecl_jax.methods.parameters import TaskParameters, Tree
from moecl_jax.models.config import DecoderConfig
from moecl_jax.settings import Section


@dataclasses.dataclass(frozen=True)
class Options(Section):
    """Hyper-parameters of the method.

    Attributes:
      meta: how a new task's expert starts.
    """

    KEY: ClassVar[str] = "per_task"
    meta: Meta = Meta()


class PerTask(Method):
    """One LoRA expert a task: L = L_SFT."""

    name: ClassVar[str] = "per_task"
    Options: ClassVar[type[Any]] = Options
    traits = Traits(expert_per_task=True, settled=True)

    def init_shared(self, key: jax.Array, sizes: DecoderConfig, task_count: int) -> Tree:
        """Nothing is shared."""
        del key, sizes, task_count
        return {}

    def init_expert(self, key: jax.Array, sizes: DecoderConfig) -> Tree:
        """The task's expert."""
        return self.new_expert(key, sizes)

    @property
    def examples(self) -> ExamplePolicy:
        """The task's own; some are kept where experts' starting value is learned."""
        return self.options.meta.examples

    def start_expert(self, expert: Tree, memory: Tree) -> Tree:
        """The fresh expert, or the value that was learned."""
        return self.options.meta.start(expert, memory)

    def init_memory(self, sizes: DecoderConfig, task_count: int) -> Tree:
        """Nothing, or the experts' starting value."""
        del task_count
        shapes = jax.eval_shape(lambda: self.init_expert(jax.random.key(0), sizes))
        return self.options.meta.memory(shapes)

    def finish_task(self, parameters: TaskParameters, end: TaskEnd) -> TaskParameters:
        """Learns the experts' starting value, where that is asked for."""
        memory, fresh = parameters.memory, self.init_expert(end.key, end.sizes)
        learned = self.options.meta.learned(fresh, memory, end)
        return parameters.replace(memory={**memory, **learned})

    def without_task(self, memory: Tree, index: int) -> Tree:
        """The starting value goes: the task was among those that it was learned on."""
        del index
        return self.options.meta.forgotten(memory)

    def adapter(self, parameters: TaskParameters, query: jax.Array | None = None) -> Tree:
        """The task's expert."""
        del query
        return {"expert": parameters.expert}
