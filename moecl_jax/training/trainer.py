"""Trains a method on a stream of tasks: from model, method and tasks to a session and results."""

import contextlib
import functools
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from moecl_jax import reporting, stopping
from moecl_jax.data.continued import check_continued
from moecl_jax.data.task import SPLITS, Task
from moecl_jax.data.tokenize import TokenizedExample, TokenizedTask
from moecl_jax.errors import UserError
from moecl_jax.methods import Method, find_method, spec_of
from moecl_jax.methods.stream import StreamState
from moecl_jax.models.model import Model
from moecl_jax.models.sharding import first_process, wait_for_all
from moecl_jax.runs.data_record import DataRecord
from moecl_jax.runs.features import TaskFeatures
from moecl_jax.runs.history import Evaluation, History
from moecl_jax.runs.lock import claimed
from moecl_jax.runs.log import MetricsLog, plain
from moecl_jax.runs.names import RESULTS_NAME
from moecl_jax.runs.results import Results
from moecl_jax.runs.settings import Settings, settings_of
from moecl_jax.runs.store import DiskStore, MemoryStore, Store
from moecl_jax.runs.workdir import check_workdir, save_settings, write_json
from moecl_jax.serving.evaluator import Evaluator
from moecl_jax.serving.robustness import robustness_of_stream
from moecl_jax.serving.session import Session, model_of
from moecl_jax.serving.task_free import evaluate_task_free, features_of
from moecl_jax.training.facts import parameter_counts, versions
from moecl_jax.training.figures import show_row, show_untrained
from moecl_jax.training.pretraining import pretrained
from moecl_jax.training.resuming import (
    add_known_sizes,
    features_again,
    goes_on,
    may_be_without_data,
    mend,
    note_new_values,
    other_values,
    refuse_other_tasks_inside,
)
from moecl_jax.training.steps import make_optimizer
from moecl_jax.training.task_training import TaskTraining, TrainingSteps
from moecl_jax.training.work import REST, set_plan

RESUME = ("newest", "last-good")


