"""Text files: JSON, JSON lines, and tables with commas or tabs.

The splits of a task are files relative to its `path`. A split file is UTF-8; each record is placed
at "file:line".
"""

import abc
import csv
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from moecl_jax.data.sources.base import (
    BadExample,
    Definition,
    Document,
    Record,
    Source,
    open_document,
    path_of,
    require_columns,
)
from moecl_jax.errors import UserError, listed, one_line
from moecl_jax.outside import decode_json, parse_json, shortened


class FileSource(Source):
    """A source whose splits are files; its name is also the ending of their names."""

    def location(self, task: Definition, split: str) -> str:
        """The path of the file."""
        return str(Path(task.path) / getattr(task, split))

    def same(self, task: Definition, first: str, second: str) -> bool:
        """Whether the two files are one; links are followed."""
        files = [
            path_of(task, split, Path(self.location(task, split))) for split in (first, second)
        ]
        return os.path.realpath(files[0]) == os.path.realpath(files[1])

    def read(self, task: Definition, split: str) -> Iterator[Record]:
        """The records of the file, in its order."""
        return self.records(open_document(task, split), task)

    @abc.abstractmethod
    def records(self, document: Document, task: Definition) -> Iterator[Record]:
        """The records of the text of a file."""


class Json(FileSource):
    """One JSON list of objects (RFC 8259)."""

    name: ClassVar[str] = "json"

    def records(self, document: Document, task: Definition) -> Iterator[Record]:  # noqa: ARG002
        """The objects of the list, each with the line it starts on."""
        text = document.text
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
                fields, index = decode_json(text, start)
            except json.JSONDecodeError as error:
                raise _malformed_list(document, error.pos, error.msg) from error
            except ValueError as error:
                raise _malformed_list(document, start, one_line(error)) from error
            yield Record(fields, f"{document.path}:{line}", document.problem(start, index))
            index = after_space(index)
            done = expect(",]", index) == "]"
            if not done:
                index = after_space(index + 1)
        index = after_space(index + 1)
        if index != len(text):
            raise _malformed_list(document, index, "text after the end of the list")


def _malformed_list(document: Document, index: int, what: str) -> UserError:
    at = json.JSONDecodeError(what, document.text, index)
    hint = ""
    if index < len(document.text) and document.text[index] == "{" and "'['" in what:
        hint = " A file with one object a line is source 'jsonl'."
    return UserError(
        f"{document.path}:{at.lineno}:{at.colno}: malformed JSON: {what}. Expected a list of "
        f'objects: [{{"text": ..., "label": ...}}, ...].{hint}'
    )


class JsonLines(FileSource):
    """One JSON object a line (jsonlines.org)."""

    name: ClassVar[str] = "jsonl"

    def records(self, document: Document, task: Definition) -> Iterator[Record]:  # noqa: ARG002
        """The objects; empty lines are passed over."""
        advice = 'Expected one object a line: {"text": ..., "label": ...}.'
        for number, start, line in document.lines():
            if not line.strip():
                continue
            where = f"{document.path}:{number}"
            try:
                fields = parse_json(line)
            except json.JSONDecodeError as error:
                raise UserError(
                    f"{where}:{error.colno}: malformed JSON: {error.msg}. {advice}"
                ) from error
            except ValueError as error:
                raise UserError(f"{where}: malformed JSON: {one_line(error)}. {advice}") from error
            if not isinstance(fields, dict):
                shown = shortened(fields)
                raise UserError(f"{where}:1: malformed JSON: {shown} is no object. {advice}")
            yield Record(fields, where, document.problem(start, start + len(line)))


@dataclass(frozen=True)
class _Row:
    cells: Sequence[str]
    line: int
    start: int
    stop: int


class _Table(FileSource):
    """Rows under a header."""

    @abc.abstractmethod
    def rows(self, document: Document) -> Iterator[_Row]:
        """The rows that are not empty, the header first."""

    def records(self, document: Document, task: Definition) -> Iterator[Record]:
        """The rows under the header; a header without the needed columns is refused."""
        needed = [name for name in (*task.text_fields, task.answer_field) if name]
        _refuse_carriage_returns(document)
        rows = self.rows(document)
        header = next(rows, None)
        if header is None:
            raise UserError(
                f"{document.path}:1: the file is empty. Expected a header with "
                f"{', '.join(needed) or 'the names of the columns'}."
            )
        names = [name.strip() for name in header.cells]
        where = f"{document.path}:{header.line}"
        repeated = [name for name, count in Counter(names).items() if count > 1]
        if repeated:
            raise UserError(
                f"{where}: column {shortened(repeated[0])} stands twice in the header; rename one."
            )
        require_columns(names, needed, where)
        for row in rows:
            problem = document.problem(row.start, row.stop)
            if problem is None and len(row.cells) != len(names):
                problem = BadExample(
                    "malformed row",
                    f"{len(row.cells)} cells where the header has {len(names)} ({listed(names)})",
                )
            fields = dict(zip(names, row.cells, strict=False))
            yield Record(fields, f"{document.path}:{row.line}", problem)


def _refuse_carriage_returns(document: Document) -> None:
    """Refuses a file whose lines end as on the Macs of old: to all others it has one line."""
    if "\n" not in document.text and "\r" in document.text.rstrip("\r"):
        raise UserError(
            f"{document.path}:1: the lines end in carriage returns alone. Save the file with line "
            "feeds ('Unix' or 'Windows' line ends)."
        )


class Csv(_Table):
    """Rows of RFC 4180: quoted cells may hold commas, doubled quotes and line feeds."""

    name: ClassVar[str] = "csv"

    def rows(self, document: Document) -> Iterator[_Row]:
        """The rows that are not empty, the header first."""
        lines = list(document.lines())
        reader = csv.reader((line for _, _, line in lines), strict=True)
        first = 0
        while True:
            try:
                cells = _next_row(reader, len(document.text))
            except StopIteration:
                return
            except csv.Error as error:
                raise UserError(
                    f"{document.path}:{first + 1}: malformed CSV: {error}. The row starts on this "
                    "line; write a quote within a quoted cell twice, close every quote, and put "
                    "a carriage return within a cell into quotes."
                ) from error
            last = reader.line_num
            stop = lines[last - 1][1] + len(lines[last - 1][2])
            if cells:
                yield _Row(cells, first + 1, lines[first][1], stop)
            first = last


def _next_row(reader: Iterator[list[str]], longest: int) -> list[str]:
    """The next row, with cells of up to `longest` characters; Python's own limit is 131,072."""
    before = csv.field_size_limit(longest + 1)  # it is the whole process's
    try:
        return next(reader)
    finally:
        csv.field_size_limit(before)


class Tsv(_Table):
    """Rows of IANA text/tab-separated-values: no quoting, a cell holds no tab or line feed."""

    name: ClassVar[str] = "tsv"

    def rows(self, document: Document) -> Iterator[_Row]:
        """The rows that are not empty, the header first."""
        for number, start, line in document.lines():
            if line.strip("\r\n"):
                cells = line.rstrip("\r\n").split("\t")
                yield _Row(cells, number, start, start + len(line))
