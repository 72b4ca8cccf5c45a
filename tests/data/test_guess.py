"""What is guessed from files: splits, columns, words for labels, languages, templates."""

import csv
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest
from messages import is_one_line

from moecl_jax.data.guess import Columns, Guess, find_files, guess_task
from moecl_jax.errors import UserError

WORDS = ("good people here", "you are all bad", "nothing to say", "what a day it was")


def write(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writerow(header)
        writer.writerows(rows)
    return path


def comments(
    folder: Path, labels: Sequence[object] = (0, 1), label: str = "toxic", count: int = 12
) -> Path:
    """A file with columns id, comment and a label."""
    rows = [(i, f"{WORDS[i % 4]} {i}", labels[i % len(labels)]) for i in range(count)]
    return write(folder / "comments.csv", ("id", "comment", label), rows)


def guess(*paths: Path, columns: Columns = Columns()) -> Guess:  # noqa: B008
    (files,) = find_files([str(path) for path in paths])
    return guess_task(files, files.name, columns)


def test_integer_labels_of_a_question_become_words(tmp_path: Path) -> None:
    found = guess(comments(tmp_path))
    task = found.task
    assert (task.name, task.source, task.train) == ("comments", "csv", "comments.csv")
    assert (task.text_fields, task.label_field) == (("comment",), "toxic")
    assert (task.labels, task.raw_labels) == (("no", "yes"), (0, 1))
    assert task.template == "Comment: {text}\nToxic:"
    assert (found.language, found.rows) == ("English", {"train": 12})
    assert "labels: no 6, yes 6" in found.notes
    assert "the model writes words for what stands in the data: 0 is 'no', 1 is 'yes'" in (
        found.notes
    )


@pytest.mark.parametrize(
    ("column", "values", "labels", "raw_labels"),
    [
        ("label", (0, 1), ("0", "1"), ()),
        ("is_spam", ("False", "True"), ("no", "yes"), ("False", "True")),
        ("stars", (10, 9, 1), ("1", "9", "10"), ()),
        ("sentiment", (1, -1, 0), ("negative", "neutral", "positive"), (-1, 0, 1)),
        ("Sentiment", (0, 1), ("negative", "positive"), (0, 1)),
        ("toxic", ("0.0", "1.0", ""), ("no", "yes"), (0, 1)),
        ("toxic", ("nan", "0", "1"), ("no", "yes"), (0, 1)),
        ("kind", ("none", "hate", "none"), ("hate", "none"), ()),
        ("kind", ("a\nb", "c"), ("a b", "c"), ("a\nb", "c")),
        ("code", ("01", "1"), ("01", "1"), ()),
    ],
)
def test_words_of_labels(
    tmp_path: Path,
    column: str,
    values: Sequence[object],
    labels: Sequence[str],
    raw_labels: Sequence[object],
) -> None:
    task = guess(comments(tmp_path, values, column)).task
    assert (task.labels, task.raw_labels) == (labels, raw_labels)


def test_json_booleans_and_types_in_a_mixture(tmp_path: Path) -> None:
    path = tmp_path / "posts.jsonl"
    lines = [{"body": f"{WORDS[i % 4]} {i}", "spam": i % 2 == 0} for i in range(8)]
    lines += [{"body": 7, "spam": None}, {"other": [1], "body": None}]
    path.write_text("\n".join(map(json.dumps, lines)))
    task = guess(path).task
    assert (task.text_fields, task.label_field) == (("body",), "spam")
    assert (task.labels, task.raw_labels) == (("no", "yes"), ("False", "True"))
    assert task.classes() == {"False": 0, "True": 1}


def test_a_label_is_found_by_its_name_or_because_it_is_the_only_one(tmp_path: Path) -> None:
    rows = [
        (WORDS[i % 4] + f" {i}", ("en", "de")[i % 2], ("ham", "spam")[i % 3 == 0]) for i in range(9)
    ]
    task = guess(write(tmp_path / "a.csv", ("msg", "lang", "category"), rows)).task
    assert (task.label_field, task.labels) == ("category", ("ham", "spam"))
    several = write(tmp_path / "b.csv", ("msg", "lang", "verdict"), rows)
    with pytest.raises(
        UserError,
        match=r"b.csv: several columns might be the label: lang \(2 val"
        r"ues\), verdict \(2 values\). Name it with --label=COLUMN",
    ):
        guess(several)
    assert guess(several, columns=Columns(label="verdict")).task.label_field == "verdict"
    with pytest.raises(UserError, match=r"--label names no column 'verdikt'; did you mean 'verd"):
        guess(several, columns=Columns(label="verdikt"))
    with pytest.raises(UserError, match=r"--text names no column 'x'. The columns are msg, lang"):
        guess(several, columns=Columns(text=("x",), label="verdict"))


def test_a_label_column_without_a_meaning_is_asked_for_by_its_labels(tmp_path: Path) -> None:
    few = guess(comments(tmp_path, ("sports", "business", "science"), "label")).task
    assert few.template == "Comment: {text}\nBusiness, science or sports:"
    many = [f"a long name of category {i}" for i in range(3)]
    assert guess(comments(tmp_path, many, "category")).task.template == "Comment: {text}\nCategory:"


def test_words_beside_numbers_are_the_label(tmp_path: Path) -> None:
    rows = [(f"{WORDS[i % 4]} {i}", i % 2, ("ham", "spam")[i % 2]) for i in range(8)]
    path = write(tmp_path / "a.csv", ("text", "label", "label_text"), rows)
    assert guess(path).task.label_field == "label_text"
    other = [(text, label, "ham") for text, label, _ in rows]
    path = write(tmp_path / "b.csv", ("text", "label", "label_text"), other)
    assert guess(path).task.label_field == "label"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (range(40), "label: it has 40 different values in 40 rows, which are no classes"),
        ((1,), "label: all 40 rows have the value '1'"),
        ((0.5, 1.5), "label: it holds numbers with fractions"),
        (("", " "), "label: it holds nothing"),
    ],
)
def test_what_is_no_classification_is_refused(
    tmp_path: Path, values: Sequence[object], message: str
) -> None:
    path = comments(tmp_path, values, "label", count=40)
    with pytest.raises(UserError, match="no column can be the label") as caught:
        guess(path)
    assert message in str(caught.value)
    assert "--label=COLUMN" in str(caught.value)
    assert "--response=COLUMN" in str(caught.value)
    with pytest.raises(UserError, match=r"column 'label' cannot be the label of a classification"):
        guess(path, columns=Columns(label="label"))


