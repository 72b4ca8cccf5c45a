"""Tasks and their splits: from a definition to cleaned, disjoint, sub-sampled examples."""

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations, zip_longest
from typing import Any

from moecl_jax.data.characters import LONE_SURROGATE, is_blank
from moecl_jax.data.labels import class_of, label_key, look_alike
from moecl_jax.data.sources import INPUT_IDS, BadExample, Record
from moecl_jax.data.task import SPLITS, Task
from moecl_jax.errors import UserError, listed
from moecl_jax.outside import shortened

Key = str | tuple[int, ...]


@dataclass(frozen=True)
class Example:
    """A prompt's text or ids, its answer, and where it stands.

    Attributes:
        text: what stands for "{text}" of the template; "" when there are `input_ids`.
        label: the class; 0 in a free-form task.
        where: "file:line" or "data set split row n".
        response: response of a free-form task, else "".
        input_ids: the whole prompt in token ids, in place of the text.
    """

    text: str
    label: int
    where: str
    response: str = ""
    input_ids: tuple[int, ...] = ()

    @property
    def key(self) -> Key:
        """What tells two prompts apart."""
        return self.input_ids or normalise(self.text)


@dataclass(frozen=True)
class TaskExamples:
    """A task's examples; no prompt is in two splits, unless validation was asked to be test.

    Attributes:
        definition: the task.
        train, validation, test: examples of each split.
        skipped: number of those that were left out, by reason.
        notes: what is doubtful about those that stayed, each in a few words.
    """

    definition: Task
    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    test: tuple[Example, ...]
    skipped: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def load_examples(
    task: Task,
    *,
    seed: int,
    vocabulary_size: int,
    validation_from: str,
    validation_fraction: float,
    train_examples: int,
    validation_examples: int,
    test_examples: int,
    on_bad_example: str,
    test_fraction: float = 0.0,
) -> TaskExamples:
    """Reads a task's splits, keeps them disjoint and sub-samples them.

    Sub-samples are balanced over the classes as far as the data allow, and nested: with the same
    seed, the sample of 100 lies within the sample of 200. Examples stay in the order of the data.

    Args:
        task: what to read.
        seed: draws the carved validation split and the sub-samples.
        vocabulary_size: `input_ids` must be below it.
        validation_from: "train", or "test" to use the test split for validation too, whatever the
            task says: selection then leaks.
        validation_fraction: the part of training, in [0, 1), that becomes validation when the
            task has no validation split, class by class; 0 leaves validation empty.
        train_examples: at most so many training examples; 0 means all.
        validation_examples: likewise of validation.
        test_examples: likewise of test.
        on_bad_example: "error", or "skip" to leave out and count an example that cannot be used
            (unknown label, empty text or response, missing field, invalid UTF-8, malformed row,
            ids outside the vocabulary) or whose prompt is also in another split (it stays in test
            rather than in validation, and there rather than in training). Training examples of
            one label alone are an error too, or noted. A text that stands in a split with several
            labels is noted in both cases, for well-known data sets hold such texts.
        test_fraction: the part of training, in [0, 1), that becomes test when the task has no test
            split, class by class, before validation is carved; 0 leaves test empty. It is drawn by
            the task's name alone, so that runs of all seeds are scored on the same texts.

    Returns:
        The task; a split that the task does not name is empty.

    Raises:
        UserError: a bad example (with its file and line) unless skipped; always for malformed
            JSON, a repeated column, an empty file, or two splits that are the same.
    """
    counts = {"train": train_examples, "validation": validation_examples, "test": test_examples}
    fractions = {"validation_fraction": validation_fraction, "test_fraction": test_fraction}
    _check_arguments(task, validation_from, fractions, counts, on_bad_example)
    named = named_splits(task, validation_from)
    for first, second in combinations(named, 2):
        problem = same_data(task, first, second)
        if problem is not None:
            raise UserError(problem)
    skipped: Counter[str] = Counter()
    splits = {
        split: _read_examples(task, split, vocabulary_size, on_bad_example, skipped)
        for split in named
    }
    _refuse_empty(task, splits)
    _refuse_equal_splits(task, splits)
    for kept, other in KEPT_APART:
        if kept in splits and other in splits:
            splits[other] = _without_overlap(task, splits, kept, other, on_bad_example, skipped)
    _refuse_empty(task, splits)
    if "train" in splits and "test" not in splits:
        splits["train"], splits["test"] = _carve(task, splits["train"], "test", test_fraction, 0)
    if validation_from == "train" and "train" in splits and "validation" not in splits:
        splits["train"], splits["validation"] = _carve(
            task, splits["train"], "validation", validation_fraction, seed
        )
    notes = [*_contradictions(task, splits), *_one_label(task, splits, on_bad_example)]
    samples = {
        split: _sample(splits.get(split, ()), counts[split], _generator(task, split, seed))
        for split in SPLITS
    }
    if validation_from == "test":
        samples["validation"] = samples["test"]
    return TaskExamples(task, skipped=dict(skipped), notes=tuple(notes), **samples)


