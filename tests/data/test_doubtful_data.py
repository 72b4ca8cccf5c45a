"""Data that would train something wrong in silence: each is refused, or counted and reported."""

import json
from pathlib import Path
from typing import Any

import pytest
from test_tasks import TEST, TRAIN, define, free_form, load, texts, write, write_records

from moecl_jax import reporting
from moecl_jax.data.characters import appearance, is_blank
from moecl_jax.data.loading import load_tasks
from moecl_jax.data.settings import DataSettings
from moecl_jax.data.task import Task
from moecl_jax.errors import UserError

INVISIBLE = "\u200b\u2060\ufeff\u00ad\u200d\u3164\ufe0f\u2800 \x00\t"
COMPOSED, APART = "caf\u00e9", "cafe\u0301"


class Messages(reporting.LoggingReporter):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def message(self, line: str) -> None:
        self.lines.append(line)


def test_a_text_with_several_labels_is_reported(tmp_path: Path) -> None:
    rows = [*TRAIN, ("the  same", "a"), ("the same", "b"), ("the same", "a"), ("one", "a")]
    write(tmp_path, "train", rows)
    write(tmp_path, "test", TEST)
    for policy in ("error", "skip"):
        task = load(define(tmp_path), on_bad_example=policy)
        assert len(task.train) == 8  # well-known data sets hold such texts: they stay
        places = f"{tmp_path}/train.jsonl:5 and {tmp_path}/train.jsonl:6"
        assert task.notes == (f"train texts with several labels: 1, first at {places}",)


def test_the_summary_of_a_task_has_the_notes(tmp_path: Path) -> None:
    write_records(
        tmp_path,
        "train",
        *({"input_ids": [7], "label": label} for label in "ab"),
        {"input_ids": [8], "label": "c"},
    )
    write_records(tmp_path, "test", {"input_ids": [9], "label": "a"})
    reporter = Messages()
    with reporting.use(reporter):
        load_tasks(
            [define(tmp_path)],
            [()],
            DataSettings(validation_fraction=0, on_bad_example="skip"),
            seed=0,
            tokenizer=None,
            vocabulary_size=10,
        )
    (line,) = reporter.lines
    assert line.startswith("toy: train 2, validation 0, test 1 (unknown label: 1 skipped; ")
    assert "train texts with several labels: 1, first at" in line


def test_several_responses_to_a_prompt_are_no_doubt(tmp_path: Path) -> None:
    write_records(tmp_path, "train", *({"text": "x", "response": r} for r in ("y", "z")))
    write_records(tmp_path, "test", {"text": "z", "response": "y"})
    assert load(free_form(tmp_path)).notes == ()


