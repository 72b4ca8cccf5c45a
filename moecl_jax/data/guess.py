"""Guesses tasks from files: splits, columns, the words of labels, and a template.

A file, or the files of one name that end in the names of splits, is a task:

    comments.csv                              one task; test and validation are taken out of it
    data/train.csv data/dev.csv data/test.csv one task with its own splits
    spam_train.tsv spam_test.tsv irony.tsv    two tasks
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moecl_jax.data.columns import Table, Unread, is_chinese
from moecl_jax.data.labels import label_key
from moecl_jax.data.sources import source_of_files
from moecl_jax.data.task import SPLITS, Task
from moecl_jax.errors import UserError, listed

ENDINGS = ("csv", "tsv", "json", "jsonl")
_SPLIT_OF = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "dev", "val", "valid"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_GENERIC = {
    *("label", "labels", "class", "category", "target", "y", "gold", "score", "rating", "type"),
    *("annotation", "value", "id", "group", "gender", "sex", "topic", "标签", "类别", "分类"),
}
"""Words of a label's column that ask no question which "no" and "yes" would answer."""

_COLON, _LISTING = "\uff1a", "\u3001"  # as Chinese writes a colon, and a comma in a list
_MOST_LISTED = 60
"""Characters of the labels that a template lists."""

_OPINION = {"sentiment", "polarity", "opinion", "情感"}
_CHINESE = {
    **{"text": "文本", "comment": "评论", "content": "内容", "sentence": "句子", "title": "标题"},
    **{"message": "消息", "review": "评价", "question": "问题", "post": "帖子", "body": "正文"},
    **{"label": "标签", "class": "类别", "category": "类别", "sentiment": "情感", "topic": "主题"},
    **{"toxic": "有害", "offensive": "冒犯", "spam": "垃圾信息", "hate": "仇恨"},
}


@dataclass(frozen=True)
class DataFiles:
    """The files of a task.

    Attributes:
        name: the name that they suggest.
        folder: their folder, as it was given.
        splits: the name of the file of each split in the folder; "train" is among them.
    """

    name: str
    folder: str
    splits: dict[str, str]


@dataclass(frozen=True)
class Columns:
    """The columns that a user names; empty where they are to be guessed.

    Attributes:
        text: the columns of the text.
        label: the column of the label.
        response: the column of a free text that is to be written; then there is no label.
    """

    text: tuple[str, ...] = ()
    label: str = ""
    response: str = ""


@dataclass(frozen=True)
class Guess:
    """A task that was guessed.

    Attributes:
        task: its definition.
        language: "Chinese", or "English" for all others, whose template is in English.
        rows: number of rows of each file that is read, by split.
        notes: what was guessed, in whole phrases.
    """

    task: Task
    language: str
    rows: dict[str, int]
    notes: tuple[str, ...] = field(default=())


def find_files(paths: Sequence[str]) -> list[DataFiles]:
    """The tasks that files make, in the order of the files.

    Args:
        paths: files, and folders of files.

    Raises:
        UserError: there is no such file, a folder holds none, or no file of a task is for training.
    """
    groups: dict[tuple[str, str], dict[str, str]] = {}
    for path in _expanded(paths):
        stem = re.fullmatch(r"(?:(.*?)[_.-])?([A-Za-z]+)", path.stem)
        split = _SPLIT_OF.get(stem[2].lower(), "") if stem else ""
        prefix = (stem[1] or "") if stem and split else path.stem
        splits = groups.setdefault((str(path.parent), prefix), {})
        if split in splits:
            raise UserError(
                f"{path} and {path.parent / splits[split]} are both the {split or 'only'} file of "
                "a task; name one of them"
            )
        splits[split] = path.name
    found: list[DataFiles] = []
    for (folder, prefix), splits in groups.items():
        alone = splits.pop("", None)
        if alone is not None:
            found.append(DataFiles(_name(prefix), folder, {"train": alone}))
        if splits and "train" not in splits:
            name = next(iter(splits.values()))
            raise UserError(
                f"{Path(folder) / name}: there is no file for training beside it. Name the folder, "
                "or the files of all splits; or rename the file if it is a task of its own"
            )
        if splits:
            name = _name(prefix or Path(folder).absolute().name)
            found.append(DataFiles(name, folder, splits))
    return found


