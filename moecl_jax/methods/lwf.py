"""Learning without forgetting: the model before a task teaches the one after (arXiv 1606.09282).

    L = L_SFT + weight T^2 mean over answer tokens of KL(softmax(o' / T) || softmax(o / T))

o' are the logits, on the new task's own texts, of the weights with which the task began. The paper
distils old tasks' outputs with T = 2; with a language model they are those of its output layer. The
factor T^2 keeps gradients of one size for any T (Hinton et al. 2015, arXiv 1503.02531). The first
task has no teacher.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from moecl_jax.errors import UserError
from moecl_jax.methods.base import Output, TaskEnd, Tree, View
from moecl_jax.methods.sequential_lora import SequentialLora


@dataclasses.dataclass(frozen=True)
class Options:
    """Hyper-parameters of learning without forgetting.

    Attributes:
      weight: of the distillation.
      temperature: T.
    """

    weight: float = 1.0
    temperature: float = 2.0

    def __post_init__(self) -> None:
        if self.weight < 0:
            raise UserError(f"weight = {self.weight} must be at least 0")
        if self.temperature <= 0:
            raise UserError(f"temperature = {self.temperature} must be above 0")


class Lwf(SequentialLora):
    """One LoRA expert for all tasks, taught by itself as it was before the task."""

    name: ClassVar[str] = "lwf"
    Options: ClassVar[type] = Options
    output: ClassVar[Output] = "lm"

    def init_memory(self, task_count: int) -> Tree:
        """No teacher yet, and no task finished."""
        shapes = jax.eval_shape(lambda: self.init_shared(jax.random.key(0), task_count))
        teacher = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), shapes)
        return {"teacher": teacher, "finished": jnp.zeros(())}

    def begin_task(self, shared: Tree, memory: Tree) -> Tree:
        """The weights of the moment become the teacher."""
        return {**memory, "teacher": jax.tree.map(jnp.copy, shared)}

    def finish_task(
        self, shared: Tree, expert: Tree, memory: Tree, end: TaskEnd
    ) -> tuple[Tree, Tree, Tree]:
        """Counts the task."""
        del end
        return shared, expert, {**memory, "finished": memory["finished"] + 1.0}

    def penalty(self, shared: Tree, view: View) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The distillation from the teacher, if there is one."""
        _, metrics = super().penalty(shared, view)
        taught = view.memory["finished"] > 0
        teacher = jax.lax.cond(
            taught,
            lambda: view.predict(view.memory["teacher"]),
            lambda: jax.lax.stop_gradient(view.logits),
        )
        distance = distillation(
            teacher, view.logits, view.batch.answer_mask, self.options.temperature
        )
        term = self.options.weight * jnp.where(taught, distance, 0.0)
        return term, {**metrics, "penalty": term}


def distillation(
    teacher: jax.Array, student: jax.Array, mask: jax.Array, temperature: float
) -> jax.Array:
    """T^2 times the mean divergence of the student's answers from the teacher's.

    Args:
      teacher: logits `[B, K, A, V]`.
      student: logits `[B, K, A, V]`.
      mask: `[B, K, A]`, 1 for an answer's token.
      temperature: T.
    """
    taught = jax.nn.log_softmax(teacher / temperature, axis=-1)
    learnt = jax.nn.log_softmax(student / temperature, axis=-1)
    divergence = jnp.sum(jnp.exp(taught) * (taught - learnt), axis=-1)
    return temperature**2 * jnp.sum(divergence * mask) / jnp.maximum(mask.sum(), 1.0)
