"""Tasks and their splits: from a definition to cleaned, disjoint, sub-sampled examples."""

import random
import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from itertools import combinations, zip_longest
from pathlib import Path

from moecl_jax.data import sources
from moecl_jax.data.sources import BadExample, Record
from moecl_jax.errors import UserError

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True, kw_only=True)
class TaskDefinition:
    """What a classification task is and where its examples lie.

    Attributes:
        name: names the task in results and in checkpoint folders.
        source: one of `sources.SOURCES`.
        path: the folder of the files ("" for the working directory); with source "huggingface"
            a hub name or a local folder; with "quickstart" a key of `quickstart.DATASETS`.
        train, validation, test: file paths relative to `path`, or split names. An empty
            `validation` means that it is carved from training.
        text_fields: the fields of a record that make the text; several are joined by a space.
        label_field: the field of a record that holds the label.
        labels: the answers the language model writes, in class order.
        raw_labels: what stands in the data for each label, in the same order (0 and "0" are
            the same); empty when the data hold the labels themselves.
        template: the instruction, with "{text}" exactly once; " " + label follows it.

    Raises:
        UserError: a value is not as described; the message names the task.
    """

    name: str
    source: str
    path: str = ""
    train: str
    validation: str = ""
    test: str
    text_fields: tuple[str, ...] = ("text",)
    label_field: str = "label"
    labels: tuple[str, ...]
    raw_labels: tuple[str | int, ...] = ()
    template: str

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w.-]*\w[\w.-]*", self.name):
            raise UserError(
                f"a task is named {self.name!r}. A name becomes a folder of checkpoints: "
                "give it letters, digits, '_', '-' and '.' only."
            )
        for attribute in ("text_fields", "labels", "raw_labels"):
            if isinstance(getattr(self, attribute), str):
                raise self._error(attribute, "must be a sequence of values, not one string")
            object.__setattr__(self, attribute, tuple(getattr(self, attribute)))
        self._check_source()
        self._check_labels()
        if self.template.count("{text}") != 1:
            raise self._error("template", "must contain '{text}' exactly once")
        if self.template != self.template.rstrip():
            raise self._error(
                "template", "must not end in white space: a space and the label are added to it"
            )

    def _error(self, attribute: str, advice: str) -> UserError:
        value = getattr(self, attribute)
        return UserError(f"task '{self.name}': {attribute} = {value!r} {advice}.")

    def _check_source(self) -> None:
        if self.source not in sources.SOURCES:
            raise self._error("source", f"must be one of {', '.join(sources.SOURCES)}")
        if self.source in ("huggingface", "quickstart") and not self.path:
            raise self._error("path", f"must name the data set of source '{self.source}'")
        for attribute in ("train", "test", "label_field"):
            if not getattr(self, attribute):
                raise self._error(attribute, "must not be empty")
        if not self.text_fields or "" in self.text_fields:
            raise self._error("text_fields", "must name at least one field")

    def _check_labels(self) -> None:
        if len(self.labels) < 2:
            raise self._error("labels", "must hold at least two labels")
        for label in self.labels:
            if not isinstance(label, str) or not label or label != label.strip():
                raise self._error(
                    "labels", f"must be texts without white space around them, and {label!r} is not"
                )
        if self.raw_labels and len(self.raw_labels) != len(self.labels):
            raise self._error("raw_labels", f"must hold one value for each of {self.labels}")
        for attribute in ("labels", "raw_labels"):
            keys = [_label_key(label) for label in getattr(self, attribute)]
            repeated = [key for key, count in Counter(keys).items() if count > 1]
            if repeated:
                raise self._error(attribute, f"holds {repeated[0]!r} twice; name each class once")

    def classes(self) -> dict[str, int]:
        """The class of each label as it is written in the data."""
        raw = self.raw_labels or self.labels
        return {_label_key(label): index for index, label in enumerate(raw)}


@dataclass(frozen=True)
class Example:
    """A text, its class, and where it stands: "file:line" or "data set split row n"."""

    text: str
    label: int
    where: str


@dataclass(frozen=True)
class Task:
    """A task's examples; no text is in two splits. `skipped` counts those left out, by reason."""

    name: str
    labels: tuple[str, ...]
    template: str
    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    test: tuple[Example, ...]
    skipped: dict[str, int] = field(default_factory=dict)