def guess_task(files: DataFiles, name: str, given: Columns) -> Guess:
    """Guesses what a task's files hold.

    Args:
        files: the files.
        name: the name of the task.
        given: the columns that are known.

    Raises:
        UserError: a file cannot be read, a column does not exist, or what a column is cannot be
            told; the message says which option tells it.
    """
    where = str(Path(files.folder) / files.splits["train"])
    source = source_of_files(list(files.splits.values()), where)
    tables = {
        split: Table.read(Unread(name, source, files.folder, file))
        for split, file in files.splits.items()
    }
    train = tables["train"]
    train.require(given.text, "text")
    train.require([given.label] if given.label else [], "label")
    train.require([given.response] if given.response else [], "response")
    answer = given.response or given.label
    text = given.text or train.text_fields([answer] if answer else [])
    if not answer:
        answer = train.label_field(text)
        train.refuse_without_header([*text, answer] if not given.text else [answer])
    notes = []
    for split in [s for s in tables if s != "train"]:
        missing = [name for name in (*text, answer) if name not in tables[split].columns]
        if missing:
            notes.append(f"{files.splits[split]} is not used: it has no column {missing[0]}")
            del tables[split]
    texts = [str(value) for value in train.columns[text[-1]].texts[:1000]]
    chinese = is_chinese(texts)
    fields: dict[str, Any] = {
        "source": source,
        "path": "" if files.folder == "." else files.folder,
        **{split: files.splits[split] for split in SPLITS if split in tables},
        "text_fields": text,
        "text_format": _text_format(text, chinese=chinese),
    }
    if given.response:
        fields |= {"response_field": answer, "metric": "rouge_l"}
    else:
        keys = _labels(tables, answer, train.place)
        labels, raw_labels = _words(answer, keys, chinese=chinese)
        fields |= {"label_field": answer, "labels": labels, "raw_labels": raw_labels}
        notes += _about_labels(labels, raw_labels, keys)
    noun = _noun(text[0] if fields["text_format"] else text[-1], chinese=chinese)
    question = _question(answer, fields.get("labels", ()), chinese=chinese)
    fields["template"] = f"{noun}{_COLON if chinese else ': '}{{text}}\n{question}"
    task = Task.from_fields(name, {key: value for key, value in fields.items() if value})
    rows = {split: tables[split].rows for split in SPLITS if split in tables}
    return Guess(task, "Chinese" if chinese else "English", rows, tuple(notes))


def _expanded(paths: Sequence[str]) -> Iterator[Path]:
    """The files, and those in the folders, each once."""
    seen: set[Path] = set()
    for text in paths:
        path = Path(text)
        files = [path]
        if path.is_dir():
            files = sorted(f for f in path.iterdir() if f.suffix.lower()[1:] in ENDINGS)
            if not files:
                raise UserError(
                    f"{path} holds no file that ends in {listed(f'.{e}' for e in ENDINGS)}. Name "
                    "the folder of the files, or the files"
                )
        elif not path.exists():
            raise UserError(f"{path} does not exist. Name files or folders of examples")
        for file in files:
            if file not in seen:
                seen.add(file)
                yield file


def _name(text: str) -> str:
    """A task's name out of a file's."""
    return re.sub(r"[^\w-]+", "_", text).strip("_-")[:60] or "task"


