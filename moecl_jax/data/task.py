"""What a task is: its answers, its instruction, and where its examples lie."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from moecl_jax.data.sources import reading as sources
from moecl_jax.errors import UserError

METRICS = ("exact_match", "rouge_l")
_TEXTS = (
    *("source", "path", "subset", "train", "validation", "test"),
    *("text_format", "label_field", "response_field", "metric", "template"),
)


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a task is and where its examples lie; docs/tasks.md explains it with examples.

    A label task chooses one of `labels`; a free-form task, which has a `response_field`, writes
    any text. A record may hold `input_ids`, the whole prompt in token ids, in place of its texts.

    Attributes:
        name: names the task in results and in checkpoint folders.
        source: one of `sources.SOURCES`.
        path: the folder of the files ("" for the working directory); with source "huggingface"
            a hub name or a local folder; with "quickstart" a key of `quickstart.DATASETS`.
        subset: with source "huggingface", which of several data sets in `path` is meant ("mnli"
            of "nyu-mll/glue"): the hub's configuration, or a folder in the local folder.
        train, validation, test: file paths relative to `path`, or split names; all empty with
            source "none". Without `train` a task cannot be trained, without `test` it is not
            scored. An empty `validation` means that it is carved from training.
        text_fields: the fields of a record that make the text; several are joined by a space,
            or as `text_format` says.
        text_format: how the text fields make the text, each as "{field}"; "" joins by a space.
        label_field: the field of a record that holds the label; "" stands for "label".
        labels: the answers the language model writes, in class order; empty when free-form.
        raw_labels: what stands in the data for each label, in the same order (0 and "0" are
            the same); empty when the data hold the labels themselves.
        response_field: the field that holds the response; "" for a label task.
        metric: what scores a response: "exact_match" or, for free-form tasks only, "rouge_l".
        template: the instruction, with "{text}" exactly once; " " + answer follows it.
        chat: whether the template is what the user says in the tokenizer's chat template, and
            the answer what the assistant replies.

    Raises:
        UserError: a value is not as described; the message names the task.
    """

    name: str
    source: str
    path: str = ""
    subset: str = ""
    train: str = ""
    validation: str = ""
    test: str = ""
    text_fields: tuple[str, ...] = ("text",)
    text_format: str = ""
    label_field: str = ""
    labels: tuple[str, ...] = ()
    raw_labels: tuple[str | int, ...] = ()
    response_field: str = ""
    metric: str = "exact_match"
    template: str = "{text}"
    chat: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not re.fullmatch(r"[\w-]*\w[\w-]*", self.name):
            raise UserError(
                f"a task is named {self.name!r}. A name becomes a config key and a folder of "
                "checkpoints: give it letters, digits, '_' and '-' only."
            )
        for attribute in _TEXTS:
            if not isinstance(getattr(self, attribute), str):
                raise self._error(attribute, "must be a text")
        for attribute in ("text_fields", "labels", "raw_labels"):
            if not isinstance(getattr(self, attribute), list | tuple):
                raise self._error(attribute, "must be a sequence of values, such as ('a', 'b')")
            object.__setattr__(self, attribute, tuple(getattr(self, attribute)))
        self._check_source()
        if self.free_form:
            self._check_free_form()
        else:
            object.__setattr__(self, "label_field", self.label_field or "label")
            self._check_labels()
        if self.metric not in METRICS:
            raise self._error("metric", f"must be one of {', '.join(METRICS)}")
        self._check_template()

    @classmethod
    def from_fields(cls, name: str, values: Mapping[str, Any]) -> "Task":
        """A definition out of a config's mapping.

        Raises:
            UserError: a field is unknown, missing or wrong.
        """
        known = [field.name for field in fields(cls)]
        for key in values:
            if key not in known:
                raise UserError(
                    f"task '{name}' has an unknown field '{key}'; the fields of a task are "
                    f"{', '.join(known)}."
                )
        if "source" not in values:
            raise UserError(
                f"task '{name}' has no source; expected one of {', '.join(sources.SOURCES)}."
            )
        return cls(**{"name": name, **values})

    @property
    def free_form(self) -> bool:
        """Whether the answer is any text, not one of the labels."""
        return bool(self.response_field)

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

    def _error(self, attribute: str, advice: str) -> UserError:
        value = getattr(self, attribute)
        return UserError(f"task '{self.name}': {attribute} = {value!r} {advice}.")

    def _check_source(self) -> None:
        if self.source not in sources.SOURCES:
            raise self._error("source", f"must be one of {', '.join(sources.SOURCES)}")
        if self.source in ("huggingface", "quickstart") and not self.path:
            raise self._error("path", f"must name the data set of source '{self.source}'")
        if self.subset and self.source != "huggingface":
            raise self._error("subset", "is of source 'huggingface' only")
        if self.source == "none":
            for attribute in ("path", "train", "validation", "test"):
                if getattr(self, attribute):
                    raise self._error(
                        attribute, "must be empty: source 'none' is a task without data"
                    )
        if not self.text_fields or "" in self.text_fields:
            raise self._error("text_fields", "must name at least one field")
        if self.text_format:
            self._check_text_format()

    def _check_text_format(self) -> None:
        rest = self.text_format
        for place in self._places():
            if place not in rest:
                raise self._error("text_format", f"must contain '{place}', one of the text_fields")
            rest = rest.replace(place, "")
        unknown = re.search(r"\{\w+\}", rest)
        if unknown:
            raise self._error("text_format", f"has '{unknown[0]}', which is none of text_fields")

    def _check_free_form(self) -> None:
        for attribute in ("labels", "raw_labels", "label_field"):
            if getattr(self, attribute):
                raise self._error(
                    attribute, "must be empty: with a response_field the answer is free text"
                )

    def _check_labels(self) -> None:
        if len(self.labels) < 2:
            raise self._error(
                "labels", "must hold at least two labels (or name a response_field: free text)"
            )
        for label in self.labels:
            if not isinstance(label, str) or not label or label != label.strip():
                raise self._error(
                    "labels", f"must be texts without white space around them, and {label!r} is not"
                )
        if self.raw_labels and len(self.raw_labels) != len(self.labels):
            raise self._error("raw_labels", f"must hold one value for each of {self.labels}")
        for attribute in ("labels", "raw_labels"):
            keys = [label_key(label) for label in getattr(self, attribute)]
            repeated = [key for key, count in Counter(keys).items() if count > 1]
            if repeated:
                raise self._error(attribute, f"holds {repeated[0]!r} twice; name each class once")
        if self.metric == "rouge_l":
            raise self._error("metric", "scores free text; it needs a response_field")

    def _check_template(self) -> None:
        if not isinstance(self.chat, bool):
            raise self._error("chat", "must be True or False")
        if self.template.count("{text}") != 1:
            raise self._error("template", "must contain '{text}' exactly once")
        if self.template != self.template.rstrip():
            raise self._error(
                "template", "must not end in white space: a space and the answer are added to it"
            )


def label_key(value: object) -> str:
    """Makes a label from a typed source (0) and from a text file ("0") the same."""
    return str(value).strip()