class Trainer:
    """Trains a method on tasks, one after another.

    Attributes:
      model: frozen LLM.
      method: continual-learning method.
      settings: all settings but the tasks.
      workdir: folder of the run, or None to train in memory.
    """

    def __init__(
        self,
        model: Model,
        method: str | type[Method] | Method = "moe_cl",
        *,
        workdir: str | Path | None = None,
        settings: Settings | None = None,
        resume: str = "newest",
        accept_changes: bool = False,
        **changes: Any,
    ):
        """Prepares a training; nothing is read or written yet.

        Args:
          model: frozen LLM, as `load_model` gives it.
          method: a method's name, "package.module:Class", its class, or an object of it.
          workdir: folder that gets config.json, metrics.jsonl, checkpoints and results.json, and
            from which an interrupted training goes on. None keeps everything in memory.
          settings: settings to start from; the defaults if none are given.
          resume: "newest" goes on from the newest state in the workdir, and refuses it if it is
            damaged; "last-good" goes back to the newest whole state, says what is lost, and sets
            the rest aside.
          accept_changes: whether a training may go on although the tokenizer or the data are no
            longer those that it was begun with; `Results` then names what changed.
          **changes: settings by key, such as `epochs=2`, `seed=1` or
            `optimizer={"learning_rate": 1e-3}`; a section may be given in part.

        Raises:
          UserError: the method cannot be found, a key is unknown, or a value is not allowed.
        """
        if resume not in RESUME:
            raise UserError(f"resume = {resume!r} is not one of {', '.join(RESUME)}")
        self.resume, self.accept_changes = resume, accept_changes
        known = Settings() if settings is None else settings
        if isinstance(method, Method):
            changes = settings_of(method) | changes
        else:
            changes = {"method": spec_of(find_method(method))} | changes
        section = {
            "path": model.source,
            "dtype": jax.numpy.dtype(model.dtype).name,
            "quantization": model.quantization,
        }
        self._task_settings = changes.pop("task_settings", known.task_settings)
        self.settings = known.changed({**changes, "model": section, "task_settings": {}})
        self.model, self.method = model, self.settings.method_object()
        self.workdir = None if workdir is None else Path(workdir)
        self._memory = MemoryStore()

    def fit(self, tasks: Sequence[Task]) -> Session:
        """Trains on the tasks that are not finished yet, and gives a session that answers.

        Call it again with more tasks at the end of the list to go on.

        Args:
          tasks: tasks of the stream in their order; none twice.

        Raises:
          UserError: tasks, model and method do not fit each other, data cannot be read, the
            workdir belongs to another run, or another process trains in it.
        """
        tasks = list(tasks)
        names = [task.name for task in tasks]
        if not names or len(set(names)) < len(names):
            raise UserError(f"tasks must hold at least one task, none twice; it holds {names}")
        definitions = {
            **self.settings.definitions,
            **{task.name: task.to_fields() for task in tasks},
        }
        changes = {
            "tasks": tuple(names),
            "definitions": definitions,
            "task_settings": self._task_settings,
        }
        return self._train(self.settings.changed(changes), tasks)

    def _train(self, settings: Settings, tasks: Sequence[Task]) -> Session:
        with contextlib.ExitStack() as stack:
            if self.workdir is not None:
                stack.enter_context(claimed(self.workdir))
                settings = check_workdir(settings, self.workdir)
                given = {task.name: task for task in tasks}
                tasks = [given.get(task.name, task) for task in settings.task_objects()]
            check_continued(tasks, joint=self.method.examples.joint)
            evaluator = Evaluator(self.model, self.method, tasks, settings)
            store = self._store(evaluator)
            if isinstance(store, DiskStore):
                mend(store, back=self.resume == "last-good")
            tokenized = evaluator.load(spared=may_be_without_data(self.method, store))
            run = StreamTraining(evaluator, tokenized, store, self.workdir)
            data = DataRecord.of(tokenized, self.model.tokenizer)
            if self.workdir is not None:
                data = goes_on(self.workdir, data, run.begun_tasks(), accept=self.accept_changes)
                note_new_values(settings, self.workdir, run.begun_tasks())
                if first_process():
                    save_settings(settings, self.workdir)
                    data.save(self.workdir)
            wait_for_all("begun")
            alone = jax.process_count() == 1  # several would have to stop at the same step
            with stopping.heeding() if alone else contextlib.nullcontext():
                state, content = run.run()
            add_known_sizes(content["sizes"], tokenized, data)
            content = plain(
                {
                    "method": self.method.name,
                    "tasks": evaluator.names,
                    **content,
                    **({"accepted_changes": data.accepted} if data.accepted else {}),
                    "seed": settings.seed,
                    "versions": versions(),
                }
            )
            if self.workdir is not None and first_process():
                write_json(self.workdir / RESULTS_NAME, content)
        place = "the session" if self.workdir is None else str(self.workdir)
        return Session(evaluator, store, state, Results.from_content(content), place=place)

    def _store(self, evaluator: Evaluator) -> Store:
        if self.workdir is not None:
            return DiskStore(
                self.workdir,
                evaluator.tasks,
                evaluator.starting,
                self.model,
                evaluator.settings,
            )
        self._memory.tasks, self._memory.starting = evaluator.tasks, evaluator.starting
        return self._memory


