"""Changes the checkpoint of a service while it runs, and back."""

import asyncio
import math
from collections.abc import Callable, Mapping
from typing import Annotated

from fastapi import Depends, FastAPI
from pydantic import BaseModel, Field

from moecl_jax.errors import UserError, listed
from moecl_jax.service.app import refusals
from moecl_jax.service.engine import Engine, Labelling
from moecl_jax.service.keys import Holder, Role, require
from moecl_jax.service.limits import Refused

MOST_LOSS = 0.02
"""How much lower the accuracy of a task may be with a checkpoint that the service changes to."""

Admin = Annotated[Holder, Depends(require(Role.ADMIN))]


class Checked(BaseModel):
    """Accuracy of a task on its validation split; null where it has none."""

    before: float | None
    after: float | None


class Switched(BaseModel):
    """What a change of the checkpoint came to."""

    checkpoint: str = Field(description="version of what answers now")
    previous: str = Field(description="version of what answered before")
    accuracy: dict[str, Checked] = Field(description="by task; empty where nothing was checked")


class Reloader:
    """Changes the labeller of an engine, one change at a time.

    The labeller before stays in memory, so that a change back takes no time.
    """

    def __init__(
        self,
        engine: Engine,
        open_newest: Callable[[], Labelling],
        accuracies: Callable[[Labelling], Mapping[str, float]],
    ):
        """Takes what it needs of the place that checkpoints come from.

        Args:
          engine: the engine.
          open_newest: opens the newest checkpoint, with all programs compiled.
          accuracies: accuracy of a labeller on each task's validation split, by task.
        """
        self._engine, self._open, self._accuracies = engine, open_newest, accuracies
        self._previous: Labelling | None = None
        self._busy = False

    async def reload(self) -> Switched:
        """Changes to the newest checkpoint, unless it answers known tasks less well.

        Requests are answered meanwhile by the one before.

        Raises:
          Refused: there is none that can be read or checked, a task is missing, has other labels
            or an accuracy that falls by more than `MOST_LOSS`, or another change is under way.
        """
        if self._busy:
            raise Refused(409, "another change of the checkpoint is under way")
        self._busy = True
        try:
            return await asyncio.to_thread(self._reload)
        except (UserError, OSError) as error:
            raise Refused(409, str(UserError(f"nothing was changed: {error}"))) from error
        finally:
            self._busy = False

    async def rollback(self) -> Switched:
        """Changes back to the checkpoint before the last change; a second time, forth again.

        Raises:
          Refused: there was no change, or another one is under way.
        """
        if self._busy:
            raise Refused(409, "another change of the checkpoint is under way")
        if self._previous is None:
            raise Refused(409, "the checkpoint was not changed since the service was started")
        return self._switch(self._previous, {})

    def _reload(self) -> Switched:
        current, newest = self._engine.labeller, self._open()
        if newest.checkpoint == current.checkpoint:
            return Switched(checkpoint=current.checkpoint, previous=current.checkpoint, accuracy={})
        missing = set(current.tasks) - set(newest.tasks)
        if missing:
            raise UserError(f"the newest checkpoint lacks the tasks {', '.join(sorted(missing))}")
        for task in current.tasks:
            if set(newest.labels[task]) != set(current.labels[task]):
                raise UserError(
                    f"the labels of the task '{task}' were {listed(current.labels[task])} and are "
                    f"{listed(newest.labels[task])}; start the service again"
                )
        before, after = self._accuracies(current), self._accuracies(newest)
        worse = [
            f"{task} from {before[task]:.3f} to {after[task]:.3f}"
            for task in current.tasks
            if after[task] < before[task] - MOST_LOSS
            or (math.isnan(after[task]) and not math.isnan(before[task]))
        ]
        if worse:
            raise UserError(f"validation accuracy would fall: {'; '.join(worse)}")
        found = {
            task: Checked(before=_known(before.get(task)), after=_known(after.get(task)))
            for task in newest.tasks
        }
        return self._switch(newest, found)

    def _switch(self, labeller: Labelling, accuracy: dict[str, Checked]) -> Switched:
        before = self._engine.labeller
        self._engine.switch(labeller)
        self._previous = before
        return Switched(
            checkpoint=labeller.checkpoint, previous=before.checkpoint, accuracy=accuracy
        )


def add_reload(app: FastAPI, reloader: Reloader) -> None:
    """Adds the routes that change the checkpoint."""

    @app.post("/v1/reload", responses=refusals(401, 403, 408, 409, 413, 503))
    async def reload(_: Admin) -> Switched:
        """Changes to the newest checkpoint of the workdir, unless it answers less well."""
        return await reloader.reload()

    @app.post("/v1/rollback", responses=refusals(401, 403, 408, 409, 413, 503))
    async def rollback(_: Admin) -> Switched:
        """Changes back to the checkpoint before the last change."""
        return await reloader.rollback()


def _known(accuracy: float | None) -> float | None:
    return None if accuracy is None or math.isnan(accuracy) else accuracy
