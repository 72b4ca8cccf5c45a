"""What becomes of MoE-CL's shared expert as tasks are finished: five ways, each a small class.

With s_t = (A_t, B_t) the shared expert after task t, and g_t the gate:

    snapshot    task t keeps a copy of s_t, and is answered with it for ever; in int8 it is
                round(x / u) of each column x of A and row of B, with u = max |x| / 127
    moving      all tasks are answered with the newest s, which forgets; the paper's
    frozen      s is trained in the first k tasks and never again; those before the k-th keep a
                copy, all others are answered with s_k
    merged      all tasks are answered with one merged expert, in the manner of SLAO (2512.23017):
                    A' = A_t,  B' <- B' + (B_t - B') / sqrt(t),  t = 1, 2, ..
                task t + 1 begins with an orthonormal basis of the columns of A_t, and B_t
    projected   after the first task B stays, and A moves only across the directions V that earlier
                tasks' inputs of its projection span, in the manner of GPM (2103.09762) and InfLoRA
                (2404.00228):
                    A = A_{t-1} + (I - V V^T) (A~ - A_{t-1}),  so that x A = x A_{t-1} for x in V
                V are the leading eigenvectors of the sum over tasks of E[x x^T]

In all but `moving` a finished task keeps its own gate too. So `snapshot` and `frozen` forget
nothing; `merged` and `projected` need no memory that grows, and forget what they cannot hold.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

from moecl_jax.errors import UserError
from moecl_jax.methods.base import TaskEnd, blank
from moecl_jax.methods.parameters import Tree
from moecl_jax.methods.slao import following, merged_with
from moecl_jax.models.lora import Expert

_SITES = {"gate_proj": "hidden", "up_proj": "hidden", "down_proj": "activation"}  # by projection
_LEVELS = 127  # of an int8, to either side of 0


class SharedExpert:
    """What becomes of the shared expert; as it is here, it moves on, and nothing is kept.

    Attributes:
      own_gate: whether a finished task keeps its own gate.
      settled: whether what a finished task is answered with never changes again.
      reads_moments: whether it asks for second moments of the projections' inputs.
    """

    own_gate = True
    settled = False
    reads_moments = False

    def __init__(self, options: Any):
        """A way with the method's options."""
        self.options = options

    def init_memory(self, expert: Expert) -> Tree:
        """The memory before the first task, of an expert of these shapes."""
        del expert
        return {}

    def begin(self, memory: Tree) -> Tree:
        """The memory with which a task trains."""
        return memory

    def acting(self, expert: Expert, memory: Tree) -> Expert:
        """The expert with which tokens are computed where a task keeps none.

        Args:
          expert: the one that is trained.
          memory: memory of the moment, in training or between tasks.
        """
        del memory
        return expert

    def kept(self, expert: Expert, index: int) -> Tree | None:
        """What the task at a place in the stream keeps of the expert it was trained with."""
        del expert, index
        return None

    def check_continued(self, own: Tree, memory: Tree) -> None:
        """Refuses to go on with a finished task that could not begin as it answers.

        Args:
          own: the finished task's own tree.
          memory: memory of the moment.

        Raises:
          UserError: says why.
        """

    def carried_on(self, expert: Expert, memory: Tree, end: TaskEnd) -> tuple[Expert, Tree]:
        """The expert with which the next task begins, and the memory.

        Args:
          expert: the one that acted in the task's training.
          memory: the memory that the task was trained with.
          end: what else may be asked of the task.
        """
        del end
        return expert, memory


class Moving(SharedExpert):
    """The paper's: gate and expert are the newest for all tasks."""

    own_gate = False


class Snapshot(SharedExpert):
    """Each finished task keeps a copy."""

    settled = True

    def kept(self, expert: Expert, index: int) -> Tree:
        """The whole expert, as the option `snapshot_dtype` has it."""
        del index
        return packed(expert) if self.options.snapshot_dtype == "int8" else expert


class Frozen(Snapshot):
    """Trained in the first k tasks alone. The memory has what it was then."""

    def init_memory(self, expert: Expert) -> Tree:
        """Not frozen yet."""
        return {"expert": blank(expert), "frozen": jnp.zeros((), bool)}

    def acting(self, expert: Expert, memory: Tree) -> Expert:
        """The frozen one, once there is one."""
        return _choose(memory["frozen"], memory["expert"], expert)

    def kept(self, expert: Expert, index: int) -> Tree | None:
        """A copy, of the tasks before the k-th."""
        return super().kept(expert, index) if index + 1 < self.options.frozen_after else None

    def check_continued(self, own: Tree, memory: Tree) -> None:
        """Refuses a task with a copy that is not the frozen expert."""
        if "shared" in own and bool(memory["frozen"]):
            raise UserError(
                "moe_cl.shared = 'frozen': a task that was finished before the shared expert was "
                "frozen has a copy of its own, and cannot go on; train its data as a new task"
            )

    def carried_on(self, expert: Expert, memory: Tree, end: TaskEnd) -> tuple[Expert, Tree]:
        """The expert, which is frozen with the k-th task."""
        if end.index + 1 < self.options.frozen_after:
            return expert, memory
        return expert, {"expert": expert, "frozen": jnp.ones((), bool)}


