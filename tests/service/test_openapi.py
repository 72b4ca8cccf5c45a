"""Requests made from the OpenAPI document, valid and not: none of them is a server error."""

import os

import hypothesis
import pytest
from labellers import FakeLabeller

from moecl_jax.service.app import make_app
from moecl_jax.service.engine import Engine
from moecl_jax.service.keys import Holder, Keys, Role, require
from moecl_jax.service.limits import Limits
from moecl_jax.service.reload import Reloader, add_reload
from moecl_jax.service.review_routes import add_routes
from moecl_jax.service.reviews import ReviewStore

schemathesis = pytest.importorskip("schemathesis")
pytestmark = pytest.mark.slow

KEY = "k" * 16
CASES = int(os.environ.get("MOECL_OPENAPI_CASES", "100"))


@pytest.fixture(scope="module")
def schema(tmp_path_factory):
    engine = Engine(FakeLabeller(), limits=Limits(texts=4, text_characters=50))
    engine.start()
    app = make_app(engine, Keys({KEY: Holder("batch", Role.ADMIN)}))
    accuracies = dict.fromkeys(engine.labeller.tasks, 0.9)
    add_reload(app, Reloader(engine, lambda: FakeLabeller("second"), lambda _: accuracies))
    store = ReviewStore(tmp_path_factory.mktemp("reviews") / "reviews.db")
    add_routes(app, store, engine, require)
    yield schemathesis.openapi.from_asgi("/openapi.json", app)
    engine.close()
    store.close()


@pytest.mark.parametrize("mode", schemathesis.GenerationMode)
def test_no_request_is_a_server_error(schema, mode):
    """Statuses, content types and bodies are also those of the document."""
    known = schemathesis.checks.CHECKS
    checks = known.get_by_names(
        [
            "not_a_server_error",
            "status_code_conformance",
            "content_type_conformance",
            "response_schema_conformance",
        ]
    )
    seen = set()
    for result in schema.get_all_operations():
        operation = result.ok()
        if mode == schemathesis.GenerationMode.NEGATIVE and not operation.body:
            continue

        @hypothesis.settings(
            max_examples=CASES,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
        def answers(case):
            response = case.call(headers={"Authorization": f"Bearer {KEY}"})
            case.validate_response(response, checks=checks)
            seen.add((case.path, response.status_code))

        answers()
    good = mode == schemathesis.GenerationMode.POSITIVE
    assert ("/v1/classify", 200 if good else 422) in seen
