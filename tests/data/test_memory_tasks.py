"""Tasks whose examples are given in Python, as lists, data sets or files."""

import copy
import dataclasses
import json
import pickle
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from toy_task import load

from moecl_jax.data import SPLITS, Example, Task
from moecl_jax.errors import UserError

TRAIN = [{"text": "win a prize", "label": "spam"}, {"text": "lunch at noon", "label": "ham"}]
TEST = [{"text": "you have won", "label": "spam"}, {"text": "see you", "label": "ham"}]


def labelled(*labels: object) -> list[dict[str, object]]:
    return [{"text": f"text {index}", "label": label} for index, label in enumerate(labels)]


def test_a_list_of_mappings_is_a_task() -> None:
    task = Task("spam", train=TRAIN, test=TEST, validation=None, template="Text: {text}\nKind:")
    assert (task.source, task.labels, task.raw_labels) == ("memory", ("ham", "spam"), ())
    examples = load(task)
    assert examples.train == (
        Example("win a prize", 1, "train[0] of task 'spam'"),
        Example("lunch at noon", 0, "train[1] of task 'spam'"),
    )
    assert [example.label for example in examples.test] == [1, 0]
    assert examples.validation == ()


def test_any_iterable_is_read_once_and_later_changes_do_not_count() -> None:
    rows = [dict(fields) for fields in TRAIN]
    task = Task("spam", train=(fields for fields in rows))
    rows[0]["text"] = "changed"
    assert load(task) == load(task)
    assert load(task).train[0].text == "win a prize"


@pytest.mark.parametrize(
    ("values", "labels", "raw_labels"),
    [
        (("b", "a", " b "), ("a", "b"), ()),
        ((10, 9, -1), ("-1", "9", "10"), (-1, 9, 10)),
        (("10", "9"), ("9", "10"), ()),
        ((True, False), ("False", "True"), (False, True)),
        ((np.int64(1), np.int64(0)), ("0", "1"), (0, 1)),
        (("a", None, "b"), ("a", "b"), ()),
    ],
)
def test_labels_are_taken_from_the_data(
    values: tuple[object, ...], labels: tuple[str, ...], raw_labels: tuple[object, ...]
) -> None:
    for given in ((), None):
        task = Task("toy", train=labelled(*values), labels=given)  # type: ignore[arg-type]
        assert (task.labels, task.raw_labels) == (labels, raw_labels)


def test_a_label_of_any_split_counts() -> None:
    assert Task("toy", train=labelled("a"), test=labelled("b")).labels == ("a", "b")


def test_labels_that_are_given_are_checked_as_those_of_files() -> None:
    chosen = ("spam", "ham")
    assert Task("spam", train=TRAIN, labels=chosen).labels == chosen
    with pytest.raises(UserError, match=r"train\[1\] of task 'spam': unknown label 'ham'"):
        load(Task("spam", train=TRAIN, labels=("spam", "eggs")))
    numbered = Task("toy", train=labelled(1, 0), labels=("no", "yes"), raw_labels=(0, 1))
    assert [example.label for example in load(numbered).train] == [1, 0]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"train": ["text"]}, r"train\[0\] of task 'toy' is 'text'. Expected a mapping"),
        ({"train": labelled("a", "a")}, r"labels = \('a',\) must hold at least two labels"),
        ({"train": []}, r"labels = \(\) must hold at least two labels"),
        ({"train": labelled(0.5, 1)}, r"train\[0\] of task 'toy': the label 0.5 is neither"),
        (
            {"train": TRAIN, "label_field": "kind"},
            r"label_field = 'kind' is in no example; the fields are text, label",
        ),
        ({"train": TRAIN, "raw_labels": (0, 1)}, r"raw_labels = \(0, 1\) says nothing without"),
        ({"train": TRAIN, "path": "data"}, r"path = 'data' must be empty: source 'memory'"),
        (
            {"train": TRAIN, "test": "test.json"},
            r"test = 'test.json' must be a sequence of examples",
        ),
        ({"train": TRAIN, "subset": "mnli"}, "subset = 'mnli' is of source 'huggingface' only"),
        ({"train": TRAIN, "source": "json", "labels": ("a", "b")}, "train = .* must be a text"),
        ({"labels": ("a", "b")}, "task 'toy' has no source; expected one of json"),
        ({"train": TRAIN, "options": {"table": "t"}}, "source 'memory' has no field 'table'"),
    ],
)
def test_mistakes_are_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Task("toy", **fields)


