"""Checks a config and all its data without training, and reports all problems at once.

A problem is what `moecl train` would stop at; a warning is what it would leave out, or train on
although it is doubtful.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

import numpy as np

from moecl_jax import reporting
from moecl_jax.config.file import overridden, read_config
from moecl_jax.data.survey import Lengths, Rendered, Survey, lengths, rendered, survey
from moecl_jax.data.task import Task
from moecl_jax.data.tokenize import TokenizedTask, tokenize_answers, tokenize_task
from moecl_jax.errors import UserError
from moecl_jax.models.model import Model
from moecl_jax.runs.settings import Settings
from moecl_jax.serving.evaluator import Evaluator
from moecl_jax.serving.session import model_of
from moecl_jax.training.plan import TrainingPlan, TrainingTime, measure_training, plan_training
from moecl_jax.training.task_training import no_validation

_ANY_VOCABULARY = 2**31 - 1
"""What bounds `input_ids` where the model could not be read."""

Given = ParamSpec("Given")
Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True)
class TaskCheck:
    """What was found of a task.

    Attributes:
      survey: problems, warnings and examples.
      lengths: lengths in tokens; None where they cannot be told.
      rendered: an example as the model reads it; None likewise.
    """

    survey: Survey
    lengths: Lengths | None = None
    rendered: Rendered | None = None


@dataclasses.dataclass(frozen=True)
class Check:
    """What was found of a config and its data.

    Attributes:
      problems: what a training would stop at, a line each; empty if it can be started.
      warnings: what is doubtful, a line each.
      tasks: what was found of each task whose definition is right.
      plan: what the training will take; None where a problem leaves it open.
      time: how long it will take; None unless it was measured.
    """

    problems: tuple[str, ...]
    warnings: tuple[str, ...]
    tasks: tuple[TaskCheck, ...]
    plan: TrainingPlan | None = None
    time: TrainingTime | None = None


def check(file: str, overrides: Sequence[str] = (), *, measure: bool = False) -> Check:
    """Reads a config and all its data, without training.

    Args:
      file: a config file, as `load_config` takes it.
      overrides: flags of the form `--config.KEY=VALUE`.
      measure: whether the model's weights are loaded and a few steps are timed.
    """
    checking = _Checking()
    with reporting.use(reporting.SilentReporter()):
        return checking.run(file, overrides, measure=measure)


class _Checking:
    """One check; gathers problems as it goes on."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.warnings: list[str] = []

    def run(self, file: str, overrides: Sequence[str], *, measure: bool) -> Check:
        """See `check`."""
        settings = self._settings(file, overrides)
        if settings is None:
            return self._result(())
        tasks = self._tasks(settings)
        model = self.tried(model_of, settings, shapes_only=True)
        evaluator = None if model is None else self._evaluator(model, settings, tasks)
        found = tuple(self._task(task, settings, model) for task in tasks)
        whole = evaluator is not None and len(tasks) == len(settings.tasks)
        if not whole or any(task.survey.examples is None for task in found):
            return self._result(found)
        assert evaluator is not None
        tokenized = self._tokenized(evaluator, [task.survey for task in found])
        if tokenized is None:
            return self._result(found)
        plan = self.tried(plan_training, evaluator, tokenized)
        time = None
        if measure and plan is not None and not self.problems:
            time = self.tried(self._measured, evaluator, tokenized, plan)
        return self._result(found, plan, time)

    def tried(
        self, function: Callable[Given, Result], *args: Given.args, **kwargs: Given.kwargs
    ) -> Result | None:
        """What a call gives; None, and its message among the problems, where it raises one."""
        try:
            return function(*args, **kwargs)
        except UserError as error:
            if str(error) not in self.problems:
                self.problems.append(str(error))
            return None

    def _result(
        self,
        tasks: tuple[TaskCheck, ...],
        plan: TrainingPlan | None = None,
        time: TrainingTime | None = None,
    ) -> Check:
        return Check(tuple(self.problems), tuple(self.warnings), tasks, plan, time)

    def _settings(self, file: str, overrides: Sequence[str]) -> Settings | None:
        """The settings, in which values that are not allowed have their defaults."""
        config = self.tried(read_config, file, overrides)
        if config is None:
            return None
        for override in overrides:
            changed = self.tried(overridden, config, [override])
            config = config if changed is None else changed
        values = config.to_dict()
        try:
            return Settings.from_mapping(values)
        except UserError:
            return self.tried(Settings.from_mapping, self._allowed(values))

    def _allowed(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The values that are allowed, each looked at alone; the others are noted."""
        method = values.get("method", Settings.method)
        known = self.tried(Settings.from_mapping, {"method": method}) is not None
        base = {"method": method} if known else {}
        kept: dict[str, Any] = dict(base)
        for key, value in values.items():
            if key == "method":
                continue
            if key == "definitions" or not isinstance(value, Mapping):
                value = {key: value}
                parts = [value]
            else:
                parts = [{key: {name: each}} for name, each in value.items()]
            # Which tasks there are is looked at with the whole.
            others = {**base, "tasks": tuple(value)} if key == "task_settings" else base
            for part in parts:
                if self.tried(Settings.from_mapping, {**others, **part}) is None:
                    continue
                if isinstance(part[key], Mapping) and key != "definitions":
                    kept.setdefault(key, {}).update(part[key])
                else:
                    kept[key] = part[key]
        return kept

    def _tasks(self, settings: Settings) -> list[Task]:
        """The tasks of the stream whose definitions are right."""
        definitions = {
            name: fields
            for name, fields in settings.definitions.items()
            if self.tried(Task.from_fields, name, fields) is not None
        }
        tasks: dict[str, Task] = {}
        for name in settings.tasks:
            if name in settings.definitions and name not in definitions:
                continue
            only = {"tasks": (name,), "definitions": definitions, "task_settings": {}}
            alone = settings.changed(only)
            (task,) = self.tried(alone.task_objects) or (None,)
            if task is not None:
                tasks[name] = task
        if not settings.tasks or len(set(settings.tasks)) < len(settings.tasks):
            self.tried(settings.changed({"definitions": definitions}).task_objects)
        return list(tasks.values())

    def _evaluator(self, model: Model, settings: Settings, tasks: list[Task]) -> Evaluator | None:
        """Model, method and tasks, if they fit each other; each task is looked at alone first."""
        method = self.tried(settings.method_object)
        if method is None or not tasks:
            return None
        alone = [self.tried(Evaluator, model, method, [task], settings) for task in tasks]
        if None in alone:
            return None
        return self.tried(Evaluator, model, method, tasks, settings)

    def _task(self, task: Task, settings: Settings, model: Model | None) -> TaskCheck:
        """Surveys a task's data, and measures its examples."""
        size = _ANY_VOCABULARY if model is None else model.sizes.vocabulary_size
        found = survey(task, settings.data, seed=settings.seed, vocabulary_size=size)
        self.problems += [line for line in found.problems if line not in self.problems]
        self.warnings += found.warnings
        tokenizer = None if model is None else model.tokenizer
        if found.examples is None or tokenizer is None:
            return TaskCheck(found)
        examples = found.examples
        try:
            answers: Sequence[np.ndarray] = ()
            if settings.head == "lm" and not task.free_form:
                answers = tokenize_answers(task, tokenizer)
            measured = lengths(examples, answers, tokenizer, settings.data)
            shown = rendered(examples, answers, tokenizer, settings.data)
        except UserError as error:
            if str(error) not in self.problems:
                self.problems.append(str(error))
            return TaskCheck(found)
        self._warn_of_cuts(task, measured, settings)
        return TaskCheck(found, measured, shown)

    def _warn_of_cuts(self, task: Task, measured: Lengths, settings: Settings) -> None:
        data = settings.data
        what = "cuts" if data.over_long == "truncate" else "drops"
        if measured.cut_share >= 0.05:
            self.warnings.append(
                f"task '{task.name}': data.max_length = {data.max_length} {what} "
                f"{measured.cut_share:.0%} of the examples; {measured.suggested} {what} fewer than "
                "5%"
            )
        if measured.cut_responses >= 0.05:
            self.warnings.append(
                f"task '{task.name}': data.max_response = {data.max_response} {what} "
                f"{measured.cut_responses:.0%} of the responses; raise it"
            )

    def _tokenized(
        self, evaluator: Evaluator, surveys: Sequence[Survey]
    ) -> list[TokenizedTask] | None:
        """The tokenised tasks, if each has something to train on and to choose an epoch by."""
        settings, tokenized = evaluator.settings, []
        before = len(self.problems)
        for found, answers in zip(surveys, evaluator.answers, strict=True):
            assert found.examples is not None
            task = self.tried(
                tokenize_task,
                found.examples,
                answers,
                evaluator.model.tokenizer,
                max_length=settings.data.max_length,
                max_response=settings.data.max_response,
                over_long=settings.data.over_long,
            )
            tokenized += [] if task is None else [task]
        joint = evaluator.method.examples.joint
        validated = [bool(task.splits["validation"]) for task in tokenized]
        for task, own in zip(tokenized, validated, strict=True):
            self.tried(task.require_training_examples)
            if settings.selection == "best" and not (any(validated) if joint else own):
                self.problems.append(str(no_validation(task.name)))
        return tokenized if len(self.problems) == before else None

    def _measured(
        self, planned: Evaluator, tasks: Sequence[TokenizedTask], plan: TrainingPlan
    ) -> TrainingTime:
        settings = planned.settings
        evaluator = Evaluator(model_of(settings), planned.method, planned.tasks, settings)
        return measure_training(evaluator, tasks, plan)
