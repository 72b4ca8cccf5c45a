"""Tasks that are more data of an earlier task of the stream.

A stream may be `mail, news, mail_2` where `mail_2` continues `mail`: what answers for `mail` goes
on from where it was when `mail_2` is trained, and from then on answers for both names. Each is a
row and a column of the accuracy matrix.

    trained so far    answers for mail    answers for mail_2
    mail              mail's expert       mail's expert
    mail, news        mail's expert       mail's expert
    all three         mail_2's expert     mail_2's expert

A third part `mail_3` continues `mail` too, and starts from `mail_2`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from moecl_jax.data.catalog import CATALOG
from moecl_jax.data.task import Task
from moecl_jax.errors import UserError, listed

INHERITED = ("labels", "response_field", "metric", "template", "chat")
"""Fields in which a task is the one that it continues: how it is asked, and how it answers."""


def first_names(tasks: Sequence[Task]) -> dict[str, str]:
    """For the name of each task that continues another, the name of that one."""
    return {task.name: task.continues for task in tasks if task.continues}


def with_inherited(definitions: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Definitions of which those that continue a task have its fields that they leave out.

    Args:
      definitions: fields of tasks by name; a task that is continued may be of the catalog.
    """
    completed: dict[str, Mapping[str, Any]] = {}
    for name, fields in definitions.items():
        first = str(fields.get("continues", ""))  # any other value is refused by `Task`
        known = definitions.get(first, {})
        if not known and first in CATALOG:
            known = CATALOG[first].to_fields()
        inherited = {key: known[key] for key in INHERITED if key in known}
        completed[name] = {**inherited, **fields}
    return completed


def check_continued(tasks: Sequence[Task], *, joint: bool = False) -> None:
    """Checks the tasks of a stream that continue others.

    Args:
      tasks: tasks in their order.
      joint: whether all are trained at once.

    Raises:
      UserError: a task continues one that is not before it, that continues another one itself, or
        that is asked or answers in another way; or all are trained at once.
    """
    before: dict[str, Task] = {}
    for task in tasks:
        if task.continues:
            _check(task, before, joint)
        before[task.name] = task


def _check(task: Task, before: Mapping[str, Task], joint: bool) -> None:
    first = before.get(task.continues)
    able = [name for name, each in before.items() if not (each.continues or each.removed)]
    if first is None or first.removed:
        raise task.error(
            "continues", f"must name a task that is trained before it: {listed(able) or 'none is'}"
        )
    if first.continues:
        raise task.error(
            "continues", f"is a task that continues '{first.continues}' itself; name that one"
        )
    if joint:
        raise task.error(
            "continues",
            "is for methods that train one task after another, and this one trains all at once; "
            f"add the examples to those of '{first.name}'",
        )
    for field in INHERITED:
        ours, theirs = getattr(task, field), getattr(first, field)
        if field == "response_field":  # the data may have another name for it
            ours, theirs = bool(ours), bool(theirs)
        if ours != theirs:
            raise UserError(
                f"task '{task.name}': {field} = {getattr(task, field)!r} must be that of "
                f"'{first.name}', which it continues: {getattr(first, field)!r}."
            )