def load_task(
    definition: TaskDefinition,
    *,
    seed: int,
    validation_fraction: float,
    train_examples: int,
    validation_examples: int,
    test_examples: int,
    on_bad_example: str,
) -> Task:
    """Reads a task's splits, keeps them disjoint and sub-samples them.

    Sub-samples are balanced over the classes as far as the data allow, and nested: with the same
    seed, the sample of 100 lies within the sample of 200. Examples stay in the order of the data.

    Args:
        definition: what to read.
        seed: draws the carved validation split and the sub-samples.
        validation_fraction: the part of training, in [0, 1), that becomes validation when the
            definition has no validation split, class by class; 0 leaves validation empty.
        train_examples: at most so many training examples; 0 means all.
        validation_examples: likewise of validation.
        test_examples: likewise of test.
        on_bad_example: "error", or "skip" to leave out and count an example that cannot be used
            (unknown label, empty text, missing field, invalid UTF-8, malformed row) or whose text
            is also in another split (it stays in test rather than in validation, and there rather
            than in training).

    Raises:
        UserError: a bad example (with its file and line) unless skipped; always for malformed
            JSON, a repeated column, an empty split, or two splits that are the same.
    """
    counts = {"train": train_examples, "validation": validation_examples, "test": test_examples}
    _check_arguments(definition, validation_fraction, counts, on_bad_example)
    _refuse_one_location_twice(definition)
    skipped: Counter[str] = Counter()
    splits = {
        split: _read_examples(definition, split, on_bad_example, skipped)
        for split in SPLITS
        if getattr(definition, split)
    }
    _refuse_empty(definition, splits)
    _refuse_equal_splits(definition, splits)
    for kept, other in (("test", "validation"), ("test", "train"), ("validation", "train")):
        if kept in splits and other in splits:
            splits[other] = _without_overlap(
                definition, splits, kept, other, on_bad_example, skipped
            )
    _refuse_empty(definition, splits)
    if "validation" not in splits:
        splits["train"], splits["validation"] = _carve(
            definition, splits["train"], validation_fraction, seed
        )
    samples = {
        split: _sample(examples, counts[split], _generator(definition, split, seed))
        for split, examples in splits.items()
    }
    return Task(
        name=definition.name,
        labels=definition.labels,
        template=definition.template,
        train=samples["train"],
        validation=samples["validation"],
        test=samples["test"],
        skipped=dict(skipped),
    )


Examples = tuple[Example, ...]


def normalise(text: str) -> str:
    """The text with every run of white space made one space: what tells two texts apart."""
    return " ".join(text.split())


def _label_key(value: object) -> str:
    """Makes a label from a typed source (0) and from a text file ("0") the same."""
    return str(value).strip()


def _generator(definition: TaskDefinition, purpose: str, seed: int) -> random.Random:
    """A generator for one purpose; seeding by text is the same on every machine."""
    return random.Random(f"{purpose} {definition.name} {seed}")


def _check_arguments(
    definition: TaskDefinition,
    validation_fraction: float,
    counts: dict[str, int],
    on_bad_example: str,
) -> None:
    where = f"task '{definition.name}'"
    if on_bad_example not in ("error", "skip"):
        raise UserError(f"{where}: on_bad_example = {on_bad_example!r} must be 'error' or 'skip'.")
    if not 0 <= validation_fraction < 1:
        raise UserError(
            f"{where}: validation_fraction = {validation_fraction} must be at least 0 and below 1."
        )
    for split, count in counts.items():
        if count < 0:
            raise UserError(f"{where}: {split}_examples = {count} must be 0 (all) or more.")


def _leak(definition: TaskDefinition, first: str, second: str, what: str) -> UserError:
    return UserError(
        f"task '{definition.name}': {first} and {second} are {what}. Choosing a checkpoint on, or "
        "training on, the data that are scored leaks the answers, and the score says nothing "
        "about new texts. Give each split its own data; with validation='' a part of training "
        "(validation_fraction) is used for validation."
    )


def _refuse_one_location_twice(definition: TaskDefinition) -> None:
    """Raises when two splits are one file (links followed) or one named split."""
    for first, second in combinations(SPLITS, 2):
        names = getattr(definition, first), getattr(definition, second)
        if not all(names):
            continue
        same = names[0] == names[1]
        if definition.source in sources.FILE_SOURCES:
            files = [(Path(definition.path) / name).expanduser().resolve() for name in names]
            same = files[0] == files[1]
        if same:
            raise _leak(definition, first, second, f"the same data ({names[0]} and {names[1]})")


def _refuse_equal_splits(definition: TaskDefinition, splits: dict[str, Examples]) -> None:
    """Raises when two splits, wherever they lie, hold the same set of texts."""
    texts = {
        split: {normalise(example.text) for example in examples}
        for split, examples in splits.items()
    }
    for first, second in combinations(texts, 2):
        if texts[first] == texts[second]:
            raise _leak(definition, first, second, "different files or splits with the same texts")


def _refuse_empty(definition: TaskDefinition, splits: dict[str, Examples]) -> None:
    for split, examples in splits.items():
        if not examples:
            raise UserError(
                f"task '{definition.name}': no usable example in the {split} split "
                f"({sources.location(definition, split)}). Give it examples; if some were "
                "skipped, on_bad_example='error' says why."
            )


