"""InfLoRA: a task trains in a subspace that earlier tasks' inputs do not reach (arXiv 2404.00228).

    W x + c sum_{k <= t} B_k A_k x                earlier LoRAs are frozen, and added; L = L_SFT
    A_t: the r leading directions of F H_t, over sqrt(3)         fixed before task t; B_t is trained
    F <- F less the directions that hold epsilon_t of H_t's energy                 after task t

H_t are the inputs of a projection over the task's training examples, F projects out of the subspace
of earlier tasks' inputs (`subspace`). Since F A_t^T = A_t^T, an update of B_t changes nothing where
an input lies in that subspace. epsilon_t grows from `threshold` to 1 as t goes from 0 to T.
Directions and energies follow from H H^T.

The paper keeps a basis of the subspace or of its complement, whichever is smaller (DualGPM); the
projection F stands for both. Its code takes the directions of F H H^T and adds up squared
eigenvalues; here they are those of F H, and the energy is ||H||_F^2, as in the paper. The factor
1 / sqrt(3), by which A is about as long as LoRA's own first values, is the code's.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from moecl_jax.methods.added_loras import AddedLoras, side_by_side
from moecl_jax.methods.base import TaskEnd, TaskStart, Traits
from moecl_jax.methods.parameters import TaskParameters, Tree
from moecl_jax.methods.subspace import leading, without
from moecl_jax.models.config import DecoderConfig
from moecl_jax.models.experts import MOMENT_OF
from moecl_jax.models.lora import Expert, projection_sizes
from moecl_jax.settings import Section, setting


@dataclasses.dataclass(frozen=True)
class Options(Section):
    """Hyper-parameters of InfLoRA.

    Attributes:
      threshold: epsilon, share of the energy of the first task's inputs that later tasks are kept
        away from; it grows to 1 over the stream.
    """

    KEY: ClassVar[str] = "inf_lora"
    threshold: float = setting(0.95, least=0, most=1, by_task=True)


class InfLora(AddedLoras):
    """A LoRA a task, of which only B is trained; A lies where earlier tasks have no inputs.

    The shared tree is B alone. Beside the finished LoRAs the memory has the A in training, and for
    each layer a projection F of what goes into gate_proj and up_proj, `[L, D, D]`, and one of what
    goes into down_proj, `[L, F, F]`.
    """

    name: ClassVar[str] = "inf_lora"
    Options: ClassVar[type[Any]] = Options
    traits = Traits(reads_moments=True)

    def init_shared(self, key: jax.Array, sizes: DecoderConfig, task_count: int) -> Tree:
        """B `{target: [L, r, O]}`, zero."""
        expert = super().init_shared(key, sizes, task_count)["expert"]
        return {"b": {target: factors["b"] for target, factors in expert.items()}}

    def init_memory(self, sizes: DecoderConfig, task_count: int) -> Tree:
        """No LoRA yet, and nothing is projected out."""
        memory, widths = super().init_memory(sizes, task_count), projection_sizes(sizes)
        reduction, free = {}, {}
        for target in memory["expert"]:
            width = widths[target][0]
            reduction[target] = jnp.zeros((sizes.layers, width, self.lora.rank))
            free[MOMENT_OF[target]] = jnp.tile(jnp.eye(width), (sizes.layers, 1, 1))
        return {**memory, "reduction": reduction, "free": free}

    def begin_task(self, parameters: TaskParameters, start: TaskStart) -> Tree:
        """Fixes A by the inputs of the task."""
        memory, rank = parameters.memory, self.lora.rank
        found = _by_layer(memory["free"], start.inputs(), lambda f, r: leading(f, r, rank))
        reduction = {
            target: found[MOMENT_OF[target]] / np.float32(3**0.5) for target in memory["reduction"]
        }
        return {**memory, "reduction": reduction}

    def finish_task(self, parameters: TaskParameters, end: TaskEnd) -> TaskParameters:
        """Puts the task's LoRA into the memory, and its inputs out of the next task's reach."""
        memory, threshold = parameters.memory, self.options.threshold
        share = threshold + (1.0 - threshold) * end.index / self.task_count(memory)
        free = _by_layer(memory["free"], end.inputs(), lambda f, r: without(f, r, share))
        kept = self.with_lora(memory, self._current(parameters), end.index)
        kept |= {"reduction": jax.tree.map(jnp.zeros_like, memory["reduction"]), "free": free}
        fresh = jax.tree.map(jnp.zeros_like, parameters.shared)
        return parameters.replace(shared=fresh, memory=kept)

    def adapter(self, parameters: TaskParameters, query: jax.Array | None = None) -> Tree:
        """The task's LoRA and the earlier ones, as one LoRA."""
        del query
        return {"expert": side_by_side(self._current(parameters), parameters.memory["expert"])}

    def _current(self, parameters: TaskParameters) -> Expert:
        """The LoRA in training."""
        reduction = parameters.memory["reduction"]
        return {
            target: {"a": reduction[target], "b": b} for target, b in parameters.shared["b"].items()
        }


def _by_layer(
    free: Tree, moments: Tree, function: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> Tree:
    """A function of F and R of each layer, stacked, for each of the FFN's two inputs."""
    of_input = {MOMENT_OF[target]: moment for target, moment in moments.items()}
    return {
        name: np.stack([function(*of) for of in zip(np.asarray(free[name]), moment, strict=True)])
        for name, moment in of_input.items()
    }