def test_free_text_is_a_task_too(tmp_path: Path) -> None:
    rows = [(f"what is {i} and {i}", f"it is {2 * i}") for i in range(9)]
    path = write(tmp_path / "sums.csv", ("question", "answer"), rows)
    task = guess(path, columns=Columns(response="answer")).task
    assert task.free_form
    assert (task.text_fields, task.metric) == (("question",), "rouge_l")
    assert task.template == "Question: {text}\nAnswer:"


def test_two_columns_make_a_text_where_they_belong_together(tmp_path: Path) -> None:
    rows = [(f"it rains {i}", f"it is wet {i}", ("yes", "no")[i % 2]) for i in range(6)]
    path = write(tmp_path / "nli.tsv", ("premise", "hypothesis", "label"), rows)
    task = guess(path).task
    assert task.text_fields == ("premise", "hypothesis")
    assert task.join_texts(["a", "b"]) == "a\nHypothesis: b"
    assert task.template == "Premise: {text}\nNo or yes:"
    mail = write(tmp_path / "mail.csv", ("subject", "body", "label"), rows)
    task = guess(mail).task
    assert task.join_texts(["a", "b"]) == "a b"
    assert task.template == "Body: {text}\nNo or yes:"


def test_chinese_texts_get_a_chinese_template_and_words(tmp_path: Path) -> None:
    rows = [(f"第{i}条评论很好", i % 2) for i in range(6)]
    found = guess(write(tmp_path / "race.tsv", ("comment", "offensive"), rows))
    assert found.language == "Chinese"
    assert found.task.template == "评论\uff1a{text}\n冒犯\uff1a"
    assert found.task.labels == ("否", "是")
    path = write(tmp_path / "b.tsv", ("comment", "label"), rows)
    assert guess(path).task.template == "评论\uff1a{text}\n0或1\uff1a"
    rows = [(f"これは{i}番目の文章です", i % 2) for i in range(6)]
    assert guess(write(tmp_path / "ja.tsv", ("comment", "label"), rows)).language == "English"


