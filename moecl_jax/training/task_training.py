"""The training of one task: epochs of steps, validation, and a state to go on from."""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from moecl_jax.data.batching import Batch, Layout, chunks, epoch_order, make_batch
from moecl_jax.data.rehearsal import replayed, with_response
from moecl_jax.data.tokenize import TokenizedExample
from moecl_jax.errors import UserError
from moecl_jax.methods.base import Tree
from moecl_jax.methods.state import Stream
from moecl_jax.runs import reporting
from moecl_jax.runs.log import MetricsLog
from moecl_jax.runs.resume import NO_SCORE, History, in_progress_tree, save_in_progress, task_trees
from moecl_jax.training.steps import Active, Metrics, init_train_state

if TYPE_CHECKING:
    from moecl_jax.training.trainer import Run


class TaskTraining:
    """The training of one task, resumable after any checkpoint."""

    def __init__(self, run: "Run", index: int, stream: Stream, history: History, log: MetricsLog):
        """Begins the task, or restores what an interrupted run had reached in it."""
        experiment = run.experiment
        self.parent, self.index, self.log = run, index, log
        self.experiment, self.task = experiment, run.tasks[index]
        self.method = experiment.learner.method
        self.examples, self.stored = self._own_examples(), self._stored_examples()
        self.size = experiment.batch_size
        self.epoch_steps = -(-len(self.examples) // self.size)
        self.total_steps = self.epoch_steps * experiment.training.epochs
        self.earlier_steps = history.global_step

        active = task_trees(experiment, stream, index)
        key = experiment.initializer.training_key(index)
        self.placement = experiment.learner.placement
        state = init_train_state(experiment.learner, copy_tree(active), key)
        self.state = self.placement.put(state)
        self.step = 0
        self.best, self.best_score = dataclasses.replace(active, memory={}), NO_SCORE
        self.validated = [
            place
            for place in (range(len(run.tasks)) if run.joint else [index])
            if run.tasks[place].splits["validation"]
        ]
        self.validates = bool(self.validated)
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
        with reporting.current().task(label, total, done) as progress:
            while self.step < self.total_steps:
                self._run_epoch(progress)
        best = dataclasses.replace(self.best, memory=self.state.memory)
        return best, self.best_score[0] if self.validates else None

    def importance(self, active: Active) -> Tree:
        """Mean squared gradients of the shared trees over examples of the task's training split."""
        count = min(self.method.importance_examples, len(self.examples))
        if not count:
            return {}
        layout = dataclasses.replace(self.experiment.training_layout, batch_size=1, parts=1)
        generator = np.random.default_rng((self.experiment.seed, self.index, *b"importance"))
        active, total = self.placement.put(active), None
        for place in generator.permutation(len(self.examples))[:count]:
            batch = self._batch([self.examples[place]], layout)
            squares = self.experiment.importance_step(active, self.experiment.frozen, batch)
            total = squares if total is None else jax.tree.map(jnp.add, total, squares)
        return jax.tree.map(lambda leaf: leaf / count, total)

    def _own_examples(self) -> list[TokenizedExample]:
        """What an epoch passes over."""
        if self.parent.joint:
            return [e for place in range(len(self.parent.tasks)) for e in self._training(place)]
        return self._training(self.index)

    def _stored_examples(self) -> list[TokenizedExample]:
        """Examples of earlier tasks that are replayed."""
        kept = self.parent.kept_examples(self.index)
        splits = {task: self._training(task) for task in {task for task, _ in kept}}
        return [splits[task][place] for task, place in kept]

    def _training(self, index: int) -> list[TokenizedExample]:
        """A task's training examples, as they mix with those of others if they have to."""
        examples = self.parent.tasks[index].splits["train"]
        if self.method.rehearsal == "none":
            return list(examples)
        return [with_response(example, self.experiment.answers[index]) for example in examples]

    def _run_epoch(self, progress: reporting.Progress) -> None:
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
        results = [
            self.parent.evaluate_active(self.state.answering, index, "validation")
            for index in self.validated
        ]
        accuracy = float(np.mean([result.accuracy for result in results]))
        return accuracy, float(np.mean([result.log_likelihood for result in results]))

    def _train_batch(self, examples: Sequence[TokenizedExample]) -> Metrics:
        experiment = self.experiment
        places = replayed(
            experiment.seed, self.index, self.step, len(self.stored), self.method.replayed
        )
        replay = [self.stored[place] for place in places]
        batch = self._batch([*examples, *replay], experiment.training_layout)
        rate = np.float32(experiment.training.schedule(self.step, self.total_steps))
        self.state, metrics = experiment.train_step(self.state, experiment.frozen, batch, rate)
        self.step += 1
        self.since_log += np.array([len(examples), np.count_nonzero(batch.segments)])
        return metrics

    def _batch(self, examples: Sequence[TokenizedExample], layout: Layout) -> Batch:
        return make_batch(
            examples,
            self.experiment.answers[self.index],
            layout,
            task_index=self.index,
            class_count=len(self.task.labels),
            training=True,
        )

    def _write_pending(self, progress: reporting.Progress) -> None:
        """Logs the last step to be logged, one step late so that the device never waits."""
        if self.pending is None:
            return
        metrics = {
            name: np.asarray(value).tolist() for name, value in self.pending.pop("metrics").items()
        }
        now = time.perf_counter()
        speed, self.logged_at = self.since_log / (now - self.logged_at), now
        self.since_log = np.zeros(2)
        speeds = {"examples_per_second": speed[0], "tokens_per_second": speed[1]}
        self.log.write({**self.pending, **metrics, **speeds})
        progress.update(0, metrics["loss"])
        self.pending = None

    def _save(self, progress: reporting.Progress) -> None:
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
        template = in_progress_tree(self.state, self.best)
        tree = self.parent.checkpoints.restore_in_progress(template)
        self.step = int(record["step"])
        self.best = self.placement.put(tree["best"])
        self.best_score = tuple(record["best_score"])
        reached = dataclasses.replace(
            self.state,
            step=np.asarray(self.step, np.int32),
            active=tree["active"],
            optimizer_state=tree["optimizer_state"],
        )
        self.state = self.placement.put(reached)


def copy_tree(tree: Any) -> Any:
    """A copy on the device, which a step that is given the original cannot overwrite."""
    return jax.tree.map(jnp.copy, tree)
