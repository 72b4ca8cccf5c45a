"""Makes a service of a workdir."""

import functools
import logging
import threading
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
from moecl_jax.service.watch import Watcher, finished_mark
from moecl_jax.serving.session import open_run

_log = logging.getLogger(__name__)


def open_service(
    workdir: Path,
    keys: Keys,
    *,
    thresholds: Sequence[str] = (),
    block: Sequence[str] = (),
    reviews: Path | None = None,
    limits: Limits | None = None,
    watch: float | None = None,
) -> tuple[FastAPI, Engine]:
    """The application and the engine, which is started, of a workdir's finished tasks.

    All programs are compiled before it returns. Validation texts, with which scores are compared,
    are labelled while the service answers already.

    Args:
      workdir: folder of a training or a conversion.
      keys: who may call.
      thresholds: files of thresholds, as `read_policy` takes them.
      block: labels whose texts are blocked.
      reviews: file that keeps texts to review and decisions; None for `reviews.db` in the workdir.
      limits: what is accepted.
      watch: seconds between two looks for a newer checkpoint; None for none.

    Raises:
      UserError: nothing with labels is finished in the workdir, thresholds do not fit, or reviews
        cannot be kept.
    """
    mark = functools.partial(finished_mark, workdir)
    before = mark()  # what is finished from here on is news
    labeller = Labeller(open_run(workdir))
    policy = read_policy(thresholds, block, labeller.labels)
    store = ReviewStore(reviews or workdir / "reviews.db")
    labeller.prepare()
    engine = Engine(labeller, policy, limits)
    engine.start()
    threading.Thread(
        target=_watch_scores, args=(labeller, engine.closing), name="moecl-validation"
    ).start()
    app = make_app(engine, keys)
    model = labeller.session.evaluator.model

    def open_newest() -> Labeller:
        newest = Labeller(open_run(workdir, model=model))
        newest.prepare()
        newest.watch_scores()
        return newest

    reloader = Reloader(engine, open_newest, _accuracies)
    add_reload(app, reloader)
    add_routes(app, store, engine, require)
    if watch is not None:
        Watcher(engine, reloader, mark, before).start(watch)
    return app, engine


def _watch_scores(labeller: Labeller, closing: threading.Event) -> None:
    try:
        labeller.watch_scores(closing)
    except (UserError, OSError) as error:
        _log.warning("scores are not compared with those of validation texts: %s", error)


def _accuracies(labeller: Any) -> dict[str, float]:
    """Accuracy on the validation split of each task with labels, NaN where it is empty.

    Raises:
      UserError: the data of a task cannot be read.
    """
    session, found = labeller.session, dict[str, float]()
    evaluator = session.evaluator
    wanted = [evaluator.tasks[evaluator.index(name)] for name in labeller.tasks]
    for task in evaluator.load(wanted):
        index = evaluator.index(task.name)
        parameters = evaluator.starting.task(session.state, task.name, index)
        examples = task.splits["validation"]
        found[task.name] = float(evaluator.evaluate(parameters, index, examples).accuracy)
    return found
