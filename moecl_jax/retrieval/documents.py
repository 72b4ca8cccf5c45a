"""Folders of text and Markdown files as passages, each with the file and line where it begins."""

import re
from collections.abc import Iterator
from pathlib import Path

from moecl_jax.errors import UserError
from moecl_jax.retrieval.index import Entry

ENDINGS = (".md", ".markdown", ".txt")
"""Endings of the files that are read."""
LONGEST = 1000
"""Characters of a passage, about 200 tokens."""
_HEADING = re.compile(r"#{1,6} ")
_SENTENCE = re.compile(r"[.!?](?=\s)|[。！？]")
_SPACE = re.compile(r"\s")
_LINE_END = re.compile(r"\r\n?|\n")  # as editors count lines: not at a form feed


def passages_of(place: Path, longest: int = LONGEST) -> list[Entry]:
    """The passages of a file, or of all text and Markdown files below a folder.

    A passage is whole paragraphs (what empty lines part), as many as fit. A Markdown heading begins
    a new one. A paragraph that does not fit is cut after sentences or words.

    Args:
      place: the file or folder. Of a folder, hidden files and folders are left out.
      longest: the most characters of a passage.

    Returns:
      Passages in the order of the files' names, each with "file:line" as its source. The file is
      named as the place is, such as "manual/setup.md" in "manual".

    Raises:
      UserError: there is no such place, no such file in it, or one is not UTF-8.
    """
    return [
        Entry(text, source=f"{file.as_posix()}:{line}")
        for file in documents_of(place)
        for line, text in _passages(_read(file), longest)
    ]


def documents_of(place: Path) -> list[Path]:
    """The file, or the files of the folder, of which `passages_of` gives the passages.

    Raises:
      UserError: there is no such place, or no such file in it.
    """
    if not place.exists():
        raise UserError(f"{place} does not exist; name a text or Markdown file, or a folder")
    files = [place] if place.is_file() else _files(place)
    if not files:
        raise UserError(f"{place} holds no file that ends in {', '.join(ENDINGS)}")
    return files


def _files(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in ENDINGS
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def _read(file: Path) -> str:
    try:
        return file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{file} is not UTF-8 (byte {error.start}); save it as UTF-8, or take it out"
        ) from error


def _passages(text: str, longest: int) -> Iterator[tuple[int, str]]:
    """Passages with the number of the line in which each begins, from 1."""
    kept: list[str] = []
    begun = length = 0
    for line, paragraph in _paragraphs(text):
        for below, piece in _cut(paragraph, longest):
            if kept and (length + 2 + len(piece) > longest or _HEADING.match(piece)):
                yield begun, "\n\n".join(kept)
                kept, length = [], 0
            begun = begun if kept else line + below
            length += len(piece) + (2 if kept else 0)
            kept.append(piece)
    if kept:
        yield begun, "\n\n".join(kept)


def _paragraphs(text: str) -> Iterator[tuple[int, str]]:
    """What empty lines and headings part, with the number of its first line."""
    lines: list[str] = []
    begun = 1
    for number, line in enumerate([*_LINE_END.split(text), ""], 1):
        heading = _HEADING.match(line) is not None
        if lines and (heading or not line.strip()):
            yield begun, "\n".join(lines).strip()
            lines = []
        if line.strip():
            begun = begun if lines else number
            lines.append(line.rstrip())


def _cut(paragraph: str, longest: int) -> Iterator[tuple[int, str]]:
    """A paragraph in pieces of at most so many characters, cut where a sentence or word ends.

    Each comes with the number of lines before it.
    """
    rest, line = paragraph, 0
    while len(rest) > longest:
        window = rest[: longest + 1]  # what follows tells whether a point ends a sentence
        ends = [found.end() for found in _SENTENCE.finditer(window) if found.end() <= longest]
        place = (ends or [found.start() for found in _SPACE.finditer(window)] or [longest])[-1]
        yield line, rest[:place].rstrip()
        left = rest[place:].lstrip()
        line += rest[: len(rest) - len(left)].count("\n")
        rest = left
    if rest:
        yield line, rest
