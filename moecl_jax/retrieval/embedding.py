"""Embeddings of texts that need no language model: tables of word vectors, and their mean.

    e(x) = 1/n sum_i E[w_i]                 w_1 ... w_n are the tokens of the text x

"wordllama" is the table of the package of that name (16 MB; D is 256), which is read from its files
and not imported. "model2vec:NAME" is a model of the package model2vec, as a folder or as the hub
names it. The frozen model's own features are another embedding, which `serving.rag` gives.
"""

import functools
import importlib
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from moecl_jax.errors import UserError, one_line

_TEXTS = 1024  # a call of the tokenizer
_WORDLLAMA = (
    "weights/l2_supercat_256.safetensors",
    "tokenizers/l2_supercat_tokenizer_config.json",
)


class Embedder:
    """Gives texts their vectors.

    Attributes:
      name: names the embedding in the file of an index: vectors of two names are not comparable.
    """

    def __init__(self, name: str, embed: Callable[[Sequence[str]], np.ndarray]):
        """An embedding.

        Args:
          name: its name.
          embed: gives the vectors `[n, D]` of n texts, at least one.
        """
        self.name, self._embed = name, embed

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Embeddings `[n, D]` float32 of n texts; `[0, 0]` of none."""
        if not len(texts):
            return np.zeros((0, 0), np.float32)
        return np.asarray(self._embed(texts), np.float32)


def embedder_named(name: str) -> Embedder:
    """An embedding by its name.

    Args:
      name: "wordllama", or "model2vec:" and the name or folder of a model.

    Raises:
      UserError: there is none of this name, or its package is not installed.
    """
    kind, _, model = name.partition(":")
    if name == "wordllama":
        return Embedder(name, _wordllama())
    if kind == "model2vec" and model:
        return Embedder(name, _model2vec(model))
    raise UserError(
        f"embedding = {name!r} is not one of frozen (the run's own model), wordllama, "
        "model2vec:NAME"
    )


@functools.cache
def _wordllama() -> Callable[[Sequence[str]], np.ndarray]:
    import safetensors.numpy
    import tokenizers

    spec = importlib.util.find_spec("wordllama")
    if spec is None or spec.origin is None:
        raise UserError(
            "embedding = 'wordllama' needs the package wordllama, whose files alone are read: "
            "pip install --no-deps wordllama"
        )
    weights, words = (Path(spec.origin).parent / name for name in _WORDLLAMA)
    try:
        table = safetensors.numpy.load_file(weights)["embedding.weight"].astype(np.float32)
        tokenizer = tokenizers.Tokenizer.from_file(str(words))
    except Exception as error:  # of the tokenizer, which raises Exception itself
        raise UserError(
            f"the files of wordllama in {weights.parents[1]} cannot be read: {one_line(error)}. "
            "Version 0.4 has them."
        ) from error
    return functools.partial(mean_of_words, table, tokenizer)


def mean_of_words(table: np.ndarray, tokenizer: Any, texts: Sequence[str]) -> np.ndarray:
    """The mean of each text's word vectors, `[n, D]`; zeros for a text without a token.

    Args:
      table: `[V, D]` float32, vectors by token id.
      tokenizer: a tokenizer of the package tokenizers.
      texts: n of them.
    """
    found = np.zeros((len(texts), table.shape[1]), np.float32)
    for first in range(0, len(texts), _TEXTS):
        encoded = tokenizer.encode_batch(texts[first : first + _TEXTS], add_special_tokens=False)
        for place, each in enumerate(encoded, first):
            if each.ids:
                found[place] = table[each.ids].mean(axis=0)
    return found


def _model2vec(model: str) -> Callable[[Sequence[str]], np.ndarray]:
    try:
        package: Any = importlib.import_module("model2vec")
    except ImportError as error:
        raise UserError(
            f"embedding = 'model2vec:{model}' needs a package that is not installed: "
            "pip install model2vec"
        ) from error
    try:
        static = package.StaticModel.from_pretrained(model)
    except Exception as error:  # of the hub and of damaged files
        raise UserError(f"model2vec cannot load {model!r}: {one_line(error)}") from error
    return lambda texts: static.encode(list(texts))
