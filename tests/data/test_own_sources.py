"""Sources outside the package: written by a user, named in a definition or passed in Python."""

import dataclasses
import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from moecl_jax.data import SOURCES, Record, Source, Task, load_examples
from moecl_jax.errors import UserError

MODULE = '''
import contextlib
import dataclasses
import sqlite3

from moecl_jax.data import NoOptions, Record, Source
from moecl_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class TableOptions:
    """Which table, and which of its columns is the split."""

    table: str
    columns: tuple[str, ...] = ("text", "label")

    def __post_init__(self):
        if not self.table.isidentifier():
            raise UserError(f"table = {self.table!r} must be a name")


class SQLite(Source):
    """Rows of a table of a SQLite file."""

    Options = TableOptions

    def check(self, task):
        super().check(task)
        if not task.path.endswith(".db"):
            raise task.error("path", "must be a SQLite file, NAME.db")

    def location(self, task, split):
        return f"{task.path} {task.options.table} {getattr(task, split)}"

    def read(self, task, split):
        columns = ", ".join(task.options.columns)
        query = f"select rowid, {columns} from {task.options.table} where split = ?"
        with contextlib.closing(sqlite3.connect(task.path)) as base:
            for row, *values in base.execute(query, [getattr(task, split)]):
                fields = dict(zip(task.options.columns, values, strict=True))
                yield Record(fields, f"{self.location(task, split)} row {row}")


class Unfinished(Source):
    pass


class Rows(Source):
    def read(self, task, split):
        return [{"text": "one", "label": "a"}]


class Needy(Source):
    def __init__(self, folder):
        self.folder = folder

    def read(self, task, split):
        return []


class NotASource:
    pass


@dataclasses.dataclass(frozen=True)
class Clash:
    path: str


class Clashing(Rows):
    Options = Clash
'''
ROWS = [
    ("train", "win a prize", "spam"),
    ("train", "lunch at noon", "ham"),
    ("test", "you have won", "spam"),
    ("test", "see you", "ham"),
]


@pytest.fixture
def fields(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A definition of a task in a SQLite file; the source's module has a name of its own."""
    name = f"own_{tmp_path.name}"
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / f"{name}.py").write_text(MODULE, encoding="utf-8")
    (tmp_path / f"broken_{name}.py").write_text("1 / 0", encoding="utf-8")
    with sqlite3.connect("texts.db") as base:
        base.execute("create table mail (split, text, label)")
        base.executemany("insert into mail values (?, ?, ?)", ROWS)
    base.close()
    return {
        "source": f"{name}:SQLite",
        "path": "texts.db",
        "table": "mail",
        "train": "train",
        "test": "test",
        "labels": ["ham", "spam"],
    }


def load(task: Task) -> Any:
    return load_examples(
        task,
        seed=0,
        vocabulary_size=100,
        validation_from="train",
        validation_fraction=0.0,
        train_examples=0,
        validation_examples=0,
        test_examples=0,
        on_bad_example="error",
    )


def test_a_definition_names_module_and_class(fields: dict[str, Any]) -> None:
    task = Task.from_fields("mail", fields)
    examples = load(task)
    assert [(e.text, e.label) for e in examples.train] == [("win a prize", 1), ("lunch at noon", 0)]
    assert examples.test[0].where == "texts.db mail test row 3"
    assert task.options.columns == ("text", "label")
    with pytest.raises(UserError, match="train and test are the same data"):
        load(Task.from_fields("mail", {**fields, "test": "train"}))
    with pytest.raises(UserError, match=r"the test split \(texts.db mail other\)"):
        load(Task.from_fields("mail", {**fields, "test": "other"}))


def test_its_fields_stand_among_the_others_and_come_back(fields: dict[str, Any]) -> None:
    task = Task.from_fields("mail", {**fields, "columns": ["text", "label"]})
    saved = task.to_fields()
    assert (saved["table"], saved["columns"]) == ("mail", ("text", "label"))
    assert saved["source"] == fields["source"]
    again = Task.from_fields("mail", json.loads(json.dumps(saved)))
    assert again == task
    assert load(again).train == load(task).train
    assert dataclasses.replace(task, template="{text} :").options == task.options