def test_a_byte_order_mark_quoted_lines_and_huge_cells_are_read(tmp_path: Path) -> None:
    rows = [(f'two\nlines, "quoted" {i}' + " x" * 100_000 * (i == 3), i % 2) for i in range(6)]
    path = write(tmp_path / "a.csv", ("comment", "toxic"), rows)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes() + b"one cell\n\xff\xfe,1\n")
    found = guess(path)
    assert found.task.text_fields == ("comment",)
    assert found.rows == {"train": 6}  # two rows cannot be used


def test_column_names_cannot_break_a_template(tmp_path: Path) -> None:
    rows = [(f"{WORDS[i % 4]} {i}", i % 2) for i in range(6)]
    path = write(tmp_path / "a.csv", ('the {text}\n"""', "{label}\\"), rows)
    task = guess(path).task
    assert task.template == "The text: {text}\n0 or 1:"


def test_other_separators_and_files_without_a_header_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("id;comment;toxic\n1;some words;0\n2;more words;1\n")
    with pytest.raises(UserError, match=r"header is one cell, 'id;comment;toxic'\. If ';' is"):
        guess(path)
    path.write_text("".join(f"{WORDS[i % 4]} {i},{i % 2}\n" for i in range(9)))
    with pytest.raises(UserError, match=r"a column would be called '0'\. Has the file a header"):
        guess(path)


@pytest.mark.parametrize("content", [b"", b"text,label\n", b"[]", b"\n\n"])
@pytest.mark.parametrize("ending", ["csv", "tsv", "json", "jsonl"])
def test_files_without_rows_are_refused(tmp_path: Path, content: bytes, ending: str) -> None:
    path = tmp_path / f"a.{ending}"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"a\." + ending) as caught:
        guess(path)
    assert is_one_line(caught.value)


def test_files_of_splits_are_one_task_and_others_one_each(tmp_path: Path) -> None:
    for name in ("train.tsv", "dev.tsv", "test.tsv", "spam_train.tsv", "spam-test.tsv", "x.tsv"):
        write(tmp_path / name, ("text", "label"), [("a b", 0), ("b c", 1)])
    (tmp_path / "notes.txt").write_text("no data")
    found = {files.name: files.splits for files in find_files([str(tmp_path)])}
    assert found == {
        tmp_path.name: {"train": "train.tsv", "validation": "dev.tsv", "test": "test.tsv"},
        "spam": {"train": "spam_train.tsv", "test": "spam-test.tsv"},
        "x": {"train": "x.tsv"},
    }
    paths = [str(tmp_path / name) for name in ("x.tsv", "train.tsv", "x.tsv", "test.tsv")]
    assert [files.name for files in find_files(paths)] == ["x", tmp_path.name]


def test_files_that_make_no_task_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("spam_test.csv", "a_dev.csv", "a_val.csv"):
        write(tmp_path / name, ("text", "label"), [("a b", 0), ("b c", 1)])
    for paths, message in (
        (["empty"], "holds no file that ends in .csv, .tsv, .json, .jsonl"),
        (["none.csv"], "none.csv does not exist"),
        (["spam_test.csv"], "there is no file for training beside it"),
        (["a_dev.csv", "a_val.csv"], "are both the validation file of a task"),
    ):
        with pytest.raises(UserError, match=message):
            find_files([str(tmp_path / path) for path in paths])


def test_a_split_without_labels_is_left_out_and_labels_of_all_splits_count(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", ("text", "label"), [(f"a b {i}", "xy"[i % 2]) for i in range(4)])
    write(tmp_path / "dev.csv", ("text", "label"), [(f"c d {i}", "xyz"[i]) for i in range(3)])
    write(tmp_path / "test.csv", ("text",), [("no label",)])
    found = guess(tmp_path)
    assert (found.task.validation, found.task.test) == ("dev.csv", "")
    assert found.task.labels == ("x", "y", "z")
    assert "test.csv is not used: it has no column label" in found.notes