def _read_examples(
    definition: TaskDefinition, split: str, on_bad_example: str, skipped: Counter[str]
) -> Examples:
    """The usable examples of a split, in order; the others raise or are counted in `skipped`."""
    classes = definition.classes()
    examples = []
    for record in sources.read_split(definition, split):
        example = _example(record, definition, classes)
        if isinstance(example, Example):
            examples.append(example)
        elif on_bad_example == "skip":
            skipped[example.reason] += 1
        else:
            raise UserError(
                f"{record.where}: {example.message} (task '{definition.name}', {split} split). "
                "Mend the data, or set on_bad_example='skip' to leave out and count such examples."
            )
    return tuple(examples)


def _example(
    record: Record, definition: TaskDefinition, classes: dict[str, int]
) -> Example | BadExample:
    """A record as an example, or what is wrong with it."""
    if record.problem is not None:
        return record.problem
    for name in (*definition.text_fields, definition.label_field):
        if name not in record.fields:
            return BadExample(
                "missing field", f"no field '{name}'; the fields are {', '.join(record.fields)}"
            )
    parts = []
    for name in definition.text_fields:
        value = record.fields[name]
        if not isinstance(value, str | None):
            return BadExample("text is no string", f"field '{name}' is {value!r}, not a text")
        parts.append((value or "").strip())
    text = " ".join(part for part in parts if part)
    if not text:
        return BadExample("empty text", f"the text ({', '.join(definition.text_fields)}) is empty")
    if re.search("[\ud800-\udfff]", text):
        return BadExample("invalid UTF-8", "the text holds half of a surrogate pair (\\ud800...)")
    label = _label_key(record.fields[definition.label_field])
    if label not in classes:
        return BadExample(
            "unknown label", f"unknown label {label!r}; the labels are {', '.join(classes)}"
        )
    return Example(text=text, label=classes[label], where=record.where)


def _without_overlap(
    definition: TaskDefinition,
    splits: dict[str, Examples],
    kept: str,
    other: str,
    on_bad_example: str,
    skipped: Counter[str],
) -> Examples:
    """The examples of split `other` whose texts are not in split `kept`."""
    seen = {normalise(example.text): example for example in splits[kept]}
    alone: list[Example] = []
    shared: list[Example] = []
    for example in splits[other]:
        (shared if normalise(example.text) in seen else alone).append(example)
    if shared and on_bad_example == "error":
        first = shared[0]
        raise UserError(
            f"{first.where}: this {other} text is also in {kept}, at "
            f"{seen[normalise(first.text)].where} (task '{definition.name}'; {len(shared)} such "
            f"{other} examples; the text begins {first.text[:60]!r}). Splits that share texts "
            "score what was learnt by heart. Remove it from one of them, or set "
            f"on_bad_example='skip' to drop such examples from {other}."
        )
    if shared:
        skipped[f"{other} text also in {kept}"] += len(shared)
    return tuple(alone)


def _carve(
    definition: TaskDefinition, examples: Examples, fraction: float, seed: int
) -> tuple[Examples, Examples]:
    """Training without, and validation with, a fraction of each class; equal texts stay together.

    Every class of two or more texts keeps at least one on each side (fraction > 0).
    """
    if fraction == 0:
        return examples, ()
    texts_of_class: defaultdict[int, list[str]] = defaultdict(list)
    known: set[str] = set()
    for example in examples:
        text = normalise(example.text)
        if text not in known:
            known.add(text)
            texts_of_class[example.label].append(text)
    generator = _generator(definition, "carve", seed)
    chosen: set[str] = set()
    for label in sorted(texts_of_class):
        texts = texts_of_class[label]
        generator.shuffle(texts)
        count = min(max(round(fraction * len(texts)), 1), len(texts) - 1)
        chosen.update(texts[:count])
    if not chosen:
        raise UserError(
            f"task '{definition.name}': no class has two different training texts, so no "
            "validation split can be carved. Name a validation split, or set "
            "validation_fraction=0 to do without."
        )
    train = tuple(example for example in examples if normalise(example.text) not in chosen)
    validation = tuple(example for example in examples if normalise(example.text) in chosen)
    return train, validation


def _sample(examples: Examples, count: int, generator: random.Random) -> Examples:
    """At most `count` examples (0: all): each class shuffled, then one of each class in turn."""
    if count == 0 or count >= len(examples):
        return examples
    indices_of_class: defaultdict[int, list[int]] = defaultdict(list)
    for index, example in enumerate(examples):
        indices_of_class[example.label].append(index)
    for label in sorted(indices_of_class):
        generator.shuffle(indices_of_class[label])
    turns = zip_longest(*(indices_of_class[label] for label in sorted(indices_of_class)))
    order = [index for turn in turns for index in turn if index is not None]
    return tuple(examples[index] for index in sorted(order[:count]))
