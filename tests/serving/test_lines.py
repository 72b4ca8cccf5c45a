"""The lines of `predict` and `generate`: an answer or an error for each, from files and pipes."""

import dataclasses
import io
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from streams import tiny_settings

from moecl_jax.cli.main import main
from moecl_jax.errors import UserError
from moecl_jax.serving import rows
from moecl_jax.serving.evaluator import Evaluator
from moecl_jax.serving.files import Files, generate_file, predict_file
from moecl_jax.serving.generation import Generator
from moecl_jax.serving.session import Session, open_run
from moecl_jax.training.trainer import train

CASES = 600
"""Generated input files."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lines")
    train(tiny_settings(folder, tasks=("two", "five"), epochs=1), folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def session(run: Path) -> Session:
    return open_run(run)


def predicted(
    session: Any, folder: Path, content: bytes, task: str | None = "two"
) -> tuple[int, list[dict[str, Any]]]:
    """The number of bad lines, and the answers to all, read by a strict reader of JSON."""
    (folder / "in.jsonl").write_bytes(content)
    bad = predict_file(session, task, Files(folder / "in.jsonl", folder / "out.jsonl")).bad_rows
    return bad, [line["prediction"] for line in read(folder / "out.jsonl")]


def read(path: Path) -> list[dict[str, Any]]:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    lines = path.read_text(encoding="utf-8").split("\n")
    assert lines.pop() == ""
    return [json.loads(line, parse_constant=refuse) for line in lines]


UNUSED = [
    "datasets",
    "matplotlib",
    "ml_collections",
    "optax",
    "pandas",
    "pyarrow",
    "tensorboardX",
    "tensorflow",
    "torch",
    "moecl_jax.bench",
    "moecl_jax.interchange",
    "moecl_jax.report",
    "moecl_jax.training",
]
"""What training, reports and other formats need, and answers do not."""


@pytest.mark.slow
@pytest.mark.parametrize(("command", "task"), [("predict", "two"), ("generate", "two")])
def test_a_command_that_answers_imports_only_what_it_needs(run, tmp_path, command, task):
    (tmp_path / "in.jsonl").write_bytes(GOOD)
    files = [f"--input={tmp_path / 'in.jsonl'}", f"--output={tmp_path / 'out.jsonl'}"]
    argv = [command, f"--workdir={run}", f"--task={task}", *files]
    code = f"""
import sys
from moecl_jax.cli.main import main
status = main({argv!r})
print(status, sorted(set({UNUSED!r}) & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 []"
    assert (tmp_path / "out.jsonl").read_bytes()


GOOD = b'{"text": "w9 w8"}\n'


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (b'{"text": "w9", "x": ' + b"[" * 1500 + b"]" * 1500 + b"}", "nested more than 100 deep"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "nested more than 100 deep"),
        (b'{"text": "w9", "x": 1e999}', "1e999 is larger than any number"),
        (b'{"text": "w9", "x": -Infinity}', "-Infinity is no JSON"),
        (b'{"text": "w9", "x": ' + b"9" * 5000 + b"}", "a number has 5000 digits"),
        (b"", "the line is empty"),
        (b" \t\r", "the line is empty"),
        (b'{"text": "\\u200b"}', "a text that is not empty"),
        (b'{"text": "w9"} {"text": "w9"}', "text after the end"),
        (b"\x00", "not a line of UTF-8 JSON"),
        (b'{"text": "w\xff"}', "not a line of UTF-8 JSON"),
    ],
)
def test_a_bad_line_is_answered_by_an_error_in_its_place(
    session: Session, tmp_path: Path, line: bytes, error: str
) -> None:
    bad, answers = predicted(session, tmp_path, GOOD + line + b"\n" + GOOD)
    assert bad == 1
    assert ["error" in answer for answer in answers] == [False, True, False]
    assert error in answers[1]["error"]
    assert len(answers[1]["error"]) < 500


def test_empty_lines_keep_the_numbers_of_lines_except_at_the_end(
    session: Session, tmp_path: Path
) -> None:
    bad, answers = predicted(session, tmp_path, b"\n\n" + GOOD + b"\n" + GOOD + b"\n  \n\n")
    assert bad == 3
    assert ["label" in answer for answer in answers] == [False, False, True, False, True]
    assert predicted(session, tmp_path, b"\n\n") == (0, [])


def test_a_byte_order_mark_is_passed_over(session: Session, tmp_path: Path) -> None:
    bad, answers = predicted(session, tmp_path, b"\xef\xbb\xbf" + GOOD + GOOD)
    assert bad == 0
    assert [answer["label"] for answer in answers] == [answers[0]["label"]] * 2