def test_bad_examples_are_errors_or_counted() -> None:
    task = Task("toy", train=[*TRAIN, {"text": "", "label": "ham"}, {"label": "ham"}])
    with pytest.raises(UserError, match=r"train\[2\] of task 'toy': the text \(text\) is empty"):
        load(task)
    examples = load(task, on_bad_example="skip")
    assert examples.skipped == {"empty text": 1, "missing field": 1}


def test_splits_that_are_the_same_are_a_leak() -> None:
    with pytest.raises(UserError, match="train and test are the same data"):
        load(Task("spam", train=TRAIN, test=TRAIN))
    with pytest.raises(UserError, match=r"no usable example in the test split \(test of task"):
        load(Task("spam", train=TRAIN, test=[]))


def test_token_ids_and_responses() -> None:
    ids = [
        {"input_ids": np.array([1, 2]), "label": 0},
        {"input_ids": (3, 4), "label": 1},
        {"input_ids": [5], "label": 1},
    ]
    examples = load(Task("ids", train=ids)).train
    assert [example.input_ids for example in examples] == [(1, 2), (3, 4), (5,)]
    titles = [{"text": "an abstract", "title": "A title"}]
    task = Task("titles", train=titles, response_field="title", metric="rouge_l")
    assert (task.labels, load(task).train[0].response) == ((), "A title")


def test_the_configuration_has_fingerprints_in_place_of_examples() -> None:
    task = Task("spam", train=TRAIN, test=TEST)
    fields = task.to_fields()
    assert json.loads(json.dumps(fields))["train"] == fields["train"]
    assert all(type(fields[split]) is str for split in SPLITS)
    assert fields["train"].startswith("memory:2:")
    assert (fields["source"], fields["validation"]) == ("memory", "")
    saved = Task.from_fields("spam", json.loads(json.dumps(fields)))
    assert saved == task and hash(saved) == hash(task)
    assert saved.to_fields() == fields
    with pytest.raises(UserError) as error:
        load(saved)
    assert "its train examples were given in Python (memory:2:" in str(error.value)
    assert "Task('spam', train=[{'text': ..., 'label': ...}, ...], ...)" in str(error.value)


def test_equal_examples_make_equal_tasks() -> None:
    task = Task("spam", train=TRAIN)
    assert task == Task("spam", train=[{**fields, "unused": 1} for fields in TRAIN])
    assert task != Task("spam", train=TRAIN[::-1])
    assert task != Task("spam", train=[*TRAIN, *TEST])
    assert task != Task("spam", train=TRAIN, template="{text} :")


def test_a_changed_or_copied_task_keeps_its_examples() -> None:
    task = Task("spam", train=TRAIN, test=TEST)
    for other in (
        dataclasses.replace(task, template="{text} :"),
        copy.deepcopy(task),
        pickle.loads(pickle.dumps(task)),
    ):
        assert load(other).train == load(task).train
    assert pickle.loads(pickle.dumps(task)) == task


def rows_of(labels: datasets.Features | datasets.Value, values: list[object]) -> datasets.Dataset:
    features = datasets.Features({"review": datasets.Value("string"), "opinion": labels})
    texts = [f"text {index} of {len(values)}" for index in range(len(values))]
    return datasets.Dataset.from_dict({"review": texts, "opinion": values}, features=features)


NAMES = datasets.ClassLabel(names=["good", "bad", "unseen"])
FIELDS = {"text_fields": ("review",), "label_field": "opinion"}


