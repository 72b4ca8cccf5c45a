"""Texts that a reviewer pastes or uploads: plain lines, JSON lines, or a table."""

import csv
import io
import json
from collections.abc import Iterator
from typing import Any

from moecl_jax.data.characters import LONE_SURROGATE, is_blank
from moecl_jax.errors import UserError, listed, one_line
from moecl_jax.outside import parse_json, shortened

FORMATS = ("lines", "jsonl", "csv", "tsv")
TEXT = "text"
"""The field of a record that holds the text; the others are its context."""


def read_texts(content: str, form: str) -> list[tuple[str, dict[str, Any]]]:
    """The texts in what was pasted or uploaded, each with its context. Blank lines are left out.

    Args:
      content: what was pasted or uploaded.
      form: `lines`, a text a line; `jsonl`, an object a line; `csv` or `tsv`, a table whose first
        line names the columns. In `tsv` nothing is quoted. Objects and tables have a field `text`;
        the others are context.

    Raises:
      UserError: there is no text, or one is malformed; names the line.
    """
    if LONE_SURROGATE.search(content):
        raise UserError("the texts hold half of a surrogate pair; save them as UTF-8")
    content = content.removeprefix("\ufeff")
    if form == "lines":
        records: Iterator[tuple[int, dict[str, Any]]] = (
            (number, {TEXT: line.strip()}) for number, line in _lines(content)
        )
    else:
        records = _objects(content) if form == "jsonl" else _rows(content, form)
    found = []
    for number, record in records:
        text = record.pop(TEXT, None)
        if not isinstance(text, str) or is_blank(text):
            raise UserError(f"line {number}: {TEXT} is {shortened(text)}; expected a text")
        found.append((text, record))
    if not found:
        raise UserError("there is no text; expected one a line")
    return found


def _lines(content: str) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(io.StringIO(content), 1):
        if not is_blank(line):
            yield number, line


def _objects(content: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in _lines(content):
        try:
            value = parse_json(line)
        except ValueError as error:
            raise UserError(f"line {number}: no JSON: {one_line(error)}") from error
        if not isinstance(value, dict):
            raise UserError(f"line {number}: {shortened(value)}; expected an object")
        if LONE_SURROGATE.search(json.dumps(value, ensure_ascii=False)):
            raise UserError(f"line {number}: holds half of a surrogate pair")
        yield number, value


def _rows(content: str, form: str) -> Iterator[tuple[int, dict[str, Any]]]:
    lines = io.StringIO(content, newline="")
    rows = (
        csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE, strict=True)
        if form == "tsv"
        else csv.DictReader(lines, strict=True)
    )
    try:
        columns = rows.fieldnames or []
        if TEXT not in columns:
            raise UserError(f"no column '{TEXT}'; the columns are {listed(columns) or 'none'}")
        twice = next((name for name in columns if columns.count(name) > 1), None)
        if twice is not None:
            raise UserError(f"column {shortened(twice)} stands twice; rename one")
        for row in rows:
            if None in row or None in row.values():
                raise UserError(f"line {rows.line_num}: expected {len(columns)} cells")
            yield rows.line_num, dict(row)
    except csv.Error as error:
        raise UserError(f"line {rows.line_num}: {one_line(error)}") from error
