"""A starting value of tasks' experts, meta-learned on finished tasks.

An expert usually starts with B = 0. It may start instead from theta, from which few steps of plain
gradient descent lead to a good expert of each finished task i:

    theta_0 = theta,  theta_k = theta_k-1 - a grad L_i(theta_k-1; D_k),  k = 1 .. K
    reptile   theta <- theta - e (theta - theta_K)                  arXiv 1803.02999, algorithm 1
    fomaml    theta <- theta - e grad L_i(theta_K; D)               arXiv 1703.03400, section 5.2
    maml      theta <- theta - e d/dtheta L_i(theta_K; D)           arXiv 1703.03400, eq. 1

with L_i the instruction loss without dropout, D_k and D batches of the task's kept examples, a the
inner rate, e the learning rate. FOMAML leaves out the second derivatives that MAML takes through
the inner steps. Theta is learned anew, from where it was, at the end of each task. It starts as an
expert with B = 0. Shared trees and classification heads are held fixed.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from moecl_jax.data.batching import Batch
from moecl_jax.data.rehearsal import ClassBalanced, ExamplePolicy
from moecl_jax.errors import UserError
from moecl_jax.methods.base import Loss, TaskEnd, blank
from moecl_jax.methods.parameters import Tree
from moecl_jax.settings import Section, setting

KINDS = ("none", "reptile", "fomaml", "maml")


class SupportSets(ClassBalanced):
    """Examples that are kept of each finished task and join no batch of another one."""

    @property
    def reads_past(self) -> bool:
        """They are read when a later task ends."""
        return True


@dataclasses.dataclass(frozen=True)
class Meta(Section):
    """How a new task's expert starts.

    Attributes:
      kind: none (B = 0), or reptile, fomaml or maml (from a value that is learned on finished
        tasks). maml needs memory and time for second derivatives: it is for small models.
      support: number of training examples that are kept, of all finished tasks together and with
        equal shares of each class, to learn the starting value from. 0 keeps no text, and all
        kinds but none are refused.
      inner_steps: steps of gradient descent on one task; with 0 experts start with B = 0.
      outer_steps: changes of the starting value at the end of each task; tasks take turns.
      inner_rate: learning rate of the inner steps.
      learning_rate: learning rate of the starting value; of reptile the part of the way to the
        adapted expert that is gone.
    """

    KEY: ClassVar[str] = "meta"
    kind: str = setting("none", choices=KINDS)
    support: int = setting(0, least=0, most=10**9)
    inner_steps: int = setting(4, least=0, most=1000)
    outer_steps: int = setting(100, least=0, most=10**6)
    inner_rate: float = setting(0.1, least=0, most=1000)
    learning_rate: float = setting(0.1, least=0, most=1000)

    def __post_init__(self) -> None:
        """Refuses to keep texts that nobody allowed to be kept."""
        super().__post_init__()
        if self.kind != "none" and not self.support:
            raise UserError(
                f"config: meta.kind = '{self.kind}' learns from training examples of finished "
                "tasks, and meta.support = 0 keeps none. Set meta.support to the number of "
                "examples that may be kept, such as 256"
            )

    @property
    def on(self) -> bool:
        """Whether a starting value is learned."""
        return self.kind != "none" and self.inner_steps > 0 and self.outer_steps > 0

    @property
    def examples(self) -> ExamplePolicy:
        """The examples that are kept."""
        return SupportSets(self.support, 0) if self.on else ExamplePolicy()

    def memory(self, expert: Tree) -> Tree:
        """The memory's part before the first task, for experts of these shapes; `{}` if off."""
        return {"meta": {"expert": blank(expert), "held": jnp.zeros((), bool)}} if self.on else {}

    def start(self, expert: Tree, memory: Tree) -> Tree:
        """What a task's expert starts as: the learned value, or else the fresh expert."""
        if "meta" not in memory:
            return expert
        kept = memory["meta"]
        return jax.tree.map(lambda a, b: jnp.where(kept["held"], a, b), kept["expert"], expert)

    def learned(self, expert: Tree, memory: Tree, end: TaskEnd) -> Tree:
        """The memory's part after a task; `{}` if off.

        Args:
          expert: fresh expert with which the value begins before the first task.
          memory: the method's memory.
          end: what may be asked of the task that has ended.
        """
        if not self.on:
            return {}
        batches = self.inner_steps + (self.kind != "reptile")
        begun = self.start(expert, memory)
        theta = end.over_kept(begun, self.update, batches, self.outer_steps)
        return {"meta": {"expert": theta, "held": jnp.ones((), bool)}}

    def forgotten(self, memory: Tree) -> Tree:
        """The memory without what was learned; the next task's end learns it from what is left."""
        return {**memory, "meta": blank_start(memory["meta"])} if "meta" in memory else memory

    def update(self, theta: Tree, loss: Loss, batches: Batch) -> Tree:
        """Theta after a change on one task.

        Args:
          theta: the starting value.
          loss: the task's loss, of an expert and a batch.
          batches: K support batches along a leading axis; after them, but for reptile, the one of
            the outer loss.
        """
        gradient = outer_gradient(self.kind, theta, loss, batches, self.inner_rate)
        return jax.tree.map(lambda p, g: p - self.learning_rate * g, theta, gradient)


def outer_gradient(kind: str, theta: Tree, loss: Loss, batches: Batch, rate: float) -> Tree:
    """The direction down which the starting value goes; arguments as for `Meta.update`."""
    if kind == "reptile":
        return jax.tree.map(jnp.subtract, theta, adapted(theta, loss, batches, rate))
    support = jax.tree.map(lambda leaf: leaf[:-1], batches)
    query = jax.tree.map(lambda leaf: leaf[-1], batches)
    if kind == "fomaml":
        return jax.grad(loss)(adapted(theta, loss, support, rate), query)
    return jax.grad(lambda own: loss(adapted(own, loss, support, rate), query))(theta)


def adapted(theta: Tree, loss: Loss, batches: Batch, rate: float) -> Tree:
    """Theta after a step of gradient descent on each batch of a stack, in their order."""

    def step(own: Tree, batch: Batch) -> tuple[Tree, None]:
        gradient = jax.grad(loss)(own, batch)
        return jax.tree.map(lambda p, g: p - rate * g, own, gradient), None

    end: tuple[Tree, None] = jax.lax.scan(step, theta, batches)
    return end[0]


def blank_start(kept: Tree) -> Tree:
    """A learned value in its shapes and dtypes, forgotten."""
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), kept)
