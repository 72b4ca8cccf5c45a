"""What the columns of a file hold, and which of them are the text and the label.

A guess is made where it is plain. Where several columns might be meant, nothing is guessed: the
message names them, and the option that tells.
"""

import functools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from moecl_jax.data.characters import is_blank
from moecl_jax.data.labels import label_key, without_point_zero
from moecl_jax.data.sources import Record, source_named
from moecl_jax.errors import UserError, listed, suggestion
from moecl_jax.outside import shortened

MOST_LABELS = 100
"""Different values of a column that is taken for the label without being named."""

_LONGEST_NAME = 60

TEXT_NAMES = (
    *("text", "comment", "content", "sentence", "message", "body", "review", "tweet", "post"),
    *("comment_text", "review_text", "question", "utterance", "query", "document", "article"),
    *("文本", "评论", "内容", "句子", "正文", "消息", "问题"),
)
LABEL_NAMES = (
    *("label", "labels", "class", "category", "target", "y", "gold", "gold_label", "annotation"),
    *("标签", "类别", "分类"),
)
_PAIRS = (
    *(("premise", "hypothesis"), ("sentence1", "sentence2"), ("question1", "question2")),
    *(("text1", "text2"), ("text_a", "text_b"), ("title", "text"), ("title", "content")),
    *(("title", "body"), ("title", "description"), ("subject", "body"), ("subject", "text")),
)
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
_NOTHING = frozenset(("", "nan", "na", "n/a", "null", "none"))
HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")
_KANA = re.compile("[\u3040-\u30ff]")


