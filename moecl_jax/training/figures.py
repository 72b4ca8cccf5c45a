"""What is shown of a training beside the metrics of its steps: accuracies and distributions."""

import math
from collections.abc import Sequence

import jax
import numpy as np

from moecl_jax import reporting
from moecl_jax.methods.parameters import TaskParameters, Tree
from moecl_jax.runs.history import History
from moecl_jax.runs.trackers import Trackers


def show_untrained(trackers: Trackers, names: Sequence[str], history: History) -> None:
    """Gives trackers the test accuracy of each task before any training, at step 0.

    Args:
      trackers: those of the run.
      names: names of the tasks.
      history: what was measured.
    """
    pairs = zip(names, history.random_init, strict=True)
    trackers.log({f"test/{name}": accuracy for name, accuracy in pairs}, 0)


def show_epoch(
    trackers: Trackers,
    task: str,
    step: int,
    reached: tuple[float, float],
    tree: Tree | TaskParameters,
) -> None:
    """Gives trackers the validation after an epoch, and the distribution of what is trained.

    Args:
      trackers: those of the run.
      task: name of the task.
      step: the global step.
      reached: validation accuracy and log-likelihood.
      tree: parameters that are trained, as NumPy; each array becomes a histogram.
    """
    accuracy, likelihood = reached
    trackers.log(
        {f"validation/{task}": accuracy, f"validation_log_likelihood/{task}": likelihood}, step
    )
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        trackers.histogram(f"parameters/{name}", np.asarray(leaf, np.float32), step)


def show_row(trackers: Trackers, names: Sequence[str], history: History) -> None:
    """Tells how good the model is after a task: a row of the matrix R, and a message.

    Trackers get test accuracies, the mean over the finished tasks, and for each of these the
    distribution over the layers of the shared expert's mean weight in the gate.

    Args:
      trackers: those of the run.
      names: names of the tasks.
      history: what was measured, with the validation of the task that was finished last.
    """
    row, step, count = history.accuracy[-1], history.global_step, len(history.accuracy)
    known = [accuracy for accuracy in row[:count] if math.isfinite(accuracy)]
    mean = sum(known) / len(known) if known else math.nan
    trackers.log(
        {f"test/{name}": accuracy for name, accuracy in zip(names, row, strict=True)}, step
    )
    trackers.log({"test_mean/finished_tasks": mean}, step)
    for name, weights in zip(names[:count], history.gate_weights, strict=False):
        trackers.histogram(f"gate/{name}", np.array(weights), step)
    parts = [f"test {100 * row[count - 1]:.1f}"] if math.isfinite(row[count - 1]) else []
    validation = history.validation[-1]
    parts += [] if validation is None else [f"validation {100 * validation:.1f}"]
    parts += [f"mean so far {100 * mean:.1f}"] if count > 1 and known else []
    if parts:
        title = f"task {count}/{len(names)} {names[count - 1]}"
        reporting.current().message(f"{title}: {', '.join(parts)} (accuracy in %)")
