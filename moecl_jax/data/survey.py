"""What is wrong with a task's data, all of it at once, and what they are like.

Training stops at the first fault that it meets; here nothing stops. A problem is what training
would stop at; a warning is what it would leave out, or train on although it is doubtful.
"""

import dataclasses
import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from moecl_jax.data.examples import (
    KEPT_APART,
    Example,
    Key,
    TaskExamples,
    named_splits,
    read_split,
    same_data,
)
from moecl_jax.data.loading import load_task
from moecl_jax.data.settings import DataSettings
from moecl_jax.data.task import SPLITS, Task
from moecl_jax.data.tokenize import prompt_format, prompt_limit, tokenize_task
from moecl_jax.errors import UserError, listed
from moecl_jax.models.light_tokenizer import AnyTokenizer
from moecl_jax.outside import shortened

_SHOWN = 3
"""Places that are named of each kind of fault."""

_PERCENTILES = (50, 90, 95, 99, 100)
_UNCUT_LENGTH = 2**30
_MOST_CUT = 0.05


@dataclass(frozen=True)
class Survey:
    """What was found in a task's data.

    Attributes:
        definition: the task.
        examples: the examples that would be trained on and scored, those that cannot be used left
            out; None where none can.
        problems: what training would stop at, a line each.
        warnings: what is doubtful or would be left out, a line each.
    """

    definition: Task
    examples: TaskExamples | None
    problems: tuple[str, ...]
    warnings: tuple[str, ...]

    def label_counts(self) -> dict[str, dict[str, int]]:
        """Number of examples of each label in each split; none in a free-form task."""
        if self.examples is None:
            return {}
        labels = self.definition.labels
        counts = {
            split: Counter(e.label for e in getattr(self.examples, split)) for split in SPLITS
        }
        return {
            split: {label: count[index] for index, label in enumerate(labels)}
            for split, count in counts.items()
        }

    def majority_accuracy(self) -> float | None:
        """Test accuracy of answering always with the most frequent label of training, in [0, 1].

        None in a free-form task, and without test examples.
        """
        if self.examples is None or self.definition.free_form or not self.examples.test:
            return None
        train = Counter(example.label for example in self.examples.train or self.examples.test)
        most = max(train, key=lambda label: (train[label], -label))
        return sum(example.label == most for example in self.examples.test) / len(
            self.examples.test
        )


@dataclass(frozen=True)
class Lengths:
    """How long prompts with their answers are, in tokens, over all splits.

    An example is as long as its prompt and the longest answer of its task, for which room is kept.

    Attributes:
        percentiles: the length that so many percent of the examples do not exceed.
        cut_share: the share of examples that `max_length` cuts, in [0, 1].
        cut_responses: the share of responses that `max_response` cuts; 0 in a label task.
        suggested: the least length that cuts fewer than 5% of the examples.
    """

    percentiles: dict[int, int]
    cut_share: float
    cut_responses: float
    suggested: int


@dataclass(frozen=True)
class Rendered:
    """An example as the model reads it.

    Attributes:
        where: place of the example in the data.
        prompt: its prompt, cut as in training.
        answer: the tokens of its answer, each as text.
    """

    where: str
    prompt: str
    answer: tuple[str, ...]


def survey(task: Task, settings: DataSettings, *, seed: int, vocabulary_size: int) -> Survey:
    """Reads all data of a task and gathers what is wrong with them.

    Args:
        task: what to read.
        settings: which examples are read.
        seed: seed of sub-sampling and of the carved validation split.
        vocabulary_size: `input_ids` must be below it.
    """
    found = _Findings(task, stops=settings.on_bad_example == "error")
    named = named_splits(task, settings.validation_from)
    for first, second in combinations(named, 2):
        if (same := same_data(task, first, second)) is not None:
            found.problems.append(same)
            named.remove(second)
            break
    splits = {split: found.read(split, vocabulary_size) for split in named}
    for kept, other in KEPT_APART:
        if kept in splits and other in splits:
            found.compare(kept, splits[kept], other, splits[other])
    examples = None
    try:
        examples = load_task(
            task,
            dataclasses.replace(settings, on_bad_example="skip"),
            seed=seed,
            vocabulary_size=vocabulary_size,
        )
    except UserError as error:
        found.add_unless_known(str(error))
    if examples is not None:
        found.look_at_labels(examples)
    return Survey(task, examples, tuple(found.problems), tuple(found.warnings))


def lengths(
    task: TaskExamples,
    answers: Sequence[np.ndarray],
    tokenizer: AnyTokenizer | None,
    settings: DataSettings,
) -> Lengths:
    """Measures a task's examples without cutting any.

    Args:
        task: examples, at least one.
        answers: ids of each label's text; empty with a classification head or free-form answers.
        tokenizer: tokenizer of the frozen LLM, or None.
        settings: `max_length` and `max_response`.

    Raises:
        UserError: the examples cannot be tokenised; says why.
    """
    whole = tokenize_task(
        task,
        answers,
        tokenizer,
        max_length=2 * _UNCUT_LENGTH,
        max_response=_UNCUT_LENGTH,
        over_long="truncate",
    )
    examples = [example for split in SPLITS for example in whole.splits[split]]
    limit = prompt_limit(task.definition, answers, settings.max_length, settings.max_response)
    room = settings.max_length - limit
    total = np.sort([len(example.prompt) + room for example in examples])
    responses = np.array([len(e.response) for e in examples if e.response is not None])
    allowed = math.ceil(_MOST_CUT * len(total)) - 1  # examples: fewer than 5%
    return Lengths(
        {p: int(np.percentile(total, p, method="inverted_cdf")) for p in _PERCENTILES},
        float(np.mean(total > settings.max_length)),
        float(np.mean(responses > settings.max_response)) if responses.size else 0.0,
        int(total[len(total) - 1 - allowed]),
    )


