"""Few-shot: k of a task's training examples stand before each text, and nothing is trained.

    answer = argmax_label log p(label | k texts of the task with their labels, then the text)

In-context learning (Brown et al. 2020, "Language models are few-shot learners", arXiv 2005.14165).
A finished task keeps the examples that may be shown, as token ids; a task that is not finished has
none, and is answered as by `zero_shot`. With `choice`

    random     k of the task's examples, the same for all texts
    balanced   one of each label in turn, until there are k, the same for all texts
    nearest    the k whose texts are most like the text (Liu et al. 2022, "What makes good
               in-context examples for GPT-3?", arXiv 2101.06804), out of `pool` of the task's

Likeness is the cosine of what the frozen model makes of two texts, each less the mean of the pool.
The most alike example stands last. Demonstrations that are the same for all texts are read once.
"""

import dataclasses
from typing import Any, ClassVar

import numpy as np

from moecl_jax.data.rehearsal import ClassBalanced, ExamplePolicy, PastTask
from moecl_jax.methods.base import TaskEnd
from moecl_jax.methods.parameters import TaskParameters, Tree
from moecl_jax.methods.preceding import NOTHING, Asked, Preceding
from moecl_jax.methods.zero_shot import ZeroShot
from moecl_jax.settings import Section, setting

CHOICES = ("random", "balanced", "nearest")


@dataclasses.dataclass(frozen=True)
class Options(Section):
    """Hyper-parameters of few-shot answers.

    Attributes:
      k: demonstrations before each text, less those that do not fit the model's context.
      choice: which examples of the task they are: random, balanced (as many of each label as can
        be), or nearest (those most like the text). The run's seed decides a draw.
      pool: number of a task's examples among which the nearest are found. They are kept.
    """

    KEY: ClassVar[str] = "few_shot"
    k: int = setting(8, least=0, most=10**4)
    choice: str = setting("balanced", choices=CHOICES)
    pool: int = setting(1024, least=1, most=10**6)


@dataclasses.dataclass(frozen=True)
class Shown(ExamplePolicy):
    """The examples of each task that are kept to be shown; none joins a batch.

    Attributes:
      options: those of the method.
    """

    options: Options

    def stored(self, memory: Any, past: Any, seed: int) -> list[tuple[int, int]]:
        """Those of each task that `of_task` gives."""
        del memory
        return [
            (index, place)
            for index, task in enumerate(past)
            for place in self.of_task(seed, index, task.labels)
        ]

    def of_task(self, seed: int, index: int, labels: np.ndarray) -> list[int]:
        """Places of the examples that one task keeps; fewer ones are the first of more.

        Args:
          seed: seed of the run.
          index: place of the task in the stream.
          labels: `[n]` class of each training example; 0 in a free-form task.
        """
        count = self.options.k
        if count and self.options.choice == "nearest":
            count = self.options.pool
        if self.options.choice == "balanced":
            drawn = ClassBalanced(count, 0).stored({}, [PastTask("", labels)], seed)
            return [place for _, place in drawn]
        generator = np.random.default_rng((seed, index, *b"shown"))
        return [int(place) for place in generator.permutation(len(labels))[:count]]


class FewShot(ZeroShot):
    """The frozen LLM with demonstrations before each text."""

    name: ClassVar[str] = "few_shot"
    Options: ClassVar[type[Any]] = Options
    traits = dataclasses.replace(ZeroShot.traits, expert_per_task=True, precedes=True)

    @property
    def examples(self) -> Shown:
        """Keeps those that may be shown."""
        return Shown(self.options)

    def answering(self, parameters: TaskParameters) -> TaskParameters:
        """The frozen LLM: what is kept of the task stands in the prompts."""
        return parameters.replace(expert={})

    def finish_task(self, parameters: TaskParameters, end: TaskEnd) -> TaskParameters:
        """Keeps the examples that may be shown as the task's own tree.

        `tokens` `[T]` int32 are the ids of all demonstrations one after another, `lengths` `[n]`
        int32 the number of each one's, and `features` `[n, D]` float32 those of their texts, where
        the nearest are shown.
        """
        places = self.examples.of_task(end.seed, end.index, end.labels)
        pieces = end.demonstrations(places)
        if not pieces:
            return parameters
        kept = {
            "tokens": np.concatenate(pieces),
            "lengths": np.array([len(piece) for piece in pieces], np.int32),
        }
        if self.options.choice == "nearest":
            kept["features"] = end.features(places)
        return parameters.replace(expert=kept)

    def preceding(self, parameters: TaskParameters, asked: Asked) -> Preceding:
        """The task's demonstrations: the same for all texts, or each text's nearest."""
        kept: Tree = parameters.expert
        if not kept or not asked.examples:
            return NOTHING
        tokens, lengths = np.asarray(kept["tokens"]), np.asarray(kept["lengths"])
        pieces = np.split(tokens, np.cumsum(lengths)[:-1])
        if self.options.choice != "nearest":
            return Preceding(common=pieces)
        longest = int(np.sort(lengths)[-self.options.k :].sum())
        nearest = most_alike(asked.features(), np.asarray(kept["features"]), self.options.k)
        return Preceding(
            own=[[pieces[place] for place in places] for places in nearest],
            own_limit=longest + min(self.options.k, len(lengths)) * asked.separator,
        )


def most_alike(features: np.ndarray, pool: np.ndarray, count: int) -> np.ndarray:
    """Places of the features in a pool that are most alike, the most alike first.

    Of equals the first is more alike.

    Args:
      features: `[n, D]`.
      pool: `[m, D]`.
      count: how many of the m at most.

    Returns:
      `[n, min(count, m)]`.
    """
    return np.argsort(-likeness(features, pool), axis=1, kind="stable")[:, :count]


def likeness(features: np.ndarray, pool: np.ndarray) -> np.ndarray:
    """The cosines of features `[n, D]` and a pool's `[m, D]`, each less the pool's mean, `[n, m]`.

    Where one is the mean itself they are 0.
    """
    centre = pool.mean(axis=0, keepdims=True)

    def directions(of: np.ndarray) -> np.ndarray:
        centred = (of - centre).astype(np.float64)
        length = np.linalg.norm(centred, axis=1, keepdims=True)
        return np.asarray(centred / np.where(length > 0, length, 1.0))

    return np.asarray(directions(features) @ directions(pool).T)
