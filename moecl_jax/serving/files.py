"""Answers to the rows of files: a thin wrapper around a session. `rows` knows the formats."""

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from moecl_jax import reporting
from moecl_jax.errors import UserError, one_line
from moecl_jax.outside import shortened
from moecl_jax.runs.classification import Classification
from moecl_jax.serving import rows
from moecl_jax.serving.generation import GREEDY, Sampling
from moecl_jax.serving.gold import GoldLabels
from moecl_jax.serving.prompts import Prompt, PromptReader
from moecl_jax.serving.session import Session
from moecl_jax.writing import named

FIELD = "prediction"
"""The field of an output row that holds its answer, unless another name is asked for."""

_ROWS_A_CALL = 256  # enough to fill batches, few enough that output keeps coming
_BYTES_A_CALL = 2 * rows.LONGEST_LINE
_STANDARD_INPUT = ("-", "/dev/stdin")
_STANDARD_OUTPUT = ("-", "/dev/stdout")
_OF_ANY_ANSWER = ("task", "truncated", "error")


@dataclasses.dataclass(frozen=True)
class Files:
    """What is answered, where the answers go, and how both are written.

    Attributes:
      source: input file or pipe; "-" for standard input.
      target: output file or pipe; "-" for standard output.
      format: format of the input, one of `rows.FORMATS`; None for the one that its ending tells.
        The output has the format of its own ending, else that of the input.
      field: name of the field, or the beginning of the columns' names, that answers get.
    """

    source: Path
    target: Path
    format: str | None = None
    field: str = FIELD

    def check(self) -> None:
        """Refuses an input that is missing, or that would be overwritten.

        Raises:
          UserError: says which.
        """
        if str(self.source) in _STANDARD_INPUT:
            return
        if not self.source.exists():
            raise UserError(f"--input={self.source} does not exist")
        if self.source.is_dir():
            raise UserError(f"--input={self.source} is a folder; name a file")
        if self.target.is_file() and self.source.samefile(self.target):
            raise UserError("--input and --output are the same file; name another --output")
        rows.format_of_input(self.source, self.format)


@dataclasses.dataclass(frozen=True)
class Answered:
    """What became of the rows of a file.

    Attributes:
      bad_rows: number of rows that were answered by an error.
      classification: how the predictions agree with gold labels; None where there are none.
      unknown_gold: gold labels that are none of the task's, with the number of their rows.
    """

    bad_rows: int
    classification: Classification | None = None
    unknown_gold: Mapping[str, int] = dataclasses.field(default_factory=dict)


def predict_file(session: Session, task: str | None, files: Files) -> Answered:
    """Labels the rows of a file.

    A row holds the task's text fields, or the joined text as `text`, which is cut to fit; or, in
    JSON lines, the whole prompt as `input_ids`. Whatever it holds is copied. An answer is added to
    it under a name of its own:

        {"text": "Win a prize!", "id": 7, "prediction": {"task": "spam", "label": "spam",
         "probability": 0.9, "probabilities": {"ham": 0.1, "spam": 0.9}, "logits": [-2.5, -0.3]}}

    `logits` are in label order; with the LM head they are the log-probabilities of the labels'
    texts. `"truncated": true` says that the text was cut. A bad row stops nothing: its answer has
    `error` instead. Where no task is named, each row's is chosen by its text.

    A gold label is read from the task's `label_field`.

    Args:
      session: answers.
      task: name of a finished task; None to choose each row's.
      files: input and output.

    Raises:
      UserError: the task or the files do not fit, or a table has a column with the answers' name.
    """
    reader = session.reader(task)
    by_name = {each.name: each for each in reader.tasks}
    gold = GoldLabels(reader.tasks)

    def compare(record: Mapping[str, Any], answer: Mapping[str, Any]) -> None:
        gold.add(record, by_name[answer["task"]], answer["label"])

    def label(prompts: list[Prompt]) -> list[dict[str, Any]]:
        return [_with_probability(answer) for answer in session.label(prompts)]

    parts = ("probability", "probabilities", *_OF_ANY_ANSWER)
    bad = _answer_rows(reader, label, files, parts, compare)
    return Answered(bad, gold.classification(), gold.unknown)


def generate_file(
    session: Session,
    task: str,
    files: Files,
    *,
    max_tokens: int | None = None,
    sampling: Sampling = GREEDY,
    seed: int = 0,
    base: bool = False,
) -> Answered:
    """Writes an answer to each row of a file.

    Rows are as for `predict_file`; an answer has a `response`. Other arguments are those of
    `Session.generate`.

    Raises:
      UserError: the task or the files do not fit, or the session has classification heads.
    """

    def write(prompts: list[Prompt]) -> list[dict[str, Any]]:
        return session.write(
            prompts, max_tokens=max_tokens, sampling=sampling, seed=seed, base=base
        )

    reader = session.reader(task, written=True)
    return Answered(_answer_rows(reader, write, files, _OF_ANY_ANSWER))


