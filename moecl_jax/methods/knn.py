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

import jax
import numpy as np

from moecl_jax.methods.base import Method, TaskEnd, Traits
from moecl_jax.methods.parameters import TaskParameters, Tree
from moecl_jax.models.config import DecoderConfig
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


class Knn(Method):
    """A vote of the k nearest training texts of the task, by the frozen model's features.

    A finished task's own tree is `features` `[n, D]` float32 and `labels` `[n]` int32.
    """

    name: ClassVar[str] = "knn"
    Options: ClassVar[type[Any]] = Options
    traits = Traits(
        trains=False,
        votes=True,
        expert_per_task=True,
        settled=True,
        experts=(),
        no_single_lora="its answers are votes of training texts, and it has no LoRA",
    )

    def init_shared(self, key: jax.Array, sizes: DecoderConfig, task_count: int) -> Tree:
        """Nothing is shared."""
        del key, sizes, task_count
        return {}

    def init_expert(self, key: jax.Array, sizes: DecoderConfig) -> Tree:
        """No neighbour yet."""
        del key
        return {
            "features": np.zeros((0, sizes.width), np.float32),
            "labels": np.zeros(0, np.int32),
        }

    def adapter(self, parameters: TaskParameters, query: jax.Array | None = None) -> Tree:
        """Nothing is added to the layers."""
        del parameters, query
        return {}

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
        kept, temperature = parameters.expert, self.options.temperature
        known, labels = np.asarray(kept["features"], np.float64), np.asarray(kept["labels"])
        votes = np.full((len(features), class_count), -1.0 / temperature)
        if not len(known):
            return votes.astype(np.float32)
        mean = known.mean(axis=0, keepdims=True)
        known, count = _directions(known - mean), min(self.options.k, len(known))
        for first in range(0, len(features), _TEXTS):
            asked = _directions(features[first : first + _TEXTS].astype(np.float64) - mean)
            cosines = asked @ known.T
            nearest = np.argsort(-cosines, axis=1, kind="stable")[:, :count]
            weights = np.take_along_axis(cosines, nearest, axis=1) / temperature
            for label in range(class_count):
                own = np.where(labels[nearest] == label, weights, -np.inf)
                some = votes[first : first + _TEXTS, label]
                some[:] = np.logaddexp(some, np.logaddexp.reduce(own, axis=1))
        return votes.astype(np.float32)


def _directions(rows: np.ndarray) -> np.ndarray:
    """Rows of length 1; zeros stay zeros."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.where(lengths > 0, lengths, 1.0))
