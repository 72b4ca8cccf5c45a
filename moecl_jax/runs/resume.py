"""A stream of tasks and its history, to and from the checkpoints of a workdir."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from moecl_jax.config.experiment import Experiment
from moecl_jax.errors import UserError
from moecl_jax.methods.state import Finished, Stream, look_up
from moecl_jax.runs.checkpoint import TaskCheckpoints
from moecl_jax.runs.log import plain
from moecl_jax.serving.evaluate import Evaluation
from moecl_jax.serving.task_choice import TaskFeatures
from moecl_jax.training.steps import Active, TrainState

NO_SCORE = (-1.0, -math.inf)  # validation accuracy and likelihood before any epoch


@dataclasses.dataclass
class History:
    """Accuracies so far: rows after each finished task, columns all tasks of the stream.

    NaN stands for what was not measured: columns of tasks without test examples, and all rows but
    the last of tasks that were finished before a conversion.

    Attributes:
      random_init: accuracy on each task before any training.
      accuracy: the matrix R.
      scored: the same, by scoring the labels' texts.
      validation: of the weights kept of each task.
      global_step: steps done in all finished tasks.
      wall_seconds: spent until the last task was finished.
      gate_weights: in MoE-CL, mean weight of the shared expert by task and layer, after the task
        that was finished last.
      converted: how many of the finished tasks came with a converted checkpoint.
      task_free: after the last task of the stream, results where each text's task is chosen.
    """

    random_init: list[float]
    accuracy: list[list[float]] = dataclasses.field(default_factory=list)
    scored: list[list[float]] = dataclasses.field(default_factory=list)
    validation: list[float | None] = dataclasses.field(default_factory=list)
    global_step: int = 0
    wall_seconds: float = 0.0
    gate_weights: list[list[float]] = dataclasses.field(default_factory=list)
    converted: int = 0
    task_free: dict[str, Any] | None = None

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "History":
        """The history in the record of a checkpoint, whose null is NaN."""
        known = {f.name: record[f.name] for f in dataclasses.fields(cls) if f.name in record}
        for name in ("random_init", "accuracy", "scored"):
            known[name] = np.array(known[name], np.float64).tolist()
        return cls(**known)

    def append_row(self, evaluations: Sequence[Evaluation]) -> None:
        """Adds the results on all tasks after a task."""
        self.accuracy.append([e.accuracy for e in evaluations])
        self.scored.append([e.scored_accuracy for e in evaluations])
        self.gate_weights = [list(e.shared_weight) for e in evaluations if e.shared_weight]

    def append_unknown_row(self) -> None:
        """Adds the row of a task after which nothing was measured."""
        for matrix in (self.accuracy, self.scored):
            matrix.append([math.nan] * len(self.random_init))


def restore_stream(
    experiment: Experiment, checkpoints: TaskCheckpoints
) -> tuple[Stream, History | None]:
    """The stream after its last finished task, and what was measured; None if there is none.

    Raises:
      UserError: the checkpoints were made with another frozen model, or cannot be read.
    """
    initializer, count = experiment.initializer, len(experiment.definitions)
    finished: dict[str, Finished] = {}
    history = None
    for index, name in enumerate(experiment.names):
        record = checkpoints.finished_record(index, name)
        if record is None:
            break
        check_fingerprint(experiment, record)
        history = History.from_record(record)
        finished[name] = restore_own(experiment, checkpoints, index)
    if history is None:
        return initializer.stream(count), None
    last = restore_shared(experiment, checkpoints, len(finished) - 1, len(history.random_init))
    return dataclasses.replace(last, finished=finished), history


def restore_task(
    experiment: Experiment, checkpoints: TaskCheckpoints, index: int, task_count: int
) -> Stream:
    """The stream of the moment when a task was finished, with that task alone, as NumPy.

    Args:
      experiment: the run.
      checkpoints: of its workdir.
      index: place of the task.
      task_count: tasks of the stream when it was saved.
    """
    stream = restore_shared(experiment, checkpoints, index, task_count)
    own = restore_own(experiment, checkpoints, index)
    return dataclasses.replace(stream, finished={experiment.names[index]: own})


def restore_own(experiment: Experiment, checkpoints: TaskCheckpoints, index: int) -> Finished:
    """A finished task's own trees, as NumPy."""
    definition = experiment.definitions[index]
    shapes = _finished_shapes(experiment, index, len(experiment.definitions))
    head = jax.tree.map(
        lambda kernel: jax.ShapeDtypeStruct(
            (kernel.shape[0], len(definition.labels)), kernel.dtype
        ),
        shapes.head,
    )
    template = {"expert": shapes.expert, "head": head}
    return Finished(**checkpoints.restore_own(index, definition.name, template))


