"""Files that are broken, of another kind or hostile: records, or an error of one line."""

import csv
import gzip
import io
import json
import os
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from messages import is_one_line
from test_sources import define, read
from test_tasks import load

from moecl_jax.data.sources import Record
from moecl_jax.data.task import Task
from moecl_jax.errors import UserError

CASES = 500
"""Generated files of each kind."""

KINDS = ("json", "jsonl", "csv", "tsv")
TABLE = "text,label\none,a\ntwo,b\n"


def zipped(content: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(zipfile.ZipInfo("train.csv"), content)
    return file.getvalue()


@pytest.mark.parametrize("source", KINDS)
@pytest.mark.parametrize(
    ("content", "what"),
    [
        (TABLE.encode("utf-16"), "text in UTF-16"),
        (TABLE.encode("utf-16-le"), "text in UTF-16 or a binary file"),
        (TABLE.encode("utf-32"), "text in UTF-32"),
        (gzip.compress(TABLE.encode(), mtime=0), "a gzip archive.*Unpack it first"),
        (zipped(TABLE), "a zip archive or an Excel file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"),
        (b"PAR1" + struct.pack("<I", 7) * 99, "a parquet file.*source 'huggingface'"),
    ],
)
def test_a_file_of_another_kind_is_recognised(
    tmp_path: Path, source: str, content: bytes, what: str
) -> None:
    with pytest.raises(UserError, match=rf"train: this is {what}|train: this is .*{what}"):
        read(source, tmp_path, content)


@pytest.mark.parametrize("source", ["csv", "tsv"])
def test_lines_that_end_in_carriage_returns_are_recognised(tmp_path: Path, source: str) -> None:
    with pytest.raises(UserError, match="train:1: the lines end in carriage returns alone"):
        read(source, tmp_path, "text\tlabel\rone\ta\r".replace("\t", ",\t"[source == "tsv"]))
    # A header alone is a table without rows.
    assert read(source, tmp_path, "text\tlabel\r".replace("\t", ",\t"[source == "tsv"])) == []


def test_a_carriage_return_in_a_cell_needs_quotes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train:3: malformed CSV.*carriage return within a cell"):
        read("csv", tmp_path, "text,label\none,a\ntwo\rthree,b\n")
    assert read("csv", tmp_path, 'text,label\n"a\rb",a\n')[0].fields["text"] == "a\rb"


def test_a_cell_may_have_millions_of_characters(tmp_path: Path) -> None:
    before = csv.field_size_limit()
    records = read("csv", tmp_path, f'text,label\n{"x" * 2_000_000},a\n"{"y" * 131_073}",b\n')
    assert [len(str(record.fields["text"])) for record in records] == [2_000_000, 131_073]
    assert csv.field_size_limit() == before  # it is everyone's


@pytest.mark.parametrize("source", ["json", "jsonl"])
@pytest.mark.parametrize(
    ("value", "what"),
    [
        ("[" * 100_000 + "]" * 100_000, "lists and objects are nested more than 100 deep"),
        (
            '{"a":' * 100_000 + "1" + "}" * 100_000,
            "lists and objects are nested more than 100 deep",
        ),
        ("7" * 5_000, "a number has 5000 digits"),
        ("1e999", "1e999 is larger than any number"),
        ("NaN", "NaN is no JSON"),
    ],
)
def test_json_beyond_limits_is_an_error_with_its_line(
    tmp_path: Path, source: str, value: str, what: str
) -> None:
    line = f'{{"text": "x", "label": "a", "more": {value}}}\n'
    content = line if source == "jsonl" else f"[\n{line}]"
    number = "1" if source == "jsonl" else "2:1"
    with pytest.raises(UserError, match=rf"train:{number}: malformed JSON: {what}"):
        read(source, tmp_path, content)


@pytest.mark.parametrize("source", KINDS)
def test_a_path_that_leads_nowhere_is_named(tmp_path: Path, source: str) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name, what in (
        ("loop", "symbolic links"),
        ("folder", "Is a directory"),
        ("x" * 5000, "File name too long"),
        ("pipe", "is a device or a pipe"),
    ):
        task = define(source, tmp_path, name, test="")
        with pytest.raises(UserError, match=what) as caught:
            list(task.records("train"))
        assert len(str(caught.value)) < 1000
    with pytest.raises(UserError, match="holds a NUL character"):
        list(define(source, tmp_path, "a\0b").records("train"))
    with pytest.raises(UserError, match=r"train = .* leads nowhere"):
        list(define(source, "~nobody-of-this-name/x").records("train"))
    same = define(source, tmp_path, "loop", test="loop")
    assert same.reader.same(same, "train", "test")


def test_a_header_of_a_megabyte_is_shortened(tmp_path: Path) -> None:
    names = [f"column {index}" for index in range(50_000)]
    for header in (names, [*names, names[0]]):
        with pytest.raises(UserError) as caught:
            read("csv", tmp_path, ",".join(header) + "\n")
        assert len(str(caught.value)) < 1000
    with pytest.raises(UserError, match="column 'xxx"):
        read("tsv", tmp_path, "\t".join(["x" * 1_000_000] * 2))


# Generated files. Parts that readers stumble over are put together in any order.

parts = st.sampled_from(
    [
        *('{"text": "x", "label": "a"}', '{"text":', '"label"', "[", "]", "{", "}", ",", ":"),
        *('"', "'", "\\", "\\u0000", "\\ud800", "\\", "\n", "\r", "\r\n", "\t", " ", "\x00"),
        *("null", "true", "NaN", "Infinity", "-", "1e999", "1e5", "0", "00", "9" * 5000),
        *("text", "label", "text,label\n", "text\tlabel\n", "one,a\n", "one\ta\n", '"one\n', '""'),
        *("\ufeff", "\u2028", "\u200b", "\ud83d\ude00", "x" * 20_000, "[" * 2000, '{"a":' * 1500),
    ]
)
texts = st.lists(st.one_of(parts, st.text(max_size=8)), max_size=12).map("".join)
encodings = st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "latin-1"])


