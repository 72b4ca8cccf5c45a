"""Learning without forgetting: the model before a task teaches the one after (arXiv 1606.09282).

    L = L_SFT + weight T^2 mean over answer tokens of KL(softmax(o' / T) || softmax(o / T))

o' are the logits, on the new task's own texts, of the weights with which the task began. The paper
distils old tasks' outputs with T = 2; with a language model they are those of its output layer. The
factor T^2 keeps gradients of one size for any T (Hinton et al. 2015, arXiv 1503.02531). The first
task has no teacher.
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from moecl_jax.methods.base import LossInputs, Penalty, TaskEnd, TaskStart, Traits, blank
from moecl_jax.methods.parameters import TaskParameters, Tree
from moecl_jax.methods.sequential_lora import SequentialLora
from moecl_jax.models.config import DecoderConfig
from moecl_jax.settings import Section, setting


@dataclasses.dataclass(frozen=True)
class Options(Section):
    """Hyper-parameters of learning without forgetting.

    Attributes:
      weight: coefficient of the distillation.
      temperature: temperature T of the distilled distributions.
    """

    KEY: ClassVar[str] = "lwf"
    weight: float = setting(1.0, least=0, most=1e6, by_task=True)
    temperature: float = setting(2.0, above=0, most=1000, by_task=True)


class Lwf(SequentialLora):
    """One LoRA expert for all tasks, taught by itself as it was before the task."""

    name: ClassVar[str] = "lwf"
    Options: ClassVar[type[Any]] = Options
    traits = Traits(output="lm")

    def init_memory(self, sizes: DecoderConfig, task_count: int) -> Tree:
        """No teacher yet, and no task finished."""
        zero = blank(jax.eval_shape(lambda: self.init_shared(jax.random.key(0), sizes, task_count)))
        return {"teacher": zero, "finished": jnp.zeros(())}

    def begin_task(self, parameters: TaskParameters, start: TaskStart) -> Tree:
        """The weights with which the task begins become the teacher."""
        del start
        return {**parameters.memory, "teacher": parameters.shared}

    def finish_task(self, parameters: TaskParameters, end: TaskEnd) -> TaskParameters:
        """Counts the task."""
        del end
        memory = parameters.memory
        return parameters.replace(memory={**memory, "finished": memory["finished"] + 1.0})

    def penalty(self, parameters: TaskParameters, inputs: LossInputs) -> Penalty:
        """The distillation from the teacher, if there is one."""
        taught = parameters.memory["finished"] > 0
        teacher = jax.lax.cond(
            taught,
            lambda: inputs.predict(parameters.memory["teacher"]),
            lambda: jax.lax.stop_gradient(inputs.logits),
        )
        distance = distillation(
            teacher, inputs.logits, inputs.batch.answer_mask, self.options.temperature
        )
        distance = jnp.where(taught, distance, 0.0) * inputs.over_answers
        return Penalty(self.options.weight * distance)


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
