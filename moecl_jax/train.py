"""The task loop: train, select, evaluate on every task, save; then the next task."""

import dataclasses
import functools
import math
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from moecl_jax.checkpoint import TaskCheckpoints
from moecl_jax.data.batching import chunks, epoch_order, make_batch
from moecl_jax.data.tokenize import TokenizedExample, TokenizedTask
from moecl_jax.errors import UserError
from moecl_jax.evaluate import Evaluation, evaluate_examples, score, written_accuracy
from moecl_jax.experiment import Experiment, build, load_tasks
from moecl_jax.generation import Writer
from moecl_jax.metrics import summarize
from moecl_jax.progress import MetricsLog, Progress, plain
from moecl_jax.resume import (
    NO_SCORE,
    History,
    check_fingerprint,
    in_progress_tree,
    restore_stream,
    restore_task,
    save_finished,
    save_in_progress,
    task_trees,
)
from moecl_jax.state import Finished, Stream, finish
from moecl_jax.steps import Active, Metrics, init_train_state
from moecl_jax.workdir import RESULTS_NAME, refuse_other_config, save_config, write_json

_VERSIONS = ("moecl_jax", "jax", "flax", "optax", "orbax-checkpoint", "transformers")


def train(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Trains on the stream of tasks, or goes on where an earlier run in `workdir` stopped.

    Args:
      config: as in configs/default.py.
      workdir: gets config.json, metrics.jsonl, TensorBoard events, checkpoints and results.json.

    Returns:
      What results.json holds.

    Raises:
      UserError: the config or the data are at fault, or the workdir belongs to another run.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    refuse_other_config(config, workdir)
    experiment = build(config)
    run = Run(experiment, load_tasks(config, experiment), workdir)
    save_config(config, workdir)
    results = plain(
        {
            "method": config.method,
            "tasks": experiment.names,
            **run.run(),
            "seed": config.seed,
            "versions": versions(),
        }
    )
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
        self.begun = time.perf_counter()

    def run(self) -> dict[str, Any]:
        """Trains what is not finished yet; returns the matrix and what is computed from it."""
        stream, history = restore_stream(self.experiment, self.checkpoints)
        for task in self.tasks[len(stream.finished) :]:
            task.require_training_examples()
        shared = self.experiment.initializer.shared(len(self.tasks))
        if history is None:
            print("evaluating the untrained model on every task", file=sys.stderr, flush=True)
            history = History([e.accuracy for e in self.evaluate_all(Stream(shared, {}))])
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
        with MetricsLog(self.workdir, resumed_step=resumed_step) as log:
            for index in range(finished, len(self.tasks)):
                stream = self.train_task(index, stream, history, log)
        return self._results(history)

    def train_task(self, index: int, stream: Stream, history: History, log: MetricsLog) -> Stream:
        """Trains one task to its end, evaluates on all tasks and saves it."""
        task = self.tasks[index]
        training = TaskTraining(self, index, stream, history, log)
        active, validation = training.run()
        stream = finish(stream, task.name, active, len(task.labels))
        history.append_row(self.evaluate_all(stream))
        history.validation.append(validation)
        history.global_step += training.total_steps
        history.wall_seconds += time.perf_counter() - self.begun
        self.begun = time.perf_counter()
        save_finished(self.experiment, self.checkpoints, stream, history)
        return stream

    def evaluate_all(self, stream: Stream) -> list[Evaluation]:
        """Test results on all tasks, with the starting values of those not trained yet."""
        return [self.evaluate_task(stream, index, "test") for index in range(len(self.tasks))]

    def evaluate_task(self, stream: Stream, index: int, split: str) -> Evaluation:
        """Results of one task on one split, with its finished expert or its starting value."""
        return self.evaluate_active(task_trees(self.experiment, stream, index), index, split)

    def evaluate_active(self, active: Active, index: int, split: str) -> Evaluation:
        """Results of given trees on one split of a task."""
        task, examples = self.tasks[index], self.tasks[index].splits[split]
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
        accuracy = self._written_accuracy(writer, active, index, examples)
        return dataclasses.replace(evaluation, accuracy=accuracy)

    def _written_accuracy(
        self, writer: Writer, active: Active, index: int, examples: Sequence[TokenizedExample]
    ) -> float:
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
        return written_accuracy(
            write,
            lambda ids: tokenizer.decode(ids, skip_special_tokens=True),
            examples,
            experiment.answers[index],
            definition.metric,
        )

    def _fill_columns(self, history: History) -> None:
        """Adds the columns of tasks that were not in the stream when earlier ones were trained.

        Each is evaluated with the shared trees of that time, which its checkpoint holds.
        """
        known, count = len(history.random_init), len(self.tasks)
        if known == count:
            return
        initial = Stream(self.experiment.initializer.shared(count), {})
        for column in range(known, count):
            history.random_init.append(self.evaluate_task(initial, column, "test").accuracy)
        for row, name in enumerate(self.experiment.names[: len(history.accuracy)]):
            if row < history.converted - 1:  # its shared trees of that time are not known
                for matrix in (history.accuracy, history.scored):
                    matrix[row] += [math.nan] * (count - known)
                continue
            record = self.checkpoints.finished_record(row, name) or {}
            task_count = len(record["random_init"])
            tree = restore_task(self.experiment, self.checkpoints, row, task_count)
            shared = self.experiment.initializer.extend(tree["shared"], count)
            stream = Stream(shared, {name: Finished(tree["expert"], tree["head"])})
            for column in range(known, count):
                evaluation = self.evaluate_task(stream, column, "test")
                history.accuracy[row].append(evaluation.accuracy)
                history.scored[row].append(evaluation.scored_accuracy)

    def _measure_converted(self, stream: Stream, history: History) -> None:
        """Evaluates the state that was converted, which is what its last task left."""
        print("evaluating the converted model on every task", file=sys.stderr, flush=True)
        initial = Stream(self.experiment.initializer.shared(len(self.tasks)), {})
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

    def _results(self, history: History) -> dict[str, Any]:
        results = {
            "accuracy_matrix": history.accuracy,
            "random_init": history.random_init,
            "metrics": summarize(np.array(history.accuracy), np.array(history.random_init)),
            "scored_accuracy_matrix": history.scored,
            "validation_accuracy": history.validation,
            "selection": self._selection(),
            "wall_seconds": history.wall_seconds,
        }
        if self.experiment.learner.head == "classification":
            del results["scored_accuracy_matrix"]  # the same as accuracy_matrix
        return results


class TaskTraining:
    """The training of one task, resumable after any checkpoint."""

    def __init__(self, run: Run, index: int, stream: Stream, history: History, log: MetricsLog):
        """Begins the task, or restores what an interrupted run had reached in it."""
        experiment = run.experiment
        self.parent, self.index, self.log = run, index, log
        self.experiment, self.task = experiment, run.tasks[index]
        self.examples = self.task.splits["train"]
        self.size = experiment.training_layout.batch_size
        self.epoch_steps = -(-len(self.examples) // self.size)
        self.total_steps = self.epoch_steps * experiment.training.epochs
        self.earlier_steps = history.global_step

        active = task_trees(experiment, stream, index)
        key = experiment.initializer.training_key(index)
        self.state = init_train_state(experiment.learner, copy_tree(active), key)
        self.step = 0
        self.best, self.best_score = active, NO_SCORE
        self.validates = bool(self.task.splits["validation"])
        if experiment.training.best and not self.validates:
            raise UserError(
                f"task '{self.task.name}' has no validation examples to select the best epoch by; "
                "set data.validation_fraction above 0, or selection=last"
            )
        record = run.checkpoints.in_progress_record()
        if record is not None and record["task"] == self.task.name:
            self._restore(record)
        self.pending: dict[str, Any] | None = None
        self.since_log, self.logged_at = np.zeros(2), time.perf_counter()

    def run(self) -> tuple[Active, float | None]:
        """Trains to the end; returns the selected trees and their validation accuracy, if any."""
        label = f"task {self.index + 1}/{len(self.parent.tasks)} {self.task.name}"
        epochs, place = divmod(self.step, self.epoch_steps)
        count = len(self.examples)
        done = epochs * count + place * self.size
        total = self.experiment.training.epochs * count
        with Progress(label, total, done=done) as progress:
            while self.step < self.total_steps:
                self._run_epoch(progress)
        return self.best, self.best_score[0] if self.validates else None

    def _run_epoch(self, progress: Progress) -> None:
        """Trains to the end of the current epoch, validates and saves."""
        training = self.experiment.training
        epoch, place = divmod(self.step, self.epoch_steps)
        order = epoch_order(self.experiment.seed, self.index, epoch, len(self.examples))
        for chunk in list(chunks(order, self.size))[place:]:
            metrics = self._train_batch([self.examples[index] for index in chunk])
            self._write_pending(progress)
            if self.step % training.log_every == 0:
                rate = training.schedule(self.step - 1, self.total_steps)
                self.pending = {
                    "step": self.earlier_steps + self.step,
                    "task": self.task.name,
                    "epoch": epoch,
                    "learning_rate": rate,
                    "metrics": metrics,
                }
            progress.update(len(chunk))
            if self.step % training.checkpoint_every == 0 and self.step % self.epoch_steps:
                self._save(progress)
        reached = self._validate()
        if reached > self.best_score or not training.best:
            self.best, self.best_score = copy_tree(self.state.active), reached
        self._save(progress)

    def _validate(self) -> tuple[float, float]:
        """Validation accuracy and, to break ties, likelihood."""
        if not self.validates:
            return self.best_score
        evaluation = self.parent.evaluate_active(self.state.active, self.index, "validation")
        return evaluation.accuracy, evaluation.log_likelihood

    def _train_batch(self, examples: Sequence[TokenizedExample]) -> Metrics:
        experiment = self.experiment
        batch = make_batch(
            examples,
            experiment.answers[self.index],
            experiment.training_layout,
            task_index=self.index,
            class_count=len(self.task.labels),
            training=True,
        )
        rate = np.float32(experiment.training.schedule(self.step, self.total_steps))
        self.state, metrics = experiment.train_step(self.state, experiment.frozen, batch, rate)
        self.step += 1
        self.since_log += np.array([len(examples), np.count_nonzero(batch.segments)])
        return metrics

    def _write_pending(self, progress: Progress) -> None:
        """Logs the last step to be logged, one step late so that the device never waits."""
        if self.pending is None:
            return
        metrics = {name: float(value) for name, value in self.pending.pop("metrics").items()}
        now = time.perf_counter()
        speed, self.logged_at = self.since_log / (now - self.logged_at), now
        self.since_log = np.zeros(2)
        speeds = {"examples_per_second": speed[0], "tokens_per_second": speed[1]}
        self.log.write({**self.pending, **metrics, **speeds})
        progress.update(0, metrics["loss"])
        self.pending = None

    def _save(self, progress: Progress) -> None:
        """Saves a state from which to go on, after all that was logged up to it."""
        self._write_pending(progress)
        save_in_progress(
            self.experiment,
            self.parent.checkpoints,
            self.index,
            self.state,
            best=self.best,
            best_score=self.best_score,
        )

    def _restore(self, record: Mapping[str, Any]) -> None:
        tree = self.parent.checkpoints.restore_in_progress(in_progress_tree(self.state, self.best))
        self.step = int(record["step"])
        self.best = tree["best"]
        self.best_score = tuple(record["best_score"])
        self.state = dataclasses.replace(
            self.state,
            step=jnp.asarray(self.step, jnp.int32),
            active=tree["active"],
            optimizer_state=tree["optimizer_state"],
        )


def copy_tree(tree: Any) -> Any:
    """A copy on the device, which a step that is given the original cannot overwrite."""
    return jax.tree.map(jnp.copy, tree)


def versions() -> dict[str, str]:
    """Versions of Python and of what results depend on."""
    packages = {name: metadata.version(name) for name in _VERSIONS}
    return {"python": platform.python_version(), **packages, "backend": jax.default_backend()}