def _labels(tables: dict[str, Table], answer: str, place: str) -> Counter[str]:
    """How often each label stands in all splits.

    Raises:
        UserError: the column cannot be the label of a classification.
    """
    problem = tables["train"].columns[answer].problem_as_label
    if problem is not None:
        raise UserError(
            f"{place}: column {answer!r} cannot be the label of a classification: {problem}. Name "
            "another with --label=COLUMN, or give a free text that is to be written with "
            "--response=COLUMN"
        )
    total: Counter[str] = Counter()
    for table in tables.values():
        total += table.columns[answer].labels
    return total


def _words(
    column: str, keys: Counter[str], *, chinese: bool
) -> tuple[tuple[str, ...], tuple[str | int, ...]]:
    """The labels that the model writes, and what stands in the data for them where that differs."""
    whole = all(re.fullmatch(r"-?(0|[1-9]\d{0,17})", key) for key in keys)
    found = sorted(keys, key=int) if whole else sorted(keys)
    asked = set(re.findall(r"[^\W_]+", column.lower())) - {"is", "has"}
    yes_no = ("否", "是") if chinese else ("no", "yes")
    opinions = ("负面", "中性", "正面") if chinese else ("negative", "neutral", "positive")
    numbers = tuple(map(int, found)) if whole else ()
    if asked & _OPINION and numbers in ((0, 1), (-1, 1)):
        return (opinions[0], opinions[2]), numbers
    if asked & _OPINION and numbers == (-1, 0, 1):
        return opinions, numbers
    truth = [key.lower() for key in found] == ["false", "true"]
    if (numbers == (0, 1) or truth) and not asked & _GENERIC:
        return yes_no, numbers or tuple(found)
    labels = tuple(" ".join(key.split()) for key in found)
    return labels, () if labels == tuple(found) else tuple(found)


def _about_labels(
    labels: Sequence[str], raw_labels: Sequence[str | int], keys: Counter[str]
) -> Iterator[str]:
    counts = [keys[label_key(raw)] for raw in raw_labels or labels]
    named = (f"{label} {count}" for label, count in zip(labels, counts, strict=True))
    yield f"labels: {listed(named, 300)}"
    if raw_labels and any(map(str.__ne__, labels, map(str, raw_labels))):
        pairs = (f"{raw} is {label!r}" for raw, label in zip(raw_labels, labels, strict=True))
        yield f"the model writes words for what stands in the data: {listed(pairs)}"


def _noun(column: str, *, chinese: bool) -> str:
    """A column's name as a template has it."""
    words = [word for word in re.findall(r"[^\W_]+", column) if word.lower() not in ("is", "has")]
    if chinese:
        return "".join(_CHINESE.get(word.lower(), word) for word in words) or "文本"
    text = " ".join(words)
    return text[:1].upper() + text[1:] or "Text"


def _text_format(text: Sequence[str], *, chinese: bool) -> str:
    """How several columns make a text: a title and what follows it by a space, others by name."""
    plain = all(re.fullmatch(r"[^{}\n]+", name) for name in text)
    if len(text) < 2 or not plain or text[0].lower() in ("title", "subject"):
        return ""
    colon = _COLON if chinese else ": "
    first, *others = text
    parts = [f"{{{first}}}", *(f"{_noun(o, chinese=chinese)}{colon}{{{o}}}" for o in others)]
    return "\n".join(parts)


def _question(column: str, labels: Sequence[str], *, chinese: bool) -> str:
    """How a template ends: with the column's name, or the labels where the name says nothing."""
    colon = _COLON if chinese else ":"
    words = set(re.findall(r"[^\W_]+", column.lower()))
    listing = f"{', '.join(labels[:-1])} or {labels[-1]}" if labels else ""
    if words & _GENERIC and 0 < len(listing) <= _MOST_LISTED and not re.search("[{}]", listing):
        if chinese:
            return _LISTING.join(labels[:-1]) + f"或{labels[-1]}{colon}"
        return f"{listing[:1].upper()}{listing[1:]}{colon}"
    return f"{_noun(column, chinese=chinese)}{colon}"
