"""The task loop: train, select, evaluate on every task, save; then the next task."""

import contextlib
import dataclasses
import functools
import math
import platform
import tempfile
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from moecl_jax.config.experiment import Experiment, build, load_tasks
from moecl_jax.data.rehearsal import reservoir
from moecl_jax.data.tasks import SPLITS
from moecl_jax.data.tokenize import TokenizedExample, TokenizedTask
from moecl_jax.errors import UserError
from moecl_jax.methods.state import Stream, finish
from moecl_jax.models.sharding import first_process, wait_for_all
from moecl_jax.runs import reporting
from moecl_jax.runs.checkpoint import TaskCheckpoints
from moecl_jax.runs.log import MetricsLog, plain
from moecl_jax.runs.metrics import summarize
from moecl_jax.runs.resume import (
    History,
    check_fingerprint,
    restore_features,
    restore_stream,
    restore_task,
    save_finished,
    task_trees,
)
from moecl_jax.runs.workdir import (
    RESULTS_NAME,
    claimed,
    refuse_other_config,
    save_config,
    write_json,
)
from moecl_jax.serving.evaluate import Evaluation, evaluate_examples, score, written_scores
from moecl_jax.serving.generation import Writer
from moecl_jax.serving.task_choice import TaskFeatures
from moecl_jax.serving.task_free import add_task, evaluate_task_free
from moecl_jax.training.steps import Active
from moecl_jax.training.task_training import TaskTraining

_VERSIONS = ("moecl_jax", "jax", "flax", "optax", "orbax-checkpoint", "transformers")


