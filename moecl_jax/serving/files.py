"""Answers to the lines of JSON-lines files: a thin wrapper around a session."""

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from moecl_jax.data.examples import LONE_SURROGATE
from moecl_jax.errors import UserError
from moecl_jax.serving.generation import GREEDY, Sampling
from moecl_jax.serving.prompts import Prompt, PromptReader
from moecl_jax.serving.session import Session

_LINES_A_CALL = 256  # enough to fill batches, few enough that output keeps coming


def predict_file(session: Session, task: str | None, source: Path, target: Path) -> int:
    """Labels the lines of a JSON-lines file.

    A line is `{"text": ...}`, which is cut to fit (its output then says `"truncated": true`), or
    `{"input_ids": [...]}`, the whole prompt in token ids; and anything else, which is copied. Its
    output line adds `label`, the best of `probabilities` (by label), and `logits` (in label order;
    with the LM head the log-probability of each label's text). A bad line stops nothing: its
    output line carries `error` instead. Where no task is named, each line's is chosen by its text,
    and added as `task`.

    Args:
      session: answers.
      task: name of a finished task; None to choose each line's.
      source: input file.
      target: output file.

    Returns:
      The number of bad lines.

    Raises:
      UserError: the task or the files do not fit.
    """
    check_files(source, target)
    return _answer_lines(session.reader(task), session.label, source, target)


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
        written = session.write(
            prompts, max_tokens=max_tokens, sampling=sampling, seed=seed, base=base
        )
        return [{"response": text} for text in written]

    return _answer_lines(session.reader(task, written=True), write, source, target)


def check_files(source: Path, target: Path) -> None:
    """Refuses an input that is missing, or that would be overwritten.

    Raises:
      UserError: says which.
    """
    if not source.is_file():
        raise UserError(f"--input={source} does not exist")
    if target.exists() and source.samefile(target):
        raise UserError("--input and --output are the same file; name another --output")


def _answer_lines(
    reader: PromptReader,
    answer: Callable[[list[Prompt]], list[dict[str, Any]]],
    source: Path,
    target: Path,
) -> int:
    """Copies a file, adding to each line what `answer` says of its prompt; counts bad lines."""
    bad = 0
    with source.open("rb") as lines, target.open("w", encoding="utf-8") as out:
        for group in _groups(lines, _LINES_A_CALL):
            records = [_record(line) for line in group]
            read = reader.read(records)
            answers = iter(answer([prompt for _, prompt in read if prompt is not None]))
            for record, (added, prompt) in zip(records, read, strict=True):
                bad += prompt is None
                whole = {} if isinstance(record, Exception) else record
                whole = whole | added | (next(answers) if prompt is not None else {})
                out.write(json.dumps(whole, ensure_ascii=False) + "\n")
    return bad


def _record(line: bytes) -> dict[str, Any] | Exception:
    """The object on a line, or why there is none."""
    try:
        record = json.loads(line.decode("utf-8"), parse_constant=_refuse_constant)
    except ValueError as error:
        return ValueError(f"not a line of UTF-8 JSON: {error}")
    if not isinstance(record, dict):
        return ValueError("not a JSON object")
    if LONE_SURROGATE.search(json.dumps(record, ensure_ascii=False)):
        return ValueError("holds half of a surrogate pair (\\ud800...)")
    return record


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _groups(lines: Iterable[bytes], size: int) -> Iterator[list[bytes]]:
    """Lines that are not blank, `size` at a time."""
    group: list[bytes] = []
    for line in lines:
        if line.strip():
            group.append(line)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group
