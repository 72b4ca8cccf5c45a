"""What a task is: its answers, its instruction, and where its examples lie."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, fields
from pathlib import Path
from typing import Any

from moecl_jax.data.characters import LONE_SURROGATE
from moecl_jax.data.labels import (
    distinct_labels,
    label_key,
    number_as_text,
    problem_with_labels,
    problem_with_repeats,
)
from moecl_jax.data.sources import (
    Held,
    Record,
    Source,
    find_source,
    known_sources,
    make_options,
    option_names,
    source_named,
    source_of_files,
)
from moecl_jax.data.sources.huggingface import class_names, labels_are_numbers, with_class_name
from moecl_jax.data.sources.memory import fingerprint, held_examples
from moecl_jax.data.sources.none import Removed
from moecl_jax.errors import UserError, listed, suggestion
from moecl_jax.outside import shortened

SPLITS = ("train", "validation", "test")
METRICS = ("exact_match", "rouge_l")
_SPLIT_NAMES = {
    "train": "train",
    **dict.fromkeys(("validation", "dev", "val"), "validation"),
    "test": "test",
}
_TEXTS = (
    *("path", "subset", "text_format", "label_field", "response_field", "metric", "template"),
    "continues",
)

Split = str | Iterable[Mapping[str, Any]]
"""A file, the name of a split, or the examples themselves."""


@dataclass(frozen=True)
class Task:
    """What a task is and where its examples lie; docs/howto/tasks.md explains it with examples.

    A label task chooses one of `labels`; a free-form task, which has a `response_field`, writes
    any text. A record may hold `input_ids`, the whole prompt in token ids, in place of its texts.

        Task("spam", train=[{"text": "Win a prize!", "label": "spam"}, ...], test=[...])
        Task("spam", source="csv", path="data", train="train.csv", labels=("ham", "spam"))

    Examples that are given in Python are kept with the task, but are no part of its configuration:
    there `source` is "memory" and each split a text with their number and hash. Two tasks are
    equal if their configurations are.

    Attributes:
        name: names the task in results and in checkpoint folders.
        source: a key of `sources.SOURCES`, "package.module:Class", or a `Source`, class or object;
            "memory" where it is left out and a split is a sequence of examples.
        path: the folder of the files ("" for the working directory); with source "huggingface"
            a hub name or a local folder; with "quickstart" a key of `quickstart.DATASETS`.
        subset: which of several data sets in `path` is meant ("mnli" of "nyu-mll/glue"), with
            source "huggingface": the hub's configuration, or a folder in the local folder.
        train, validation, test: file paths relative to `path`, or split names; all empty with
            source "none". With source "memory" an iterable of mappings, such as a list of
            dictionaries or a `datasets.Dataset`, or None. Without `train` a task cannot be trained,
            without `test` it is not scored. An empty `validation` means that it is carved from
            training.
        text_fields: the fields of a record that make the text; several are joined by a space,
            or as `text_format` says.
        text_format: how the text fields make the text, each as "{field}"; "" joins by a space.
        label_field: the field of a record that holds the label; "" stands for "label".
        labels: the answers the language model writes, in class order; empty when free-form. A
            whole number is its digits: (0, 1) is ("0", "1"), for data that hold 0 and 1. Where
            examples are given in Python, () or None takes them from the data: the names of a
            `datasets.ClassLabel`, else all labels of all splits, numbers by value and texts in
            alphabetical order. None does so with the other sources too, which are then read.
        raw_labels: what stands in the data for each label, in the same order (0 and "0" are
            the same); empty when the data hold the labels themselves.
        response_field: the field that holds the response; "" for a label task.
        metric: what scores a response: "exact_match" or, for free-form tasks only, "rouge_l".
        template: the instruction, with "{text}" exactly once; " " + answer follows it.
        chat: whether the template is what the user says in the tokenizer's chat template, and
            the answer what the assistant replies.
        continues: the name of an earlier task of the stream, of which this one has more data; ""
            for none. What answers for that task goes on from where it was (see
            `data.continued`).
        options: the fields that only this source has: a mapping, or an object of its `Options`,
            which it becomes. In a config they stand among the other fields.

    Raises:
        UserError: a value is not as described; the message names the task.
    """

    name: str
    _: KW_ONLY
    source: str | Source | type[Source] = ""
    path: str = ""
    subset: str = ""
    train: Split = ""
    validation: Split = ""
    test: Split = ""
    text_fields: tuple[str, ...] = ("text",)
    text_format: str = ""
    label_field: str = ""
    labels: tuple[str, ...] = ()
    raw_labels: tuple[str | int, ...] = ()
    response_field: str = ""
    metric: str = "exact_match"
    template: str = "{text}"
    chat: bool = False
    continues: str = ""
    options: Any = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not re.fullmatch(r"[\w-]*\w[\w-]*", self.name):
            raise UserError(
                f"a task is named {shortened(self.name)}. A name becomes a config key and a "
                "folder of checkpoints: give it letters, digits, '_' and '-' only."
            )
        self._find_source()
        for attribute in _TEXTS if self.source == "memory" else (*_TEXTS, *SPLITS):
            if not isinstance(getattr(self, attribute), str):
                raise self.error(attribute, "must be a text")
        read_labels = self.labels is None
        if read_labels:
            self._set("labels", ())
        for attribute in ("text_fields", "labels", "raw_labels"):
            if not isinstance(getattr(self, attribute), list | tuple):
                raise self.error(attribute, "must be a sequence of values, such as ('a', 'b')")
            self._set(attribute, tuple(getattr(self, attribute)))
        self._set("labels", tuple(map(number_as_text, self.labels)))
        if not self.free_form:
            self._set("label_field", self.label_field or "label")
        if self.source == "memory":
            read_labels |= self._hold_examples()
        self._check_source()
        if self.free_form:
            self._check_free_form()
        else:
            if read_labels and not self.labels:
                self._read_labels()
            self._check_labels()
        if self.metric not in METRICS:
            raise self.error("metric", f"must be one of {', '.join(METRICS)}")
        self._check_template()

    @classmethod
    def from_fields(cls, name: str, values: Mapping[str, Any]) -> "Task":
        """A task out of a config's mapping, or out of what `to_fields` returned.

        Raises:
            UserError: a field is unknown, missing or wrong.
        """
        options: list[str] = []
        if values.get("source"):
            options = option_names(source_named(find_source(values["source"], name)))
        known = [*_common_fields(), *options]
        for key in values:
            if key not in known:
                hint = suggestion(str(key), known) or "."
                raise UserError(
                    f"task '{name}' has an unknown field {shortened(key)}{hint} The fields of a "
                    f"task are {', '.join(known)}."
                )
        if values.get("labels", ()) is None:
            raise UserError(f"task '{name}': labels = None must be a sequence, such as ('a', 'b').")
        own = {key: value for key, value in values.items() if key in options}
        common = {key: value for key, value in values.items() if key not in options}
        return cls(**{"name": name, **common, "options": own})

    def to_fields(self) -> dict[str, Any]:
        """The configuration: plain values, for `from_fields` and for JSON.

        Examples that were given in Python are not among them; see the class.
        """
        common = {key: getattr(self, key) for key in _common_fields()}
        own = {key: getattr(self.options, key) for key in option_names(self.reader)}
        return {
            key: str(value) if isinstance(value, Held) else value
            for key, value in {**common, **own}.items()
        }

    @classmethod
    def from_dataset(
        cls,
        name: str,
        data: Any,
        *,
        text_fields: Sequence[str] = ("text",),
        label_field: str = "",
        response_field: str = "",
        labels: Sequence[str] | None = None,
        **others: Any,
    ) -> "Task":
        """A task out of a data set that is in memory.

        Args:
            name: names the task.
            data: a `datasets.DatasetDict` or another mapping from split names to
                `datasets.Dataset`s or lists of mappings: "train", "validation" (or "dev" or "val")
                and "test". One data set alone is the training split.
            text_fields: the columns that make the text.
            label_field: the column of the label, of texts, whole numbers or class labels; ""
                stands for "label".
            response_field: the column of the response; "" for a label task.
            labels: the answers the language model writes, in class order; None takes them from
                the data, as the class describes.
            **others: other fields of a task, such as `template`.

        Raises:
            UserError: a split has another name, or what the class raises.
        """
        splits: dict[str, Any] = {}
        for key, examples in data.items() if isinstance(data, Mapping) else [("train", data)]:
            split = _SPLIT_NAMES.get(key)
            if split is None or split in splits:
                raise UserError(
                    f"task '{name}': the data have a split {shortened(key)}. Expected one each of "
                    "train, validation (or dev or val) and test: pass {'train': data[...], 'test': "
                    "data[...]} with the splits that you mean."
                )
            splits[split] = examples
        common: dict[str, Any] = {"text_fields": text_fields, "labels": labels}
        return cls(
            name,
            source="memory",
            label_field=label_field,
            response_field=response_field,
            **(common | splits | others),
        )

    @classmethod
    def from_files(
        cls,
        name: str,
        train: str | Path,
        *,
        validation: str | Path | None = None,
        test: str | Path | None = None,
        source: str = "",
        labels: Sequence[str] | None = None,
        **others: Any,
    ) -> "Task":
        """A task out of files; labels that are not given are read from them at once.

        Args:
            name: names the task.
            train: a file of examples to train on.
            validation: a file of examples to validate on; None carves them from training.
            test: a file of examples to score on; None leaves the task without a score.
            source: "json", "jsonl", "csv" or "tsv"; "" goes by the endings of the files' names.
            labels: the answers the language model writes, in class order; None takes them from
                the data, as the class describes.
            **others: other fields of a task, such as `template`.

        Raises:
            UserError: the endings do not tell one source, or what the class raises.
        """
        files = {"train": train, "validation": validation, "test": test}
        splits: dict[str, Any] = {split: str(file) for split, file in files.items() if file}
        source = source or source_of_files(list(splits.values()), f"task '{name}'")
        return cls(name, source=source, **({"labels": labels} | splits | others))

    @property
    def reader(self) -> Source:
        """The source that reads the examples."""
        return source_named(self.source)

    def records(self, split: str) -> Iterator[Record]:
        """The records of a split ("train", "validation" or "test"), in the order of the data.

        Raises:
            UserError: the data are missing or malformed; names the file, line and column.
        """
        for record in self.reader.read(self, split):
            if not isinstance(record, Record):
                raise UserError(
                    f"task '{self.name}': source '{self.source}' read {shortened(record)}. Its "
                    f"`read` must yield objects of {Record.__module__}.{Record.__name__}."
                )
            yield record

    def error(self, attribute: str, advice: str) -> UserError:
        """What is raised because of a wrong field.

        Args:
            attribute: the name of the field.
            advice: what it must be, following "field = value" in the message.
        """
        value = shortened(getattr(self, attribute))
        return UserError(f"task '{self.name}': {attribute} = {value} {advice}.")

    @property
    def free_form(self) -> bool:
        """Whether the answer is any text, not one of the labels."""
        return bool(self.response_field)

    @property
    def removed(self) -> bool:
        """Whether it was removed from its workdir, and nothing answers for it any more."""
        return self.source == Removed.name

    @property
    def answer_field(self) -> str:
        """The field of a record that holds the label or the response."""
        return self.response_field or self.label_field

    def classes(self) -> dict[str, int]:
        """The class of each label as it is written in the data."""
        raw = self.raw_labels or self.labels
        return {label_key(label): index for index, label in enumerate(raw)}

    def join_texts(self, texts: Sequence[str]) -> str:
        """The text of an example.

        Args:
            texts: those of the text fields, in their order.
        """
        if not self.text_format:
            return " ".join(filter(None, texts))
        places = dict(zip(self._places(), texts, strict=True))
        return re.sub("|".join(map(re.escape, places)), lambda m: places[m[0]], self.text_format)

    def _places(self) -> list[str]:
        """Where the text fields stand in `text_format`."""
        return [f"{{{name}}}" for name in self.text_fields]

    def _set(self, attribute: str, value: object) -> None:
        object.__setattr__(self, attribute, value)

    def _find_source(self) -> None:
        if not self.source:
            if all(isinstance(getattr(self, split), str | None) for split in SPLITS):
                raise UserError(
                    f"task '{self.name}' has no source; expected one of {known_sources()}."
                )
            self._set("source", "memory")
        source = find_source(self.source, self.name)
        self._set("source", source)
        self._set("options", make_options(source, self.options, self.name, _common_fields()))

    def _hold_examples(self) -> bool:
        """Keeps the examples that were given as splits; whether there are any."""
        for split in SPLITS:
            given = getattr(self, split)
            if isinstance(given, str) and not isinstance(given, Held):
                continue  # there are none, or they are gone: only their fingerprint was saved
            if given is None:
                self._set(split, "")
                continue
            given = given.held if isinstance(given, Held) else given
            examples = held_examples(self, split, given)
            names = () if self.free_form else class_names(given, self.label_field)
            if names and not labels_are_numbers(self):
                examples = [with_class_name(each, self.label_field, names) for each in examples]
            if names and not self.labels:
                self._set("labels", tuple(map(label_key, names)))
            self._set(split, Held(fingerprint(self, examples), examples))
        return any(isinstance(getattr(self, split), Held) for split in SPLITS)

    def _read_labels(self) -> None:
        """Takes the labels from the data.

        Raises:
            UserError: there are none, or some cannot be labels.
        """
        if self.raw_labels:
            raise self.error("raw_labels", "says nothing without labels, one for each of them")
        records = [
            record
            for split in SPLITS
            if getattr(self, split)
            for record in self.records(split)
            if record.problem is None
        ]
        values = [(record.fields.get(self.label_field), record.where) for record in records]
        if records and all(value is None for value, _ in values):
            raise self.error(
                "label_field",
                f"is in no example; the fields are {listed(records[0].fields)}. Name the field "
                "of the label, or response_field for free text",
            )
        labels, raw_labels = distinct_labels(values)
        self._set("labels", labels)
        self._set("raw_labels", raw_labels)

    def _check_source(self) -> None:
        self.reader.check(self)
        if not self.text_fields or "" in self.text_fields:
            raise self.error("text_fields", "must name at least one field")
        if not all(isinstance(name, str) for name in self.text_fields):
            raise self.error("text_fields", "must name fields, such as ('text',)")
        if self.text_format:
            self._check_text_format()

    def _check_text_format(self) -> None:
        rest = self.text_format
        for place in self._places():
            if place not in rest:
                raise self.error("text_format", f"must contain '{place}', one of the text_fields")
            rest = rest.replace(place, "")
        unknown = re.search(r"\{\w+\}", rest)
        if unknown:
            raise self.error("text_format", f"has '{unknown[0]}', which is none of text_fields")

    def _check_free_form(self) -> None:
        for attribute in ("labels", "raw_labels", "label_field"):
            if getattr(self, attribute):
                raise self.error(
                    attribute, "must be empty: with a response_field the answer is free text"
                )

    def _check_labels(self) -> None:
        if len(self.labels) < 2:
            raise self.error(
                "labels", "must hold at least two labels (or name a response_field: free text)"
            )
        problem = problem_with_labels(self.labels)
        if problem is not None:
            raise self.error("labels", problem)
        if self.raw_labels and len(self.raw_labels) != len(self.labels):
            raise self.error("raw_labels", f"must hold one value for each of {listed(self.labels)}")
        if not all(isinstance(label, str | int | float) for label in self.raw_labels):
            raise self.error("raw_labels", "must be texts or numbers, one for each label")
        problem = problem_with_repeats(self.raw_labels)
        if problem is not None:
            raise self.error("raw_labels", problem)
        if self.metric == "rouge_l":
            raise self.error("metric", "scores free text; it needs a response_field")

    def _check_template(self) -> None:
        if not isinstance(self.chat, bool):
            raise self.error("chat", "must be True or False")
        for attribute in ("template", "text_format"):
            if LONE_SURROGATE.search(getattr(self, attribute)):
                raise self.error(attribute, "holds half of a surrogate pair (\\ud800...)")
        if self.template.count("{text}") != 1:
            raise self.error("template", "must contain '{text}' exactly once")
        if self.template != self.template.rstrip():
            raise self.error(
                "template", "must not end in white space: a space and the answer are added to it"
            )


def _common_fields() -> list[str]:
    """The fields that every task has."""
    return [field.name for field in fields(Task) if field.name != "options"]
