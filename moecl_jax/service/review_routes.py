"""The HTTP routes of the reviewer's page, and the page itself."""

import contextlib
import importlib.resources
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, Literal, Protocol
from urllib.parse import quote

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Query
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response, StreamingResponse
from pydantic import BaseModel, Field

from moecl_jax.errors import UserError, one_line
from moecl_jax.service.app import Problem, refusals
from moecl_jax.service.exports import export
from moecl_jax.service.incoming import read_texts
from moecl_jax.service.keys import LOCAL, Holder, Role
from moecl_jax.service.limits import Limits
from moecl_jax.service.reviews import ConflictError, Entry, NotFoundError, ReviewStore

MOST_TEXTS = 10_000
"""Texts that may be added at once."""

_AT_ONCE = 64  # texts that the engine is asked for at once, so that others' requests come between
_PAGE = importlib.resources.files("moecl_jax.service") / "page"
_FILES = {
    "page.js": "text/javascript",
    "picture.js": "text/javascript",
    "service.js": "text/javascript",
    "text.js": "text/javascript",
    "words.js": "text/javascript",
    "page.css": "text/css",
    "icon.svg": "image/svg+xml",
}
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "object-src 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}

_REFUSALS: dict[int | str, dict[str, Any]] = {
    404: {"model": Problem, "description": "there is no such text, or nothing to undo"},
    **refusals(400, 401, 403, 408, 409, 413, 422, 503),
}

_Name = Annotated[str, Field(pattern=r"^[\w.@ -]{1,64}$")]
_Request = Annotated[str, Field(pattern=r"^[A-Za-z0-9-]{8,64}$")]
_Item = Annotated[int, Field(ge=1, lt=2**63)]


class Engine(Protocol):
    """What labels texts: `moecl_jax.service.engine.Engine`, or what answers as it does."""

    limits: Limits

    async def classify(
        self, texts: Sequence[str], task: str | None = None, *, caller: str = "local"
    ) -> list[dict[str, Any]]:
        """Answers with `task`, `label`, `probabilities`, `decision` and versions for each text."""


class Undo(BaseModel):
    """Takes back what the reviewer did last."""

    request: _Request = Field(description="made by the client; a retry has the same one")
    reviewer: _Name | None = Field(
        None, description="name of the reviewer; a service with keys takes that of the key"
    )


class Skip(Undo):
    """Leaves a text for later."""

    item: _Item = Field(description="id of the text")


class Decision(Skip):
    """A reviewer's label for a text."""

    label: str = Field(max_length=1000, description="one of the text's labels")
    opinion_shown: bool = Field(False, description="whether the model's opinion was seen before")


class Texts(BaseModel):
    """Texts to label and to review."""

    content: str = Field(description="what was pasted, or the content of a file")
    format: Literal["lines", "jsonl", "csv", "tsv"] = Field(
        "lines", description="a text a line, JSON objects with `text`, or a table with that column"
    )
    task: str | None = Field(None, description="task of the texts; null to find it by the text")
    answers: bool = Field(False, description="whether the answers to the texts are returned")


def add_routes(
    app: FastAPI,
    store: ReviewStore,
    engine: Engine,
    require: Callable[[Role], Callable[..., Holder]],
) -> None:
    """Adds the page at `/` and what it calls, below `/v1/reviews`.

    Args:
      app: application of the service.
      store: keeps texts and decisions.
      engine: labels the texts that are added.
      require: makes the dependency that lets in holders of at least a role.
    """
    app.include_router(_page())
    app.include_router(_reviews(store, require(Role.REVIEWER)))
    app.include_router(_texts(store, engine, require(Role.CALLER)))


def _page() -> APIRouter:
    """The page and its files. They hold no text and no decision, so they need no key."""
    router = APIRouter(include_in_schema=False)

    def file(name: str, media_type: str) -> Callable[[], Response]:
        content = (_PAGE / name).read_bytes()
        return lambda: Response(content, media_type=media_type, headers=_HEADERS)

    router.get("/")(file("index.html", "text/html; charset=utf-8"))
    for name, media_type in _FILES.items():
        router.get(f"/page/{name}")(file(name, media_type))
    return router