@dataclass(frozen=True)
class Column:
    """The values of a field over the records of a file that could be read.

    Attributes:
        name: the field.
        values: a value for each record; None where it is missing.
    """

    name: str
    values: tuple[object, ...]

    @functools.cached_property
    def present(self) -> list[object]:
        """The values that are not missing."""
        return [v for v in self.values if v is not None and not (_text(v) and is_blank(str(v)))]

    @functools.cached_property
    def texts(self) -> list[str]:
        """The values that are texts and no numbers."""
        texts = [value for value in self.present if isinstance(value, str)]
        return [text for text in texts if not _NUMBER.fullmatch(text.strip())]

    @functools.cached_property
    def labels(self) -> Counter[str]:
        """How often each value stands there, as a label is written.

        Of numbers one that is missing, such as "nan", does not count.
        """
        keys = [label_key(v) for v in self.present if isinstance(v, str | int | float)]
        known = [key for key in keys if key.lower() not in _NOTHING]
        if known and all(map(_NUMBER.fullmatch, known)):
            keys = [without_point_zero(key) for key in known]
        return Counter(keys)

    @property
    def is_text(self) -> bool:
        """Whether the values are running text: of several words, or in Chinese or Japanese."""
        if 2 * len(self.texts) <= len(self.present):
            return False
        words = sum(bool(re.search(r"\S\s+\S", t) or HAN.search(t)) for t in self.texts)
        return 10 * words >= 3 * len(self.texts)

    @property
    def mean_length(self) -> float:
        """Characters of a text, on average."""
        return sum(map(len, self.texts)) / max(len(self.texts), 1)

    @property
    def problem_as_label(self) -> str | None:
        """Why the column cannot be the label of a classification; None if it can."""
        count, rows = len(self.labels), sum(self.labels.values())
        if not rows:
            return "it holds nothing"
        if count == 1:
            return f"all {rows} rows have the value {shortened(next(iter(self.labels)))}"
        if count > max(2, rows // 2):
            return f"it has {count} different values in {rows} rows, which are no classes"
        if any("." in key and _NUMBER.fullmatch(key) for key in self.labels):
            return "it holds numbers with fractions, which are no classes"
        return None


@dataclass(frozen=True)
class Unread:
    """A file of which nothing is known yet: what a `Source` is told to read it by."""

    name: str
    source: str
    path: str
    train: str
    subset: str = ""
    validation: str = ""
    test: str = ""
    text_fields: tuple[str, ...] = ()
    answer_field: str = ""
    labels: tuple[str, ...] = ()
    raw_labels: tuple[str | int, ...] = ()
    options: Any = None

    def error(self, attribute: str, advice: str) -> UserError:
        """See `Definition.error`."""
        return UserError(f"{self.path}/{self.train}: {attribute} {advice}.")


@dataclass(frozen=True)
class Table:
    """The columns of a file.

    Attributes:
        place: the file.
        columns: the columns by name.
        rows: number of records.
    """

    place: str
    columns: Mapping[str, Column]
    rows: int

    @classmethod
    def read(cls, file: Unread) -> "Table":
        """Reads the file.

        Raises:
            UserError: it is missing, malformed or holds no record.
        """
        source = source_named(file.source)
        place = source.location(file, "train")
        records: list[Record] = [r for r in source.read(file, "train") if r.problem is None]
        if not records:
            raise UserError(f"{place}: there are no rows that can be read. Give it examples.")
        names = list(dict.fromkeys(name for record in records for name in record.fields))
        columns = {
            name: Column(name, tuple(record.fields.get(name) for record in records))
            for name in names
        }
        only = names[0] if len(names) == 1 else ""
        between = next((mark for mark in (";", "\t", "|", ",") if mark in only), "")
        if between:
            raise UserError(
                f"{place}: the header is one cell, {shortened(only)}. If {between!r} is between "
                "the cells, save the file with commas as .csv, or with tabs as .tsv"
            )
        return cls(place, columns, len(records))

    def require(self, names: Sequence[str], option: str) -> None:
        """Refuses columns that there are not.

        Raises:
            UserError: names the first, and those that there are.
        """
        for name in names:
            if name not in self.columns:
                hint = suggestion(name, self.columns) or "."
                raise UserError(
                    f"{self.place}: --{option} names no column {shortened(name)}{hint} The columns "
                    f"are {listed(self.columns)}"
                )

    def text_fields(self, without: Sequence[str] = ()) -> tuple[str, ...]:
        """The column of the text, or two that belong together.

        Args:
            without: columns that are known to be something else.

        Raises:
            UserError: no column holds text.
        """
        columns = {n: c for n, c in self.columns.items() if n not in without}
        able = [column for column in columns.values() if column.is_text]
        if not able:  # texts of one word, such as names or search terms
            able = [column for column in columns.values() if 2 * len(column.texts) > self.rows]
            able = [column for column in able if column.problem_as_label is not None]
        if not able:
            raise UserError(
                f"{self.place}: no column holds text; the columns are {listed(self.columns)}. Name "
                "it with --text=COLUMN"
            )
        lower = {column.name.lower(): column.name for column in able}
        for pair in _PAIRS:
            if all(name in lower for name in pair):
                return tuple(lower[name] for name in pair)
        named = [column for column in able if column.name.lower() in TEXT_NAMES]
        return (max(named or able, key=lambda column: column.mean_length).name,)

    def refuse_without_header(self, names: Sequence[str]) -> None:
        """Refuses columns whose names look like data.

        Args:
            names: columns that were guessed.

        Raises:
            UserError: one is a number, or as long as a text.
        """
        for name in names:
            if _NUMBER.fullmatch(name) or len(name) > _LONGEST_NAME:
                raise UserError(
                    f"{self.place}: a column would be called {shortened(name)}. Has the file a "
                    "header? If not, write the names of the columns into its first line; if so, "
                    "name the columns with --text=COLUMN and --label=COLUMN"
                )

    def label_field(self, without: Sequence[str]) -> str:
        """The column of the label.

        Args:
            without: the columns of the text.

        Raises:
            UserError: no column can be it, or several might.
        """
        columns = [column for name, column in self.columns.items() if name not in without]
        able = [
            column
            for column in columns
            if column.problem_as_label is None and len(column.labels) <= MOST_LABELS
        ]
        named = [column for column in able if column.name.lower() in LABEL_NAMES]
        unfit = [c for c in columns if c.name.lower() in LABEL_NAMES and c.problem_as_label]
        if len(named) == 1:
            return self._in_words(named[0], able).name
        if len(able) == 1 and not named and not unfit:
            return able[0].name
        chosen = named or able
        if chosen and not unfit:
            counts = (f"{column.name} ({len(column.labels)} values)" for column in chosen)
            raise UserError(
                f"{self.place}: several columns might be the label: {listed(counts)}. Name it with "
                "--label=COLUMN"
            )
        reasons = (f"{column.name}: {column.problem_as_label}" for column in unfit or columns)
        raise UserError(
            f"{self.place}: no column can be the label of a classification "
            f"({listed(reasons, 400)}). Name it with --label=COLUMN, or the column of a free text "
            "that is to be written with --response=COLUMN"
        )

    def _in_words(self, numbers: Column, others: Sequence[Column]) -> Column:
        """The column that says in words what a column of numbers says, if there is one."""
        if not all(map(_NUMBER.fullmatch, numbers.labels)):
            return numbers
        for other in others:
            pairs = {
                (without_point_zero(label_key(a)), label_key(b))
                for a, b in zip(numbers.values, other.values, strict=True)
            }
            words = not any(map(_NUMBER.fullmatch, other.labels))
            if words and len(pairs) == len(numbers.labels) == len(other.labels):
                return other
        return numbers


def _text(value: object) -> bool:
    return isinstance(value, str)


def is_chinese(texts: Sequence[str]) -> bool:
    """Whether most of the texts hold Chinese characters and none of Japanese."""
    chinese = sum(bool(HAN.search(text)) and not _KANA.search(text) for text in texts)
    return 2 * chinese > len(texts)
