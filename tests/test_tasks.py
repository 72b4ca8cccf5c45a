"""Definitions are checked; splits are disjoint, reproducible, balanced and nested."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from moecl_jax.data.catalog import CATALOG, MTL5_LABELS, MTL5_ORDERS, cold, shared_mtl5
from moecl_jax.data.tasks import Example, Task, TaskDefinition, load_task, normalise
from moecl_jax.errors import UserError

Rows = list[tuple[str, object]]
TRAIN: Rows = [("one", "a"), ("two", "b"), ("three", "a"), ("four", "b")]
TEST: Rows = [("five", "a"), ("six", "b")]


def define(folder: Path | str = "", **changes: Any) -> TaskDefinition:
    values: dict[str, Any] = {
        "name": "toy",
        "source": "jsonl",
        "path": str(folder),
        "train": "train.jsonl",
        "test": "test.jsonl",
        "labels": ("a", "b"),
        "template": "{text} :",
    }
    return TaskDefinition(**(values | changes))


def write(folder: Path, split: str, rows: Rows) -> None:
    lines = [json.dumps({"text": text, "label": label}) for text, label in rows]
    (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def load(definition: TaskDefinition, **changes: Any) -> Task:
    values: dict[str, Any] = {
        "seed": 0,
        "validation_fraction": 0.0,
        "train_examples": 0,
        "validation_examples": 0,
        "test_examples": 0,
        "on_bad_example": "error",
    }
    return load_task(definition, **(values | changes))


def texts(examples: tuple[Example, ...]) -> list[str]:
    return [example.text for example in examples]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "a/b"}, r"a task is named 'a/b'.*letters, digits"),
        ({"name": ".."}, r"a task is named '\.\.'"),
        ({"source": "xml"}, r"task 'toy': source = 'xml' must be one of json, jsonl, csv"),
        ({"source": "huggingface"}, r"task 'toy': path = '' must name the data set"),
        ({"train": ""}, r"task 'toy': train = '' must not be empty"),
        ({"text_fields": ()}, r"text_fields = \(\) must name at least one"),
        ({"text_fields": "text"}, r"text_fields = 'text' must be a sequence"),
        ({"labels": ("a",)}, r"labels = \('a',\) must hold at least two"),
        ({"labels": ("a", "a")}, r"holds 'a' twice"),
        ({"labels": ("a", " b")}, r"without white space around them, and ' b' is not"),
        ({"labels": ("a", 1)}, r"must be texts.* 1 is not"),
        ({"raw_labels": (0,)}, r"raw_labels = \(0,\) must hold one value for each"),
        ({"raw_labels": (0, "0")}, r"raw_labels .* holds '0' twice"),
        ({"template": "Text:"}, r"template = 'Text:' must contain '\{text\}' exactly once"),
        ({"template": "{text} {text}:"}, "exactly once"),
        ({"template": "{text}: "}, "must not end in white space"),
    ],
)
def test_definition_names_its_mistake(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        define(**changes)


def test_lists_of_a_config_become_tuples() -> None:
    definition = define(labels=["a", "b"], raw_labels=[0, 1], text_fields=["title", "body"])
    assert definition.labels == ("a", "b")
    assert definition.raw_labels == (0, 1)
    assert definition.text_fields == ("title", "body")


def test_example_has_text_class_and_place(tmp_path: Path) -> None:
    write(tmp_path, "train", [(" one \n", "a"), ("two", "b")])
    write(tmp_path, "test", TEST)
    task = load(define(tmp_path))
    assert task.train == (
        Example("one", 0, f"{tmp_path}/train.jsonl:1"),
        Example("two", 1, f"{tmp_path}/train.jsonl:2"),
    )
    assert (task.validation, task.skipped) == ((), {})


def test_several_fields_are_joined_and_numbers_match_their_text(tmp_path: Path) -> None:
    (tmp_path / "train").write_text("title,body,label\nT,B,1\n,C,0\n", encoding="utf-8")
    (tmp_path / "test").write_text("title,body,label\nD,,1\n", encoding="utf-8")
    definition = define(
        tmp_path,
        source="csv",
        train="train",
        test="test",
        text_fields=("title", "body"),
        raw_labels=(0, 1),
    )
    task = load(definition)
    assert [(e.text, e.label) for e in (*task.train, *task.test)] == [
        ("T B", 1),
        ("C", 0),
        ("D", 1),
    ]


@pytest.mark.parametrize(
    ("line", "reason", "message"),
    [
        (b'{"text": "x", "label": "c"}', "unknown label", "unknown label 'c'; the labels are a, b"),
        (b'{"text": "x", "label": null}', "unknown label", "unknown label 'None'"),
        (b'{"text": " ", "label": "a"}', "empty text", r"the text \(text\) is empty"),
        (b'{"text": null, "label": "a"}', "empty text", "is empty"),
        (b'{"text": 7, "label": "a"}', "text is no string", "field 'text' is 7, not a text"),
        (b'{"label": "a"}', "missing field", "no field 'text'; the fields are label"),
        (b'{"text": "x", "kind": 1}', "missing field", "no field 'label'"),
        (b'{"text": "\xff", "label": "a"}', "invalid UTF-8", "line 2, at byte offset 40"),
        (b'{"text": "\\ud800", "label": "a"}', "invalid UTF-8", "half of a surrogate pair"),
    ],
)
def test_bad_example_is_an_error_or_counted(
    tmp_path: Path, line: bytes, reason: str, message: str
) -> None:
    (tmp_path / "train.jsonl").write_bytes(b'{"text": "one", "label": "a"}\n' + line + b"\n")
    write(tmp_path, "test", TEST)
    with pytest.raises(UserError, match=rf"train\.jsonl:2: .*{message}.*on_bad_example='skip'"):
        load(define(tmp_path))
    task = load(define(tmp_path), on_bad_example="skip")
    assert texts(task.train) == ["one"]
    assert task.skipped == {reason: 1}


@pytest.mark.parametrize(
    ("earlier", "later"), [("train", "test"), ("validation", "test"), ("train", "validation")]
)
def test_text_in_two_splits(tmp_path: Path, earlier: str, later: str) -> None:
    rows: dict[str, Rows] = {
        "train": [("one", "a"), ("two", "b")],
        "validation": [("three", "a"), ("four", "b")],
        "test": [("five", "a"), ("six", "b")],
    }
    rows[earlier][1] = ("the  same", "b")
    rows[later][1] = ("the\nsame", "b")
    for split, content in rows.items():
        write(tmp_path, split, content)
    definition = define(tmp_path, validation="validation.jsonl")
    places = rf"{earlier}\.jsonl:2: this {earlier} text is also in {later}, at .*{later}\.jsonl:2"
    with pytest.raises(UserError, match=places):
        load(definition)
    task = load(definition, on_bad_example="skip")
    assert len(getattr(task, earlier)) == 1
    assert len(getattr(task, later)) == 2
    assert task.skipped == {f"{earlier} text also in {later}": 1}


def test_repeats_within_a_split_stay(tmp_path: Path) -> None:
    write(tmp_path, "train", [("one", "a"), ("one", "a"), ("one", "b")])
    write(tmp_path, "test", TEST)
    assert texts(load(define(tmp_path)).train) == ["one", "one", "one"]


@pytest.mark.parametrize("policy", ["error", "skip"])
def test_validation_must_not_be_the_test_set(tmp_path: Path, policy: str) -> None:
    write(tmp_path, "train", TRAIN)
    write(tmp_path, "test", TEST)
    write(tmp_path, "copy", TEST[::-1])
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "test.jsonl")
    for validation in ("test.jsonl", "../" + tmp_path.name + "/test.jsonl", "link.jsonl"):
        with pytest.raises(UserError, match=r"validation and test are the same data.*leaks"):
            load(define(tmp_path, validation=validation), on_bad_example=policy)
    with pytest.raises(UserError, match=r"validation and test are different files.*same texts"):
        load(define(tmp_path, validation="copy.jsonl"), on_bad_example=policy)
    with pytest.raises(UserError, match="train and test are the same data"):
        load(define(tmp_path, train="test.jsonl"), on_bad_example=policy)


def test_empty_split_is_an_error(tmp_path: Path) -> None:
    write(tmp_path, "train", [("one", "c")])
    write(tmp_path, "test", TEST)
    with pytest.raises(UserError, match=r"no usable example in the train split.*train\.jsonl"):
        load(define(tmp_path), on_bad_example="skip")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"on_bad_example": "ignore"}, "on_bad_example = 'ignore' must be 'error' or 'skip'"),
        ({"validation_fraction": 1.0}, r"validation_fraction = 1.0 must be at least 0 and below 1"),
        ({"test_examples": -1}, r"test_examples = -1 must be 0 \(all\) or more"),
    ],
)
def test_arguments_are_checked(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"task 'toy': {message}"):
        load(define(), **changes)


@pytest.fixture
def uneven(tmp_path: Path) -> TaskDefinition:
    """60 texts of class a, 20 of class b, each text of b twice."""
    train: Rows = [(f"a {index}", "a") for index in range(60)]
    train += [(f"b {index // 2}", "b") for index in range(40)]
    write(tmp_path, "train", train)
    write(tmp_path, "test", TEST)
    return define(tmp_path)


def test_validation_is_carved_by_class_without_overlap(uneven: TaskDefinition) -> None:
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


def test_sub_samples_are_balanced_nested_and_in_order(uneven: TaskDefinition) -> None:
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


def test_catalog_templates_differ_and_names_match() -> None:
    assert all(name == definition.name for name, definition in CATALOG.items())
    assert len({definition.template for definition in CATALOG.values()}) == len(CATALOG)
    assert {name for order in MTL5_ORDERS.values() for name in order} <= set(MTL5_LABELS)
    assert [len(labels) for labels in MTL5_LABELS.values()] == [4, 5, 14, 10, 5]


def test_unknown_local_tasks_list_the_known() -> None:
    with pytest.raises(UserError, match="no MTL5 task 'imdb'; there are agnews, amazon"):
        shared_mtl5("folder", "imdb")
    with pytest.raises(UserError, match="no COLD task 'age'; there are gender, race, region"):
        cold("folder", "age")


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("agnews", (4000, 500, 2000)),
        ("amazon", (4000, 500, 2000)),
        ("dbpedia", (4200, 500, 2000)),
        ("yahoo", (2000, 300, 1200)),
        ("yelp", (3000, 500, 1400)),
    ],
)
def test_mtl5_files(shared: Path, name: str, sizes: tuple[int, int, int]) -> None:
    task = load(shared_mtl5(shared / "data/mtl5", name))
    splits = (task.train, task.validation, task.test)
    assert tuple(len(examples) for examples in splits) == sizes
    assert {example.label for example in task.test} == set(range(len(task.labels)))
    # In these files an object takes four lines, after a line with "[".
    assert [int(example.where.rsplit(":", 1)[1]) for example in task.test[:3]] == [2, 6, 10]


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "sizes", "skipped"),
    [
        ("race", (3000, 500, 1500), {}),
        ("gender", (2998, 500, 1500), {"train text also in test": 2}),
        (
            "region",
            (2997, 497, 1500),
            {"validation text also in test": 3, "train text also in test": 3},
        ),
    ],
)
def test_cold_files(
    shared: Path, name: str, sizes: tuple[int, int, int], skipped: dict[str, int]
) -> None:
    task = load(cold(shared / "data/cold", name), on_bad_example="skip")
    splits = (task.train, task.validation, task.test)
    assert tuple(len(examples) for examples in splits) == sizes
    assert task.skipped == skipped
    unique = [{normalise(text) for text in texts(examples)} for examples in splits]
    assert not (unique[0] & unique[1] or unique[0] & unique[2] or unique[1] & unique[2])