def rendered(
    task: TaskExamples,
    answers: Sequence[np.ndarray],
    tokenizer: AnyTokenizer,
    settings: DataSettings,
) -> Rendered:
    """The first example as the model reads it in training.

    Arguments and errors as for `lengths`.
    """
    example = next(e for split in SPLITS for e in getattr(task, split))
    alone = TaskExamples(task.definition, (example,), (), ())
    tokenized = tokenize_task(
        alone,
        answers,
        tokenizer,
        max_length=settings.max_length,
        max_response=settings.max_response,
        over_long="truncate",
    ).splits["train"][0]
    ids: Any = () if tokenized.response is None else tokenized.response
    if answers:
        ids = answers[tokenized.label]
    prefix = prompt_format(task.definition, tokenizer).answer_prefix
    shown = [str(tokenizer.decode([token])) for token in ids]
    if not answers and tokenized.response is None:  # a classification head writes nothing
        shown = [prefix + task.definition.labels[tokenized.label]]
    return Rendered(example.where, str(tokenizer.decode(tokenized.prompt.tolist())), tuple(shown))


class _Findings:
    """Problems and warnings of one task, as they are found."""

    def __init__(self, task: Task, *, stops: bool):
        self.task, self.stops = task, stops
        self.problems: list[str] = []
        self.warnings: list[str] = []

    def add(self, split: str, what: str, places: Sequence[str], total: int, *, stops: bool) -> None:
        """Notes a kind of fault in a split of `total` examples, with the first places of it."""
        more = "; ..." if len(places) > _SHOWN else ""
        line = (
            f"task '{self.task.name}', {split}: {what}, {len(places)} of {total} examples: "
            f"{'; '.join(places[:_SHOWN])}{more}"
        )
        (self.problems if stops else self.warnings).append(str(UserError(line)))

    def add_unless_known(self, problem: str) -> None:
        """Notes what reading raised, unless a split could not be read for the same reason."""
        if problem not in self.problems:
            self.problems.append(problem)

    def read(self, split: str, vocabulary_size: int) -> list[Example]:
        """The usable examples of a split; what cannot be used is noted."""
        bad: defaultdict[str, list[str]] = defaultdict(list)
        examples = []
        try:
            for where, example in read_split(self.task, split, vocabulary_size):
                if isinstance(example, Example):
                    examples.append(example)
                else:
                    bad[example.reason].append(f"{where}: {example.message}")
        except UserError as error:
            self.add_unless_known(str(error))
        total = len(examples) + sum(map(len, bad.values()))
        left_out = "" if self.stops else " (left out)"
        for reason, places in bad.items():
            self.add(split, f"{reason}{left_out}", places, total, stops=self.stops)
        self._look_for_repeats(split, examples)
        return examples

    def _look_for_repeats(self, split: str, examples: Sequence[Example]) -> None:
        """Notes texts that a split holds more than once, with one label or with several."""
        first: dict[Key, Example] = {}
        repeats, contradictions = [], []
        for example in examples:
            other = first.setdefault(example.key, example)
            if other is example:
                continue
            pair = f"{example.where} = {other.where}"
            same = (other.label, other.response) == (example.label, example.response)
            if same:
                repeats.append(pair)
            elif not self.task.free_form:
                contradictions.append(pair)
        what = "texts that stand there before"
        if repeats:
            self.add(split, what, repeats, len(examples), stops=False)
        if contradictions:
            what += " with another label"
            self.add(split, what, contradictions, len(examples), stops=False)

    def compare(
        self, kept: str, examples: Sequence[Example], other: str, others: Sequence[Example]
    ) -> None:
        """Notes the texts of one split that are also in another."""
        seen = {example.key: example.where for example in examples}
        shared = [f"{e.where} = {seen[e.key]}" for e in others if e.key in seen]
        if shared:
            left_out = "a leak" if self.stops else "left out"
            what = f"texts that are also in {kept} ({left_out})"
            self.add(other, what, shared, len(others), stops=self.stops)

    def look_at_labels(self, examples: TaskExamples) -> None:
        """Notes labels that cannot be learned, and those that differ in capitals alone."""
        if self.task.free_form:
            return
        labels = self.task.labels
        train = Counter(example.label for example in examples.train)
        missing = [label for index, label in enumerate(labels) if not train[index]]
        if len(train) == 1:
            only = shortened(labels[next(iter(train))])
            line = (
                f"task '{self.task.name}': all {len(examples.train)} training examples have the "
                f"label {only}, so that nothing can be learned from them; give examples of "
                f"{listed(missing)}"
            )
            (self.problems if self.stops else self.warnings).append(line)
        elif missing and train:
            self._warn("labels without a training example", missing)
        alike: defaultdict[str, list[str]] = defaultdict(list)
        for label in labels:
            alike[label.casefold()].append(label)
        twins = [" and ".join(map(repr, group)) for group in alike.values() if len(group) > 1]
        if twins:
            self._warn("labels that differ in capitals alone", twins)

    def _warn(self, what: str, labels: Sequence[str]) -> None:
        line = f"task '{self.task.name}': {what}: {listed(labels)}"
        self.warnings.append(str(UserError(line)))