def test_a_line_that_is_too_long_is_passed_over(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "LONGEST_LINE", len(GOOD))
    long = b'{"text": "' + b" " * 1000 + b'w9"}\n'
    content = GOOD + long + GOOD + b" " * 1000 + b"\n" + GOOD + long.rstrip()
    bad, answers = predicted(session, tmp_path, content)
    errors = [answer.get("error", "") for answer in answers]
    assert bad == 3
    assert [bool(error) for error in errors] == [False, True, False, True, False, True]
    assert errors[1] == f"the line has more than {len(GOOD)} bytes"


def test_no_field_of_the_user_is_lost(session: Session, tmp_path: Path) -> None:
    own = {"label": "x", "error": "y", "truncated": 1, "logits": [0], "probabilities": {}}
    own |= {"id": 7, "response": "r", "task": "t", "ünïcode": "日本"}
    lines = [{"text": "w9"} | own, {"text": ""} | own]
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    for task in ("two", None):
        assert predict_file(session, task, Files(source, target)).bad_rows == 1
        good, wrong = read(target)
        answers = good.pop("prediction"), wrong.pop("prediction")
        assert [good, wrong] == lines
        assert answers[0].keys() == {"task", "label", "probability", "probabilities", "logits"}
        assert answers[1].keys() == {"error"}
    assert generate_file(session, "two", Files(source, target), max_tokens=1).bad_rows == 1
    written, failed = read(target)
    assert written.pop("prediction").keys() == {"task", "response"}
    assert failed.pop("prediction").keys() == {"error"}
    assert [written, failed] == lines