def train(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Trains on the stream of tasks, or goes on where an earlier run in `workdir` stopped.

    Args:
      config: as in configs/default.py.
      workdir: gets config.json, metrics.jsonl, TensorBoard events, checkpoints and results.json.

    Returns:
      What results.json holds.

    Raises:
      UserError: the config or the data are at fault, the workdir belongs to another run, or
        another process trains in it.
    """
    with claimed(workdir):
        refuse_other_config(config, workdir)
        experiment = build(config)
        run = Run(experiment, load_tasks(config, experiment), workdir)
        if first_process():
            save_config(config, workdir)
        wait_for_all("begun")
        results = plain(
            {
                "method": config.method,
                "tasks": experiment.names,
                **run.run(),
                "seed": config.seed,
                "versions": versions(),
            }
        )
        if first_process():
            write_json(workdir / RESULTS_NAME, results)
    return results


class Run:
    """One stream being trained in one workdir."""

    def __init__(self, experiment: Experiment, tasks: Sequence[TokenizedTask], workdir: Path):
        """Opens the workdir's checkpoints."""
        self.experiment = experiment
        self.tasks = tasks
        self.workdir = workdir
        self.checkpoints = TaskCheckpoints(workdir)
        self.features: TaskFeatures | None = None  # of the finished label tasks, where known
        self.begun = time.perf_counter()

    def run(self) -> dict[str, Any]:
        """Trains what is not finished yet; returns the matrix and what is computed from it."""
        stream, history = restore_stream(self.experiment, self.checkpoints)
        if self.experiment.learner.method.separate:
            self.features = restore_features(self.experiment, self.checkpoints, stream)
        for task in self.tasks[len(stream.finished) :]:
            task.require_training_examples()
        if history is None:
            reporting.current().message("evaluating the untrained model on every task")
            history = History([e.accuracy for e in self.evaluate_all(stream)])
        elif len(history.accuracy) == history.converted:
            self._measure_converted(stream, history)
        else:
            self._fill_columns(history)
        finished = len(history.accuracy)
        resumed_step = history.global_step
        record = self.checkpoints.in_progress_record()
        if record is not None and record["task"] in self.experiment.names[finished:]:
            check_fingerprint(self.experiment, record)
            self._refuse_other_tasks(record)
            resumed_step += record["step"]
        with contextlib.ExitStack() as stack:
            folder = self.workdir
            if not first_process():
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            log = stack.enter_context(MetricsLog(folder, resumed_step=resumed_step))
            for index in range(finished, len(self.tasks)):
                stream = self.train_task(index, stream, history, log)
        return self._results(stream, history)

    def train_task(self, index: int, stream: Stream, history: History, log: MetricsLog) -> Stream:
        """Trains one task to its end, evaluates on all tasks and saves it."""
        task, initializer = self.tasks[index], self.experiment.initializer
        waits = self.joint and index + 1 < len(self.tasks)  # to be trained with the last task
        active, validation, importance = task_trees(self.experiment, stream, index), None, {}
        if not waits:
            training = TaskTraining(self, index, stream, history, log)
            active, validation = training.run()
            importance = training.importance(active)
            history.global_step += training.total_steps
        placement = self.experiment.learner.placement
        active, importance = placement.host((active, importance))
        finished = initializer.finish(active, index, importance)
        stream = finish(stream, task.name, finished, len(task.labels))
        if self.features is not None and not task.definition.free_form:
            examples = task.splits["train"]
            self.features = add_task(self.experiment, self.features, task.name, examples)
        if waits:
            history.append_unknown_row()
        else:
            evaluations = self.evaluate_all(stream)
            history.append_row(evaluations)
            history.task_free = self._task_free(stream, evaluations)
        history.validation.append(validation)
        history.wall_seconds += time.perf_counter() - self.begun
        self.begun = time.perf_counter()
        save_finished(self.experiment, self.checkpoints, stream, history, self.features)
        return stream

    def evaluate_all(self, stream: Stream) -> list[Evaluation]:
        """Test results on all tasks, with the starting values of those not trained yet."""
        return [self.evaluate_task(stream, index, "test") for index in range(len(self.tasks))]

    def evaluate_task(self, stream: Stream, index: int, split: str) -> Evaluation:
        """Results of one task on one split, with its finished expert or its starting value."""
        return self.evaluate_active(task_trees(self.experiment, stream, index), index, split)

    def evaluate_active(self, active: Active, index: int, split: str) -> Evaluation:
        """Results of given trees on one split of a task."""
        return self.evaluate_on(active, index, self.tasks[index].splits[split])

    def evaluate_on(
        self, active: Active, index: int, examples: Sequence[TokenizedExample]
    ) -> Evaluation:
        """Results of given trees on examples that are asked as a task's."""
        task = self.tasks[index]
        active = self.experiment.learner.placement.put(active)
        scores = score(
            self.experiment.evaluation_step,
            active,
            self.experiment.frozen,
            examples,
            self.experiment.answers[index],
            self.experiment.evaluation_layout,
            class_count=len(task.labels),
        )
        evaluation = evaluate_examples(scores, examples)
        writer = self.experiment.evaluation_writer(index)
        if writer is None:
            return evaluation
        written = self._written_scores(writer, active, index, examples)
        accuracy = sum(written) / len(written) if written else math.nan
        right = np.zeros(0, bool) if task.definition.free_form else np.array(written) == 1.0
        return dataclasses.replace(evaluation, accuracy=accuracy, right=right)

    def _task_free(
        self, stream: Stream, evaluations: Sequence[Evaluation]
    ) -> dict[str, Any] | None:
        """Results after the last task where the task is chosen; None where it cannot be."""
        if self.features is None or not self.features.names:
            return None
        if len(stream.finished) < len(self.tasks):
            return None
        return evaluate_task_free(self, stream, self.features, evaluations)

    def _written_scores(
        self, writer: Writer, active: Active, index: int, examples: Sequence[TokenizedExample]
    ) -> list[float]:
        experiment, definition = self.experiment, self.tasks[index].definition
        tokenizer: Any = experiment.tokenizer
        answering, layout = experiment.answering, experiment.evaluation_layout
        longest = answering.max_response if definition.free_form else layout.answer_length
        write = functools.partial(
            writer.write,
            active,
            max_tokens=longest,
            sampling=answering.sampling,
            seed=experiment.seed,
            batch_size=layout.batch_size,
        )
        return written_scores(
            write,
            lambda ids: tokenizer.decode(ids, skip_special_tokens=True),
            examples,
            experiment.answers[index],
            definition.metric,
        )

    def _fill_columns(self, history: History) -> None:
        """Adds the columns of tasks that were not in the stream when earlier ones were trained.

        Each is evaluated with the shared trees of that time; where these were not kept, it is
        unknown.
        """
        known, count = len(history.random_init), len(self.tasks)
        if known == count:
            return
        if self.joint:
            raise UserError(
                f"{self.workdir} was trained on {known} tasks jointly; tasks cannot be added to "
                "that. Use another --workdir."
            )
        initial = self.experiment.initializer.stream(count)
        for column in range(known, count):
            history.random_init.append(self.evaluate_task(initial, column, "test").accuracy)
        for row, name in enumerate(self.experiment.names[: len(history.accuracy)]):
            shared_known = self.checkpoints.has_shared(row, name)
            if row < history.converted - 1 or not shared_known:  # of that time
                for matrix in (history.accuracy, history.scored):
                    matrix[row] += [math.nan] * (count - known)
                continue
            record = self.checkpoints.finished_record(row, name) or {}
            task_count = len(record["random_init"])
            stream = restore_task(self.experiment, self.checkpoints, row, task_count)
            for column in range(known, count):
                evaluation = self.evaluate_task(stream, column, "test")
                history.accuracy[row].append(evaluation.accuracy)
                history.scored[row].append(evaluation.scored_accuracy)

    def _measure_converted(self, stream: Stream, history: History) -> None:
        """Evaluates the state that was converted, which is what its last task left."""
        reporting.current().message("evaluating the converted model on every task")
        initial = self.experiment.initializer.stream(len(self.tasks))
        history.random_init = [e.accuracy for e in self.evaluate_all(initial)]
        history.accuracy, history.scored = [], []
        for _ in range(history.converted - 1):
            history.append_unknown_row()
        history.append_row(self.evaluate_all(stream))

    def _refuse_other_tasks(self, record: Mapping[str, Any]) -> None:
        """Refuses to go on inside a task with sizes that depend on other tasks."""
        names = record.get("tasks", self.experiment.names)
        if names != self.experiment.names:
            raise UserError(
                f"training stopped inside task '{record['task']}' of {', '.join(names)}. Finish it "
                f"with these tasks first (config.tasks is {', '.join(self.experiment.names)}); "
                "then add others."
            )

    def _selection(self) -> str:
        training = self.experiment.training
        if not training.best:
            return "last epoch"
        split = "test (a leak)" if training.validates_on_test else "validation"
        return f"best {split} accuracy over the epochs (ties: likelihood)"

    def kept_examples(self, index: int) -> list[tuple[int, int]]:
        """Task and place of the examples that a memory holds before the task `index`."""
        method = self.experiment.learner.method
        if method.rehearsal != "memory":
            return []
        counts = [len(task.splits["train"]) for task in self.tasks[:index]]
        return reservoir(self.experiment.seed, counts, method.options.memory)

    @property
    def joint(self) -> bool:
        """Whether all tasks are trained at once."""
        return self.experiment.learner.method.rehearsal == "joint"

    def _parameters(self, stream: Stream) -> dict[str, int]:
        """Numbers of parameters: frozen, trained at a time, kept to answer and to learn more."""
        initializer, count = self.experiment.initializer, len(self.tasks)
        active = jax.eval_shape(lambda: initializer.begin(initializer.shared(count), 0))
        kept = (stream.shared, [(done.expert, done.head) for done in stream.finished.values()])
        return {
            "frozen": _size(self.experiment.frozen),
            "trained": _size(active),
            "stored": _size(kept) + _size(stream.memory),
        }

    def _results(self, stream: Stream, history: History) -> dict[str, Any]:
        results = {
            "accuracy_matrix": history.accuracy,
            "random_init": history.random_init,
            "metrics": summarize(np.array(history.accuracy), np.array(history.random_init)),
            "scored_accuracy_matrix": history.scored,
            "validation_accuracy": history.validation,
            "task_free": history.task_free,
            "gate_weights": history.gate_weights,
            "sizes": {split: [len(t.splits[split]) for t in self.tasks] for split in SPLITS},
            "steps": history.global_step,
            "parameters": self._parameters(stream),
            "stored_examples": len(self.kept_examples(len(self.tasks))),
            "selection": self._selection(),
            "wall_seconds": history.wall_seconds,
        }
        if self.experiment.learner.head == "classification":
            del results["scored_accuracy_matrix"]  # the same as accuracy_matrix
        if not history.gate_weights:
            del results["gate_weights"]
        return results


def _size(tree: Any) -> int:
    """Numbers in a tree."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def versions() -> dict[str, str]:
    """Versions of Python and of what results depend on."""
    packages = {name: metadata.version(name) for name in _VERSIONS}
    return {"python": platform.python_version(), **packages, "backend": jax.default_backend()}