Examples = tuple[Example, ...]

KEPT_APART = (("test", "validation"), ("test", "train"), ("validation", "train"))
"""Pairs of splits; a text of the first must not be in the second."""


def named_splits(task: Task, validation_from: str) -> list[str]:
    """The splits that a task names and that are read; `validation_from` as in `load_examples`."""
    leaks = validation_from == "test"
    return [s for s in SPLITS if getattr(task, s) and not (leaks and s == "validation")]


def normalise(text: str) -> str:
    """The text with every run of white space made one space: what tells two texts apart."""
    return " ".join(text.split())


def problem_with_ids(ids: Any, vocabulary_size: int) -> str | None:
    """What is wrong with `input_ids`, if anything is."""
    if not isinstance(ids, list) or not ids or not all(type(i) is int for i in ids):
        return "input_ids must be a list of integers that is not empty"
    if not all(0 <= i < vocabulary_size for i in ids):
        return f"input_ids must be between 0 and {vocabulary_size - 1}"
    return None


def _generator(task: Task, purpose: str, seed: int) -> random.Random:
    """A generator for one purpose; seeding by text is the same on every machine."""
    return random.Random(f"{purpose} {task.name} {seed}")


def _check_arguments(
    task: Task,
    validation_from: str,
    fractions: dict[str, float],
    counts: dict[str, int],
    on_bad_example: str,
) -> None:
    where = f"task '{task.name}'"
    if on_bad_example not in ("error", "skip"):
        raise UserError(f"{where}: on_bad_example = {on_bad_example!r} must be 'error' or 'skip'.")
    if validation_from not in ("train", "test"):
        raise UserError(
            f"{where}: validation_from = {validation_from!r} must be 'train' or 'test'."
        )
    for name, fraction in fractions.items():
        if not 0 <= fraction < 1:
            raise UserError(f"{where}: {name} = {fraction} must be at least 0 and below 1.")
    for split, count in counts.items():
        if count < 0:
            raise UserError(f"{where}: {split}_examples = {count} must be 0 (all) or more.")


def _leak(task: Task, first: str, second: str, what: str) -> str:
    return (
        f"task '{task.name}': {first} and {second} are {what}. Choosing a checkpoint on, or "
        "training on, the data that are scored leaks the answers, and the score says nothing "
        "about new texts. Give each split its own data; with validation='' a part of training "
        "(validation_fraction) is used for validation."
    )


def same_data(task: Task, first: str, second: str) -> str | None:
    """What is wrong where two splits are one place: one file (links followed), or one split."""
    names = getattr(task, first), getattr(task, second)
    if not task.reader.same(task, first, second):
        return None
    return _leak(task, first, second, f"the same data ({names[0]} and {names[1]})")


def _refuse_equal_splits(task: Task, splits: dict[str, Examples]) -> None:
    """Raises when two splits, wherever they lie, hold the same set of prompts."""
    keys = {split: {example.key for example in examples} for split, examples in splits.items()}
    for first, second in combinations(keys, 2):
        if keys[first] == keys[second]:
            problem = _leak(task, first, second, "different files or splits with the same texts")
            raise UserError(problem)


def _refuse_empty(task: Task, splits: dict[str, Examples]) -> None:
    for split, examples in splits.items():
        if not examples:
            raise UserError(
                f"task '{task.name}': no usable example in the {split} split "
                f"({task.reader.location(task, split)}). Give it examples; if some were "
                "skipped, on_bad_example='error' says why."
            )