def test_in_python_the_class_or_an_object_is_passed(fields: dict[str, Any]) -> None:
    named = Task.from_fields("mail", fields)
    kind = type(named.reader)
    common = {key: value for key, value in fields.items() if key not in ("source", "table")}
    for source in (kind, kind(), fields["source"]):
        for options in ({"table": "mail"}, kind.Options("mail")):
            task = Task("mail", source=source, options=options, **common)
            assert task == named
            assert load(task).train == load(named).train
            assert Task.from_fields("mail", task.to_fields()) == task
    assert Task("mail", source=type(SOURCES["none"]), labels=("a", "b")).source == "none"


def test_labels_can_be_read_from_it(fields: dict[str, Any]) -> None:
    options = {"table": fields.pop("table")}
    task = Task("mail", **{**fields, "labels": None, "options": options})
    assert task.labels == ("ham", "spam")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": "no_such_module:SQLite"}, "'mail': source .*there is no module 'no_such_mod"),
        ({"source": "broken_{}:SQLite"}, "importing broken_.* failed with ZeroDivisionError"),
        ({"source": "{}:Sqlite"}, r"has no 'Sqlite'. It has: .*SQLite"),
        ({"source": "{}:NotASource"}, "NotASource does not inherit from .*Source"),
        ({"source": "{}:Unfinished"}, "the class Unfinished lacks read"),
        ({"source": "{}:Needy"}, "Needy.. failed: .*A source is made without arguments"),
        ({"source": "{}:Clashing"}, "its Options have a field 'path', which every task has"),
        ({"source": "sqlite"}, r"source = 'sqlite' must be one of json.*'package.module:Class'"),
        ({"tabel": "mail"}, "has an unknown field 'tabel'; did you mean 'table'?"),
        ({"lables": ("a", "b")}, "has an unknown field 'lables'; did you mean 'labels'?"),
        ({"table": None}, "SQLite' needs table; add it"),
        ({"table": "my mail"}, "SQLite': table = 'my mail' must be a name"),
        ({"path": "texts.csv"}, "path = 'texts.csv' must be a SQLite file"),
        ({"subset": "mnli"}, "subset = 'mnli' is of source 'huggingface' only"),
        ({"source": "json"}, "has an unknown field 'table'"),
    ],
)
def test_mistakes_are_named(fields: dict[str, Any], changes: dict[str, Any], message: str) -> None:
    module = fields["source"].partition(":")[0]
    values = {**fields, **changes}
    values["source"] = values["source"].format(module)
    if changes.get("table", "mail") is None or values["source"].endswith(
        ("Unfinished", "Needy", "Clashing")
    ):
        del values["table"]
    with pytest.raises(UserError, match=message):
        Task.from_fields("mail", values)


def test_records_of_another_kind_are_refused(fields: dict[str, Any]) -> None:
    module = fields["source"].partition(":")[0]
    task = Task("mail", source=f"{module}:Rows", train="train", labels=("a", "b"))
    with pytest.raises(UserError, match=r"Rows' read \{'text': 'one'.* must yield objects"):
        load(task)


def test_what_is_passed_in_python_is_checked() -> None:
    class Unfinished(Source):
        pass

    for source, message in (
        (Unfinished, "task 'toy': source: the class .*Unfinished lacks read"),
        (Record, "does not inherit from moecl_jax.data.sources.base.Source"),
        (3, "task 'toy': source: 3 is not a class"),
    ):
        with pytest.raises(UserError, match=message):
            Task("toy", source=source, labels=("a", "b"))  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"options = \['table'\] must be a mapping"):
        Task("toy", source="none", labels=("a", "b"), options=["table"])
    with pytest.raises(TypeError, match="Options must be a frozen dataclass"):

        class WithoutDataclass(Source):
            Options = dict


def test_sources_are_found_by_being_there() -> None:
    assert list(SOURCES) == [
        *("json", "jsonl", "csv", "tsv", "huggingface", "memory", "none"),
        *("removed", "quickstart"),
    ]
