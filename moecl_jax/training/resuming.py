"""What a training looks at before it goes on where another one stopped."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from moecl_jax import reporting
from moecl_jax.data.tokenize import TokenizedTask
from moecl_jax.errors import UserError
from moecl_jax.methods.base import Method
from moecl_jax.models.sharding import first_process, wait_for_all
from moecl_jax.runs.data_record import DataRecord
from moecl_jax.runs.features import TaskFeatures
from moecl_jax.runs.log import plain
from moecl_jax.runs.names import CONFIG_NAME
from moecl_jax.runs.settings import Settings
from moecl_jax.runs.store import DiskStore, Store
from moecl_jax.runs.workdir import load_settings
from moecl_jax.serving.evaluator import Evaluator
from moecl_jax.serving.task_free import features_of


def mend(store: DiskStore, *, back: bool) -> None:
    """Deletes what a killed process left unfinished.

    Args:
      store: the checkpoints of the workdir.
      back: whether to go back to the newest whole state.
    """
    if first_process():
        store.checkpoints.tidy()
        if back:
            for line in store.go_back():
                reporting.current().message(line)
    wait_for_all("mended")
    record = store.in_progress()
    of_a_finished_task = record is not None and record["task"] in store.finished_names()
    wait_for_all("read")
    if of_a_finished_task:  # the process was killed before it could forget this state
        store.checkpoints.clear_in_progress()


def goes_on(workdir: Path, now: DataRecord, begun: Sequence[str], *, accept: bool) -> DataRecord:
    """The record of the data, after a comparison with that of the training before.

    Args:
      workdir: folder of the run.
      now: record of what was read now.
      begun: names of the tasks whose training was begun before.
      accept: whether a change is accepted.

    Raises:
      UserError: something has changed that is not accepted.
    """
    before = DataRecord.load(workdir)
    if before is None or not begun:
        return now
    return before.followed_by(now, begun, accept=accept)


def may_be_without_data(method: Method, store: Store) -> list[str]:
    """Names of the finished tasks, unless the method trains later tasks on their examples too."""
    policy = method.examples
    return [] if policy.joint or policy.joined else store.finished_names()


def add_known_sizes(
    sizes: Mapping[str, list[int]], tasks: Sequence[TokenizedTask], data: DataRecord
) -> None:
    """Puts in the numbers of examples of tasks whose data are gone, as they were noted.

    Args:
      sizes: for each split the number of examples of each task, which are changed.
      tasks: tasks of the stream.
      data: record of what was read when it was there.
    """
    for place, task in enumerate(tasks):
        for split, counts in sizes.items():
            counts[place] = data.size(task.name, split) if task.unread else counts[place]


def note_new_values(settings: Settings, workdir: Path, begun: Sequence[str]) -> None:
    """Reports with which new values the tasks are trained that were not begun yet.

    Args:
      settings: settings of the run that goes on.
      workdir: its folder, with the settings of the run before.
      begun: names of the tasks that were begun.
    """
    left = [name for name in settings.tasks if name not in begun]
    if not begun or not left or not (workdir / CONFIG_NAME).exists():
        return
    before = load_settings(workdir).values_by_task
    for key, value in settings.values_by_task.items():
        if key in before and before[key] != value:
            reporting.current().message(
                f"from task '{left[0]}' on, {key} is {value!r}; it was {before[key]!r}"
            )


def other_values(
    trained: Mapping[str, Mapping[str, Any]], settings: Settings
) -> dict[str, dict[str, Any]]:
    """Values with which tasks were trained that are not the run's own, by task and key.

    Args:
      trained: values by the task's name, as `History` has them.
      settings: settings of the run.
    """
    known = plain(settings.values_by_task)
    found = {
        name: {key: value for key, value in plain(values).items() if known.get(key) != value}
        for name, values in trained.items()
    }
    return {name: values for name, values in found.items() if values}


def features_again(evaluator: Evaluator, tasks: Sequence[TokenizedTask]) -> TaskFeatures | None:
    """Features of the finished tasks, where they are not with their checkpoints.

    None where a task has no training examples here, as after a conversion.
    """
    features = TaskFeatures.blank(evaluator.starting.sizes.width)
    for task in tasks:
        if task.definition.free_form or task.definition.removed:
            continue
        if not task.splits["train"]:
            return None
        features = features.joined(features_of(evaluator, task.name, task.splits["train"]))
    return features


def refuse_other_tasks_inside(record: Mapping[str, Any], now: Sequence[str]) -> None:
    """Refuses to go on inside a task with sizes that depend on other tasks.

    Args:
      record: record of the state inside a task.
      now: names of the stream's tasks.

    Raises:
      UserError: the tasks are other ones.
    """
    names = record.get("tasks", now)
    if names != list(now):
        raise UserError(
            f"training stopped inside task '{record['task']}' of {', '.join(names)}. Finish it "
            f"with these tasks first (config.tasks is {', '.join(now)}); then add others."
        )