def encoded(text: str, encoding: str) -> bytes:
    errors = "ignore" if encoding == "latin-1" else "surrogatepass"
    return text.encode(encoding, errors)


contents = st.one_of(
    texts.map(lambda text: encoded(text, "utf-8")),
    st.builds(encoded, texts, encodings),
    st.binary(max_size=64),
    st.builds(lambda text, more: encoded(text, "utf-8") + more, texts, st.binary(max_size=8)),
)
generated = settings(
    max_examples=CASES,
    derandomize=True,
    deadline=10_000,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def records_or_error(task: Task, content: bytes) -> list[Record] | None:
    """The records of a file; None where it is refused by an error of one line."""
    (Path(task.path) / "train").write_bytes(content)
    try:
        return list(task.records("train"))
    except UserError as error:
        assert is_one_line(error)
        return None


def reference_json(content: bytes) -> Any:
    return json.loads(content.decode("utf-8-sig", "surrogateescape"))


@pytest.mark.slow
@generated
@given(content=contents)
def test_json_reads_nothing_that_python_refuses(tmp_path: Path, content: bytes) -> None:
    found = records_or_error(define("json", tmp_path, labels=("a", "b")), content)
    if found is not None:
        assert [record.fields for record in found] == reference_json(content)


@pytest.mark.slow
@generated
@given(content=contents)
def test_json_lines_read_nothing_that_python_refuses(tmp_path: Path, content: bytes) -> None:
    found = records_or_error(define("jsonl", tmp_path, labels=("a", "b")), content)
    if found is not None:
        lines = content.split(b"\n")
        lines[0] = lines[0].removeprefix(b"\xef\xbb\xbf")
        texts = [line.decode("utf-8", "surrogateescape") for line in lines]
        expected = [json.loads(text) for text in texts if text.strip()]
        assert [record.fields for record in found] == expected


@pytest.mark.slow
@generated
@given(content=contents)
def test_csv_reads_what_python_reads(tmp_path: Path, content: bytes) -> None:
    found = records_or_error(define("csv", tmp_path, labels=("a", "b")), content)
    if found is None:
        return
    text = content.decode("utf-8-sig", "surrogateescape")
    lines = [line + "\n" for line in text.split("\n")]
    before = csv.field_size_limit(len(text) + 1)
    try:
        rows = [row for row in csv.reader(lines, strict=True) if row]
    finally:
        csv.field_size_limit(before)
    names = [name.strip() for name in rows[0]]
    expected = [dict(zip(names, row, strict=False)) for row in rows[1:]]
    assert [record.fields for record in found] == expected


@pytest.mark.slow
@generated
@given(content=contents)
def test_tsv_rows_are_lines(tmp_path: Path, content: bytes) -> None:
    found = records_or_error(define("tsv", tmp_path, labels=("a", "b")), content)
    if found is not None:
        assert len(found) < max(1, len([line for line in content.split(b"\n") if line.strip()]))


tables = st.lists(
    st.tuples(st.sampled_from(["a", "b", "", "c", '"', "a\u200b", "A"]), st.text(max_size=6)),
    max_size=6,
)


@pytest.mark.slow
@pytest.mark.parametrize("source", KINDS)
@generated
@given(rows=tables, policy=st.sampled_from(["error", "skip"]))
def test_a_whole_task_loads_or_says_why(
    tmp_path: Path, source: str, rows: list[tuple[str, str]], policy: str
) -> None:
    (tmp_path / "train").write_bytes(table(source, rows))
    (tmp_path / "test").write_bytes(table(source, [("a", "other"), ("b", "another")]))
    try:
        task = load(define(source, tmp_path, labels=("a", "b")), on_bad_example=policy)
    except UserError as error:
        assert is_one_line(error)
        return
    assert task.train
    assert all(example.text.strip() and example.label in (0, 1) for example in task.train)
    assert {example.key for example in task.train}.isdisjoint(e.key for e in task.test)


def table(source: str, rows: list[tuple[str, str]]) -> bytes:
    """A file of rows of a label and a text, written without care for what a text holds."""
    records = [{"text": text, "label": label} for label, text in rows]
    if source == "json":
        return json.dumps(records).encode()
    if source == "jsonl":
        return "".join(json.dumps(record) + "\n" for record in records).encode()
    comma = "," if source == "csv" else "\t"
    lines = [f"text{comma}label", *(f"{text}{comma}{label}" for label, text in rows)]
    return "\n".join(lines).encode("utf-8", "surrogatepass")