class Merged(SharedExpert):
    """One expert merged of all. The memory has it, and whether a task is being trained."""

    def init_memory(self, expert: Expert) -> Tree:
        """No task is merged yet, and the first task's expert answers."""
        return {"expert": blank(expert), "answers": jnp.zeros((), bool)}

    def begin(self, memory: Tree) -> Tree:
        """The expert in training acts."""
        return {**memory, "answers": jnp.zeros((), bool)}

    def acting(self, expert: Expert, memory: Tree) -> Expert:
        """The one in training in a task, the merged one between tasks."""
        return _choose(memory["answers"], memory["expert"], expert)

    def carried_on(self, expert: Expert, memory: Tree, end: TaskEnd) -> tuple[Expert, Tree]:
        """An orthonormal A and the newest B; the merged expert with the newest one in it."""
        merged = merged_with(memory["expert"], expert, end.index)
        return following(expert), {"expert": merged, "answers": jnp.ones((), bool)}


class Projected(SharedExpert):
    """Moves across earlier tasks' inputs alone.

    The memory has the expert that the task began with, whether it is held, and by each site of a
    layer the eigenvectors `[L, I, m]` and eigenvalues `[L, m]` of the inputs so far.
    """

    reads_moments = True

    def init_memory(self, expert: Expert) -> Tree:
        """No directions yet."""
        directions = {}
        for target, factors in expert.items():
            layers, inputs, _ = factors["a"].shape
            count = min(self.options.directions, inputs)
            directions[_SITES[target]] = {
                "vectors": jnp.zeros((layers, inputs, count)),
                "values": jnp.zeros((layers, count)),
            }
        return {
            "expert": blank(expert),
            "held": jnp.zeros((), bool),
            "directions": directions,
        }

    def acting(self, expert: Expert, memory: Tree) -> Expert:
        """The first task's expert, later B as it was, and A moved across the directions."""
        moved = {}
        for target, factors in memory["expert"].items():
            vectors = memory["directions"][_SITES[target]]["vectors"]
            change = expert[target]["a"] - factors["a"]
            along = vectors @ (vectors.swapaxes(1, 2) @ change)
            moved[target] = {"a": factors["a"] + change - along, "b": factors["b"]}
        return _choose(memory["held"], moved, expert)

    def carried_on(self, expert: Expert, memory: Tree, end: TaskEnd) -> tuple[Expert, Tree]:
        """The expert, and the directions with those of the task's inputs."""
        moments = end.inputs()
        directions = {
            _SITES[target]: _leading(memory["directions"][_SITES[target]], moments[target])
            for target in expert
            if target != "up_proj" or "gate_proj" not in expert  # their inputs are the same
        }
        return expert, {"expert": expert, "held": jnp.ones((), bool), "directions": directions}


WAYS: Mapping[str, type[SharedExpert]] = {
    "snapshot": Snapshot,
    "moving": Moving,
    "frozen": Frozen,
    "merged": Merged,
    "projected": Projected,
}


def packed(expert: Expert) -> Tree:
    """An expert in int8, with the unit of each column of A and each row of B."""

    def pack(values: jax.Array, axis: int) -> dict[str, jax.Array]:
        values = jnp.asarray(values)
        unit = jnp.abs(values).max(axis=axis, keepdims=True) / _LEVELS
        whole = jnp.round(values / jnp.where(unit > 0, unit, 1.0))
        return {"whole": whole.astype(jnp.int8), "unit": unit}

    return {
        target: {"a": pack(factors["a"], 1), "b": pack(factors["b"], 2)}
        for target, factors in expert.items()
    }


def unpacked(kept: Tree) -> Expert:
    """The expert that a task has kept, in float32."""

    def unpack(values: Any) -> Any:
        return values["whole"] * values["unit"] if isinstance(values, Mapping) else values

    return {
        target: {name: unpack(values) for name, values in factors.items()}
        for target, factors in kept.items()
    }


def _choose(condition: jax.Array, one: Expert, other: Expert) -> Expert:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), one, other)


def _leading(before: Tree, moments: np.ndarray) -> Tree:
    """The leading eigenvectors and eigenvalues of what they were made of and new moments.

    Args:
      before: eigenvectors `[L, I, m]` and eigenvalues `[L, m]` so far.
      moments: `[L, I, I]`, E[x x^T] of the new inputs.
    """
    vectors, values = np.asarray(before["vectors"]), np.asarray(before["values"])
    _, inputs, count = vectors.shape
    if not count:
        return before
    layers = []
    for v, w, moment in zip(vectors, values, np.asarray(moments), strict=True):
        total = (v * w) @ v.T + moment
        layers.append(scipy.linalg.eigh(total, subset_by_index=(inputs - count, inputs - 1)))
    return {
        "vectors": jnp.asarray(np.stack([found[1] for found in layers]), jnp.float32),
        "values": jnp.asarray(np.stack([found[0] for found in layers]), jnp.float32),
    }
