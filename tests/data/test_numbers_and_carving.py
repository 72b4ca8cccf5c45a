"""Labels that are numbers, and a test split that is taken out of training."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from toy_task import TEST, Rows, define, load, texts, write

from moecl_jax.data.task import SPLITS, Task
from moecl_jax.errors import UserError


@pytest.mark.parametrize("labels", [(0, 1), ("0", "1")])
def test_labels_that_are_numbers_simply_work(tmp_path: Path, labels: tuple[Any, ...]) -> None:
    """Data with 0 and 1 need no raw_labels, however the numbers are written."""
    write(tmp_path, "train", [("one", 0), ("two", "1"), ("three", 1.0), ("four", "0.00")])
    write(tmp_path, "test", [("five", 1), ("six", "0")])
    task = define(tmp_path, labels=labels)
    assert (task.labels, task.raw_labels) == (("0", "1"), ())
    examples = load(task)
    assert [example.label for example in examples.train] == [0, 1, 1, 0]
    assert [example.label for example in examples.test] == [1, 0]
    assert Task.from_fields("toy", task.to_fields()) == task


def test_a_point_is_dropped_from_whole_numbers_alone(tmp_path: Path) -> None:
    write(tmp_path, "train", [("one", "v2.0"), ("two", "1.50"), ("three", "v2"), ("four", "1.0")])
    write(tmp_path, "test", [("five", "v2")])
    task = load(define(tmp_path, labels=("v2", "1.5", "1")), on_bad_example="skip")
    assert [(example.text, example.label) for example in task.train] == [("three", 0), ("four", 2)]
    both = load(define(tmp_path, labels=("1.0", "1", "v2")), on_bad_example="skip")
    assert [(example.text, example.label) for example in both.train] == [("three", 2), ("four", 0)]


def test_both_messages_about_numbers_name_raw_labels(tmp_path: Path) -> None:
    """Words for numbers: what is written in the data is told to a user who did not know."""
    write(tmp_path, "train", [("one", 0), ("two", 1)])
    write(tmp_path, "test", [("three", 1)])
    with pytest.raises(UserError, match=r"unknown label '0'; the labels are no, yes.*raw_labels="):
        load(define(tmp_path, labels=("no", "yes")))
    with pytest.raises(UserError, match=r"\(0\.0, 1\.0\).*must be texts or whole.*raw_labels"):
        define(tmp_path, labels=(0.0, 1.0))
    with pytest.raises(UserError, match=r"unknown label '1'; the labels are 0, 2, as raw_labels"):
        load(define(tmp_path, labels=("no", "yes"), raw_labels=(0, 2)))


def test_test_is_carved_where_there_is_none_whatever_the_seed(tmp_path: Path) -> None:
    """Class by class, with equal texts on one side, and the same for all seeds."""
    rows = [(f"text {i}", "a" if i % 4 else "b") for i in range(40)]
    rows += [(f"text {i} ", "a" if i % 4 else "b") for i in range(8)]  # repeats
    write(tmp_path, "train", rows)
    task = define(tmp_path, test="")
    first = load(task, test_fraction=0.25, validation_fraction=0.2)
    keys = [{example.key for example in getattr(first, split)} for split in SPLITS]
    assert [a & b for a, b in ((keys[0], keys[1]), (keys[0], keys[2]), (keys[1], keys[2]))] == [
        set()
    ] * 3
    assert len(keys[0] | keys[1] | keys[2]) == 40
    assert Counter(load(task, test_fraction=0.25).test)  # it is not empty
    distinct = {example.key: example.label for example in first.test}
    assert Counter(distinct.values()) == {0: 8, 1: 2}  # a quarter of 30 and of 10, rounded
    other = load(task, seed=1, test_fraction=0.25, validation_fraction=0.2)
    assert other.test == first.test
    assert other.validation != first.validation
    write(tmp_path, "test", TEST)
    assert texts(load(define(tmp_path), test_fraction=0.25).test) == ["five", "six"]
    with pytest.raises(UserError, match=r"test_fraction = 1\.0 must be at least 0 and below 1"):
        load(task, test_fraction=1.0)
    write(tmp_path, "train", [("one", "a"), ("two", "b")])
    with pytest.raises(UserError, match=r"no test split can be carved\. Name a test split, or set"):
        load(task, test_fraction=0.5)


def test_labels_that_are_read_from_the_data_are_whole_numbers_too() -> None:
    task = Task("toy", train=[{"text": "one", "label": 1.0}, {"text": "two", "label": 0}])
    assert task.labels == ("0", "1")
    assert task.classes() == {"0": 0, "1": 1}
    with pytest.raises(UserError, match=r"the label 0\.5 is neither a text nor a whole number"):
        Task("toy", train=[{"text": "one", "label": 0.5}, {"text": "two", "label": 0}])


@pytest.fixture
def uneven(tmp_path: Path) -> Task:
    """60 texts of class a, 20 of class b, each text of b twice."""
    train: Rows = [(f"a {index}", "a") for index in range(60)]
    train += [(f"b {index // 2}", "b") for index in range(40)]
    write(tmp_path, "train", train)
    write(tmp_path, "test", TEST)
    return define(tmp_path)


def test_validation_is_carved_by_class_without_overlap(uneven: Task) -> None:
    task = load(uneven, validation_fraction=0.1)
    assert Counter(example.label for example in task.validation) == {0: 6, 1: 4}  # 2 texts, twice
    assert Counter(example.label for example in task.train) == {0: 54, 1: 36}
    assert not set(texts(task.train)) & set(texts(task.validation))
    assert load(uneven, validation_fraction=0.1) == task
    other = load(uneven, validation_fraction=0.1, seed=1)
    assert set(texts(other.validation)) != set(texts(task.validation))


def test_nothing_to_carve(tmp_path: Path) -> None:
    write(tmp_path, "train", [("one", "a"), ("two", "b")])
    write(tmp_path, "test", TEST)
    with pytest.raises(UserError, match="no class has two different training texts"):
        load(define(tmp_path), validation_fraction=0.5)


def test_sub_samples_are_balanced_nested_and_in_order(uneven: Task) -> None:
    everything = load(uneven).train
    position = {id_: index for index, id_ in enumerate(example.where for example in everything)}
    previous: set[str] = set()
    for count in (1, 10, 50, 90, 100, 1000):
        sample = load(uneven, train_examples=count).train
        classes = Counter(example.label for example in sample)
        assert len(sample) == min(count, 100)
        assert classes[1] == min(count // 2, 40)
        places = [position[example.where] for example in sample]
        assert places == sorted(places)
        assert previous <= {example.where for example in sample}
        previous = {example.where for example in sample}
    assert load(uneven, train_examples=10) == load(uneven, train_examples=10)
    assert load(uneven, train_examples=10) != load(uneven, train_examples=10, seed=1)
