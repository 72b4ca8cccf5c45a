"""Rows of files and pipes: JSON lines, tables with commas or tabs, and plain text.

A row is read as a record, a mapping from field names to values, or as the reason why there is none.
Rows are read and written one after the other, so that a pipe is answered while it is fed.
"""

import abc
import csv
import itertools
import json
import re
from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from moecl_jax.data.characters import LONE_SURROGATE
from moecl_jax.errors import UserError, listed, one_line
from moecl_jax.outside import parse_json, shortened
from moecl_jax.writing import named

LONGEST_LINE = 2**24
"""Bytes of a line that is read; a longer one is a bad row."""

FORMATS = ("jsonl", "csv", "tsv", "txt")
_ENDINGS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "tsv", ".txt": "txt"}

Record = dict[str, Any]
Row = tuple[Record | Exception, int]
"""A record or why there is none, and the bytes that it was read from."""


def format_of_input(path: Path, asked_for: str | None) -> str:
    """The format of an input: the one asked for, else that of its ending, else JSON lines.

    Raises:
      UserError: the file has another ending.
    """
    known = asked_for or _ENDINGS.get(path.suffix.lower())
    if known is None and path.suffix and path.is_file():
        raise UserError(
            f"--input={path}: the ending {path.suffix} tells no format; expected one of "
            f"{', '.join(_ENDINGS)}, or --format, one of {', '.join(FORMATS)}"
        )
    return known or "jsonl"


def format_of_output(path: Path, of_input: str) -> str:
    """The format of an output: that of its ending, else that of the input."""
    return _ENDINGS.get(path.suffix.lower(), of_input)


class RowReader(abc.ABC):
    """Reads the rows of a stream.

    Attributes:
      columns: the names of a table's columns; empty in other formats, where each row has its own.
    """

    columns: Sequence[str] = ()

    def __init__(self, stream: BinaryIO, source: Path):
        """Begins to read.

        Args:
          stream: the bytes.
          source: names them in messages.

        Raises:
          UserError: a table has no header, or one with a column twice.
        """
        self.lines = Lines(stream, source)

    @abc.abstractmethod
    def __iter__(self) -> Iterator[Row]:
        """The rows in their order."""


class Lines:
    """The lines of a stream, in UTF-8.

    It goes on after an error, other than a generator, which ends with its first one.
    """

    def __init__(self, stream: BinaryIO, source: Path):
        self._stream, self._source = stream, source

    def __iter__(self) -> "Lines":
        return self

    def __next__(self) -> bytes:
        """The next line with its end.

        Raises:
          ValueError: it is too long; it is passed over.
          OSError: it cannot be read; names the file.
        """
        line = self._read(LONGEST_LINE + 1)
        if not line:
            raise StopIteration
        if len(line) > LONGEST_LINE:
            while line and not line.endswith(b"\n"):
                line = self._read(LONGEST_LINE)
            raise ValueError(f"the line has more than {LONGEST_LINE} bytes")
        return line

    def _read(self, most: int) -> bytes:
        with named(self._source):
            return self._stream.readline(most)

    def numbered(self) -> Iterator[bytes | ValueError]:
        """All lines, less empty ones at the end; for one that is too long, the reason."""
        empty = 0
        while True:
            line: bytes | ValueError
            try:
                line = next(self)
            except StopIteration:
                return
            except ValueError as error:
                line = error
            if isinstance(line, bytes) and not line.strip():
                empty += 1
                continue
            yield from (b"" for _ in range(empty))
            empty = 0
            yield line


class JsonLinesReader(RowReader):
    """One JSON object a line (jsonlines.org)."""

    def __iter__(self) -> Iterator[Row]:
        """The objects."""
        for line in self.lines.numbered():
            yield _object(line), 0 if isinstance(line, Exception) else len(line)