def train(
    settings: Settings, workdir: Path, *, resume: str = "newest", accept_changes: bool = False
) -> dict[str, Any]:
    """Trains as a config asks, or goes on where an earlier run in `workdir` stopped.

    Args:
      settings: all settings of the run.
      workdir: gets config.json, metrics.jsonl, TensorBoard events, checkpoints and results.json.
      resume: "newest" or "last-good", as for `Trainer`.
      accept_changes: whether tokenizer and data may have changed, as for `Trainer`.

    Returns:
      What results.json holds.

    Raises:
      UserError: the settings or the data are at fault, the workdir belongs to another run, or
        another process trains in it.
    """
    with claimed(workdir):
        check_workdir(settings, workdir)
    tasks = settings.task_objects()
    trainer = Trainer(
        model_of(settings),
        settings.method,
        workdir=workdir,
        settings=settings,
        resume=resume,
        accept_changes=accept_changes,
    )
    session = trainer._train(settings, tasks)
    assert session.results is not None
    return dict(session.results.content)


class StreamTraining:
    """One stream being trained."""

    def __init__(
        self,
        evaluator: Evaluator,
        tasks: Sequence[TokenizedTask],
        store: Store,
        workdir: Path | None,
    ):
        """Prepares the training.

        Args:
          evaluator: model, method and tasks.
          tasks: the tokenised tasks.
          store: keeps the state.
          workdir: gets the log; None for none.
        """
        self.evaluator, self.tasks, self.store, self.workdir = evaluator, tasks, store, workdir
        self.settings, self.method = evaluator.settings, evaluator.method
        self.steps = TrainingSteps.compile(evaluator, tasks, optimizer_of(self.settings))
        self.own_steps: dict[int, TrainingSteps] = {}  # of tasks with settings of their own
        self.joint = self.method.examples.joint
        self.features: TaskFeatures | None = None  # of the finished label tasks, where known
        self.settled: dict[int, Evaluation] = {}  # results that never change again, by task
        self.begun = time.perf_counter()

    def run(self) -> tuple[StreamState, dict[str, Any]]:
        """Trains what is not finished yet; gives the state, the matrix and what follows from it."""
        with reporting.working() as progress:
            plan = functools.partial(set_plan, progress, self.evaluator, self.tasks, self.store)
            return self._run(plan)

    def _run(self, plan: Callable[..., None]) -> tuple[StreamState, dict[str, Any]]:
        stream, history = self.store.restore()
        if self.method.traits.expert_per_task:
            self.features = self.store.restore_features(stream)
            if self.features is None:
                self.features = features_again(self.evaluator, self.tasks[: len(stream.finished)])
        for task in self.tasks[len(stream.finished) :]:
            task.require_training_examples()
        plan(untrained=history is None)
        if history is None:
            reporting.current().message("evaluating the untrained model on every task")
            with reporting.stage("before training", REST):
                history = History.of_untrained(self.evaluate_all(stream))
            stream, history.pretraining = pretrained(self.evaluator, stream, self.workdir)
        elif len(history.accuracy) == history.converted:
            self._measure_converted(stream, history)
        else:
            self._fill_columns(history)
        finished = len(history.accuracy)
        resumed_step = history.global_step
        record = self.store.in_progress()
        if record is not None and record["task"] in self.evaluator.names[finished:]:
            refuse_other_tasks_inside(record, self.evaluator.names)
            resumed_step += record["step"]
        if finished < len(self.tasks) and self.method.traits.trains:
            with reporting.stage("compiling the training step"):
                self.steps_of(finished).prepare(stream)
        with self._log(resumed_step) as log:
            if not resumed_step:
                show_untrained(log.trackers, self.evaluator.names, history)
            for index, task in enumerate(self.tasks[finished:], finished):
                plan(settled=self.settled)
                with reporting.stage(f"task {index + 1}/{len(self.tasks)} {task.name}", REST):
                    stream = self._train_task(index, stream, history, log)
        return stream, self._results(stream, history)

    @contextlib.contextmanager
    def _log(self, resumed_step: int) -> Iterator[MetricsLog]:
        """The log in the workdir; where this process writes none, in a folder that goes away."""
        with contextlib.ExitStack() as stack:
            folder = self.workdir
            if folder is None or not first_process():
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            chosen = self.settings.trackers if first_process() else ()
            if self.workdir is None:  # the files would go away
                chosen = tuple(name for name in chosen if name != "tensorboard")
            yield stack.enter_context(
                MetricsLog(
                    folder,
                    resumed_step=resumed_step,
                    trackers=chosen,
                    settings=plain(self.settings.to_mapping()),
                )
            )

    def _train_task(
        self, index: int, stream: StreamState, history: History, log: MetricsLog
    ) -> StreamState:
        """Trains one task to its end, evaluates on all tasks and saves it."""
        task, starting, steps = self.tasks[index], self.evaluator.starting, self.steps_of(index)
        waits = self.joint and index + 1 < len(self.tasks)  # to be trained with the last task
        parameters, validation = starting.to_train(stream, task.name, index), None
        end = starting.task_end(index)
        if not waits:
            training = TaskTraining(
                steps, index, stream, self.store, log, earlier_steps=history.global_step
            )
            parameters, validation = training.run()
            end = training.end(parameters)
            history.global_step += training.total_steps
            history.skipped += training.watch.skipped
        parameters = self.evaluator.model.placement.host(parameters)
        finished = steps.evaluator.method.finish_task(parameters, end)
        stream = stream.after(task.name, finished, len(task.labels))
        for place in self.evaluator.same(index):  # from now on answered with this task's
            self.settled.pop(place, None)
        own_features = None
        if self.method.traits.expert_per_task and not task.definition.free_form:
            own_features = features_of(self.evaluator, task.name, task.splits["train"])
            self.features = self.features and self.features.joined(own_features)
        if waits:
            history.append_unknown_row()
        else:
            evaluations = self.evaluate_all(stream)
            history.append_row(evaluations, unchanged=self._unchanged(stream))
            history.task_free = self._task_free(stream, evaluations)
            history.robustness = robustness_of_stream(
                self.evaluator, self.tasks, stream, evaluations
            )
        history.validation.append(validation)
        history.task_settings[task.name] = steps.evaluator.settings.values_by_task
        if not waits:
            show_row(log.trackers, self.evaluator.names, history)
        history.wall_seconds += time.perf_counter() - self.begun
        self.begun = time.perf_counter()
        self.store.save_finished(stream, history, self.features, own_features)
        return stream

    def steps_of(self, index: int) -> TrainingSteps:
        """What a task is trained with: what all tasks share, unless it has settings of its own."""
        if not self.settings.task_settings.get(self.tasks[index].name):
            return self.steps
        if index not in self.own_steps:
            settings, model = self.settings.for_task(self.tasks[index].name), self.evaluator.model
            method, tasks = settings.method_object(), self.evaluator.tasks
            evaluator = Evaluator(model, method, tasks, settings)
            self.own_steps[index] = TrainingSteps.compile(
                evaluator, self.tasks, optimizer_of(settings)
            )
        return self.own_steps[index]

    def begun_tasks(self) -> list[str]:
        """Names of the tasks whose training was begun before."""
        record = self.store.in_progress()
        names = [] if record is None else [str(record["task"])]
        return [*self.store.finished_names(), *names]

    def evaluate_all(self, stream: StreamState) -> list[Evaluation]:
        """Test results on all tasks, with the starting values of those not trained yet.

        Where a finished task's answers never change, they are those that were measured before.
        Before the stream's end other tasks than the newest are measured by `early_examples`.
        """
        settled = self.method.traits.settled and not self.settings.shared_head
        found, count = [], len(stream.finished)
        for index, task in enumerate(self.tasks):
            evaluation = self.settled.get(index)
            final = settled and task.name in stream.finished
            if evaluation is None:
                whole = final or count in (index + 1, len(self.tasks))
                evaluation = self.evaluate_task(stream, index, "test", early=not whole)
            if final:
                self.settled[index] = evaluation
            found.append(evaluation)
        return found

    def _unchanged(self, stream: StreamState) -> list[int]:
        """Places of tasks that cannot be scored again, whose results never change."""
        if not self.method.traits.settled or self.settings.shared_head:
            return []
        count = len(stream.finished) - 1
        changed = self.evaluator.same(count)
        earlier = enumerate(self.tasks[:count])
        return [place for place, task in earlier if task.unread and place not in changed]

    def evaluate_task(
        self, stream: StreamState, index: int, split: str, *, early: bool = False
    ) -> Evaluation:
        """Results of one task on one split, with its finished expert or its starting value."""
        examples: Sequence[TokenizedExample] = self.tasks[index].splits[split]
        count = self.settings.evaluation.early_examples
        if early and 0 < count < len(examples):
            generator = np.random.default_rng((self.settings.seed, *b"early"))
            examples = [examples[i] for i in sorted(generator.permutation(len(examples))[:count])]
        parameters = self.evaluator.starting.task(stream, self.tasks[index].name, index)
        return self.evaluator.evaluate(parameters, index, examples)

    def _task_free(
        self, stream: StreamState, evaluations: Sequence[Evaluation]
    ) -> dict[str, Any] | None:
        """Results after the last task where the task is chosen; None where it cannot be."""
        if self.features is None or not self.features.names:
            return None
        if len(stream.finished) < len(self.tasks):
            return None
        return evaluate_task_free(self.evaluator, self.tasks, stream, self.features, evaluations)

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
                f"{self.workdir or 'the stream'} was trained on {known} tasks jointly; tasks "
                "cannot be added to that. Use another --workdir."
            )
        initial = self.evaluator.starting.stream(count)
        for column in range(known, count):
            history.append_untrained(self.evaluate_task(initial, column, "test", early=True))
        for row in range(len(history.accuracy)):
            if row < history.converted - 1 or not self.store.has_moment(row):  # of that time
                for matrix in (history.accuracy, history.scored):
                    matrix[row] += [np.nan] * (count - len(matrix[row]))
                continue
            stream = self.store.restore_moment(row)
            for column in range(len(history.accuracy[row]), count):
                evaluation = self.evaluate_task(stream, column, "test", early=True)
                history.accuracy[row].append(evaluation.accuracy)
                history.scored[row].append(evaluation.scored_accuracy)

    def _measure_converted(self, stream: StreamState, history: History) -> None:
        """Evaluates the state that was converted, which is what its last task left."""
        reporting.current().message("evaluating the converted model on every task")
        initial = self.evaluator.starting.stream(len(self.tasks))
        untrained = History.of_untrained(self.evaluate_all(initial))
        history.random_init = untrained.random_init
        history.scored_random_init = untrained.scored_random_init
        history.accuracy, history.scored = [], []
        for _ in range(history.converted - 1):
            history.append_unknown_row()
        history.append_row(self.evaluate_all(stream))

    def _selection(self) -> str:
        if self.settings.selection != "best":
            return "last epoch"
        leaks = self.settings.data.validation_from == "test"
        split = "test (a leak)" if leaks else "validation"
        return f"best {split} accuracy over the epochs (ties: likelihood)"

    def _results(self, stream: StreamState, history: History) -> dict[str, Any]:
        measured = history.results()
        if self.settings.head == "classification":
            for key in ("accuracy_matrix", "random_init"):  # the best score is the answer
                del measured[f"scored_{key}"]
        measured |= {
            "sizes": {split: [len(t.splits[split]) for t in self.tasks] for split in SPLITS},
            "parameters": parameter_counts(self.evaluator, stream),
            "stored_examples": len(self.steps.stored(stream.memory, len(self.tasks))),
            "selection": self._selection(),
        }
        others = other_values(history.task_settings, self.settings)
        return measured | ({"task_settings": others} if others else {})


def optimizer_of(settings: Settings) -> optax.GradientTransformation:
    """The optimizer that settings ask for, less its learning rate."""
    return make_optimizer(settings.optimizer.weight_decay, settings.optimizer.clip_norm)
