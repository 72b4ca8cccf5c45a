"""Every reader's records, line numbers and error messages, on small files written here."""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from moecl_jax.data.sources import Record
from moecl_jax.data.task import Task
from moecl_jax.errors import UserError


def define(source: str, path: Path | str, train: str = "train", **changes: Any) -> Task:
    values: dict[str, Any] = {
        "name": "toy",
        "source": source,
        "path": str(path),
        "train": train,
        "test": "test",
        "labels": ("a", "b"),
        "template": "{text} :",
    }
    return Task(**(values | changes))


def read_split(task: Task, split: str) -> list[Record]:
    return list(task.records(split))


def read(source: str, folder: Path, content: str | bytes, **changes: Any) -> list[Record]:
    """The records of a file with this content."""
    file = folder / "train"
    file.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    return read_split(define(source, folder, **changes), "train")


def lines_of(records: list[Record]) -> list[int]:
    return [int(record.where.rsplit(":", 1)[1]) for record in records]


def test_json_records_have_the_line_they_start_on(tmp_path: Path) -> None:
    content = (
        '\n[\n{"text": "one",\n "label": "a"}\n, {"text": "two\\n", "label": "b"},'
        '\n\n  {"text": "x", "label": {"n": [1]}} ]\n'
    )
    records = read("json", tmp_path, content)
    assert records[0] == Record({"text": "one", "label": "a"}, f"{tmp_path / 'train'}:3")
    assert lines_of(records) == [3, 5, 7]
    assert records[2].fields["label"] == {"n": [1]}


def test_json_list_may_be_empty(tmp_path: Path) -> None:
    assert read("json", tmp_path, " [ ] ") == []


@pytest.mark.parametrize(
    ("content", "place", "what"),
    [
        ('[\n{"text": "a"},\n{"text": }]', "3:10", "Expecting value"),
        ('[\n{"text": "a"}\n{"text": "b"}]', "3:1", "expected ',' or ']'"),
        ('[\n{"text": "a"},\n]', "3:1", "expected '{'"),
        ('[{"text": "a"}, 7]', "1:17", "expected '{'"),
        ('[{"text": "a"}', "1:15", "expected ',' or ']'"),
        ('[{"text": "a"}]\n]', "2:1", "text after the end"),
        ('[{"text": "a\n"}]', "1:13", "Invalid control character"),
        ("", "1:1", "expected '['"),
        ('{"text": "a"}\n{"text": "b"}', "1:1", "source 'jsonl'"),
    ],
)
def test_malformed_json_names_line_and_column(
    tmp_path: Path, content: str, place: str, what: str
) -> None:
    with pytest.raises(UserError) as error:
        read("json", tmp_path, content)
    assert f"{tmp_path / 'train'}:{place}: malformed JSON" in str(error.value)
    assert what in str(error.value)
    assert "Expected a list of objects" in str(error.value)


def test_jsonl_passes_over_empty_lines_and_splits_at_line_feeds_only(tmp_path: Path) -> None:
    content = '{"text": "one\u2028two"}\r\n\n{"text": "three"}'
    records = read("jsonl", tmp_path, content)
    assert [record.fields["text"] for record in records] == ["one\u2028two", "three"]
    assert lines_of(records) == [1, 3]


@pytest.mark.parametrize(
    ("content", "place"),
    [('{"text": "a"}\n\n{"text" "b"}', "3:9"), ('{"text": "a"}\n["b"]', "2:1")],
)
def test_malformed_jsonl_names_line_and_column(tmp_path: Path, content: str, place: str) -> None:
    with pytest.raises(UserError, match=f"train:{place}: malformed JSON.*one object a line"):
        read("jsonl", tmp_path, content)


def test_csv_cells_may_span_lines(tmp_path: Path) -> None:
    content = 'text,label\r\n"one\r\ntwo, ""three""",a\r\n\r\nfour,b\r\n'
    records = read("csv", tmp_path, content)
    assert records[0].fields == {"text": 'one\r\ntwo, "three"', "label": "a"}
    assert records[1].fields == {"text": "four", "label": "b"}
    assert lines_of(records) == [2, 5]