class TextReader(RowReader):
    """One text a line, in the field `text`."""

    def __iter__(self) -> Iterator[Row]:
        """The texts."""
        for number, line in enumerate(self.lines.numbered()):
            if isinstance(line, Exception):
                yield line, 0
                continue
            try:
                text = (line if number else line.removeprefix(BOM_UTF8)).decode()
                yield {"text": text.rstrip("\r\n")}, len(line)
            except UnicodeDecodeError as error:
                yield ValueError(f"not a line of UTF-8: {one_line(error)}"), len(line)


class TableReader(RowReader):
    """Rows under a header; empty lines are passed over.

    CSV is that of RFC 4180: quoted cells may hold commas, doubled quotes and line feeds. TSV is
    IANA's text/tab-separated-values: nothing is quoted, and a cell holds no tab or line feed.
    """

    def __init__(self, stream: BinaryIO, source: Path, *, tabs: bool):
        """Reads the header; arguments as for every reader, and whether cells are parted by tabs."""
        super().__init__(stream, source)
        self._rows = self._of_tabs() if tabs else self._of_commas()
        header = next(self._rows, None)
        what = "TSV" if tabs else "CSV"
        if header is None or isinstance(header[0], Exception):
            found = "the file is empty" if header is None else f"line 1: {header[0]}"
            raise UserError(f"{source}: {found}. Expected {what} with the columns' names first.")
        self.columns = [name.strip() for name in header[0]]
        for name in self.columns:
            if self.columns.count(name) > 1:
                raise UserError(f"{source}: column {shortened(name)} stands twice; rename one.")

    def __iter__(self) -> Iterator[Row]:
        """The rows under the header."""
        for cells, size in self._rows:
            if isinstance(cells, Exception):
                yield cells, size
            elif len(cells) != len(self.columns):
                expected = f"the header has {len(self.columns)} ({listed(self.columns)})"
                yield ValueError(f"{len(cells)} cells where {expected}"), size
            elif any(map(LONE_SURROGATE.search, cells)):
                yield ValueError("not a row of UTF-8"), size
            else:
                yield dict(zip(self.columns, cells, strict=True)), size

    def _decoded(self) -> Iterator[str]:
        def decode(line: bytes, number: int) -> str:
            return (line if number else line.removeprefix(BOM_UTF8)).decode(
                "utf-8", "surrogateescape"
            )

        # Not a generator, which would end with the first line that is too long.
        return map(decode, self.lines, itertools.count())

    def _of_tabs(self) -> Iterator[tuple[list[str] | Exception, int]]:
        lines = self._decoded()
        while True:
            try:
                line = next(lines).rstrip("\r\n")
            except StopIteration:
                return
            except ValueError as error:
                yield error, 0
                continue
            if line:
                yield line.split("\t"), len(line)

    def _of_commas(self) -> Iterator[tuple[list[str] | Exception, int]]:
        rows = csv.reader(self._decoded(), strict=True)
        while True:
            before = csv.field_size_limit(LONGEST_LINE)  # it is the whole process's
            try:
                cells = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                yield ValueError(f"malformed CSV: {error}"), 0
                continue
            except ValueError as error:
                yield error, 0
                continue
            finally:
                csv.field_size_limit(before)
            if cells:
                yield cells, sum(map(len, cells))


def open_reader(stream: BinaryIO, source: Path, form: str) -> RowReader:
    """The reader of a format, one of `FORMATS`; raises what `RowReader` does."""
    if form in ("csv", "tsv"):
        return TableReader(stream, source, tabs=form == "tsv")
    return (TextReader if form == "txt" else JsonLinesReader)(stream, source)


def _object(line: bytes | ValueError) -> Record | Exception:
    """The object on a line, or why there is none."""
    if isinstance(line, Exception):
        return line
    if not line:
        return ValueError("the line is empty; expected a JSON object")
    try:
        record = parse_json(line)
    except ValueError as error:
        return ValueError(f"not a line of UTF-8 JSON: {one_line(error)}")
    if not isinstance(record, dict):
        return ValueError("not a JSON object")
    if LONE_SURROGATE.search(json.dumps(record, ensure_ascii=False)):
        return ValueError("holds half of a surrogate pair (\\ud800...)")
    return record


