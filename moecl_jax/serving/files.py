"""Answers to the lines of JSON-lines files: a thin wrapper around a session."""

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from moecl_jax.data.characters import LONE_SURROGATE
from moecl_jax.errors import UserError, one_line
from moecl_jax.outside import parse_json
from moecl_jax.serving.generation import GREEDY, Sampling
from moecl_jax.serving.prompts import Prompt, PromptReader
from moecl_jax.serving.session import Session
from moecl_jax.writing import named

LONGEST_LINE = 2**24
"""Bytes of a line that is read; a longer one is answered by an error."""

_LINES_A_CALL = 256  # enough to fill batches, few enough that output keeps coming
_BYTES_A_CALL = 2 * LONGEST_LINE
_STANDARD_INPUT = ("-", "/dev/stdin")
_STANDARD_OUTPUT = ("-", "/dev/stdout")

# Fields that say how a line was answered. They are not copied from the input.
_OF_ANY_ANSWER = frozenset({"error", "truncated"})
_OF_A_LABEL = _OF_ANY_ANSWER | {"label", "probabilities", "logits"}


def predict_file(session: Session, task: str | None, source: Path, target: Path) -> int:
    """Labels the lines of a JSON-lines file.

    A line is `{"text": ...}`, which is cut to fit (its output then says `"truncated": true`), or
    `{"input_ids": [...]}`, the whole prompt in token ids; and anything else, which is copied. Its
    output line adds `label`, the best of `probabilities` (by label), and `logits` (in label order;
    with the LM head the log-probability of each label's text). A bad line stops nothing: its
    output line carries `error` instead. Where no task is named, each line's is chosen by its text,
    and added as `task`.

    There is an output line for each input line; empty lines at the end are left out. Fields of an
    input line with a name that an output line may add are not copied: what an output line says of
    its answer is never what the input said.

    Args:
      session: answers.
      task: name of a finished task; None to choose each line's.
      source: input file or pipe; "-" for standard input.
      target: output file or pipe; "-" for standard output.

    Returns:
      The number of bad lines.

    Raises:
      UserError: the task or the files do not fit.
    """
    check_files(source, target)
    own = _OF_A_LABEL if task is not None else _OF_A_LABEL | {"task"}
    return _answer_lines(session.reader(task), session.label, source, target, own)


def generate_file(
    session: Session,
    task: str,
    source: Path,
    target: Path,
    *,
    max_tokens: int | None = None,
    sampling: Sampling = GREEDY,
    seed: int = 0,
    base: bool = False,
) -> int:
    """Writes an answer to each line of a JSON-lines file.

    Lines are as for `predict_file`; an output line adds `response`. Other arguments are those of
    `Session.generate`.

    Returns:
      The number of bad lines.

    Raises:
      UserError: the task or the files do not fit, or the session has classification heads.
    """
    check_files(source, target)

    def write(prompts: list[Prompt]) -> list[dict[str, Any]]:
        return session.write(
            prompts, max_tokens=max_tokens, sampling=sampling, seed=seed, base=base
        )

    reader = session.reader(task, written=True)
    return _answer_lines(reader, write, source, target, _OF_ANY_ANSWER | {"response"})


def check_files(source: Path, target: Path) -> None:
    """Refuses an input that is missing, or that would be overwritten.

    Raises:
      UserError: says which.
    """
    if str(source) in _STANDARD_INPUT:
        return
    if not source.exists():
        raise UserError(f"--input={source} does not exist")
    if source.is_dir():
        raise UserError(f"--input={source} is a folder; name a JSON-lines file")
    if target.is_file() and source.samefile(target):
        raise UserError("--input and --output are the same file; name another --output")


def _answer_lines(
    reader: PromptReader,
    answer: Callable[[list[Prompt]], list[dict[str, Any]]],
    source: Path,
    target: Path,
    own: frozenset[str],
) -> int:
    """Copies a file, adding to each line what `answer` says of its prompt; counts bad lines.

    Fields whose names are in `own` are not copied.
    """
    bad = 0
    with _open_source(source) as lines, named(target), _open_target(target) as out:
        for group in _groups(_whole_lines(lines, source)):
            records = [_record(line) for line in group]
            read = reader.read(records)
            answers = iter(answer([prompt for _, prompt in read if prompt is not None]))
            for record, (added, prompt) in zip(records, read, strict=True):
                copied = {} if isinstance(record, Exception) else record
                whole = {name: value for name, value in copied.items() if name not in own}
                whole |= added | (next(answers) if prompt is not None else {})
                bad += "error" in whole
                out.write(json.dumps(whole, ensure_ascii=False, allow_nan=False) + "\n")
            out.flush()
    return bad


def _open_source(source: Path) -> BinaryIO:
    if str(source) in _STANDARD_INPUT:
        return open(0, "rb", closefd=False)
    return source.open("rb")


def _open_target(target: Path) -> TextIO:
    if str(target) in _STANDARD_OUTPUT:
        return open(1, "w", encoding="utf-8", closefd=False)
    try:
        return target.open("w", encoding="utf-8")
    except ValueError as error:
        raise UserError(f"--output={target}: {one_line(error)}") from error


def _whole_lines(stream: BinaryIO, source: Path) -> Iterator[bytes | ValueError]:
    """The lines, less empty ones at the end; for one that is too long, the reason."""

    def read(most: int) -> bytes:
        with named(source):
            return stream.readline(most)

    empty = 0
    while line := read(LONGEST_LINE + 1):
        too_long = len(line) > LONGEST_LINE
        if not too_long and not line.strip():
            empty += 1
            continue
        yield from (b"" for _ in range(empty))
        empty = 0
        yield ValueError(f"the line has more than {LONGEST_LINE} bytes") if too_long else line
        while too_long and line and not line.endswith(b"\n"):
            line = read(LONGEST_LINE)


def _record(line: bytes | ValueError) -> dict[str, Any] | Exception:
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


def _groups(lines: Iterable[bytes | ValueError]) -> Iterator[list[bytes | ValueError]]:
    """Lines, some at a time."""
    group: list[bytes | ValueError] = []
    size = 0
    for line in lines:
        group.append(line)
        size += 0 if isinstance(line, Exception) else len(line)
        if len(group) == _LINES_A_CALL or size >= _BYTES_A_CALL:
            yield group
            group, size = [], 0
    if group:
        yield group
