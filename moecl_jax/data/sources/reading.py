"""Readers of the data of one split: every record with its fields and the place it stands."""

import contextlib
import csv
import json
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moecl_jax import quiet
from moecl_jax.data.sources import quickstart
from moecl_jax.errors import UserError

if TYPE_CHECKING:
    from moecl_jax.data.definition import TaskDefinition

FILE_SOURCES = ("json", "jsonl", "csv", "tsv")
SOURCES = (*FILE_SOURCES, "huggingface", "quickstart", "none")
INPUT_IDS = "input_ids"
"""The field of a record that holds token ids in place of the text."""


@dataclass(frozen=True)
class BadExample:
    """Why a record cannot be used: a short reason to count by and a message for a person."""

    reason: str
    message: str


@dataclass(frozen=True)
class Record:
    """The fields of an example as they are written, and where ("file:line" of its start)."""

    fields: Mapping[str, object]
    where: str
    problem: BadExample | None = None


def location(definition: "TaskDefinition", split: str) -> str:
    """Where a split lies, for messages: its file, or its data set and split."""
    name = getattr(definition, split)
    if definition.source in FILE_SOURCES:
        return str(Path(definition.path) / name)
    return f"{_data_set(definition)} {name}"


def _data_set(definition: "TaskDefinition") -> str:
    """The data set's name, with that of its subset if there is one."""
    return f"{definition.path} {definition.subset}".rstrip()


def read_split(definition: "TaskDefinition", split: str) -> list[Record]:
    """Reads one split ("train", "validation" or "test") of a task, in the order of the data.

    Records that cannot be used (invalid UTF-8, a row of the wrong width) carry a `problem`.

    Raises:
        UserError: the data are missing or malformed; names the file, line and column.
    """
    if definition.source == "huggingface":
        return _read_huggingface(definition, getattr(definition, split))
    if definition.source == "quickstart":
        snippets = quickstart.read(definition.path, getattr(definition, split))
        return [
            Record({"text": s.text, "label": s.label, "response": s.response}, s.where)
            for s in snippets
        ]
    document = _open_document(definition, split)
    if definition.source == "json":
        return list(_read_json(document))
    if definition.source == "jsonl":
        return list(_read_jsonl(document))
    rows = _csv_rows(document) if definition.source == "csv" else _tsv_rows(document)
    return list(_read_table(document, rows, (*definition.text_fields, definition.answer_field)))


@dataclass(frozen=True)
class _Document:
    """A text file; bytes that are not UTF-8 stand in `text` as lone surrogates (PEP 383)."""

    path: Path
    text: str
    invalid: tuple[tuple[int, int, int], ...]  # (index in text, offset in file, line) of each

    def problem(self, start: int, stop: int) -> BadExample | None:
        """Says whether text[start:stop] holds bytes that are not UTF-8."""
        first = bisect_left(self.invalid, (start, 0, 0))
        if first == len(self.invalid) or self.invalid[first][0] >= stop:
            return None
        index, offset, line = self.invalid[first]
        return BadExample(
            "invalid UTF-8",
            f"not valid UTF-8: byte 0x{ord(self.text[index]) - 0xDC00:02x} on line {line}, at "
            f"byte offset {offset} of the file; save the file as UTF-8",
        )


def _open_document(definition: "TaskDefinition", split: str) -> _Document:
    path = (Path(definition.path) / getattr(definition, split)).expanduser()
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"task '{definition.name}': cannot read {path} ({error.strerror}). Expected a "
            f"{definition.source} file with the {split} split; check `path` and `{split}` of the "
            f"task (relative paths start at {Path.cwd()})."
        ) from error
    bom = len(b"\xef\xbb\xbf") if content.startswith(b"\xef\xbb\xbf") else 0
    text = content[bom:].decode("utf-8", "surrogateescape")
    invalid, index, offset, line = [], 0, bom, 1
    for match in re.finditer("[\udc80-\udcff]", text):
        between = text[index : match.start()]
        offset += len(between.encode("utf-8", "surrogateescape"))
        line += between.count("\n")
        index = match.start()
        invalid.append((index, offset, line))
    return _Document(path, text, tuple(invalid))


