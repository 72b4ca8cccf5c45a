"""Embeddings without a language model: means of word vectors."""

import importlib.util
import sys
import types

import numpy as np
import pytest
import tokenizers

from moecl_jax.errors import UserError
from moecl_jax.retrieval.embedding import Embedder, embedder_named, mean_of_words

TABLE = np.array([[0, 0], [1, 0], [0, 1], [4, 4]], np.float32)


def words():
    model = tokenizers.models.WordLevel({"?": 0, "one": 1, "two": 2, "four": 3}, unk_token="?")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return tokenizer


def test_a_text_is_the_mean_of_its_words():
    found = mean_of_words(TABLE, words(), ["one two", "four one one", "", "two"])
    np.testing.assert_allclose(found, [[0.5, 0.5], [2, 4 / 3], [0, 0], [0, 1]], rtol=1e-6)


def test_a_text_does_not_depend_on_those_beside_it():
    texts = [f"{'one ' * (n % 5)}two" for n in range(2500)]
    together = mean_of_words(TABLE, words(), texts)
    for place in (0, 1023, 1024, 2499):
        np.testing.assert_array_equal(
            together[place], mean_of_words(TABLE, words(), [texts[place]])[0]
        )


def test_no_texts_have_no_vectors():
    assert Embedder("any", lambda _: 1 / 0)([]).shape == (0, 0)


@pytest.mark.parametrize("name", ["", "word", "model2vec", "model2vec:"])
def test_an_unknown_name_is_refused(name):
    with pytest.raises(UserError, match="is not one of frozen"):
        embedder_named(name)


@pytest.mark.skipif(importlib.util.find_spec("wordllama") is None, reason="needs wordllama")
def test_wordllama_finds_what_is_meant():
    embed = embedder_named("wordllama")
    texts = [
        "The cat sleeps on the sofa",
        "Shares fell on Wall Street",
        "Rain is expected tomorrow",
    ]
    queries = ["A kitten is napping", "The stock market went down", "What will the weather be"]
    first, second = embed(texts), embed(queries)
    assert first.shape == (3, 256) and first.dtype == np.float32
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (first, second)]
    assert (unit[1] @ unit[0].T).argmax(axis=1).tolist() == [0, 1, 2]


class Static:
    """What is used of model2vec's StaticModel."""

    @classmethod
    def from_pretrained(cls, name):
        if name != "there":
            raise FileNotFoundError(f"{name} is not there")
        return cls()

    def encode(self, texts):
        assert isinstance(texts, list)
        return np.array([[len(text), 1] for text in texts], np.float64)


def test_model2vec_embeds_where_it_is_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "model2vec", types.SimpleNamespace(StaticModel=Static))
    embed = embedder_named("model2vec:there")
    assert embed.name == "model2vec:there"
    found = embed(("one", "three"))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, [[3, 1], [5, 1]])
    with pytest.raises(UserError, match="cannot load 'gone': gone is not there"):
        embedder_named("model2vec:gone")
    monkeypatch.setitem(sys.modules, "model2vec", None)
    with pytest.raises(UserError, match="pip install model2vec"):
        embedder_named("model2vec:there")
