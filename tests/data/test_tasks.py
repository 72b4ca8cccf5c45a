"""Definitions are checked; splits are disjoint, reproducible, balanced and nested."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import datasets
import pytest
from ml_collections import ConfigDict
from toy_task import TEST, TRAIN, Rows, define, load, texts, write

from moecl_jax.config.default import get_config
from moecl_jax.data.catalog import CATALOG, MTL5_LABELS, MTL5_ORDERS, shared_mtl5
from moecl_jax.data.compliance import COLD, LANGUAGES, TENCENT3, cold, tencent3
from moecl_jax.data.compliance import LABELS as COMPLIANCE_LABELS
from moecl_jax.data.examples import Example
from moecl_jax.data.task import Task
from moecl_jax.errors import UserError


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "a/b"}, r"a task is named 'a/b'.*letters, digits"),
        ({"name": "a.b"}, r"a task is named 'a\.b'"),
        ({"name": ".."}, r"a task is named '\.\.'"),
        ({"source": "xml"}, r"task 'toy': source = 'xml' must be one of json, jsonl, csv"),
        ({"source": "huggingface"}, r"task 'toy': path = '' must name the data set"),
        ({"source": "none"}, r"train = 'train.jsonl' must be empty: source 'none'"),
        ({"validation": None}, "validation = None must be a text"),
        ({"text_fields": ()}, r"text_fields = \(\) must name at least one"),
        ({"text_fields": "text"}, r"text_fields = 'text' must be a sequence"),
        ({"text_format": "text"}, r"text_format = 'text' must contain '\{text\}', one of the"),
        ({"text_format": "{text} {body}"}, r"has '\{body\}', which is none of text_fields"),
        ({"subset": "mnli"}, "subset = 'mnli' is of source 'huggingface' only"),
        ({"labels": ("a",)}, r"labels = \('a',\) must hold at least two"),
        ({"labels": ()}, r"labels = \(\) must hold at least two labels \(or name a response_field"),
        ({"labels": ("a", "a")}, r"holds 'a' twice"),
        ({"labels": ("a", " b")}, r"without white space around them, and ' b' is not"),
        (
            {"labels": ("a", 1.5)},
            r"must be texts or whole numbers.* 1\.5 is not",
        ),
        ({"labels": ("a", None)}, r"None is not; name in raw_labels what stands in the data"),
        ({"raw_labels": (0,)}, r"raw_labels = \(0,\) must hold one value for each"),
        ({"raw_labels": (0, "0")}, r"raw_labels .* holds '0' twice"),
        ({"template": "Text:"}, r"template = 'Text:' must contain '\{text\}' exactly once"),
        ({"template": "{text} {text}:"}, "exactly once"),
        ({"template": "{text}: "}, "must not end in white space"),
        ({"metric": "bleu"}, "metric = 'bleu' must be one of exact_match, rouge_l"),
        ({"metric": "rouge_l"}, "metric = 'rouge_l' scores free text; it needs a response_field"),
        ({"chat": "yes"}, "chat = 'yes' must be True or False"),
        ({"response_field": "r"}, r"labels = \('a', 'b'\) must be empty: with a response_field"),
        (
            {"response_field": "r", "labels": (), "label_field": "label"},
            "label_field = 'label' must be empty: with a response_field",
        ),
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


def test_several_fields_are_put_into_a_format(tmp_path: Path) -> None:
    (tmp_path / "train").write_text(
        "premise,claim,label\n P {claim} ,C,0\n,C,1\n,,1\n", encoding="utf-8"
    )
    definition = define(
        tmp_path,
        source="csv",
        train="train",
        test="",
        text_fields=("claim", "premise"),
        text_format="{premise}\nClaim: {claim} {x",
        raw_labels=(0, 1),
    )
    task = load(definition, on_bad_example="skip")
    # What stands in the data is not taken for a place, and a lone brace is a brace.
    assert texts(task.train) == ["P {claim}\nClaim: C {x", "\nClaim: C {x"]
    assert task.skipped == {"empty text": 1}


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
        (b'{"text": "x", "label": 1}', "unknown label", r"raw_labels, such as raw_labels=\(0, 1\)"),
        (b'{"text": "x", "label": null}', "unknown label", "unknown label 'None': it is missing"),
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


def write_records(folder: Path, split: str, *records: dict[str, object]) -> None:
    lines = [json.dumps(record) for record in records]
    (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def test_a_record_may_hold_ids_in_place_of_the_text(tmp_path: Path) -> None:
    write_records(
        tmp_path,
        "train",
        {"input_ids": [5, 0, 99], "label": "b"},
        {"text": "one", "label": "a"},
        {"text": None, "input_ids": [7], "label": "a"},
        {"text": "two", "input_ids": [8], "label": "a"},  # the task's fields come first
    )
    write(tmp_path, "test", TEST)
    found = [(e.text, e.input_ids, e.label) for e in load(define(tmp_path)).train]
    assert found == [("", (5, 0, 99), 1), ("one", (), 0), ("", (7,), 0), ("two", (), 0)]


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([], "must be a list of integers that is not empty"),
        ("5 6", "must be a list of integers"),
        ([5, 6.0], "must be a list of integers"),
        ([5, True], "must be a list of integers"),
        ([5, 100], "must be between 0 and 99"),
        ([-1], "must be between 0 and 99"),
    ],
)
def test_bad_ids_are_a_bad_example(tmp_path: Path, ids: object, message: str) -> None:
    good: dict[str, object] = {"input_ids": [1], "label": "a"}
    write_records(tmp_path, "train", good, {"input_ids": ids, "label": "a"})
    write(tmp_path, "test", TEST)
    with pytest.raises(UserError, match=rf"train\.jsonl:2: input_ids {message}"):
        load(define(tmp_path))
    task = load(define(tmp_path), on_bad_example="skip")
    assert len(task.train) == 1
    assert task.skipped == {"bad input_ids": 1}


def test_leaks_are_found_among_ids_too(tmp_path: Path) -> None:
    write_records(
        tmp_path, "train", {"input_ids": [1, 2], "label": "a"}, {"input_ids": [12], "label": "b"}
    )
    write_records(
        tmp_path, "test", {"input_ids": [1, 2], "label": "a"}, {"input_ids": [3], "label": "b"}
    )
    with pytest.raises(UserError, match=r"train\.jsonl:1: this train text is also in test.*1, 2"):
        load(define(tmp_path))
    task = load(define(tmp_path), on_bad_example="skip")
    assert [example.input_ids for example in task.train] == [(12,)]
    write_records(tmp_path, "test", *({"input_ids": i, "label": "a"} for i in ([12], [1, 2])))
    with pytest.raises(UserError, match="train and test are different files or splits"):
        load(define(tmp_path))


def free_form(folder: Path, **changes: Any) -> Task:
    return define(folder, labels=(), response_field="response", **changes)


def test_free_form_example_has_a_response(tmp_path: Path) -> None:
    write_records(tmp_path, "train", {"text": "one", "response": " uno dos\n"})
    write_records(tmp_path, "test", {"input_ids": [4], "response": "tres"})
    definition = free_form(tmp_path, metric="rouge_l")
    assert (definition.free_form, definition.label_field) == (True, "")
    task = load(definition)
    assert task.train == (Example("one", 0, f"{tmp_path}/train.jsonl:1", "uno dos"),)
    assert task.test == (Example("", 0, f"{tmp_path}/test.jsonl:1", "tres", (4,)),)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"text": "x"}, "no field 'response'"),
        ({"text": "x", "response": "\n"}, r"the text \(response\) is empty"),
        ({"text": "x", "response": 7}, "field 'response' is 7, not a text"),
        ({"response": "y"}, "no field 'text'"),
    ],
)
def test_bad_free_form_example(tmp_path: Path, record: dict[str, object], message: str) -> None:
    write_records(tmp_path, "train", record)
    write_records(tmp_path, "test", {"text": "z", "response": "y"})
    with pytest.raises(UserError, match=rf"train\.jsonl:1: {message}"):
        load(free_form(tmp_path))


def test_a_free_form_task_is_one_class(tmp_path: Path) -> None:
    records = [{"text": f"t {index}", "response": f"r {index}"} for index in range(40)]
    write_records(tmp_path, "train", *records)
    write_records(tmp_path, "test", {"text": "z", "response": "y"})
    task = load(free_form(tmp_path), validation_fraction=0.25, train_examples=20)
    assert (len(task.train), len(task.validation)) == (20, 10)
    assert not set(texts(task.train)) & set(texts(task.validation))
    assert [example.response[2:] for example in task.train] == [e.text[2:] for e in task.train]


@pytest.mark.parametrize("kind", ["csv", "huggingface"])
def test_other_sources_have_responses(tmp_path: Path, kind: str) -> None:
    for split in ("train", "test"):
        (tmp_path / f"{split}.csv").write_text(f"text,response\n{split},uno\n", encoding="utf-8")
    names = {split: f"{split}.csv" if kind == "csv" else split for split in ("train", "test")}
    task = load(free_form(tmp_path, source=kind, **names))
    assert [(e.text, e.response) for e in (*task.train, *task.test)] == [
        ("train", "uno"),
        ("test", "uno"),
    ]


def test_data_sets_may_hold_ids(tmp_path: Path) -> None:
    for split, ids in (("train", [[1, 2], [3]]), ("test", [[9], [8]])):
        rows = datasets.Dataset.from_dict({"input_ids": ids, "label": ["a", "b"]})
        rows.save_to_disk(str(tmp_path / split))
    definition = define(tmp_path, source="huggingface", train="train", test="test")
    task = load(definition)
    assert [(e.input_ids, e.label) for e in task.train] == [((1, 2), 0), ((3,), 1)]


def test_a_task_without_data_is_empty() -> None:
    task = load(define(source="none", path="", train="", test=""))
    assert (task.train, task.validation, task.test) == ((), (), ())


@pytest.mark.parametrize("absent", ["train", "test"])
def test_a_split_may_be_absent(tmp_path: Path, absent: str) -> None:
    write(tmp_path, "train", TRAIN)
    write(tmp_path, "test", TEST)
    task = load(define(tmp_path, **{absent: ""}), validation_fraction=0.5)
    sizes = {split: len(getattr(task, split)) for split in ("train", "validation", "test")}
    assert sizes == (
        {"train": 0, "validation": 0, "test": 2}
        if absent == "train"
        else {"train": 2, "validation": 2, "test": 0}
    )


@pytest.mark.parametrize("validation", ["", "test.jsonl", "absent.jsonl"])
def test_validation_can_be_the_test_split_when_asked_for(tmp_path: Path, validation: str) -> None:
    write(tmp_path, "train", TRAIN)
    write(tmp_path, "test", TEST)
    task = load(
        define(tmp_path, validation=validation), validation_from="test", validation_fraction=0.5
    )
    assert task.validation == task.test
    assert (texts(task.test), len(task.train)) == (["five", "six"], 4)
    with pytest.raises(UserError, match="train and test are the same data"):
        load(define(tmp_path, train="test.jsonl"), validation_from="test")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"source": "none", "lables": ("a", "b")}, "task 'toy' has an unknown field 'lables'"),
        ({"labels": ("a", "b")}, "task 'toy' has no source; expected one of json"),
    ],
)
def test_fields_of_a_config_are_named(fields: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Task.from_fields("toy", fields)


DOCUMENT = Path(__file__).parents[2] / "docs" / "howto" / "tasks.md"


CODE = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.S)
SOURCE = next(code for code in CODE if "class SQLite" in code)


@pytest.mark.parametrize("code", [code for code in CODE if "config." not in code])
def test_python_in_the_documentation_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    monkeypatch.chdir(tmp_path)
    exec(code, {"__name__": "document"})


@pytest.mark.parametrize("code", [code for code in CODE if "config." in code])
def test_definitions_in_the_documentation_are_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "notes.py").write_text(SOURCE, encoding="utf-8")
    config = get_config()
    exec(code, {"config": config, "ConfigDict": ConfigDict})
    (name,) = config.tasks
    definition = Task.from_fields(name, config.definitions[name].to_dict())
    assert definition.name == name


def test_the_documentation_has_every_field() -> None:
    document = DOCUMENT.read_text()
    fields = {f"`{field.name}`" for field in dataclasses.fields(Task)} - {"`name`"}
    fields |= {f"`{key}`" for key in get_config().data}
    assert {field for field in fields if field not in document} == set()


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
        ({"validation_from": "dev"}, "validation_from = 'dev' must be 'train' or 'test'"),
        ({"validation_fraction": 1.0}, r"validation_fraction = 1.0 must be at least 0 and below 1"),
        ({"test_examples": -1}, r"test_examples = -1 must be 0 \(all\) or more"),
    ],
)
def test_arguments_are_checked(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"task 'toy': {message}"):
        load(define(), **changes)


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
    with pytest.raises(UserError, match="no Tencent3 task 'race'; there are video, social, off"):
        tencent3("folder", "race")
    with pytest.raises(UserError, match="no template in 'de'; there are zh and en"):
        cold("folder", "race", "de")


@pytest.mark.parametrize("language", LANGUAGES)
def test_compliance_tasks_read_their_fields(tmp_path: Path, language: str) -> None:
    prompts = set()
    for name, fields in TENCENT3.items():
        records = [
            {field: f"{field} {index}" for field in fields} | {"label": index % 2}
            for index in range(6)
        ]
        records[0][fields[0]] = ""  # there need not be one
        (tmp_path / name).mkdir()
        for place, split in enumerate(("train", "validation", "test")):
            lines = [json.dumps(record) for record in records[2 * place : 2 * place + 2]]
            (tmp_path / name / f"{split}.jsonl").write_text("\n".join(lines))
        definition = tencent3(tmp_path, name, language)
        task = load(definition)
        assert definition.labels == COMPLIANCE_LABELS[language]
        assert sorted(example.label for example in task.train) == [0, 1]
        by_label = {example.label: example.text for example in task.train}
        assert all(f"{field} 1" in by_label[1] for field in fields)
        assert f"{fields[0]} 0" not in by_label[0] and f"{fields[-1]} 0" in by_label[0]
        prompts.add(definition.template)
    prompts |= {cold(tmp_path, name, language).template for name in COLD}
    assert len(prompts) == 6
