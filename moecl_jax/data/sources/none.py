"""No examples: a task that is only used, not trained or scored."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar

from moecl_jax.data.sources.base import Record, Source

if TYPE_CHECKING:
    from moecl_jax.data.task import Task


class NoData(Source):
    """The source of a task without data, such as one whose expert was converted."""

    name: ClassVar[str] = "none"

    def check(self, task: "Task") -> None:
        """There is nothing to name."""
        super().check(task)
        for attribute in ("path", "train", "validation", "test"):
            if getattr(task, attribute):
                raise task.error(attribute, "must be empty: source 'none' is a task without data")

    def read(self, task: "Task", split: str) -> Iterable[Record]:  # noqa: ARG002
        """Nothing."""
        return ()