def restore_shared(
    experiment: Experiment, checkpoints: TaskCheckpoints, index: int, task_count: int
) -> Stream:
    """As `restore_task`, without the task's own trees."""
    initializer, count = experiment.initializer, len(experiment.definitions)
    shapes = _finished_shapes(experiment, index, task_count)
    template = {"shared": shapes.shared}
    if shapes.memory:
        template["memory"] = shapes.memory
    tree = checkpoints.restore_shared(index, experiment.names[index], template)
    return Stream(
        initializer.extend(tree["shared"], count),
        {},
        initializer.method.extend_memory(tree.get("memory", {}), count),
    )


def _finished_shapes(experiment: Experiment, index: int, task_count: int) -> Active:
    """Shapes and dtypes of the trees when a task of a stream of `task_count` was finished."""
    initializer = experiment.initializer
    method = initializer.method

    def finished() -> Active:
        stream = initializer.stream(task_count)
        active = initializer.begin(stream.shared, index, memory=stream.memory)
        active = dataclasses.replace(active, memory=method.begin_task(active.shared, active.memory))
        importance = active.shared if method.importance_examples else {}
        return initializer.finish(active, index, importance)

    return jax.eval_shape(finished)


def restore_features(
    experiment: Experiment, checkpoints: TaskCheckpoints, stream: Stream
) -> TaskFeatures | None:
    """What was saved of the features of all finished label tasks; None where nothing was."""
    labelled = {d.name for d in experiment.definitions if not d.free_form}
    names = tuple(name for name in stream.finished if name in labelled)
    blank = TaskFeatures.blank(experiment.learner.method.config.width, names)
    if not names:
        return blank
    index = len(stream.finished) - 1
    arrays = checkpoints.restore_features(index, experiment.names[index], blank.arrays)
    return None if arrays is None else TaskFeatures(names, **arrays)


def save_finished(
    experiment: Experiment,
    checkpoints: TaskCheckpoints,
    stream: Stream,
    history: History,
    features: TaskFeatures | None = None,
) -> None:
    """Saves the task that was finished last.

    Args:
      experiment: the run.
      checkpoints: of its workdir.
      stream: after that task.
      history: with that task's row.
      features: of all finished label tasks, where they are known.
    """
    index = len(stream.finished) - 1
    name = experiment.names[index]
    done = stream.finished[name]
    shared = {"shared": stream.shared}
    if stream.memory:
        shared["memory"] = stream.memory
    checkpoints.save_finished(
        index,
        name,
        {"expert": done.expert, "head": done.head},
        shared,
        plain(
            {
                **dataclasses.asdict(history),
                "tasks": experiment.names,
                "fingerprint": experiment.fingerprint,
            }
        ),
        features.arrays if features is not None and features.names else None,
        keep_shared=experiment.training.keep_shared,
    )


def save_in_progress(
    experiment: Experiment,
    checkpoints: TaskCheckpoints,
    index: int,
    state: TrainState,
    *,
    best: Active,
    best_score: Sequence[float] = NO_SCORE,
) -> None:
    """Saves a state inside a task.

    Args:
      experiment: the run.
      checkpoints: of its workdir.
      index: place of the task.
      state: of its training.
      best: the trees that are kept unless a later epoch validates better.
      best_score: their validation accuracy and likelihood.
    """
    record = {
        "task": experiment.names[index],
        "tasks": experiment.names,
        "step": int(state.step),
        "best_score": list(best_score),
        "fingerprint": experiment.fingerprint,
    }
    tree = experiment.learner.placement.host(in_progress_tree(state, best))
    checkpoints.save_in_progress(tree, record)


def in_progress_tree(state: TrainState, best: Active) -> dict[str, Any]:
    """What is saved of a state inside a task."""
    return {"active": state.active, "optimizer_state": state.optimizer_state, "best": best}


def task_trees(experiment: Experiment, stream: Stream, index: int) -> Active:
    """The trees that answer for a task: its finished ones, or those it will start from."""
    name = experiment.names[index]
    if name in stream.finished:
        initializer = experiment.initializer
        return look_up(stream, name, initializer.classes, shared_head=initializer.shared_head)
    return experiment.initializer.begin(stream.shared, index, stream.last_head, stream.memory)


def check_fingerprint(experiment: Experiment, record: Mapping[str, Any]) -> None:
    """Refuses checkpoints that were made with another frozen model.

    Raises:
      UserError: the fingerprints differ.
    """
    ours, theirs = experiment.fingerprint, record["fingerprint"]
    if ours != theirs:
        raise UserError(
            f"the checkpoints were trained on a frozen model with fingerprint {theirs}, and "
            f"{experiment.model_path} has {ours}. Experts fit only the model they were "
            "trained in: set config.model.path to that model."
        )