def _reviews(store: ReviewStore, allowed: Callable[..., Holder]) -> APIRouter:
    router = APIRouter(prefix="/v1/reviews", tags=["reviews"], responses=_REFUSALS)
    reviewer_holder = Annotated[Holder, Depends(allowed)]

    @router.get("/next")
    def next_text(
        holder: reviewer_holder,
        reviewer: Annotated[_Name | None, Query()] = None,
        task: str | None = None,
        opinion: bool = False,
    ) -> dict[str, Any]:
        """The text to look at next, `null` if there is none; with the model's opinion if asked."""
        found = store.next_item(_reviewer(holder, reviewer), task)
        return {"item": _shown(found, opinion)}

    @router.post("/decisions")
    def decide(holder: reviewer_holder, decision: Decision) -> dict[str, Any]:
        """Records a decision. What is answered with 200 is on the disk."""
        with _answered():
            return store.decide(
                decision.item,
                decision.label,
                reviewer=_reviewer(holder, decision.reviewer),
                request=decision.request,
                opinion_shown=decision.opinion_shown,
            )

    @router.post("/skips")
    def skip(holder: reviewer_holder, skipped: Skip) -> dict[str, Any]:
        """Leaves a text for later."""
        reviewer = _reviewer(holder, skipped.reviewer)
        with _answered():
            row = store.skip(skipped.item, reviewer=reviewer, request=skipped.request)
        return {key: row[key] for key in ("id", "kind", "item", "at")}

    @router.post("/undos")
    def undo(holder: reviewer_holder, undone: Undo, opinion: bool = False) -> dict[str, Any]:
        """Takes back what the reviewer did last, and gives the text again."""
        reviewer = _reviewer(holder, undone.reviewer)
        with _answered():
            row = store.undo(reviewer=reviewer, request=undone.request)
        return {"id": row["id"], "item": _shown(row["undone"], opinion)}

    @router.get("/progress")
    def progress(holder: reviewer_holder) -> dict[str, Any]:
        """Numbers of texts by task, how well reviewers and the model agree, and who asks."""
        return {**store.progress(), "reviewer": holder.name, "named": holder is not LOCAL}

    @router.get("/export", response_class=StreamingResponse)
    def exported(
        _: reviewer_holder,
        format: Literal["task", "label-studio", "audit"] = "task",
        task: str | None = None,
        unsettled: bool = False,
    ) -> StreamingResponse:
        """Decided texts as a file of a task or as Label Studio's JSON, or the audit."""
        media_type = "application/json" if format == "label-studio" else "application/x-ndjson"
        name = f"{task or 'reviews'}.{'json' if format == 'label-studio' else 'jsonl'}"
        return StreamingResponse(
            export(store, format, task, unsettled=unsettled),
            media_type=media_type,
            headers={"Content-Disposition": f"attachment; filename*=UTF-8''{quote(name, '')}"},
        )

    return router


def _texts(store: ReviewStore, engine: Engine, allowed: Callable[..., Holder]) -> APIRouter:
    router = APIRouter(prefix="/v1/reviews", tags=["reviews"], responses=_REFUSALS)

    @router.post("/texts", responses=refusals(429))
    async def add(holder: Annotated[Holder, Depends(allowed)], texts: Texts) -> dict[str, Any]:
        """Labels texts and keeps them; those that the model does not decide are queued.

        Texts that are there already are counted, not added. So a request that was cut off may be
        sent again. `refused` has the place of each text that could not be labelled, from 1, and
        `answers`, if asked for, what the model said of each text, `null` where it was refused.
        """
        with _answered():
            found = await run_in_threadpool(read_texts, texts.content, texts.format)
        if len(found) > MOST_TEXTS:
            raise HTTPException(413, f"{len(found)} texts; at most {MOST_TEXTS} at once")
        counts, refused = Counter[str](), []
        said: list[dict[str, Any] | None] = [None] * len(found)
        most = engine.limits.text_characters
        numbered = list(enumerate(found, 1))
        for number, (text, _) in numbered:
            if len(text) > most:
                refused.append({"text": number, "detail": f"longer than {most} characters"})
        fitting = [one for one in numbered if len(one[1][0]) <= most]
        for start in range(0, len(fitting), _AT_ONCE):
            part = fitting[start : start + _AT_ONCE]
            answers = await engine.classify(
                [text for _, (text, _) in part], texts.task, caller=holder.name
            )
            entries = []
            for (number, (text, context)), answer in zip(part, answers, strict=True):
                if answer.get("error"):
                    refused.append({"text": number, "detail": answer["error"]})
                else:
                    said[number - 1] = answer
                    entries.append(Entry(text, answer, context))
            with _answered():
                added, repeated = await run_in_threadpool(store.add, entries)
            counts.update(added=added, repeated=repeated)
        told = {"added": counts["added"], "repeated": counts["repeated"], "refused": refused}
        return {**told, "answers": said} if texts.answers else told

    return router


def _reviewer(holder: Holder, given: str | None) -> str:
    """The name that goes into the audit: that of the key, or the given one where there is none."""
    return given or holder.name if holder is LOCAL else holder.name


def _shown(item: dict[str, Any] | None, opinion: bool) -> dict[str, Any] | None:
    """A text as a reviewer sees it, without what the model said unless they want to see it."""
    if item is None or opinion:
        return item
    return {key: value for key, value in item.items() if key != "model"}


@contextlib.contextmanager
def _answered() -> Iterator[None]:
    """Makes answers of errors that a client can mend."""
    try:
        yield
    except NotFoundError as error:
        raise HTTPException(404, one_line(error)) from error
    except ConflictError as error:
        raise HTTPException(409, one_line(error)) from error
    except UserError as error:
        raise HTTPException(422, one_line(error)) from error