class RowWriter(abc.ABC):
    """Writes records, as they are, with their answers.

    Attributes:
      kept: how many records had a field with the name of the answers, and so got none.
    """

    kept = 0

    def __init__(self, out: TextIO, name: str):
        """Writes to a text stream; answers have this name."""
        self.out, self.name = out, name

    def problem(self, record: Record) -> str | None:
        """Why a record cannot be written with an answer, or None."""
        del record
        return None

    @abc.abstractmethod
    def write(self, record: Record, answer: Mapping[str, Any]) -> None:
        """Writes a row: a record, empty where it could not be read, and its answer."""


class JsonLinesWriter(RowWriter):
    """Each record with its answer as one more field."""

    def problem(self, record: Record) -> str | None:
        """A field has the answer's name."""
        return "there is such a field already" if self.name in record else None

    def write(self, record: Record, answer: Mapping[str, Any]) -> None:
        """Writes a line."""
        self.kept += self.name in record
        whole = {**record, self.name: record.get(self.name, answer)}
        self.out.write(json.dumps(whole, ensure_ascii=False, allow_nan=False) + "\n")


class TextWriter(RowWriter):
    """The label or the written text alone, on one line; an empty line for a bad row."""

    def write(self, record: Record, answer: Mapping[str, Any]) -> None:
        """Writes a line."""
        del record
        self.out.write(_on_one_line(_said(answer)) + "\n")


class TableWriter(RowWriter):
    """Rows under a header: the records' columns, then those of the answers."""

    def __init__(
        self, out: TextIO, name: str, columns: Sequence[str], parts: Sequence[str], *, tabs: bool
    ):
        """Writes the header.

        Args:
          out: a text stream, without translation of line ends.
          name: what the column with the answers is called; the others begin with it.
          columns: those of the records.
          parts: what of an answer has a column, beside the label or the written text.
          tabs: whether cells are parted by tabs (TSV) or by commas (CSV).
        """
        super().__init__(out, name)
        self.columns, self.parts, self.tabs = columns, parts, tabs
        self._writer = csv.writer(out, lineterminator="\n")
        self._put([*columns, *own_columns(name, parts)])

    def problem(self, record: Record) -> str | None:
        """A field has no column, or a cell cannot be written."""
        other = [name for name in record if name not in self.columns]
        if other:
            found = f"the header, made of the first rows, has no column {shortened(other[0])}"
            return f"{found}; write JSON lines, which need none"
        for name, value in record.items():
            if self.tabs and _on_one_line(_cell(value)) != _cell(value):
                return f"{shortened(name)} holds a tab or a line end, for which TSV has no place"
        return None

    def write(self, record: Record, answer: Mapping[str, Any]) -> None:
        """Writes a row."""
        said = _said(answer)
        own = [_on_one_line(said) if self.tabs else said]
        own += [_cell(answer.get(part)) for part in self.parts]
        self._put([*(_cell(record.get(name)) for name in self.columns), *own])

    def _put(self, cells: Sequence[str]) -> None:
        if self.tabs:
            self.out.write("\t".join(map(_on_one_line, cells)) + "\n")
        else:
            self._writer.writerow(cells)


def own_columns(name: str, parts: Iterable[str]) -> list[str]:
    """The columns of the answers in a table."""
    return [name, *(f"{name}_{part}" for part in parts)]


def _said(answer: Mapping[str, Any]) -> str:
    """The label or the written text; empty for an error."""
    return str(answer.get("label", answer.get("response", "")))


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _on_one_line(text: str) -> str:
    """A text with spaces for tabs and line ends."""
    return re.sub("[\t\r\n]+", " ", text)