def _malformed_list(document: _Document, index: int, what: str) -> UserError:
    at = json.JSONDecodeError(what, document.text, index)
    hint = ""
    if index < len(document.text) and document.text[index] == "{" and "'['" in what:
        hint = " A file with one object a line is source 'jsonl'."
    return UserError(
        f"{document.path}:{at.lineno}:{at.colno}: malformed JSON: {what}. Expected a list of "
        f'objects: [{{"text": ..., "label": ...}}, ...].{hint}'
    )


def _read_json(document: _Document) -> Iterator[Record]:
    """The objects of one JSON list (RFC 8259), each with the line it starts on."""
    text, decoder = document.text, json.JSONDecoder()
    space = re.compile(r"[ \t\n\r]*")
    line, counted = 1, 0

    def after_space(index: int) -> int:
        match = space.match(text, index)
        return match.end() if match else index

    def expect(characters: str, index: int) -> str:
        found = text[index : index + 1]
        if found and found in characters:
            return found
        wanted = " or ".join(repr(character) for character in characters)
        raise _malformed_list(document, index, f"expected {wanted}")

    index = after_space(0)
    expect("[", index)
    index = after_space(index + 1)
    done = text[index : index + 1] == "]"
    while not done:
        start = index
        line, counted = line + text.count("\n", counted, start), start
        expect("{", start)
        try:
            fields, index = decoder.raw_decode(text, start)
        except json.JSONDecodeError as error:
            raise _malformed_list(document, error.pos, error.msg) from error
        yield Record(fields, f"{document.path}:{line}", document.problem(start, index))
        index = after_space(index)
        done = expect(",]", index) == "]"
        if not done:
            index = after_space(index + 1)
    index = after_space(index + 1)
    if index != len(text):
        raise _malformed_list(document, index, "text after the end of the list")


def _lines(document: _Document) -> Iterator[tuple[int, int, str]]:
    """(number, start index, text with its line feed) of each line.

    Only a line feed ends a line: str.splitlines would also split at U+2028 within a text.
    """
    start = 0
    for number, line in enumerate(document.text.split("\n"), start=1):
        yield number, start, line + "\n"
        start += len(line) + 1


def _read_jsonl(document: _Document) -> Iterator[Record]:
    """One object a line (jsonlines.org); empty lines are passed over."""
    advice = 'Expected one object a line: {"text": ..., "label": ...}.'
    for number, start, line in _lines(document):
        if not line.strip():
            continue
        where = f"{document.path}:{number}"
        try:
            fields = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(
                f"{where}:{error.colno}: malformed JSON: {error.msg}. {advice}"
            ) from error
        if not isinstance(fields, dict):
            shown = line.strip()[:60]
            raise UserError(f"{where}:1: malformed JSON: {shown} is no object. {advice}")
        yield Record(fields, where, document.problem(start, start + len(line)))


@dataclass(frozen=True)
class _Row:
    cells: Sequence[str]
    line: int
    start: int
    stop: int


def _csv_rows(document: _Document) -> Iterator[_Row]:
    """Rows of RFC 4180: quoted cells may hold commas, doubled quotes and line feeds."""
    lines = list(_lines(document))
    reader = csv.reader((line for _, _, line in lines), strict=True)
    first = 0
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise UserError(
                f"{document.path}:{first + 1}: malformed CSV: {error}. The row starts on this "
                "line; write a quote within a quoted cell twice, and close every quote."
            ) from error
        last = reader.line_num
        stop = lines[last - 1][1] + len(lines[last - 1][2])
        if cells:
            yield _Row(cells, first + 1, lines[first][1], stop)
        first = last


def _tsv_rows(document: _Document) -> Iterator[_Row]:
    """Rows of IANA text/tab-separated-values: no quoting, a cell holds no tab or line feed."""
    for number, start, line in _lines(document):
        if line.strip("\r\n"):
            yield _Row(line.rstrip("\r\n").split("\t"), number, start, start + len(line))


