"""The training of one task: epochs of steps, validation, and a state to go on from."""

import collections
import dataclasses
import functools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax

from moecl_jax import reporting, stopping
from moecl_jax.data.batching import Batch, chunks, epoch_order
from moecl_jax.data.rehearsal import PastTask
from moecl_jax.data.tokenize import TokenizedExample, TokenizedTask
from moecl_jax.errors import UserError
from moecl_jax.methods.base import TaskEnd, TaskStart
from moecl_jax.methods.forward import prompt_query
from moecl_jax.methods.parameters import TaskParameters, Tree
from moecl_jax.methods.stream import StreamState
from moecl_jax.models.sharding import preempted
from moecl_jax.progress import TRAIN, Stage
from moecl_jax.runs.log import MetricsLog
from moecl_jax.runs.store import Store
from moecl_jax.serving.evaluator import Evaluator, text_size
from moecl_jax.training.asked import Asked
from moecl_jax.training.figures import show_epoch
from moecl_jax.training.moments import (
    by_example,
    mean_moments,
    moments_step,
    no_moments,
    report_step,
)
from moecl_jax.training.pieces import Cutter, own_examples
from moecl_jax.training.schedule import Schedule
from moecl_jax.training.steps import (
    Metrics,
    Piece,
    Sums,
    TrainState,
    copied,
    init_train_state,
    no_sums,
    summed,
    train_piece,
)
from moecl_jax.training.watch import NotFinite, Watch

NO_SCORE = (-1.0, -math.inf)  # validation accuracy and likelihood before any epoch


@dataclasses.dataclass(frozen=True)
class TrainingSteps:
    """What the training of all tasks of a stream shares.

    Attributes:
      evaluator: model, method and tasks.
      tasks: tokenised tasks in their order.
      optimizer: optimizer that `steps.make_optimizer` gives.
      step: the compiled `steps.train_piece`.
      schedule: learning rate over a task's steps.
      cutter: cuts batches into pieces.
      moments_step: the compiled `moments.moments_step`.
      query_step: the compiled `forward.prompt_query`.
      asked_steps: compiled steps of `asked.Asked`, by the method's function.
    """

    evaluator: Evaluator
    tasks: Sequence[TokenizedTask]
    optimizer: optax.GradientTransformation
    step: jax.stages.Wrapped
    schedule: Schedule
    cutter: Cutter
    moments_step: jax.stages.Wrapped
    query_step: jax.stages.Wrapped
    asked_steps: dict[Any, Callable[..., Any]] = dataclasses.field(default_factory=dict)

    @classmethod
    def compile(
        cls,
        evaluator: Evaluator,
        tasks: Sequence[TokenizedTask],
        optimizer: optax.GradientTransformation,
    ) -> "TrainingSteps":
        """The steps of an evaluator's model and method.

        Raises:
          UserError: a training batch cannot be computed in so many parts, or an example is too
            long.
        """
        step = functools.partial(train_piece, context=evaluator.context, optimizer=optimizer)
        return cls(
            evaluator,
            tasks,
            optimizer,
            jax.jit(step, donate_argnums=(0, 1)),
            Schedule.of(evaluator.settings.optimizer),
            Cutter.of(evaluator, tasks),
            jax.jit(functools.partial(moments_step, context=evaluator.context), donate_argnums=0),
            jax.jit(functools.partial(prompt_query, context=evaluator.context)),
        )

    def prepare(self, stream: StreamState) -> None:
        """Compiles the step for all shapes of the stream's batches, so that no step waits later."""
        arguments = self._arguments(stream)
        for sample in self.cutter.samples():
            stopping.check()
            self.step.lower(*arguments, *sample, np.float32(0.0)).compile()

    def compiled(self, stream: StreamState, sample: tuple[Batch, Piece]) -> jax.stages.Compiled:
        """The compiled step for the shape of a batch; the model's weights may be shapes alone.

        Args:
          stream: state of the stream before one of its tasks.
          sample: a batch of the shape, as `Cutter.samples` gives it.
        """
        return self.step.lower(*self._arguments(stream), *sample, np.float32(0.0)).compile()

    def _arguments(self, stream: StreamState) -> tuple[TrainState, Sums, Tree]:
        """What the step is given beside a batch, at the beginning of the next task."""
        evaluator, method = self.evaluator, self.evaluator.method
        starting, placement = evaluator.starting, evaluator.model.placement
        index = len(stream.finished)
        parameters = starting.to_train(stream, evaluator.names[index], index)
        key, start = starting.training_key(index), starting.task_start(index)
        state = placement.put(init_train_state(method, self.optimizer, parameters, key, start))
        return state, placement.put(no_sums(state.active)), evaluator.model.params

    def past(self, count: int) -> list[PastTask]:
        """What is known of the first tasks' training examples."""
        return [
            PastTask(task.name, np.array([e.label for e in task.splits["train"]], np.int32))
            for task in self.tasks[:count]
        ]

    def stored(self, memory: Tree, count: int) -> list[tuple[int, int]]:
        """Task and place of the examples of the first tasks that are kept to join batches."""
        policy, seed = self.evaluator.method.examples, self.evaluator.settings.seed
        return list(policy.stored(memory, self.past(count), seed))


