"""Makes a service of a workdir."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastapi import FastAPI

from moecl_jax.errors import UserError
from moecl_jax.service.app import make_app
from moecl_jax.service.engine import Engine
from moecl_jax.service.keys import Keys, require
from moecl_jax.service.labelling import Labeller
from moecl_jax.service.limits import Limits
from moecl_jax.service.policy import read_policy
from moecl_jax.service.reload import Reloader, add_reload
from moecl_jax.service.review_routes import add_routes
from moecl_jax.service.reviews import ReviewStore
from moecl_jax.serving.session import open_run


def open_service(
    workdir: Path,
    keys: Keys,
    *,
    thresholds: Sequence[str] = (),
    block: Sequence[str] = (),
    reviews: Path | None = None,
    limits: Limits | None = None,
) -> tuple[FastAPI, Engine]:
    """The application and the engine, which is started, of a workdir's finished tasks.

    All programs are compiled before it returns.

    Args:
      workdir: folder of a training or a conversion.
      keys: who may call.
      thresholds: files of thresholds, as `read_policy` takes them.
      block: labels whose texts are blocked.
      reviews: file that keeps texts to review and decisions; None for `reviews.db` in the workdir.
      limits: what is accepted.

    Raises:
      UserError: nothing with labels is finished in the workdir, thresholds do not fit, or reviews
        cannot be kept.
    """
    labeller = Labeller(open_run(workdir))
    policy = read_policy(thresholds, block, labeller.labels)
    store = ReviewStore(reviews or workdir / "reviews.db")
    labeller.prepare()
    engine = Engine(labeller, policy, limits)
    engine.start()
    app = make_app(engine, keys)
    model = labeller.session.evaluator.model

    def open_newest() -> Labeller:
        newest = Labeller(open_run(workdir, model=model))
        newest.prepare()
        return newest

    add_reload(app, Reloader(engine, open_newest, _accuracies))
    add_routes(app, store, engine, require)
    return app, engine


def _accuracies(labeller: Any) -> dict[str, float]:
    """Accuracy on the validation split of each task with labels, NaN where it is empty.

    Raises:
      UserError: the data of a task cannot be read.
    """
    found = labeller.session.evaluate("validation")["tasks"]
    for task in labeller.tasks:
        if "error" in found[task]:
            raise UserError(found[task]["error"])
    known = {task: found[task]["accuracy"] for task in labeller.tasks}
    return {task: math.nan if value is None else value for task, value in known.items()}