def test_csv_quote_left_open_names_its_row(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train:3: malformed CSV.*close every quote"):
        read("csv", tmp_path, 'text,label\none,a\n"two,b\nthree,a\n')


def test_tsv_has_no_quoting(tmp_path: Path) -> None:
    content = 'text\tlabel\r\n"one\ta\r\n\r\ntwo "three"\tb\r\n'
    records = read("tsv", tmp_path, content)
    assert [record.fields["text"] for record in records] == ['"one', 'two "three"']
    assert [record.fields["label"] for record in records] == ["a", "b"]
    assert lines_of(records) == [2, 4]


def test_byte_order_mark_is_no_part_of_the_header(tmp_path: Path) -> None:
    records = read("tsv", tmp_path, b"\xef\xbb\xbftext\tlabel\none\ta\n")
    assert records[0].fields == {"text": "one", "label": "a"}


@pytest.mark.parametrize("source", ["csv", "tsv"])
def test_header_is_checked(tmp_path: Path, source: str) -> None:
    comma = "," if source == "csv" else "\t"
    with pytest.raises(UserError, match=r"train:1: column 'text' stands twice"):
        read(source, tmp_path, f"text{comma}text{comma}label\n")
    with pytest.raises(UserError, match=r"train:1: no column 'label'; the columns are text, kind"):
        read(source, tmp_path, f"text{comma}kind\n")
    with pytest.raises(UserError, match=r"train:1: the file is empty. Expected a header with text"):
        read(source, tmp_path, "")


@pytest.mark.parametrize("row", ["one", "one\ta\tb"])
def test_row_of_another_width_is_a_problem(tmp_path: Path, row: str) -> None:
    record = read("tsv", tmp_path, f"text\tlabel\n{row}\n")[0]
    assert record.problem is not None
    assert record.problem.reason == "malformed row"
    assert "where the header has 2 (text, label)" in record.problem.message


@pytest.mark.parametrize(
    ("source", "content", "bad", "line", "offset"),
    [
        ("jsonl", b'{"text": "\xc3\xa9"}\n{"text": "\xff"}\n{"text": "c"}', 1, 2, 25),
        ("json", b'[{"text": "a"}, {"text": "\xff"}]', 1, 1, 26),
        ("csv", b'text,label\na,b\n"c\n\xe9",b\n', 1, 4, 18),
        ("tsv", b"\xef\xbb\xbftext\tlabel\n\xe9\ta\nb\tb\n", 0, 2, 14),
    ],
)
def test_invalid_utf8_marks_only_its_record(
    tmp_path: Path, source: str, content: bytes, bad: int, line: int, offset: int
) -> None:
    records = read(source, tmp_path, content)
    assert [index for index, record in enumerate(records) if record.problem] == [bad]
    problem = records[bad].problem
    assert problem is not None
    assert problem.reason == "invalid UTF-8"
    assert content[offset : offset + 1] in (b"\xff", b"\xe9")
    assert f"on line {line}, at byte offset {offset} of the file" in problem.message


def test_missing_file_says_where_it_was_sought(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        read_split(define("json", tmp_path, "nothing.json"), "train")
    assert str(tmp_path / "nothing.json") in str(error.value)
    assert "check `path` and `train` of the task" in str(error.value)


@pytest.fixture
def rows() -> datasets.Dataset:
    features = datasets.Features(
        {
            "text": datasets.Value("string"),
            "extra": datasets.Value("int32"),
            "label": datasets.ClassLabel(names=["a", "b"]),
        }
    )
    data = {"text": ["one", "two", None], "extra": [1, 2, 3], "label": [1, 0, -1]}
    return datasets.Dataset.from_dict(data, features=features)


def test_saved_data_set_with_splits(tmp_path: Path, rows: datasets.Dataset) -> None:
    datasets.DatasetDict({"train": rows}).save_to_disk(str(tmp_path / "saved"))
    records = read_split(define("huggingface", tmp_path / "saved", raw_labels=(0, 1)), "train")
    assert records[0] == Record({"text": "one", "label": 1}, f"{tmp_path / 'saved'} train row 0")
    assert [record.fields["label"] for record in records] == [1, 0, -1]
    with pytest.raises(UserError, match=r"cannot load split 'test'.*KeyError: 'test'"):
        read_split(define("huggingface", tmp_path / "saved"), "test")


def test_a_subset_is_a_folder_of_the_local_folder(tmp_path: Path, rows: datasets.Dataset) -> None:
    for subset, first in (("one", 0), ("two", 1)):
        chosen = datasets.DatasetDict({"train": rows.select([first])})
        chosen.save_to_disk(str(tmp_path / subset))
    for subset, text in (("one", "one"), ("two", "two")):
        records = read_split(define("huggingface", tmp_path, subset=subset), "train")
        assert [record.fields["text"] for record in records] == [text]
    with pytest.raises(UserError, match=f"of the data set '{tmp_path} three'"):
        read_split(define("huggingface", tmp_path, subset="three"), "train")


def test_a_subset_is_a_configuration_on_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load_dataset(*arguments: Any, **options: Any) -> datasets.Dataset:
        asked.append((arguments, options))
        return datasets.Dataset.from_dict({"text": ["t"], "label": ["a"]})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    records = read_split(define("huggingface", "nyu-mll/glue", subset="mnli"), "train")
    assert asked == [(("nyu-mll/glue", "mnli"), {"split": "train"})]
    assert records[0].where == "nyu-mll/glue mnli train row 0"


def test_class_labels_become_names_when_the_task_names_them(
    tmp_path: Path, rows: datasets.Dataset
) -> None:
    rows.save_to_disk(str(tmp_path / "saved" / "train"))
    records = read_split(define("huggingface", tmp_path / "saved"), "train")
    assert [record.fields["label"] for record in records] == ["b", "a", -1]


def test_saved_data_set_without_the_column(tmp_path: Path, rows: datasets.Dataset) -> None:
    rows.save_to_disk(str(tmp_path / "train"))
    definition = define("huggingface", tmp_path, text_fields=("sentence",))
    with pytest.raises(
        UserError, match=r"no column 'sentence'; the columns are text, extra, label"
    ):
        read_split(definition, "train")


@pytest.mark.parametrize("kind", ["parquet", "json", "csv"])
def test_folder_of_files(
    tmp_path: Path,
    kind: str,
    rows: datasets.Dataset,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "folder"
    folder.mkdir()
    for split in ("train", "test"):
        file = folder / f"{split}.{kind}"
        if kind == "parquet":
            rows.to_parquet(str(file))
        elif kind == "json":
            file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        else:
            file.write_text("text,extra,label\none,1,1\ntwo,2,0\n,3,-1\n", encoding="utf-8")
    capsys.readouterr()
    records = read_split(define("huggingface", folder, raw_labels=(0, 1)), "train")
    assert capsys.readouterr() == ("", "")
    assert [record.fields["text"] for record in records] == ["one", "two", None]
    assert [record.fields["label"] for record in records] == [1, 0, -1]


def test_hub_that_cannot_be_reached_says_what_to_do() -> None:
    definition = define("huggingface", "nobody/no-such-data-set")
    with pytest.raises(
        UserError, match=r"nobody/no-such-data-set.*Without a network.*save_to_disk"
    ):
        read_split(definition, "train")