def test_training_examples_of_one_label_are_refused_or_noted(tmp_path: Path) -> None:
    write(tmp_path, "train", [("one", "b"), ("two", "b")])
    write(tmp_path, "test", TEST)
    with pytest.raises(UserError) as caught:
        load(define(tmp_path))
    message = str(caught.value)
    assert f"all 2 training examples ({tmp_path}/train.jsonl) have the label 'b'" in message
    assert "Give examples of the other labels (a, b), or set on_bad_example='skip'" in message
    task = load(define(tmp_path), on_bad_example="skip")
    assert task.notes == ("all training examples have the label 'b'",)
    # A sample of one example is what was asked for.
    write(tmp_path, "train", TRAIN)
    assert len(load(define(tmp_path), train_examples=1).train) == 1
    # Free text has no labels, and a task without training examples none that are alike.
    write_records(tmp_path, "answers", {"text": "x", "response": "y"})
    assert load(free_form(tmp_path, train="answers.jsonl", test="")).notes == ()
    assert load(define(tmp_path, train="")).train == ()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ((COMPOSED, APART), r"holds 'cafe?\\(xe9|u0301)' and 'cafe?\\.*', which look"),
        (("spam", "sp\u200bam"), r"holds 'spam' and 'sp\\u200bam', which look the same"),
        (("\u2764", "\u2764\ufe0f"), "which look the same"),
        (("a", "\u200b"), "without white space around them, and '.u200b' is not"),
        (("a", "b\nc"), r"must each be one line of text, and 'b\\nc' holds a line feed"),
        (("a", "b\u2028c"), "must each be one line"),
        (("a", "b\x00"), "must each be one line"),
        (("a", "b\ud800"), "must each be one line"),
        (("a", "x" * 3_000_000 + "\n y"), "must each be one line"),
    ],
)
def test_labels_that_nobody_can_tell_apart_or_read_are_refused(
    labels: tuple[str, ...], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        define(labels=labels)
    assert len(str(caught.value)) < 500
    numbered = [{"text": str(index), "label": label} for index, label in enumerate(labels)]
    with pytest.raises(UserError, match=message):
        Task("toy", train=numbered)


def test_what_stands_in_the_data_may_have_lines_but_no_twin() -> None:
    task = define(raw_labels=("x\ny", 1))
    assert task.classes() == {"x\ny": 0, "1": 1}
    with pytest.raises(UserError, match=r"raw_labels = .* holds .* which look the same"):
        define(raw_labels=(COMPOSED, APART))
    with pytest.raises(UserError, match="must be texts or numbers"):
        define(raw_labels=({"a": 1}, [1]))


def test_labels_that_differ_in_what_is_seen_are_labels() -> None:
    for labels in (("A", "a"), ("e", "\u00e9"), ("ja", "\u0434\u0430"), ("1", "1.0")):
        assert define(labels=labels).labels == labels


def test_an_unknown_label_that_looks_right_says_how_it_differs(tmp_path: Path) -> None:
    write(tmp_path, "train", [("one", COMPOSED), ("two", APART)])
    write(tmp_path, "test", [("three", "b")])
    with pytest.raises(UserError) as caught:
        load(define(tmp_path, labels=(COMPOSED, "b")))
    assert r"unknown label 'cafe\u0301', which looks like 'caf\xe9'" in str(caught.value)
    assert "train.jsonl:2" in str(caught.value)


def test_an_unknown_label_of_megabytes_is_shortened(tmp_path: Path) -> None:
    write(tmp_path, "train", [("one", "x" * 5_000_000)])
    write(tmp_path, "test", TEST)
    with pytest.raises(UserError, match=r"unknown label 'xxx.*'\.\.\.; the labels are a, b") as e:
        load(define(tmp_path))
    assert len(str(e.value)) < 500
    write_records(tmp_path, "train", {"text": list(range(100_000)), "label": "a"})
    with pytest.raises(UserError, match=r"field 'text' is \[0, 1.*\.\.\., not a text") as e:
        load(define(tmp_path))
    assert len(str(e.value)) < 500


@pytest.mark.parametrize(
    ("labels", "raw_labels"),
    [(("true", "false"), ()), (("False", "True"), ()), (("no", "yes"), (False, True))],
)
def test_json_s_booleans_are_labels(
    tmp_path: Path, labels: tuple[str, ...], raw_labels: tuple[Any, ...]
) -> None:
    write(tmp_path, "train", [("one", True), ("two", False)])
    write(tmp_path, "test", [("three", True)])
    task = load(define(tmp_path, labels=labels, raw_labels=raw_labels))
    named = [task.definition.labels[example.label] for example in task.train]
    assert named == {"true": ["true", "false"], "False": ["True", "False"]}.get(
        labels[0], ["yes", "no"]
    )


def test_a_null_is_not_the_label_none(tmp_path: Path) -> None:
    write(tmp_path, "train", [("one", "None"), ("two", "b"), ("three", None)])
    write(tmp_path, "test", TEST)
    with pytest.raises(UserError, match=r"train\.jsonl:3: unknown label"):
        load(define(tmp_path, labels=("None", "b"), test=""))


@pytest.mark.parametrize("text", ["\u200b", INVISIBLE, "\ufeff\n\u2028", ""])
def test_texts_that_are_not_seen_are_empty(tmp_path: Path, text: str) -> None:
    write(tmp_path, "train", [*TRAIN, (text, "a")])
    write(tmp_path, "test", TEST)
    with pytest.raises(UserError, match=r"train\.jsonl:5: the text \(text\) is empty"):
        load(define(tmp_path))
    task = load(define(tmp_path), on_bad_example="skip")
    assert (len(task.train), task.skipped) == (4, {"empty text": 1})
    write_records(tmp_path, "train", {"text": "a", "response": text})
    with pytest.raises(UserError, match=r"the text \(response\) is empty"):
        load(free_form(tmp_path))


def test_what_is_seen_is_kept_as_it_is(tmp_path: Path) -> None:
    family = "\U0001f468\u200d\U0001f469\u200d\U0001f467 \u0645\u06cc\u200c\u062e\u0648"
    assert not is_blank(family)
    assert appearance(APART) == COMPOSED
    write(tmp_path, "train", [(family, "a"), ("x\u200b", "b")])
    write(tmp_path, "test", TEST)
    assert texts(load(define(tmp_path)).train) == [family, "x\u200b"]


@pytest.mark.parametrize("field", ["template", "text_format"])
def test_a_template_that_no_tokenizer_takes_is_refused(field: str) -> None:
    with pytest.raises(UserError, match=f"{field} = .* holds half of a surrogate pair"):
        define(**{field: "\ud800 {text}"})


def test_names_of_fields_are_texts() -> None:
    with pytest.raises(UserError, match="must name fields"):
        define(text_fields=("text", 7))


def test_a_message_is_one_line_whatever_it_quotes(tmp_path: Path) -> None:
    names = ["a\nb", "\x1b[31m", "\u202e", *(f"column {index}" for index in range(5000))]
    header = json.dumps({name: 1 for name in names})
    (tmp_path / "train.jsonl").write_text(header + "\n")
    write(tmp_path, "test", TEST)
    with pytest.raises(UserError, match="no field 'text'; the fields are a") as caught:
        load(define(tmp_path))
    message = str(caught.value)
    assert r"a\nb, \x1b[31m, \u202e, column 0" in message
    assert len(message) < 1000 and message.isprintable()
    assert "Mend the data" in message  # what to do is not cut off
