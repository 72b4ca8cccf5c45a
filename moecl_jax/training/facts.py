"""Facts about a training that its results note: versions and numbers of parameters."""

import platform
from importlib import metadata
from typing import Any

import jax

from moecl_jax.methods.stream import StreamState
from moecl_jax.serving.evaluator import Evaluator

_VERSIONS = ("moecl_jax", "jax", "flax", "optax", "orbax-checkpoint", "transformers")


def versions() -> dict[str, str]:
    """Versions of Python and of what results depend on."""
    packages = {name: metadata.version(name) for name in _VERSIONS}
    return {"python": platform.python_version(), **packages, "backend": jax.default_backend()}


def parameter_counts(evaluator: Evaluator, stream: StreamState) -> dict[str, int]:
    """Numbers of parameters: frozen, trained at a time, kept to answer and to learn more.

    Args:
      evaluator: model, method and tasks.
      stream: state after the last task.
    """
    starting, count = evaluator.starting, len(evaluator.tasks)
    active = jax.eval_shape(lambda: starting.begin(starting.shared(count), 0))
    finished = [done for done in stream.finished.values() if done is not None]  # not removed
    kept = (stream.shared, [(done.expert, done.head) for done in finished])
    return {
        "frozen": _size(evaluator.model.params),
        "trained": _size(active),
        "stored": _size(kept) + _size(stream.memory),
        "stored_bytes": sum(
            leaf.nbytes for leaf in jax.tree.leaves((kept, stream.memory)) if leaf.size
        ),
    }


def _size(tree: Any) -> int:
    """Numbers in a tree."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))