def _read_table(
    document: _Document, rows: Iterable[_Row], needed: Sequence[str]
) -> Iterator[Record]:
    """Rows under a header as records; a header without the needed columns is refused."""
    rows = iter(rows)
    header = next(rows, None)
    if header is None:
        raise UserError(
            f"{document.path}:1: the file is empty. Expected a header with {', '.join(needed)}."
        )
    names = [name.strip() for name in header.cells]
    where = f"{document.path}:{header.line}"
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise UserError(f"{where}: column {repeated[0]!r} stands twice in the header; rename one.")
    _require_columns(names, needed, where)
    for row in rows:
        problem = document.problem(row.start, row.stop)
        if problem is None and len(row.cells) != len(names):
            problem = BadExample(
                "malformed row",
                f"{len(row.cells)} cells where the header has {len(names)} ({', '.join(names)})",
            )
        fields = dict(zip(names, row.cells, strict=False))
        yield Record(fields, f"{document.path}:{row.line}", problem)


def _require_columns(names: Sequence[str], needed: Sequence[str], where: str) -> None:
    for name in needed:
        if name not in names:
            raise UserError(
                f"{where}: no column '{name}'; the columns are {', '.join(names)}. Set "
                "text_fields and label_field or response_field of the task to columns of the data."
            )


def _read_huggingface(definition: "TaskDefinition", split: str) -> list[Record]:
    """Rows of a split of a Hugging Face data set; class labels become names where needed.

    A class label is read as its number when every label of the task's data is a number.
    """
    import datasets

    data = _open_huggingface(definition, split)
    columns = set(data.column_names)
    as_ids = INPUT_IDS in columns and columns.isdisjoint(definition.text_fields)
    texts = (INPUT_IDS,) if as_ids else definition.text_fields
    needed = (*texts, definition.answer_field)
    where = f"{_data_set(definition)} {split}"
    _require_columns(data.column_names, needed, where)
    feature = data.features[definition.answer_field]
    raw_labels = definition.raw_labels or definition.labels
    names: Sequence[str] = ()
    by_number = all(str(label).isdecimal() for label in raw_labels)
    if isinstance(feature, datasets.ClassLabel) and not by_number:
        names = feature.names
    records = []
    for index, fields in enumerate(data.select_columns(list(dict.fromkeys(needed)))):
        label = fields[definition.answer_field]
        if isinstance(label, int) and 0 <= label < len(names):
            fields = {**fields, definition.answer_field: names[label]}
        records.append(Record(fields, f"{where} row {index}"))
    return records


def _open_huggingface(definition: "TaskDefinition", split: str) -> Any:
    """The `datasets.Dataset` of a split: saved with save_to_disk, a folder of files, or the hub."""
    import datasets

    path, subset = definition.path, definition.subset or None
    folder = Path(path).expanduser()
    if folder.is_dir():
        folder, subset = folder / definition.subset, None
        path = str(folder)
    try:
        if (folder / "dataset_dict.json").is_file():
            return datasets.load_from_disk(str(folder))[split]
        if (folder / split / "dataset_info.json").is_file():
            return datasets.load_from_disk(str(folder / split))
        # A long download is to be seen, the conversion of local files is not.
        with quiet.datasets() if folder.is_dir() else contextlib.nullcontext():
            return datasets.load_dataset(path, subset, split=split)
    # The libraries below raise dozens of types, from httpx to pyarrow, for what is one mistake
    # here: the data set cannot be had.
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        raise UserError(
            f"task '{definition.name}': cannot load split '{split}' of the data set "
            f"'{_data_set(definition)}' ({type(error).__name__}: {reason}). Check the name and the "
            "split. Without a network, load it once on a machine that has one and copy the folder "
            "that Dataset.save_to_disk writes, or a folder of parquet, JSON or CSV files, and set "
            "`path` to it; a data set that needs its own code (trust_remote_code) is not loaded."
        ) from error