class TaskTraining:
    """The training of one task, resumable after any checkpoint."""

    def __init__(
        self,
        steps: TrainingSteps,
        index: int,
        stream: StreamState,
        store: Store,
        log: MetricsLog,
        *,
        earlier_steps: int,
    ):
        """Begins the task, or restores what an interrupted run had reached in it.

        Args:
          steps: what all tasks' training shares.
          index: place of the task.
          stream: state of the stream before the task.
          store: keeps states inside the task.
          log: gets the metrics of logged steps.
          earlier_steps: steps done in earlier tasks.
        """
        self.steps, self.evaluator = steps, steps.evaluator
        self.settings, self.method = self.evaluator.settings, self.evaluator.method
        self.index, self.task, self.store, self.log = index, steps.tasks[index], store, log
        self.stream = stream
        self.earlier_steps = earlier_steps
        self.policy = self.method.examples
        self.examples = self._own_examples()
        self.size = self.settings.batch.size
        self.epoch_steps = -(-len(self.examples) // self.size)
        self.total_steps = self.epoch_steps * self.evaluator.epochs

        starting, self.placement = self.evaluator.starting, self.evaluator.model.placement
        parameters = starting.to_train(stream, self.task.name, index)
        key = starting.training_key(index)
        state = init_train_state(
            self.method, steps.optimizer, parameters, key, self._start(parameters)
        )
        self.state = self.placement.put(state)
        self.sums = self.placement.put(no_sums(state.active))
        self.step = self.validated_epochs = 0
        self.best, self.best_score = parameters.replace(memory={}), NO_SCORE
        self.stored = self._stored_examples(stream.memory)
        self.validated = [
            place
            for place in (
                range(len(steps.tasks)) if self.policy.joint else self.evaluator.parts(index)
            )
            if steps.tasks[place].splits["validation"]
        ]
        self.validates = bool(self.validated) and self.method.traits.trains
        if self.evaluator.epochs and self.settings.selection == "best" and not self.validates:
            raise no_validation(self.task.name)
        record = store.in_progress()
        if record is not None and record["task"] == self.task.name:
            self._restore(record)
        # Not whole models, and the same choice in all processes, which fetch them together.
        self.shows_parameters = bool(self.settings.trackers) and not self.method.traits.trains_llm
        self.pending: dict[str, Any] | None = None
        self.begun: collections.deque[int] = collections.deque()  # examples of steps under way
        # Examples and tokens since the last step to be logged, and when that was finished.
        self.since_log, self.finished_at = np.zeros(2), time.perf_counter()
        skipped = 0 if record is None or self.step == 0 else int(record.get("skipped", 0))
        self.watch = Watch(self.task.name, len(steps.tasks), self.total_steps, skipped)

    def run(self) -> tuple[TaskParameters, float | None]:
        """Trains to the end; returns the selected parameters and their validation accuracy."""
        epochs, place = divmod(self.step, self.epoch_steps)
        count = len(self.examples)
        done = epochs * count + place * self.size
        total = self.evaluator.epochs * count
        size = text_size(self.examples)
        with reporting.stage("training", TRAIN, total, done=done, size=size) as stage:
            try:
                while self.validated_epochs < self.evaluator.epochs:
                    self._run_epoch(stage)
                self.watch.look_at_all()
            except NotFinite as error:
                raise self._kept(error, stage) from error
        best = self.best.replace(memory=self.state.memory)
        return best, self.best_score[0] if self.validates else None

    def end(self, parameters: TaskParameters) -> TaskEnd:
        """What the method may ask of the task's end with the selected parameters."""
        examples = self.task.splits["train"]
        asked = Asked(
            self.steps.cutter,
            self.steps.asked_steps,
            self.index,
            self.examples,
            self.stream,
            parameters,
            functools.partial(self.steps.stored, parameters.memory, self.index + 1),
        )
        return dataclasses.replace(
            self.evaluator.starting.task_end(self.index),
            over_kept=asked.over_kept,
            past=self.steps.past(self.index),
            labels=np.array([example.label for example in examples], np.int32),
            losses=lambda: -self._log_likelihoods(parameters),
            mean_of_gradients=asked.mean_of_gradients,
            inputs=functools.partial(self._inputs, parameters),
            reports=functools.partial(self._reports, parameters),
            queries=self._queries,
            examples=lambda: examples,
            features=lambda places: self.evaluator.features([examples[p] for p in places]),
            demonstrations=lambda places: self.evaluator.preceder.demonstrations(
                self.index, [examples[p] for p in places], self.evaluator.answers[self.index]
            ),
        )

    def _start(self, parameters: TaskParameters) -> TaskStart:
        """What the method may ask of the task's beginning."""
        return dataclasses.replace(
            self.evaluator.starting.task_start(self.index),
            inputs=functools.partial(self._inputs, parameters),
        )

    def _log_likelihoods(self, parameters: TaskParameters) -> np.ndarray:
        """Log-probability of each training example's answer, `[n]` float64."""
        examples = self.task.splits["train"]
        scores = self.evaluator.scores(parameters, self.index, examples).scores.astype(np.float64)
        if self.task.definition.free_form:
            return scores[:, 0]
        if self.settings.head == "classification":
            scores = scores - np.logaddexp.reduce(scores, axis=1, keepdims=True)
        return scores[np.arange(len(examples)), [example.label for example in examples]]

    def _inputs(self, parameters: TaskParameters) -> Tree:
        """Second moments of the projections' inputs: see `TaskStart`."""
        targets = self.method.lora.targets
        sums = self.placement.put(no_moments(self.evaluator.model.sizes, targets))
        parameters, frozen = self.placement.put(parameters), self.evaluator.model.params
        for batch in self.steps.cutter.of_one_shape(self.index, self.examples):
            stopping.check()
            sums = self.steps.moments_step(sums, parameters, frozen, batch)
        return mean_moments(self.placement.host(sums), targets)

    def _reports(self, parameters: TaskParameters, name: str) -> Mapping[str, np.ndarray]:
        """What the layers report of each training example: see `TaskEnd`."""
        context = dataclasses.replace(self.evaluator.context, reported=(name,))
        step = jax.jit(functools.partial(report_step, context=context))
        parameters, frozen = self.placement.put(parameters), self.evaluator.model.params
        reports, weights = [], []
        for batch in self.steps.cutter.of_one_shape(self.index, self.examples):
            stopping.check()
            reports.append(self.placement.host(step(parameters, frozen, batch)))
            weights.append(np.asarray(batch.weights))
        found: Mapping[str, np.ndarray] = by_example(reports, weights)
        return found

    def _queries(self) -> np.ndarray:
        """Mean word embeddings of the training examples' prompts: see `TaskEnd`."""
        found = []
        for batch in self.steps.cutter.of_one_shape(self.index, self.examples):
            stopping.check()
            rows = self.steps.query_step(self.evaluator.model.params, batch)
            found.append(np.asarray(rows)[batch.weights > 0])
        return np.concatenate(found)

    def _own_examples(self) -> list[TokenizedExample]:
        """What an epoch passes over."""
        if self.policy.joint:
            return [e for place in range(len(self.steps.tasks)) for e in self._training(place)]
        return self._training(self.index)

    def _stored_examples(self, memory: Tree) -> list[TokenizedExample]:
        """Examples of earlier tasks that join batches."""
        kept = self.steps.stored(memory, self.index)
        splits = {task: self._training(task) for task in {task for task, _ in kept}}
        return [splits[task][place] for task, place in kept]

    def _training(self, index: int) -> list[TokenizedExample]:
        return own_examples(self.evaluator, self.steps.tasks[index], index)

    def _run_epoch(self, stage: Stage) -> None:
        """Trains to the end of the current epoch, validates and saves."""
        settings, epoch = self.settings, self.validated_epochs
        stage.label = f"epoch {epoch + 1}/{settings.epochs}"
        place = self.step - epoch * self.epoch_steps
        order = epoch_order(settings.seed, self.index, epoch, len(self.examples))
        for chunk in list(chunks(order, self.size))[place:]:
            metrics = self._train_batch([self.examples[index] for index in chunk])
            self._write_pending(stage)
            if self.step % settings.log_every == 0:
                loss: Any = metrics["loss"]
                rate = self.steps.schedule(self.step - 1, self.total_steps)
                self.pending = {
                    "step": self.earlier_steps + self.step,
                    "task": self.task.name,
                    "epoch": epoch,
                    "task_step": self.step,
                    "task_steps": self.total_steps,
                    "learning_rate": rate,
                    "metrics": metrics,
                    "counts": self.since_log,
                    "finished_at": time.perf_counter() if loss.is_ready() else None,
                }
                self.since_log = np.zeros(2)
            self.begun.append(len(chunk))
            self._count_done()
            if stopping.requested() or preempted(self.earlier_steps + self.step):
                self._save(stage)
                raise stopping.Stopped
            if self.step % settings.checkpoint_every == 0 and self.step % self.epoch_steps:
                self._save(stage)
        self.watch.look_at_all()
        self._count_done()
        try:
            reached = self._validate()
        except stopping.Stopped:
            self._save(stage)
            raise
        show_epoch(
            self.log.trackers,
            self.task.name,
            self.earlier_steps + self.step,
            reached if self.validates else (math.nan, math.nan),
            self.placement.host(self.state.active) if self.shows_parameters else {},
        )
        if reached > self.best_score or settings.selection == "last":
            self.best, self.best_score = copied(self.state.active), reached
        self.validated_epochs += 1
        self._save(stage)

    def _count_done(self) -> None:
        """Tells of the steps that the device has finished, whose time has passed."""
        while len(self.begun) > self.watch.under_way:
            reporting.advance(self.begun.popleft())

    def _validate(self) -> tuple[float, float]:
        """Validation accuracy and, to break ties, likelihood."""
        if not self.validates:
            return self.best_score
        results = [
            self.evaluator.evaluate(
                self.state.answering, index, self.steps.tasks[index].splits["validation"]
            )
            for index in self.validated
        ]
        accuracy = float(np.mean([result.accuracy for result in results]))
        return accuracy, float(np.mean([result.log_likelihood for result in results]))

    def _train_batch(self, examples: Sequence[TokenizedExample]) -> Metrics:
        places = self.policy.draw(self.settings.seed, self.index, self.step, len(self.stored))
        joined = [self.stored[place] for place in places]
        members = [*examples, *joined]
        rate = np.float32(self.steps.schedule(self.step, self.total_steps))
        frozen, parts = self.evaluator.model.params, []
        for batch, piece in self.steps.cutter.cut(self.index, members):
            self.state, self.sums, metrics = self.steps.step(
                self.state, self.sums, frozen, batch, piece, rate
            )
            parts.append(metrics)
            self.since_log[1] += np.count_nonzero(batch.segments)
        self.since_log[0] += len(examples)
        self.step += 1
        metrics = summed(parts)
        self.watch.add(self.step, metrics.pop("skipped"), metrics, members)
        return metrics

    def _write_pending(self, stage: Stage) -> None:
        """Logs the last step to be logged, one step late so that the device never waits.

        A line's speeds are those since the step of the line before it was finished. Losses are
        shown apart: their sum, in which the adversarial one counts negative, may be below 0.
        """
        if self.pending is None:
            return
        pending, self.pending = self.pending, None
        metrics = {
            name: np.asarray(value).tolist() for name, value in pending.pop("metrics").items()
        }
        counts, finished_at = pending.pop("counts"), pending.pop("finished_at")
        # A step that was not finished when it was begun is so now that its metrics are here.
        finished_at = time.perf_counter() if finished_at is None else finished_at
        speed, self.finished_at = counts / (finished_at - self.finished_at), finished_at
        speeds = {"examples_per_second": speed[0], "tokens_per_second": speed[1]}
        self.log.write({**pending, **metrics, **speeds})
        adversarial = metrics["loss_adversarial"]  # 0 in methods without one
        stage.losses = {"loss": metrics["loss_instruction"]} | (
            {"adversarial": adversarial} if adversarial else {}
        )

    def _save(self, stage: Stage) -> None:
        """Saves a state from which to go on, after all that was logged up to it."""
        self._write_pending(stage)
        self.watch.look_at_all()
        record: dict[str, Any] = {
            "step": self.step,
            "validated_epochs": self.validated_epochs,
            "best_score": list(self.best_score),
        }
        if self.watch.skipped:
            record["skipped"] = self.watch.skipped
        self.store.save_in_progress(self.index, in_progress_tree(self.state, self.best), record)

    def _kept(self, error: NotFinite, stage: Stage) -> UserError:
        """Saves the state before the steps that were skipped, which they left as it was."""
        self.pending = None
        self.step = error.steps[0].step - 1
        self.validated_epochs = min(self.validated_epochs, self.step // self.epoch_steps)
        self.watch.skipped -= len(error.steps)
        self._save(stage)
        steps = [dataclasses.asdict(step) for step in error.steps]
        place = self.log.note_not_finite({"task": self.task.name, "steps": steps})
        listed = f"; {place} lists the examples" if self.store.lasting else ""
        return UserError(f"{error}{listed}.")

    def _restore(self, record: Mapping[str, Any]) -> None:
        tree = self.store.restore_in_progress(in_progress_tree(self.state, self.best))
        self.step = int(record["step"])
        self.validated_epochs = int(record["validated_epochs"])
        self.best = self.placement.put(tree["best"])
        self.best_score = tuple(record["best_score"])
        reached = dataclasses.replace(
            self.state,
            step=np.asarray(self.step, np.int32),
            active=tree["active"],
            optimizer_state=tree["optimizer_state"],
        )
        self.state = self.placement.put(reached)


def no_validation(task: str) -> UserError:
    """What is raised where the best epoch of a task is asked for and nothing tells it."""
    return UserError(
        f"task '{task}' has no validation examples to select the best epoch by; set "
        "data.validation_fraction above 0, or selection=last"
    )


def in_progress_tree(state: TrainState, best: TaskParameters) -> dict[str, Any]:
    """The arrays that are saved of a state inside a task."""
    return {"active": state.active, "optimizer_state": state.optimizer_state, "best": best}
