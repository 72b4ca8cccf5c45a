"""`predict` and `generate` on tables, plain text and JSON lines: what is read, written and kept."""

import csv
import dataclasses
import io
import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from records import answers, read
from streams import tiny_settings

from moecl_jax.cli.main import main
from moecl_jax.errors import UserError
from moecl_jax.serving import rows
from moecl_jax.serving.evaluator import Evaluator
from moecl_jax.serving.files import Answered, Files, generate_file, predict_file
from moecl_jax.serving.session import Session, open_run
from moecl_jax.training.trainer import train

TEXTS = ["w9 w8", "w30 w31 w32", "w5"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds a finished stream in `run`, and its data."""
    folder = tmp_path_factory.mktemp("formats")
    train(tiny_settings(folder, tasks=("two", "five"), epochs=1), folder / "run")
    return folder


@pytest.fixture(scope="module")
def session(folder: Path) -> Session:
    return open_run(folder / "run")


@pytest.fixture(scope="module")
def of_fields(session: Session) -> Session:
    """The same with a task whose text has two fields, and whose labels are numbers in the data."""
    own = session.evaluator
    two, five = own.tasks
    changes = {"text_fields": ("title", "body"), "text_format": "{body} {title}"}
    changed = dataclasses.replace(two, raw_labels=(7, 8), label_field="kind", **changes)
    evaluator = Evaluator(own.model, own.method, (changed, five), own.settings)
    return Session(evaluator, session._store, session.state)


def answered(
    session: Session, folder: Path, content: str, given: str, wanted: str, **options: Any
) -> tuple[Answered, Path]:
    source, target = folder / f"in.{given}", folder / f"out.{wanted}"
    source.write_bytes(content.encode())
    return predict_file(session, "two", Files(source, target, **options)), target


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        delimiter = "\t" if path.suffix == ".tsv" else ","
        return list(csv.DictReader(file, delimiter=delimiter, strict=True))


@pytest.mark.parametrize("wanted", ["jsonl", "csv", "tsv", "txt"])
@pytest.mark.parametrize("given", ["jsonl", "csv", "tsv", "txt"])
def test_each_format_is_read_and_written(session, tmp_path, given, wanted):
    expected = session.predict(TEXTS, "two")
    lines = {
        "jsonl": [json.dumps({"text": text, "id": str(n)}) for n, text in enumerate(TEXTS)],
        "csv": ["id,text", *(f'{n},"{text}"' for n, text in enumerate(TEXTS))],
        "tsv": ["id\ttext", *(f"{n}\t{text}" for n, text in enumerate(TEXTS))],
        "txt": TEXTS,
    }
    content = "\r\n".join(lines[given]) + "\r\n"
    result, target = answered(session, tmp_path, content, given, wanted)
    assert result == Answered(0)
    if wanted == "txt":
        assert target.read_text().splitlines() == [each.label for each in expected]
        return
    found = read(target) if wanted == "jsonl" else table(target)
    for number, (line, prediction) in enumerate(zip(found, expected, strict=True)):
        assert line["text"] == TEXTS[number]
        assert given == "txt" or line["id"] == str(number)
        if wanted == "jsonl":
            assert line["prediction"]["probabilities"] == prediction.probabilities
            continue
        assert line["prediction"] == prediction.label
        assert json.loads(line["prediction_probabilities"]) == prediction.probabilities
        assert float(line["prediction_probability"]) == max(prediction.probabilities.values())
        assert line["prediction_task"] == "two" and line["prediction_error"] == ""


def test_cells_are_written_back_as_they_were(session, tmp_path):
    cells = ['say "w9"', "w1,w2", "two\nlines", " spaces ", "=1+1", "日本", ""]
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(["text", *(f"c{n}" for n in range(len(cells)))])
    writer.writerow(["w9", *cells])
    result, target = answered(session, tmp_path, "\ufeff" + out.getvalue(), "csv", "csv")
    assert result.bad_rows == 0
    [row] = table(target)
    assert [row[f"c{n}"] for n in range(len(cells))] == cells


def test_bad_rows_of_a_table_stop_nothing(session, tmp_path):
    content = 'text,id\nw9,1\nw9\n"w9" x,3\n\n"  ",4\nw9,5\n'
    result, target = answered(session, tmp_path, content, "csv", "csv")
    assert result.bad_rows == 3
    found = table(target)
    errors = ["", "1 cells where", "malformed CSV", 'expected either "text"', ""]
    for row, error in zip(found, errors, strict=True):
        assert (error in row["prediction_error"]) and bool(error) != bool(row["prediction"])
    assert [row["id"] for row in found] == ["1", "", "", "4", "5"]
    (tmp_path / "in.csv").write_bytes(b"text,id\nw9 \xff,1\nw9,2\n")
    assert predict_file(session, "two", Files(tmp_path / "in.csv", target)).bad_rows == 1
    assert [row["prediction_error"] for row in table(target)] == ["not a row of UTF-8", ""]


def test_a_row_that_is_too_long_is_passed_over(session, tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "LONGEST_LINE", 20)
    for form in ("csv", "tsv", "txt"):
        long = "w1 " * 20
        content = f"text\nw9\n{long}\nw8\n"
        result, target = answered(session, tmp_path, content, form, "jsonl")
        errors = ["error" in answer for answer in answers(target)]
        assert errors == [False] * (form == "txt") + [False, True, False]
        assert result.bad_rows == 1


def test_a_quote_that_is_never_closed_is_one_bad_row(session, tmp_path):
    result, target = answered(session, tmp_path, 'text\nw9\n"w8\nw7\n', "csv", "jsonl")
    assert result.bad_rows == 1
    assert ["error" in answer for answer in answers(target)] == [False, True]


@pytest.mark.parametrize(
    ("content", "given", "message"),
    [
        ("", "csv", "the file is empty. Expected CSV with the columns' names first"),
        ("text,text\nw1,w2\n", "csv", "column 'text' stands twice"),
        (
            "body;text\nw1;w2\n",
            "csv",
            r"no columns for the text: there are body;text; expected text$",
        ),
        ("a\tb\n", "tsv", "there are a, b; expected text$"),
        ("text,prediction\nw1,x\n", "csv", "has a column 'prediction'.*by --field=NAME"),
        ("text,prediction_error\nw1,x\n", "csv", "has a column 'prediction_error'"),
        ("text\n", "xlsx", r"the ending .xlsx tells no format; expected one of .jsonl, .ndjson"),
    ],
)
def test_a_table_that_cannot_be_answered_is_refused_before_anything_is_written(
    session, tmp_path, content, given, message
):
    with pytest.raises(UserError, match=message):
        answered(session, tmp_path, content, given, given)
    assert not (tmp_path / f"out.{given}").exists()


def test_answers_may_have_another_name(session, tmp_path):
    content = "text,prediction\nw9,theirs\n"
    result, target = answered(session, tmp_path, content, "csv", "csv", field="ours")
    [row] = table(target)
    assert result.bad_rows == 0
    assert (row["prediction"], row["ours"]) == ("theirs", session.predict(["w9"], "two")[0].label)


def test_fields_that_come_late_are_no_columns(session, tmp_path, monkeypatch):
    monkeypatch.setattr("moecl_jax.serving.files._ROWS_A_CALL", 2)
    lines = [{"text": "w9"}, {"text": "w9", "id": [1, None]}, {"text": "w9", "late": 1}]
    content = "".join(json.dumps(line) + "\n" for line in lines)
    result, target = answered(session, tmp_path, content, "jsonl", "csv")
    assert result.bad_rows == 1
    first, second, third = table(target)
    assert (first["id"], second["id"]) == ("", "[1, null]")
    assert "has no column 'late'" in third["prediction_error"]


def test_a_tsv_has_no_place_for_tabs(session, tmp_path):
    content = '{"text": "w9", "id": "a\\tb"}\n{"text": "w9", "id": "c"}\n'
    result, target = answered(session, tmp_path, content, "jsonl", "tsv")
    assert result.bad_rows == 1
    assert "holds a tab or a line end" in table(target)[0]["prediction_error"]


def test_the_text_is_made_of_the_task_s_own_fields(of_fields, tmp_path):
    content = "title,body,kind\nw8,w9 w7,7\nw8,,8\n"
    result, target = answered(of_fields, tmp_path, content, "csv", "jsonl")
    assert result.bad_rows == 0
    expected = of_fields.predict([{"text": "w9 w7 w8"}, " w8"], "two")
    given = [{"title": "w8", "body": "w9 w7"}, {"title": "w8", "body": None}]
    assert of_fields.predict(given, "two") == expected
    assert [answer["logits"] for answer in answers(target)] == [each.logits for each in expected]
    records = [{"title": "w8"}, {"title": 5, "body": "w9"}, {"title": " ", "body": ""}]
    content = "".join(json.dumps(record) + "\n" for record in records)
    result, target = answered(of_fields, tmp_path, content, "jsonl", "jsonl")
    missing, number, empty = (answer["error"] for answer in answers(target))
    assert "expected the fields title, body" in missing and "the fields are title" in missing
    assert number == "field 'title' is 5, not a text"
    assert empty == "the text (title, body) is empty"


def test_gold_labels_give_the_figures_of_the_evaluation(session, folder, tmp_path, capsys):
    source = folder / "data" / "five_test.jsonl"
    gold = [line["label"] for line in read(source)]
    result = predict_file(session, "five", Files(source, tmp_path / "out.jsonl"))
    predicted = [answer["label"] for answer in answers(tmp_path / "out.jsonl")]
    found = result.classification
    assert found is not None and found.support.sum() == len(gold) == 48
    expected = session.evaluate("test")["tasks"]["five"]["scored_accuracy"]
    assert found.accuracy == np.mean(np.array(gold) == predicted) == pytest.approx(expected)
    counted = np.zeros((5, 5), int)
    for one, other in zip(gold, predicted, strict=True):
        counted[int(one[1:]), int(other[1:])] += 1
    assert found.confusion.tolist() == counted.tolist()
    arguments = [f"--input={source}", f"--output={tmp_path / 'out.csv'}", "--task=five"]
    assert main(["predict", f"--workdir={folder / 'run'}", *arguments]) == 0
    out = capsys.readouterr().out
    assert f"48 with gold labels: accuracy {100 * found.accuracy:.1f}, macro F1" in out
    assert "precision  recall" in out and "as w4" in out


def test_gold_labels_are_those_of_the_data_or_the_labels_themselves(of_fields, tmp_path):
    content = "title,body,kind\nw8,w9,7\nw8,w9,8\nw8,w9,w0\nw8,w9,\nw8,w9,9\n"
    result, target = answered(of_fields, tmp_path, content, "csv", "csv")
    label = table(target)[0]["prediction"]
    found = result.classification
    assert found is not None and found.support.tolist() == [2, 1]
    assert found.accuracy == pytest.approx((2 if label == "w0" else 1) / 3)
    assert result.unknown_gold == {"'9'": 1}
    assert [row["kind"] for row in table(target)] == ["7", "8", "w0", "", "9"]


def test_where_the_task_is_chosen_gold_labels_are_those_of_all(session, folder, tmp_path):
    source = folder / "data" / "five_test.jsonl"
    gold = [line["label"] for line in read(source)]
    result = predict_file(session, None, Files(source, tmp_path / "out.jsonl"))
    predicted = [answer["label"] for answer in answers(tmp_path / "out.jsonl")]
    assert result.classification is not None
    assert result.classification.labels == ("w0", "w1", "w2", "w3", "w4")
    assert result.classification.accuracy == np.mean(np.array(gold) == predicted)


def test_written_answers_stand_in_tables_and_texts_too(session, tmp_path):
    expected = session.generate(TEXTS, "two", max_tokens=2)
    (tmp_path / "in.txt").write_text("\n".join(TEXTS))
    for form in ("csv", "txt"):
        files = Files(tmp_path / "in.txt", tmp_path / f"out.{form}")
        assert generate_file(session, "two", files, max_tokens=2).bad_rows == 0
    assert [row["prediction"] for row in table(tmp_path / "out.csv")] == expected
    assert (tmp_path / "out.txt").read_text().splitlines() == expected


def test_a_pipe_is_read_as_the_format_that_is_named(folder, tmp_path, capfd):
    import os

    os.mkfifo(tmp_path / "pipe")
    thread = threading.Thread(target=lambda: (tmp_path / "pipe").write_text("text\nw9\n"))
    thread.start()
    arguments = [f"--workdir={folder / 'run'}", "--task=two", f"--input={tmp_path / 'pipe'}"]
    assert main(["predict", *arguments, "--output=-", "--format=csv"]) == 0
    thread.join()
    header, row = capfd.readouterr().out.splitlines()
    assert header.startswith("text,prediction,prediction_probability")
    assert row.startswith("w9,w")


class Answering:
    """A session that reads prompts as the real one, and answers at once."""

    def __init__(self, session: Session):
        self.reader = session.reader

    def label(self, prompts: list[Any]) -> list[dict[str, Any]]:
        return [{"label": "w0", "probabilities": {"w0": 1.0}, "logits": []} for _ in prompts]


parts = st.sampled_from(
    [b"w9", b"text", b",", b'"', b'""', b"\t", b"\n", b"\r\n", b"\r", b" ", b"\xff", b"\x00", b"w0"]
)


@settings(
    max_examples=150,
    derandomize=True,
    deadline=10_000,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(content=st.lists(parts, max_size=20).map(b"".join), form=st.sampled_from(["csv", "tsv"]))
def test_any_table_is_answered_row_by_row(session, tmp_path, content, form):
    source, target = tmp_path / f"in.{form}", tmp_path / "out.csv"
    source.write_bytes(b"text,label\n".replace(b",", b"\t" if form == "tsv" else b",") + content)
    result = predict_file(Answering(session), "two", Files(source, target))
    found = table(target)
    assert result.bad_rows == sum(bool(row["prediction_error"]) for row in found)
    for row in found:
        assert bool(row["prediction_error"]) != (row["prediction"] == "w0")
