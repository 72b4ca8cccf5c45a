"""k nearest neighbours: a text's label by a vote of the nearest training texts.

    v_c(x) = log(exp(-1/tau) + sum_{i in N_k(x), y_i = c} exp(s_i / tau))
    s_i    = cos(x - m, x_i - m)

Nothing is trained. x is the frozen model's feature of the text alone, x_i those of the task's
training texts with their labels y_i, and m their mean, which all features of a language model have
in common (centred and normalised as in SimpleShot, arXiv 1911.04623). N_k are the k nearest by
cosine; the weights of the vote are those of instance discrimination (arXiv 1805.01978, eq. 7). The
first term is a vote at the opposite direction, so that a label that nobody votes for has a score
too. Without a training text all labels score the same, as before any training.

Learning is adding: a finished task keeps the features and labels of its training texts, not the
texts. They stay with the task and vote for it alone, so that its answers never change, and a
removal deletes them with it. Features tell much of a text: a workdir is as confidential as its
data.
"""

import dataclasses
from typing import Any, ClassVar

import numpy as np

from moecl_jax.methods.base import TaskEnd
from moecl_jax.methods.few_shot import likeness
from moecl_jax.methods.parameters import TaskParameters
from moecl_jax.methods.zero_shot import ZeroShot
from moecl_jax.settings import Section, setting

_TEXTS = 256  # compared at a time


@dataclasses.dataclass(frozen=True)
class Options(Section):
    """Hyper-parameters of the vote.

    Attributes:
      k: number of neighbours that vote.
      temperature: tau; the smaller it is, the more the nearest ones count.
      capacity: the most training texts of a task that are kept, evenly spaced.
    """

    KEY: ClassVar[str] = "knn"
    k: int = setting(10, least=1, most=2**20)
    temperature: float = setting(0.1, least=0.01, most=1e3)
    capacity: int = setting(4096, least=1, most=2**31 - 1, by_task=True)


class Knn(ZeroShot):
    """A vote of the k nearest training texts of the task, by the frozen model's features.

    A finished task's own tree is `features` `[n, D]` float32 and `labels` `[n]` int32.
    """

    name: ClassVar[str] = "knn"
    Options: ClassVar[type[Any]] = Options
    traits = dataclasses.replace(
        ZeroShot.traits,
        output="any",
        votes=True,
        expert_per_task=True,
        no_single_lora="its answers are votes of training texts, and it has no LoRA",
    )

    def finish_task(self, parameters: TaskParameters, end: TaskEnd) -> TaskParameters:
        """Keeps the features of the training texts."""
        stride = max(1, -(-len(end.labels) // self.options.capacity))
        places = range(0, len(end.labels), stride)
        kept = {"features": end.features(places), "labels": end.labels[::stride]}
        return parameters.replace(expert=kept)

    def votes(
        self, parameters: TaskParameters, features: np.ndarray, class_count: int
    ) -> np.ndarray:
        """The votes v `[n, C]` of the nearest training texts."""
        votes = np.full((len(features), class_count), -1.0 / self.options.temperature)
        if not parameters.expert:
            return votes.astype(np.float32)
        pool, labels = (np.asarray(parameters.expert[name]) for name in ("features", "labels"))
        for first in range(0, len(features), _TEXTS):
            some = slice(first, first + _TEXTS)
            cosines = likeness(features[some], pool)
            nearest = np.argsort(-cosines, axis=1, kind="stable")[:, : self.options.k]
            weights = np.take_along_axis(cosines, nearest, axis=1) / self.options.temperature
            for label in range(class_count):
                own = np.where(labels[nearest] == label, weights, -np.inf)
                found = np.logaddexp.reduce(own, axis=1)
                votes[some, label] = np.logaddexp(votes[some, label], found)
        return votes.astype(np.float32)
