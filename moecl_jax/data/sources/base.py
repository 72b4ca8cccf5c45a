"""What a source of examples is: subclass `Source` to read tasks' examples from anywhere.

A source of one's own needs `read`; all else has a default that suits most:

    @dataclass(frozen=True)
    class TableOptions:
        table: str

    class SQLite(Source):
        Options = TableOptions

        def read(self, task, split):
            with contextlib.closing(sqlite3.connect(task.path)) as base:
                rows = base.execute(f"select text, label from {task.options.table}")
                for number, (text, label) in enumerate(rows, start=1):
                    yield Record({"text": text, "label": label}, f"{task.path} row {number}")

In Python a task is given the class; a config names it, and the fields of `Options` stand in the
definition beside the fields of every task:

    Task("reviews", source=SQLite, path="texts.db", options={"table": "reviews"}, train="all", ...)
    {"source": "my_file:SQLite", "path": "texts.db", "table": "reviews", "train": "all", ...}
"""

import abc
import dataclasses
import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

from moecl_jax.errors import UserError, listed, one_line

INPUT_IDS = "input_ids"
"""The field of a record that holds token ids in place of the text."""


@dataclass(frozen=True)
class BadExample:
    """Why a record cannot be used: a short reason to count by and a message for a person."""

    reason: str
    message: str


@dataclass(frozen=True)
class Record:
    """One example as it is written in the data.

    Attributes:
        fields: the values by their names.
        where: the place of the record for messages, such as "file:line" of its start.
        problem: why the record cannot be used, or None.
    """

    fields: Mapping[str, object]
    where: str
    problem: BadExample | None = None


@dataclass(frozen=True)
class NoOptions:
    """The options of a source that needs no fields beyond those of every task."""