def _contradictions(task: Task, splits: dict[str, Examples]) -> Iterator[str]:
    """Notes the texts that a split holds with several labels."""
    if task.free_form:  # several answers to one prompt are right
        return
    for split, examples in splits.items():
        first: dict[Key, Example] = {}
        pairs: dict[Key, tuple[Example, Example]] = {}
        for example in examples:
            other = first.setdefault(example.key, example)
            if other.label != example.label:
                pairs.setdefault(example.key, (other, example))
        if pairs:
            one, another = next(iter(pairs.values()))
            yield (
                f"{split} texts with several labels: {len(pairs)}, first at {one.where} and "
                f"{another.where}"
            )


def _one_label(task: Task, splits: dict[str, Examples], on_bad_example: str) -> Iterator[str]:
    """Refuses training examples that all have one label, or notes them."""
    train = splits.get("train", ())
    if task.free_form or len({example.label for example in train}) != 1:
        return
    label = shortened(task.labels[train[0].label])
    if on_bad_example == "error":
        raise UserError(
            f"task '{task.name}': all {len(train)} training examples "
            f"({task.reader.location(task, 'train')}) have the label {label}, so that nothing can "
            f"be learned from them. Give examples of the other labels "
            f"({listed(task.labels)}), or set on_bad_example='skip' to train all the same."
        )
    yield f"all training examples have the label {label}"


def _read_examples(
    task: Task,
    split: str,
    vocabulary_size: int,
    on_bad_example: str,
    skipped: Counter[str],
) -> Examples:
    """The usable examples of a split, in order; the others raise or are counted in `skipped`."""
    examples = []
    for where, example in read_split(task, split, vocabulary_size):
        if isinstance(example, Example):
            examples.append(example)
        elif on_bad_example == "skip":
            skipped[example.reason] += 1
        else:
            raise UserError(
                f"{where}: {example.message} (task '{task.name}', {split} split). "
                "Mend the data, or set on_bad_example='skip' to leave out and count such examples."
            )
    return tuple(examples)


def read_split(
    task: Task, split: str, vocabulary_size: int
) -> Iterator[tuple[str, Example | BadExample]]:
    """The examples of a split in order, each with its place; or what is wrong with them.

    Args:
        task: what to read.
        split: "train", "validation" or "test", which the task must name.
        vocabulary_size: `input_ids` must be below it.

    Raises:
        UserError: the data are missing or malformed.
    """
    classes = task.classes()
    for record in task.records(split):
        yield record.where, _example(record, task, classes, vocabulary_size)


def _example(
    record: Record, task: Task, classes: dict[str, int], vocabulary_size: int
) -> Example | BadExample:
    """A record as an example, or what is wrong with it."""
    if record.problem is not None:
        return record.problem
    fields = record.fields
    prompt = _prompt(record, task, vocabulary_size)
    if isinstance(prompt, BadExample):
        return prompt
    text, input_ids = prompt
    if task.answer_field not in fields:
        return _missing(record, task.answer_field)
    if task.free_form:
        response = text_of(record, (task.response_field,))
        if isinstance(response, BadExample):
            return response
        return Example(text, 0, record.where, response, input_ids)
    label = class_of(fields[task.label_field], classes)
    if label is None:
        return BadExample("unknown label", _unknown_label(fields[task.label_field], task))
    return Example(text, label, record.where, input_ids=input_ids)


def _unknown_label(value: object, task: Task) -> str:
    classes = task.classes()
    if value is None or is_blank(label_key(value)):
        return f"unknown label {shortened(label_key(value))}: it is missing"
    twin = look_alike(value, classes)
    if twin is None:
        key, count = label_key(value), len(task.labels)
        known = f"unknown label {shortened(key)}; the labels are {listed(classes)}"
        if task.raw_labels:
            return f"{known}, as raw_labels names them"
        numbers = key.isdecimal() and int(key[:9]) < count and count <= 20
        such = f", such as raw_labels={tuple(range(count))}" if numbers else ""
        return f"{known}. If the data hold others for them, name those in raw_labels{such}"
    return (
        f"unknown label {label_key(value)!a:.60}, which looks like {twin!a:.60} and "
        "differs in Unicode composition or invisible characters; write it alike, or name it in "
        "raw_labels"
    )


