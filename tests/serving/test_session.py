"""`Session` in Python: what it answers, beside the files' wrappers, and its errors."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from streams import tiny_settings

from moecl_jax.errors import UserError
from moecl_jax.runs.results import Results
from moecl_jax.serving.files import Files, generate_file, predict_file
from moecl_jax.serving.generation import Sampling
from moecl_jax.serving.session import Prediction, Session, open_run
from moecl_jax.training.trainer import Trainer, train


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds a finished stream in `run`, and its data."""
    folder = tmp_path_factory.mktemp("session")
    train(tiny_settings(folder, tasks=("two", "five"), epochs=1), folder / "run")
    return folder


@pytest.fixture(scope="module")
def session(folder: Path) -> Session:
    return open_run(folder / "run")


@pytest.fixture
def texts(folder: Path) -> list[str]:
    lines = (folder / "data" / "five_test.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["text"] for line in lines[:20]]


def written(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts), encoding="utf-8")
    return path


def read(path: Path) -> Iterator[dict[str, object]]:
    return map(json.loads, path.read_text(encoding="utf-8").splitlines())


@pytest.mark.parametrize("task", ["two", "five", None])
def test_predictions_are_those_of_a_file(session, texts, tmp_path, task):
    source = written(tmp_path / "in.jsonl", texts)
    assert predict_file(session, task, Files(source, tmp_path / "out.jsonl")).bad_rows == 0
    found = session.predict(texts, task)
    assert len(found) == len(texts)
    for text, prediction, line in zip(texts, found, read(tmp_path / "out.jsonl"), strict=True):
        assert isinstance(prediction, Prediction)
        answer = {
            "task": prediction.task,
            "label": prediction.label,
            "probability": prediction.probabilities[prediction.label],
            "probabilities": prediction.probabilities,
            "logits": prediction.logits,
        }
        assert line == {"text": text, "prediction": answer}
        assert not prediction.truncated
        assert prediction.task == task or task is None


def test_records_and_token_ids_are_texts_too(session):
    # ids are 2 + the word's number; "answer" is 66, which the template adds to a text
    given = ["w9 w8 w30", {"text": "w9 w8 w30", "id": 7}, {"input_ids": [11, 10, 32, 66]}]
    first, second, third = session.predict(given, "two")
    assert first == second
    np.testing.assert_allclose(first.logits, third.logits, rtol=1e-5)


def test_a_cut_text_says_so(session):
    short, long = session.predict(["w9", "w9 " * 400], "two")
    assert (short.truncated, long.truncated) == (False, True)


def test_no_texts_have_no_answers(session):
    assert session.predict([], "two") == session.predict([]) == session.generate([], "two") == []


LABELLED = {"label": "w0", "probabilities": {}, "logits": []}


@pytest.mark.parametrize("count", [3, 300])
@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (" ", 'expected either "text", a text that is not empty, or "input_ids"'),
        ({"other": 1}, 'expected either "text"'),
        ({"input_ids": [3, 900]}, "between 0 and 66"),
        ({"input_ids": [3] * 400}, "input_ids has 400 tokens; at most"),
        ("w1 \ud800", "holds half of a surrogate pair"),
        (7, "expected a text or a record of one, not int"),
    ],
)
def test_a_bad_text_is_named_by_its_place(session, monkeypatch, count, bad, reason):
    if count > 256:  # the place counts from the first text, not from the first of its batch
        monkeypatch.setattr(session, "label", lambda prompts: [LABELLED] * len(prompts))
    with pytest.raises(UserError) as caught:
        session.predict(["w1"] * (count - 1) + [bad], "two")
    assert str(caught.value).startswith(f"text {count - 1}: ")
    assert reason in str(caught.value)


def test_one_text_is_not_a_list_of_texts(session):
    for answer in (session.predict, session.generate):
        with pytest.raises(UserError, match=r"must be a list of texts, .* write \[text\]"):
            answer("w1 w2", "two")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"base": True},
        {"max_tokens": 1},
        {"sampling": Sampling(temperature=5.0, top_k=20), "seed": 3},
    ],
    ids=lambda options: " ".join(options) or "greedy",
)
def test_written_answers_are_those_of_a_file_and_of_a_stream(session, texts, tmp_path, options):
    source = written(tmp_path / "in.jsonl", texts)
    files = Files(source, tmp_path / "out.jsonl")
    assert generate_file(session, "five", files, **options).bad_rows == 0
    answers = session.generate(texts, "five", **options)
    lines = [line["prediction"]["response"] for line in read(tmp_path / "out.jsonl")]
    assert lines == answers
    if "sampling" not in options:  # which draws by a text's place in its file
        assert "".join(session.stream(texts[1], "five", **options)) == answers[1]


def test_a_run_is_opened_by_a_text_a_path_or_with_its_model(folder, session, texts):
    by_text = open_run(str(folder / "run"))
    with_model = open_run(folder / "run", model=session.evaluator.model)
    assert with_model.evaluator.model is session.evaluator.model
    expected = session.predict(texts, "five")
    for other in (by_text, with_model):
        assert other.tasks == ["two", "five"]
        assert other.predict(texts, "five") == expected


def test_a_session_has_the_results_of_a_finished_stream_alone(folder, session, tmp_path):
    assert session.results == Results.load(folder / "run")
    np.testing.assert_array_equal(
        session.results.matrix[-1],
        [entry["accuracy"] for entry in session.evaluate()["tasks"].values()],
    )
    other = tmp_path / "run"
    other.mkdir()
    for name in ("config.json", "checkpoints"):
        (other / name).symlink_to(folder / "run" / name)
    assert open_run(other).results is None


def test_another_model_is_refused(folder, tmp_path):
    from moecl_jax.testing import write_model
    from moecl_jax.weights.load import load_model

    other = load_model(write_model(tmp_path, seed=1), dtype="float32")
    with pytest.raises(UserError, match="Experts fit only the model they were trained in"):
        open_run(folder / "run", model=other)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("six", "there is no task 'six'; the tasks are two, five"),
        ("fiv", "there is no task 'fiv'"),
    ],
)
def test_a_task_that_is_not_there_is_named(session, task, message):
    with pytest.raises(UserError, match=message):
        session.predict(["w1"], task)
    with pytest.raises(UserError, match=message):
        session.generate(["w1"], task)


def test_a_trainer_s_session_answers_as_the_run_that_it_wrote(folder, session, texts):
    """A stream that is finished is not trained again: the session is there at once."""
    settings = session.evaluator.settings
    trainer = Trainer(session.evaluator.model, workdir=folder / "run", settings=settings)
    again = trainer._train(settings, settings.task_objects())
    assert again.results.matrix.tolist() == session.results.matrix.tolist()
    assert again.predict(texts, "five") == session.predict(texts, "five")
