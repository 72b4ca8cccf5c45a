"""No examples: a task that is only used, not trained or scored, or one that was removed."""

from collections.abc import Iterable
from typing import ClassVar

from moecl_jax.data.sources.base import Definition, Record, Source


class NoData(Source):
    """The source of a task without data, such as one whose expert was converted."""

    name: ClassVar[str] = "none"

    def check(self, task: Definition) -> None:
        """There is nothing to name."""
        super().check(task)
        for attribute in ("path", "train", "validation", "test"):
            if getattr(task, attribute):
                raise task.error(
                    attribute, f"must be empty: source '{self.name}' is a task without data"
                )

    def read(self, task: Definition, split: str) -> Iterable[Record]:  # noqa: ARG002
        """Nothing."""
        return ()


class Removed(NoData):
    """The source of a task that was removed from a workdir, and keeps its place in the stream."""

    name: ClassVar[str] = "removed"