def _answer_rows(
    reader: PromptReader,
    answer: Callable[[list[Prompt]], list[dict[str, Any]]],
    files: Files,
    parts: Sequence[str],
    compare: Callable[[Mapping[str, Any], Mapping[str, Any]], None] = lambda *_: None,
) -> int:
    """Copies a file, adding to each row what `answer` says of its prompt; counts bad rows.

    Args:
      reader: reads records as prompts.
      answer: answers prompts.
      files: input and output.
      parts: what of an answer has a column in a table.
      compare: is told each record that was answered, and its answer.
    """
    files.check()
    form = rows.format_of_input(files.source, files.format)
    bad = 0
    with _open_source(files.source) as stream:
        read_rows = rows.open_reader(stream, files.source, form)
        if read_rows.columns:
            reader.check_columns(read_rows.columns, str(files.source))
        groups = _groups(read_rows)
        first = next(groups, [])
        with named(files.target), _open_target(files, form, read_rows, first, parts) as writer:
            for group in itertools.chain([first], groups):
                read = reader.read([_or_problem(record, writer) for record in group])
                answers = iter(answer([prompt for _, prompt in read if prompt is not None]))
                for record, (added, prompt) in zip(group, read, strict=True):
                    whole = added | (next(answers) if prompt is not None else {})
                    copied = {} if isinstance(record, Exception) else record
                    bad += "error" in whole
                    if "error" not in whole:
                        compare(copied, whole)
                    writer.write(copied, whole)
                writer.out.flush()
    if writer.kept:
        reporting.current().message(
            f"note: {writer.kept} lines have a field {shortened(files.field)} already; they were "
            "copied as they are, without an answer. Name another field by --field"
        )
    return bad


def _with_probability(answer: dict[str, Any]) -> dict[str, Any]:
    """An answer with the probability of its label beside it."""
    if "error" in answer:
        return answer
    of_label = answer["probabilities"][answer["label"]]
    return {"label": answer["label"], "probability": of_label, **answer}


def _or_problem(record: rows.Record | Exception, writer: rows.RowWriter) -> rows.Record | Exception:
    """A record, or why it cannot be answered."""
    problem = None if isinstance(record, Exception) else writer.problem(record)
    return record if problem is None else ValueError(problem)


def _open_source(source: Path) -> BinaryIO:
    if str(source) in _STANDARD_INPUT:
        return open(0, "rb", closefd=False)
    return source.open("rb")


@contextlib.contextmanager
def _open_target(
    files: Files,
    form: str,
    reader: rows.RowReader,
    first: Sequence[rows.Record | Exception],
    parts: Sequence[str],
) -> Iterator[rows.RowWriter]:
    """The writer of the output.

    Args:
      files: input and output.
      form: format of the input.
      reader: reads the input.
      first: the first rows.
      parts: what of an answer has a column in a table.
    """
    form = rows.format_of_output(files.target, form)
    records = [record for record in first if not isinstance(record, Exception)]
    columns = reader.columns or list(dict.fromkeys(itertools.chain(*records)))
    if form in ("csv", "tsv"):
        taken = sorted(set(columns) & set(rows.own_columns(files.field, parts)))
        if taken:
            raise UserError(
                f"--input={files.source} has a column {shortened(taken[0])}, and answers would get "
                "the same name; name them otherwise by --field=NAME"
            )
    with _open_text(files.target) as out:
        if form in ("csv", "tsv"):
            yield rows.TableWriter(out, files.field, columns, parts, tabs=form == "tsv")
        else:
            writer = rows.TextWriter if form == "txt" else rows.JsonLinesWriter
            yield writer(out, files.field)


def _open_text(target: Path) -> TextIO:
    if str(target) in _STANDARD_OUTPUT:
        return open(1, "w", encoding="utf-8", newline="", closefd=False)
    try:
        return target.open("w", encoding="utf-8", newline="")
    except ValueError as error:
        raise UserError(f"--output={target}: {one_line(error)}") from error


def _groups(read: Iterable[rows.Row]) -> Iterator[list[rows.Record | Exception]]:
    """Rows, some at a time."""
    group: list[rows.Record | Exception] = []
    size = 0
    for record, length in read:
        group.append(record)
        size += length
        if len(group) == _ROWS_A_CALL or size >= _BYTES_A_CALL:
            yield group
            group, size = [], 0
    if group:
        yield group
