"""Retrieval: what is near to a text stands before it, out of the task's examples and of documents.

    answer = argmax_label log p(label | passages, k nearest examples with their labels, the text)

Retrieval-augmented generation with a frozen model (Lewis et al. 2020, arXiv 2005.11401) in the
stream's protocol: learning is adding. A finished task keeps its examples as `few_shot` does with
`choice="nearest"`, and the two are one with `embedding="frozen"` and without documents; with k = 0
too it is `zero_shot`. Here texts may be compared by another embedding than the frozen model's
features, and passages of documents stand before the examples.

Documents are read where they lie, once a process, when the first text is asked; they belong to no
task and no checkpoint.
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from moecl_jax.data.tokenize import TokenizedExample
from moecl_jax.errors import UserError
from moecl_jax.methods.base import TaskEnd
from moecl_jax.methods.few_shot import FewShot, Shown
from moecl_jax.methods.parameters import TaskParameters
from moecl_jax.methods.preceding import Asked, Pieces, Preceding
from moecl_jax.methods.zero_shot import ZeroShot
from moecl_jax.retrieval import Embedder, Entry, Index, embedder_named, passages_of
from moecl_jax.settings import Section, setting

FROZEN = "frozen"


@dataclasses.dataclass(frozen=True)
class Options(Section):
    """Hyper-parameters of retrieval.

    Attributes:
      k: examples of the task before each text, less those that do not fit the model's context.
      pool: number of a task's examples among which the nearest are found. They are kept.
      embedding: name of the vectors that texts are compared by: frozen (features of the model
        itself), wordllama or model2vec:NAME.
      documents: a folder of text and Markdown files, one such file, or an index that 'moecl index'
        made (.safetensors); "" for none. They need another embedding than frozen.
      passages: passages of the documents before each text, less those that do not fit.
    """

    KEY: ClassVar[str] = "retrieval"
    k: int = setting(4, least=0, most=10**4)
    pool: int = setting(1024, least=1, most=10**6)
    embedding: str = setting(FROZEN)
    documents: str = setting("")
    passages: int = setting(2, least=0, most=10**3)

    def __post_init__(self) -> None:
        """Refuses documents that nothing could be compared with."""
        super().__post_init__()
        if self.documents and self.embedding == FROZEN:
            raise UserError(
                "config: retrieval.documents needs an embedding that is not the frozen model's; "
                "set retrieval.embedding = 'wordllama'"
            )


class Retrieval(ZeroShot):
    """The frozen LLM with the nearest examples, and passages of documents, before each text."""

    name: ClassVar[str] = "retrieval"
    Options: ClassVar[type[Any]] = Options
    traits = FewShot.traits
    _longest_known: int | None = None

    @functools.cached_property
    def _shown(self) -> FewShot:
        """Keeps and shows the nearest examples."""
        return FewShot(self.lora, k=self.options.k, pool=self.options.pool, choice="nearest")

    @property
    def examples(self) -> Shown:
        """Keeps those that may be shown."""
        return self._shown.examples

    def answering(self, parameters: TaskParameters) -> TaskParameters:
        """The frozen LLM: what is kept of the task stands in the prompts."""
        return self._shown.answering(parameters)

    def finish_task(self, parameters: TaskParameters, end: TaskEnd) -> TaskParameters:
        """Keeps examples as `FewShot` does, with their embeddings as `features`."""
        if self._embedder is not None:
            examples = end.examples()
            end = dataclasses.replace(
                end, features=lambda places: self._embed([examples[place] for place in places])
            )
        return self._shown.finish_task(parameters, end)

    def preceding(self, parameters: TaskParameters, asked: Asked) -> Preceding:
        """Each text's nearest examples, and before them its nearest passages."""
        if self._embedder is None:
            return self._shown.preceding(parameters, asked)
        if not asked.examples:
            return Preceding()
        vectors = self._embed(asked.examples)
        asked = dataclasses.replace(asked, features=lambda: vectors)
        near = self._shown.preceding(parameters, asked)
        if self._documents is None or not self.options.passages:
            return near
        found = self._documents.search(vectors, self.options.passages)
        pieces = [[asked.encode(_shown_as(hit.entry)) for hit in hits] for hits in found]
        own: Sequence[Pieces] = near.own or [[]] * len(pieces)
        return Preceding(
            own=[[*first, *then] for first, then in zip(own, pieces, strict=True)],
            own_limit=near.own_limit + self._longest(asked),
        )

    @functools.cached_property
    def _embedder(self) -> Embedder | None:
        """The embedding; None for the frozen model's features."""
        name = self.options.embedding
        return None if name == FROZEN else embedder_named(name)

    @functools.cached_property
    def _documents(self) -> Index | None:
        """The documents with their embeddings; None where there are none."""
        place, embed = Path(self.options.documents), self._embedder
        if not self.options.documents or embed is None:
            return None
        if place.suffix == ".safetensors":
            index = Index.load(place)
            if index.embedding != embed.name:
                raise UserError(
                    f"config: retrieval.embedding = {embed.name!r}, and {place} has embeddings by "
                    f"{index.embedding!r}; set the same"
                )
            return index
        index = Index(embed.name)
        passages = passages_of(place)
        index.add(passages, embed([passage.text for passage in passages]))
        return index

    def _longest(self, asked: Asked) -> int:
        """The most tokens of the passages before a text, with the separators after them."""
        if self._longest_known is None:
            entries = [] if self._documents is None else self._documents.entries.values()
            lengths = sorted(len(asked.encode(_shown_as(entry))) for entry in entries)
            most = lengths[-self.options.passages :]
            self._longest_known = sum(most) + len(most) * asked.separator
        return self._longest_known

    def _embed(self, examples: Sequence[TokenizedExample]) -> np.ndarray:
        """Embeddings `[n, D]` of examples' texts."""
        assert self._embedder is not None  # whoever asks has seen to it
        if not all(example.text for example in examples):
            raise UserError(
                f"retrieval.embedding = {self.options.embedding!r} reads texts, and an example has "
                "input_ids alone; set retrieval.embedding = 'frozen'"
            )
        return self._embedder([example.text for example in examples])


def _shown_as(entry: Entry) -> str:
    """A passage, or an example of an index with its answer."""
    return f"{entry.text} {entry.answer}".strip()