def _prompt(
    record: Record, task: Task, vocabulary_size: int
) -> tuple[str, tuple[int, ...]] | BadExample:
    """The text of a record that has one of the text fields, else its `input_ids`."""
    names = task.text_fields
    ids: Any = record.fields.get(INPUT_IDS)
    if ids is None or any(record.fields.get(name) is not None for name in names):
        text = text_of(record, names, task.join_texts)
        return text if isinstance(text, BadExample) else (text, ())
    problem = problem_with_ids(ids, vocabulary_size)
    return BadExample("bad input_ids", problem) if problem else ("", tuple(ids))


def text_of(
    record: Record, names: tuple[str, ...], join: Callable[[Sequence[str]], str] = " ".join
) -> str | BadExample:
    """The texts of some fields of a record, less white space around them, joined.

    Args:
        record: the record.
        names: its fields that make the text.
        join: makes one text of theirs.

    Returns:
        The text, or what is wrong with the record.
    """
    parts = []
    for name in names:
        if name not in record.fields:
            return _missing(record, name)
        value = record.fields[name]
        if not isinstance(value, str | None):
            problem = f"field '{name}' is {shortened(value)}, not a text"
            return BadExample("text is no string", problem)
        parts.append((value or "").strip())
    if all(map(is_blank, parts)):
        return BadExample("empty text", f"the text ({', '.join(names)}) is empty")
    text = join(parts)
    if LONE_SURROGATE.search(text):
        return BadExample("invalid UTF-8", "the text holds half of a surrogate pair (\\ud800...)")
    return text


def _missing(record: Record, name: str) -> BadExample:
    return BadExample("missing field", f"no field '{name}'; the fields are {listed(record.fields)}")


def _without_overlap(
    task: Task,
    splits: dict[str, Examples],
    kept: str,
    other: str,
    on_bad_example: str,
    skipped: Counter[str],
) -> Examples:
    """The examples of split `other` whose prompts are not in split `kept`."""
    seen = {example.key: example for example in splits[kept]}
    alone: list[Example] = []
    shared: list[Example] = []
    for example in splits[other]:
        (shared if example.key in seen else alone).append(example)
    if shared and on_bad_example == "error":
        first = shared[0]
        begin = first.text[:60] or str(first.input_ids)[:60]
        raise UserError(
            f"{first.where}: this {other} text is also in {kept}, at "
            f"{seen[first.key].where} (task '{task.name}'; {len(shared)} such "
            f"{other} examples; it begins {begin!r}). Splits that share texts "
            "score what was learnt by heart. Remove it from one of them, or set "
            f"on_bad_example='skip' to drop such examples from {other}."
        )
    if shared:
        skipped[f"{other} text also in {kept}"] += len(shared)
    return tuple(alone)


def _carve(
    task: Task, examples: Examples, split: str, fraction: float, seed: int
) -> tuple[Examples, Examples]:
    """Training without, and a split with, a fraction of each class; equal texts stay together.

    Every class of two or more texts keeps at least one on each side (fraction > 0).
    """
    if fraction == 0:
        return examples, ()
    texts_of_class: defaultdict[int, list[Key]] = defaultdict(list)
    known: set[Key] = set()
    for example in examples:
        if example.key not in known:
            known.add(example.key)
            texts_of_class[example.label].append(example.key)
    generator = _generator(task, "carve" if split == "validation" else f"carve {split}", seed)
    chosen: set[Key] = set()
    for label in sorted(texts_of_class):
        texts = texts_of_class[label]
        generator.shuffle(texts)
        count = min(max(round(fraction * len(texts)), 1), len(texts) - 1)
        chosen.update(texts[:count])
    if not chosen:
        raise UserError(
            f"task '{task.name}': no class has two different training texts, so no "
            f"{split} split can be carved. Name a {split} split, or set "
            f"{split}_fraction=0 to do without."
        )
    train = tuple(example for example in examples if example.key not in chosen)
    return train, tuple(example for example in examples if example.key in chosen)


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
