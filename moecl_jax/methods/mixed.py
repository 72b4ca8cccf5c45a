"""Answers to examples of several tasks in one batch.

The experts of E tasks stand side by side as one of rank E r, and each token switches off those of
the tasks that are not its own:

    c B_t(n) A_t(n) x_n = c [B_1 .. B_E] (m_n * [A_1; ..; A_E] x_n)

with m_n 1 in the r places of token n's task t(n), else 0. So a batch is packed and multiplied as
that of a single task is. What the tasks have in common is multiplied once. Values are those of each
task alone, within rounding.

Only this module knows how the parameters of several tasks are put together.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from moecl_jax.methods.base import Method
from moecl_jax.methods.parameters import TaskParameters, Tree

MOST_TASKS = 8  # so many tasks are joined at most, for the products grow with them


def can_mix(method: Method) -> bool:
    """Whether tasks differ in nothing but their experts, gates and heads, whatever is asked."""
    traits = method.traits
    return not (traits.reads_query or traits.precedes or traits.votes)


def together(tasks: Sequence[TaskParameters]) -> TaskParameters:
    """What answers for several tasks in the same batch: expert and head are tuples."""
    return tasks[0].replace(
        expert=tuple(task.expert for task in tasks), head=tuple(task.head for task in tasks)
    )


def is_mixed(parameters: TaskParameters) -> bool:
    """Whether these are the parameters of several tasks."""
    return isinstance(parameters.expert, tuple)


def head(parameters: TaskParameters, task_index: jax.Array) -> Any:
    """The classification head `[D, C]` of a task; of several tasks each example's, `[B, D, C]`."""
    heads = parameters.head
    return jnp.stack(heads)[task_index] if isinstance(heads, tuple) else heads


def adapter(
    method: Method, parameters: TaskParameters, membership: jax.Array, task_index: jax.Array
) -> Tree:
    """What the layers are given where tokens belong to several tasks.

    Args:
      method: method of all the tasks.
      parameters: parameters of E tasks, as `together` gives them.
      membership: `[B, N]`, 1 where a token is a real token of an example.
      task_index: `[B]`, each example's task, as an index into the E.
    """
    choice = membership.T @ jax.nn.one_hot(task_index, len(parameters.expert))
    adapters = method.adapters(parameters, parameters.expert)
    first = adapters[0]
    joined = {
        name: _side_by_side([each[name] for each in adapters], choice)
        for name in first
        if name != "gate"
    }
    if "gate" in first:
        gates = [each["gate"] for each in adapters]
        joined["gate"] = gates[0]
        if not _same(gates):
            joined["gate"] = jnp.stack(gates, axis=1)
            joined["choice"] = jnp.broadcast_to(choice, (len(gates[0]), *choice.shape))
    return joined


def _side_by_side(experts: Sequence[Tree], choice: jax.Array) -> Tree:
    """Experts joined along the rank, with each token's weights; one of them where all are one."""
    if _same(experts):
        return experts[0]

    def join(*factors: Tree) -> Tree:
        layers, _, rank = factors[0]["a"].shape
        weights = jnp.repeat(choice, rank, axis=1)
        return {
            "a": jnp.concatenate([each["a"] for each in factors], axis=2),
            "b": jnp.concatenate([each["b"] for each in factors], axis=1),
            "weights": jnp.broadcast_to(weights, (layers, *weights.shape)),
        }

    return {target: join(*(expert[target] for expert in experts)) for target in experts[0]}


def _same(trees: Sequence[Tree]) -> bool:
    """Whether all are one object's leaves."""
    leaves = [jax.tree.leaves(tree) for tree in trees]
    return all(a is b for others in leaves for a, b in zip(leaves[0], others, strict=True))