def test_a_field_with_the_name_of_the_answers_is_kept_and_said(
    session: Session, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "moecl_jax")
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"prediction": "mine", "text": "w9"}\n{"text": "w8"}\n', encoding="utf-8")
    assert predict_file(session, "two", Files(source, target)).bad_rows == 1
    first, second = read(target)
    assert first == {"prediction": "mine", "text": "w9"} and "label" in second["prediction"]
    assert "1 lines have a field 'prediction' already" in caplog.text
    assert predict_file(session, "two", Files(source, target, field="ours")).bad_rows == 0
    first, _ = read(target)
    assert first["prediction"] == "mine" and first["ours"]["label"] == second["prediction"]["label"]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_choose_no_label(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    original = Evaluator.scores_of_several

    def broken(self: Evaluator, *arguments: Any) -> Any:
        found = original(self, *arguments)
        scores = np.array(found.scores)
        scores[1, 0] = value
        return dataclasses.replace(found, scores=scores)

    monkeypatch.setattr(Evaluator, "scores_of_several", broken)
    bad, answers = predicted(session, tmp_path, GOOD * 3)
    assert bad == 1
    assert ["label" in answer for answer in answers] == [True, False, True]
    assert "scores are not finite" in answers[1]["error"]
    with pytest.raises(UserError, match="text 1: the model's scores are not finite"):
        session.predict(["w9"] * 3, "two")


def test_a_prompt_whose_scores_are_not_finite_is_answered_by_an_error(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Generator.write

    def broken(self: Generator, *arguments: Any, **options: Any) -> Any:
        first, _, *others = original(self, *arguments, **options)
        return [first, None, *others]

    monkeypatch.setattr(Generator, "write", broken)
    (tmp_path / "in.jsonl").write_bytes(GOOD * 3)
    target = tmp_path / "written.jsonl"
    files = Files(tmp_path / "in.jsonl", target)
    assert generate_file(session, "two", files, max_tokens=1).bad_rows == 1
    answers = [line["prediction"] for line in read(target)]
    assert ["response" in answer for answer in answers] == [True, False, True]
    assert "scores are not finite" in answers[1]["error"]
    with pytest.raises(UserError, match="text 1: the model's scores are not finite"):
        session.generate(["w9"] * 3, "two", max_tokens=1)


def test_special_tokens_in_a_line_are_text(session: Session, tmp_path: Path) -> None:
    tokenizer: Any = session.evaluator.model.tokenizer
    end = tokenizer.eos_token
    reader = session.reader("two")
    [(_, prompt)] = reader.read([{"text": f"w9 {end} w8"}])
    [(_, ids)] = reader.read([{"input_ids": [3, tokenizer.eos_token_id, 4]}])
    assert prompt is not None and ids is not None
    assert tokenizer.eos_token_id not in prompt.ids
    assert tokenizer.eos_token_id in ids.ids  # asked for
    assert predicted(session, tmp_path, json.dumps({"text": f"w9 {end}"}).encode())[0] == 0


@pytest.fixture
def standard_input() -> Any:
    """Makes a pipe with some bytes the standard input."""
    before = os.dup(0)

    def feed(content: bytes) -> None:
        out, into = os.pipe()
        os.dup2(out, 0)
        os.close(out)

        def write() -> None:
            os.write(into, content)
            os.close(into)

        threading.Thread(target=write).start()

    yield feed
    os.dup2(before, 0)
    os.close(before)


@pytest.mark.parametrize(("source", "target"), [("-", "-"), ("/dev/stdin", "/dev/stdout")])
def test_standard_input_and_output(
    run: Path, standard_input: Any, capfd: pytest.CaptureFixture[str], source: str, target: str
) -> None:
    standard_input(GOOD + b"{}\n" + GOOD)
    arguments = [f"--workdir={run}", "--task=two", f"--input={source}", f"--output={target}"]
    assert main(["predict", *arguments]) == 1
    out, err = capfd.readouterr()
    assert ["label" in json.loads(line)["prediction"] for line in out.splitlines()] == [
        True,
        False,
        True,
    ]
    assert f"Predictions: {target}; bad lines: 1" in err
    standard_input(GOOD)
    assert main(["generate", *arguments, "--max-tokens=1"]) == 0
    out, err = capfd.readouterr()
    assert "response" in json.loads(out)["prediction"]
    assert f"Answers: {target}; bad lines: 0" in err


def test_named_pipes_are_files(session: Session, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    thread = threading.Thread(target=lambda: (tmp_path / "pipe").write_bytes(GOOD))
    thread.start()
    files = Files(tmp_path / "pipe", tmp_path / "out.jsonl")
    assert predict_file(session, "two", files).bad_rows == 0
    thread.join()
    assert len(read(tmp_path / "out.jsonl")) == 1


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        ("loop", "out", "--input=.*loop does not exist"),
        ("a\0b", "out", "--input=.*b does not exist"),
        ("folder", "out", "--input=.*folder is a folder; name a file"),
        ("in", "a\0b", "--output=.*: embedded null byte"),
        ("in", "in", "are the same file"),
    ],
)
def test_files_that_cannot_be_used_are_named(
    session: Session, tmp_path: Path, source: str, target: str, message: str
) -> None:
    (tmp_path / "in").write_bytes(GOOD)
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(UserError, match=message):
        predict_file(session, "two", Files(tmp_path / source, tmp_path / target))


def test_a_terminal_without_unicode_shows_escapes(monkeypatch: pytest.MonkeyPatch) -> None:
    streams = {name: io.TextIOWrapper(io.BytesIO(), "ascii") for name in ("stdout", "stderr")}
    for name, stream in streams.items():
        monkeypatch.setattr(sys, name, stream)
    assert main(["evaluate", "--workdir=日本"]) == 1
    streams["stderr"].flush()
    written: Any = streams["stderr"].buffer
    assert rb"moecl: error: \u65e5\u672c" in written.getvalue()


class Answering:
    """A session that reads prompts as the real one, and answers at once."""

    def __init__(self, session: Session):
        self.reader = session.reader

    def label(self, prompts: list[Any]) -> list[dict[str, Any]]:
        return [{"label": "w0", "probabilities": {"w0": 1.0}, "logits": []} for _ in prompts]


parts = st.sampled_from(
    [
        *(b'{"text": "w9"}', b'{"text": "w9", "x": ', b'{"input_ids": [3, 4]}', b'{"input_ids": ['),
        *(b"[", b"]", b"{", b"}", b",", b":", b'"', b"\\", b"\n", b"\n", b"\r\n", b" ", b"\x00"),
        *(b"NaN", b"1e999", b"-0", b"null", b"true", b"7" * 5000, b"[" * 1200, b'{"a":' * 1200),
        *(b"\xef\xbb\xbf", b"\xff", b"\\ud800", b"\xf0\x9f\x98\x80", b"w" * 9000, b'"text"', b"-1"),
        *(b'"error"', b'"label"', b'"input_ids"', b"[3]", b"[99999]", b'"<eos>"', b'"\\u200b"'),
    ]
)
contents = st.lists(st.one_of(parts, st.binary(max_size=3)), max_size=14).map(b"".join)


@pytest.mark.slow
@settings(
    max_examples=CASES,
    derandomize=True,
    deadline=10_000,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(content=contents)
def test_any_input_has_an_answer_for_each_line(
    session: Session, tmp_path: Path, content: bytes
) -> None:
    bad, answers = predicted(Answering(session), tmp_path, content)
    lines = [line + b"\n" for line in content.split(b"\n")]
    while lines and not lines[-1].strip():
        lines.pop()
    assert len(answers) == len(lines)
    assert bad == sum("error" in answer for answer in answers)
    for line, answer in zip(lines, answers, strict=True):
        assert ("error" in answer) != ("label" in answer)
        if "label" in answer:
            assert isinstance(json.loads(line.decode("utf-8-sig")), dict)
        else:
            assert len(answer["error"]) < 1000