@pytest.mark.parametrize("validation", ["validation", "dev", "val"])
def test_class_labels_of_a_data_set_keep_their_order(validation: str) -> None:
    data = datasets.DatasetDict(
        {
            "train": rows_of(NAMES, [1, 0]),
            validation: rows_of(NAMES, [0, 1, 1]),
            "test": rows_of(NAMES, [0] * 4),
        }
    )
    task = Task.from_dataset("films", data, **FIELDS)
    assert (task.labels, task.raw_labels) == (("good", "bad", "unseen"), ())
    examples = load(task)
    assert [example.label for example in examples.train] == [1, 0]
    assert [example.label for example in examples.validation] == [0, 1, 1]
    assert len(examples.test) == 4
    assert examples.train[0].where == "train[0] of task 'films'"


def test_class_labels_may_be_reworded() -> None:
    data = rows_of(NAMES, [1, 0, 2])
    reworded = {"labels": ("I like it", "I do not", "?"), "raw_labels": (0, 1, 2)}
    task = Task.from_dataset("films", data, **FIELDS, **reworded)
    assert [example.label for example in load(task).train] == [1, 0, 2]
    task = Task.from_dataset("films", data, **FIELDS, labels=("bad", "unseen", "good"))
    assert [example.label for example in load(task).train] == [0, 2, 1]
    assert Task("films", train=data, **FIELDS).labels == ("good", "bad", "unseen")


@pytest.mark.parametrize(
    ("kind", "values", "labels"),
    [("string", ["b", "a"], ("a", "b")), ("int32", [1, 0], ("0", "1"))],
)
def test_plain_labels_of_a_data_set(
    kind: str, values: list[object], labels: tuple[str, ...]
) -> None:
    task = Task.from_dataset("films", rows_of(datasets.Value(kind), values), **FIELDS)
    assert task.labels == labels
    assert [example.label for example in load(task).train] == [1, 0]


def test_a_data_set_of_responses() -> None:
    data = {"train": rows_of(datasets.Value("string"), ["so good", "so bad"])}
    task = Task.from_dataset("films", data, text_fields=["review"], response_field="opinion")
    assert [example.response for example in load(task).train] == ["so good", "so bad"]


def test_splits_of_other_names_are_refused() -> None:
    with pytest.raises(UserError, match="task 'films': the data have a split 'unsupervised'"):
        Task.from_dataset("films", {"train": TRAIN, "unsupervised": TEST})
    with pytest.raises(UserError, match=r"have a split 'val'.*one each of train"):
        Task.from_dataset("films", {"train": TRAIN, "dev": TEST, "val": TEST})


@pytest.mark.parametrize("ending", ["json", "jsonl", "csv", "TSV"])
def test_files_tell_source_and_labels(tmp_path: Path, ending: str) -> None:
    paths = {}
    for split, rows in (("train", TRAIN), ("test", TEST)):
        paths[split] = tmp_path / f"{split}.{ending}"
        comma = "," if ending == "csv" else "\t"
        table = [comma.join(("text", "label")), *(comma.join(row.values()) for row in rows)]
        content = {
            "json": json.dumps(rows),
            "jsonl": "\n".join(map(json.dumps, rows)),
        }.get(ending, "\n".join(table))
        paths[split].write_text(content, encoding="utf-8")
    task = Task.from_files("spam", paths["train"], test=str(paths["test"]), template="{text} :")
    assert (task.source, task.labels) == (ending.lower(), ("ham", "spam"))
    assert [example.label for example in load(task).train] == [1, 0]
    assert Task.from_fields("spam", task.to_fields()) == task
    chosen = Task.from_files("spam", paths["train"], labels=("spam", "ham"))
    assert [example.label for example in load(chosen).train] == [0, 1]


def test_files_that_do_not_tell_their_source() -> None:
    for files in (("train.txt", None), ("train", None), ("train.csv", "test.json")):
        with pytest.raises(UserError, match=r"task 'spam': the endings of train.* Rename"):
            Task.from_files("spam", files[0], test=files[1])
    task = Task.from_files("spam", "train.txt", source="csv", labels=("a", "b"))
    assert (task.source, task.train) == ("csv", "train.txt")


def test_a_config_must_name_the_labels() -> None:
    with pytest.raises(UserError, match="task 'toy': labels = None must be a sequence"):
        Task.from_fields("toy", {"source": "json", "train": "train.json", "labels": None})
