"""The HTTP routes of a service, described by its OpenAPI document at /openapi.json."""

import logging
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, create_model

import moecl_jax
from moecl_jax.data.characters import is_blank
from moecl_jax.errors import UserError
from moecl_jax.service.engine import Engine
from moecl_jax.service.guard import Guard
from moecl_jax.service.keys import Holder, Keys, Role, require
from moecl_jax.service.limits import Limits, Refused
from moecl_jax.service.policy import Decision

_log = logging.getLogger(__name__)

Caller = Annotated[Holder, Depends(require(Role.CALLER))]


class Problem(BaseModel):
    """Why a request was refused."""

    detail: str


class Answer(BaseModel):
    """The answer to one text."""

    task: str | None = Field(description="task that answered")
    label: str | None = Field(description="best label; null where there is an error")
    probabilities: dict[str, float] = Field(description="probability of each label of the task")
    decision: Decision = Field(description="review: a person has to decide")
    thresholds: str | None = Field(description="version of the task's thresholds, if it has any")
    checkpoint: str = Field(description="version of the parameters that answered")
    truncated: bool = Field(description="whether the text was cut to fit the model")
    error: str | None = Field(description="why the text could not be labelled")


class Answers(BaseModel):
    """The answers to the texts of a request, in their order."""

    answers: list[Answer]


class TaskInformation(BaseModel):
    """A task that can be asked."""

    name: str
    labels: list[str]
    thresholds: str | None


class Tasks(BaseModel):
    """What the service answers with."""

    tasks: list[TaskInformation]
    checkpoint: str
    finds_task: bool = Field(description="whether a text's task can be found from the text")


class Status(BaseModel):
    """Whether the service does its work."""

    status: str


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI descriptions of refusals by these statuses."""
    reasons = {
        400: "the body cannot be read, for instance as UTF-8",
        401: "no valid key",
        403: "the key's role is too low",
        408: "the body did not arrive in time",
        409: "it cannot be done now, or would make answers worse",
        413: "the body is too long",
        422: "the body does not say what is expected",
        429: "too many texts of this caller wait; see Retry-After",
        503: "too much waits, or the service stops; see Retry-After",
    }
    return {status: {"model": Problem, "description": reasons[status]} for status in statuses}


def make_app(engine: Engine, keys: Keys) -> FastAPI:
    """The application of a service, which any ASGI server serves. Further routes may be added.

    Args:
      engine: answers; it was started.
      keys: who may call.
    """
    app = FastAPI(
        title="moecl",
        version=moecl_jax.__version__,
        description="Labels texts, and says which of them a person has to review.",
        docs_url=None,  # its page would load scripts from elsewhere
        redoc_url=None,
    )
    app.state.keys = keys
    app.add_middleware(
        Guard,
        keys=keys,
        limits=engine.limits,
        metrics=engine.metrics,
        draining=lambda: engine.draining,
    )
    app.add_exception_handler(Refused, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    _add_classify(app, engine)
    _add_state(app, engine)
    return app


def _add_classify(app: FastAPI, engine: Engine) -> None:
    body = _request_model(engine.limits)

    @app.post("/v1/classify", responses=refusals(400, 401, 403, 408, 413, 422, 429, 503))
    async def classify(request: body, holder: Caller) -> Answers:  # type: ignore[valid-type]
        """Labels one text or several, and decides each of them."""
        given: Any = request
        found = await engine.classify(given.texts, given.task, caller=holder.name)
        return Answers(answers=[Answer(**answer) for answer in found])

    @app.get("/v1/tasks", responses=refusals(401, 403))
    async def tasks(_: Caller) -> Tasks:
        """The tasks that can be asked, with their labels and versions."""
        labeller = engine.labeller
        return Tasks(
            tasks=[
                TaskInformation(
                    name=name,
                    labels=list(labeller.labels[name]),
                    thresholds=engine.policy.version(name),
                )
                for name in labeller.tasks
            ],
            checkpoint=labeller.checkpoint,
            finds_task=labeller.choosing_problem is None,
        )


def _add_state(app: FastAPI, engine: Engine) -> None:
    @app.get("/healthz", responses={503: {"model": Status}})
    async def healthz() -> JSONResponse:
        """Whether the service lives; if not, it has to be started again."""
        return _status(engine.alive, "ok", "the thread that answers has ended")

    @app.get("/readyz", responses={503: {"model": Status}})
    async def readyz() -> JSONResponse:
        """Whether requests should be sent here."""
        return _status(engine.alive and not engine.draining, "ok", "stopping")

    @app.get("/metrics", responses=refusals(401, 403), response_class=PlainTextResponse)
    async def metrics(_: Caller) -> Response:
        """Counters and times for Prometheus."""
        return Response(engine.metrics.text(), media_type="text/plain; version=0.0.4")


def _status(good: bool, yes: str, no: str) -> JSONResponse:
    return JSONResponse({"status": yes if good else no}, 200 if good else 503)


def _request_model(limits: Limits) -> type[BaseModel]:
    """The body of /v1/classify, whose description has the limits in it."""
    text = Annotated[
        str, Field(min_length=1, max_length=limits.text_characters), AfterValidator(_not_blank)
    ]
    listed = Annotated[list[text], Field(min_length=1, max_length=limits.texts)]
    one_or_many = BeforeValidator(
        lambda value: [value] if isinstance(value, str) else value,
        json_schema_input_type=text | listed,
    )
    return create_model(
        "ClassifyRequest",
        __config__=ConfigDict(extra="forbid"),
        texts=(Annotated[listed, one_or_many], Field(description="one text, or several")),
        task=(
            str | None,
            Field(None, description="name of a task; by default each text's is found from it"),
        ),
    )


def _not_blank(text: str) -> str:
    if is_blank(text):
        raise ValueError("has no visible character")
    return text


async def _refused(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, Refused)
    return JSONResponse({"detail": error.detail}, error.status, error.headers)


async def _invalid(_: Request, error: Exception) -> JSONResponse:
    """The first thing that is wrong with a body, by its place; never what was sent."""
    assert isinstance(error, RequestValidationError)
    errors: Sequence[Mapping[str, Any]] = error.errors()
    place = ".".join(str(part) for part in errors[0]["loc"][1:]) or "body"
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    problem = errors[0]["msg"].removeprefix("Value error, ")
    # UserError's message is one line of printable characters, whatever a key was named.
    return JSONResponse({"detail": str(UserError(f"{place}: {problem}{more}"))}, 422)
