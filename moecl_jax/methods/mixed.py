"""Answers to examples of several tasks in one batch.

The experts of E tasks stand side by side as one of rank E r, and each token switches off those of
the tasks that are not its own:

    c B_t(n) A_t(n) x_n = c [B_1 .. B_E] (m_n * [A_1; ..; A_E] x_n)

with m_n 1 in the r places of token n's task t(n), else 0. So a batch is packed and multiplied as
that of a single task is. What the tasks have in common is multiplied once. Values are those of each
task alone, within rounding.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from moecl_jax.methods.base import Method, Tree

MIXED_TASKS = 8  # at most so many are joined, for the products grow with them


def can_mix(method: Method) -> bool:
    """Whether tasks differ in nothing but their experts, gates and heads."""
    return not method.queries


def mixed_adapter(
    method: Method, shared: Tree, experts: Sequence[Tree], memory: Tree, choice: jax.Array
) -> Tree:
    """What the layers receive where tokens belong to several tasks.

    Args:
      method: of them all.
      shared: the shared trees.
      experts: E tasks' own.
      memory: the method's memory.
      choice: `[N, E]`, 1 for the task that a token belongs to, else 0.
    """
    adapters = [method.adapter(shared, expert, memory) for expert in experts]
    first = adapters[0]
    mixed = {
        name: _side_by_side([adapter[name] for adapter in adapters], choice)
        for name in first
        if name != "gate"
    }
    if "gate" in first:
        gates = [adapter["gate"] for adapter in adapters]
        mixed["gate"] = gates[0]
        if not _same(gates):
            mixed["gate"] = jnp.stack(gates, axis=1)
            mixed["choice"] = jnp.broadcast_to(choice, (len(gates[0]), *choice.shape))
    return mixed


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