class Definition(Protocol):
    """What a source is told of the task that it reads for; `data.task.Task` is one.

    Attributes:
        name: the task's name.
        source: the source, as the task was given it.
        path: the folder or data set.
        subset: which of several data sets in `path` is meant.
        train, validation, test: the splits as the source names them.
        text_fields: the fields of a record that make the text.
        answer_field: the field of a record that holds the label or the response.
        labels: the answers in class order; empty when they are free text.
        raw_labels: what stands in the data for each label.
        options: an object of the source's `Options`.
    """

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def source(self) -> Any: ...  # noqa: D102
    @property
    def path(self) -> str: ...  # noqa: D102
    @property
    def subset(self) -> str: ...  # noqa: D102
    @property
    def train(self) -> Any: ...  # noqa: D102
    @property
    def validation(self) -> Any: ...  # noqa: D102
    @property
    def test(self) -> Any: ...  # noqa: D102
    @property
    def text_fields(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def answer_field(self) -> str: ...  # noqa: D102
    @property
    def labels(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def raw_labels(self) -> tuple[str | int, ...]: ...  # noqa: D102
    @property
    def options(self) -> Any: ...  # noqa: D102

    def error(self, attribute: str, advice: str) -> UserError:
        """The error that names the task, one of its fields and what to do."""
        ...


_UNPACK = "Unpack it first"
_OTHER_FORMATS = (
    # How a file begins, what it then is, and what to do. The longer of two beginnings comes first.
    (b"version https://git-lfs", "a pointer of Git LFS", "Run 'git lfs pull' to get the file"),
    (b"\x1f\x8b", "a gzip archive", _UNPACK),
    (b"PK\x03\x04", "a zip archive or an Excel file", "Unpack it first, or save it as CSV"),
    (b"BZh", "a bzip2 archive", _UNPACK),
    (b"\xfd7zXZ\0", "an xz archive", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "a zstd archive", _UNPACK),
    (b"PAR1", "a parquet file", "Use source 'huggingface' with the folder of the file"),
    (b"ARROW1", "an Arrow file", "Use source 'huggingface' with the folder of the file"),
    (b"\xff\xfe\0\0", "text in UTF-32", "Save it as UTF-8"),
    (b"\0\0\xfe\xff", "text in UTF-32", "Save it as UTF-8"),
    (b"\xff\xfe", "text in UTF-16", "Save it as UTF-8"),
    (b"\xfe\xff", "text in UTF-16", "Save it as UTF-8"),
)


def _other_format(content: bytes) -> tuple[str, str] | None:
    """What a file is that is no text in UTF-8, and what to do about it; None if it may be."""
    for begin, what, advice in _OTHER_FORMATS:
        if content.startswith(begin):
            return what, advice
    sample = content[:4096]
    if sample.count(0) * 4 > len(sample):
        return "text in UTF-16 or a binary file", "Save it as UTF-8"
    return None


class Source(abc.ABC):
    """Where the examples of tasks are read from. Objects of it keep nothing about a task.

    Attributes:
        name: what a definition calls a source of this package; empty for others, which are called
            "package.module:Class".
        Options: a frozen dataclass with the fields of a definition that only this source has.
            `Task.options` holds an object of it. Its `__post_init__` may raise a UserError.
    """

    name: ClassVar[str] = ""
    Options: ClassVar[type] = NoOptions

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        if not dataclasses.is_dataclass(cls.Options):
            raise TypeError(f"{cls.__qualname__}.Options must be a frozen dataclass")

    def check(self, task: Definition) -> None:
        """Checks what a definition must and must not hold; no data are read yet.

        Raises:
            UserError: something is wrong; `Task.error` makes one that names task and field.
        """
        if task.subset:
            raise task.error("subset", "is of source 'huggingface' only")

    def location(self, task: Definition, split: str) -> str:
        """Where a split ("train", "validation" or "test") lies, for messages."""
        return f"{task.path} {getattr(task, split)}"

    def same(self, task: Definition, first: str, second: str) -> bool:
        """Whether two splits that the task has are one and the same place."""
        return bool(getattr(task, first) == getattr(task, second))

    @abc.abstractmethod
    def read(self, task: Definition, split: str) -> Iterable[Record]:
        """The records of a split ("train", "validation" or "test"), in the order of the data.

        A record that cannot be used (invalid UTF-8, a row of the wrong width) carries a `problem`.

        Raises:
            UserError: the data are missing or malformed; names the place.
        """


class Held(str):
    """A text of a task's configuration that stands for an object, and holds the object.

    It equals the bare text and is saved as it. So a task made in Python has the configuration of
    the task that is later made from its saved fields, where the object is missing.
    """

    held: Any

    def __new__(cls, text: str, held: Any) -> "Held":
        """The text, with the object that it stands for."""
        made = super().__new__(cls, text)
        made.held = held
        return made

    def __getnewargs__(self) -> tuple[str, Any]:  # type: ignore[override]
        return str(self), self.held  # for copies and pickles


@dataclass(frozen=True)
class Document:
    """A text file; bytes that are not UTF-8 stand in `text` as lone surrogates (PEP 383).

    Attributes:
        path: the file.
        text: its content without a byte order mark.
        invalid: for each byte that is not UTF-8 its index in `text`, offset in the file, and line.
    """

    path: Path
    text: str
    invalid: tuple[tuple[int, int, int], ...]

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

    def lines(self) -> Iterator[tuple[int, int, str]]:
        """Number, start index and text with its line feed of each line.

        Only a line feed ends a line: str.splitlines would also split at U+2028 within a text.
        """
        start = 0
        for number, line in enumerate(self.text.split("\n"), start=1):
            yield number, start, line + "\n"
            start += len(line) + 1


def path_of(task: Definition, field: str, path: Path) -> Path:
    """A path of a task with `~` replaced by the home directory.

    Args:
        task: whose path it is.
        field: the field of the task that names it, for messages.
        path: the path.

    Raises:
        UserError: it holds a NUL, or names the home of a user that there is not.
    """
    if "\0" in str(path):
        raise task.error(field, "is no path: it holds a NUL character")
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise task.error(field, f"leads nowhere: {one_line(error)}") from error


def open_document(task: Definition, split: str) -> Document:
    """Reads the file of a split: `path` / the split's name.

    Raises:
        UserError: the file cannot be read, or is known to hold no text in UTF-8.
    """
    path = path_of(task, split, Path(task.path) / getattr(task, split))
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            raise UserError(
                f"task '{task.name}': {path} is a device or a pipe, and a split is read several "
                "times. Write it into a file."
            )
        content = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"task '{task.name}': cannot read {path} ({error.strerror}). Expected a "
            f"{task.source} file with the {split} split; check `path` and `{split}` of the "
            f"task (relative paths start at {Path.cwd()})."
        ) from error
    other = _other_format(content)
    if other is not None:
        raise UserError(
            f"{path}: this is {other[0]}, and not {task.source} text in UTF-8 (task "
            f"'{task.name}', {split} split). {other[1]}."
        )
    bom = len(b"\xef\xbb\xbf") if content.startswith(b"\xef\xbb\xbf") else 0
    text = content[bom:].decode("utf-8", "surrogateescape")
    invalid, index, offset, line = [], 0, bom, 1
    for match in re.finditer("[\udc80-\udcff]", text):
        between = text[index : match.start()]
        offset += len(between.encode("utf-8", "surrogateescape"))
        line += between.count("\n")
        index = match.start()
        invalid.append((index, offset, line))
    return Document(path, text, tuple(invalid))


def require_columns(names: Sequence[str], needed: Sequence[str], where: str) -> None:
    """Raises unless a table has the needed columns.

    Raises:
        UserError: names the first that is missing, and those that there are.
    """
    for name in needed:
        if name not in names:
            raise UserError(
                f"{where}: no column '{name}'; the columns are {listed(names)}. Set "
                "text_fields and label_field or response_field of the task to columns of the data."
            )
