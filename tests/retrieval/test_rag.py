"""Retrieval-augmented generation: the prompt has what was found, and the frozen model answers."""

import jax.numpy as jnp
import numpy as np
import pytest

from moecl_jax.errors import UserError
from moecl_jax.retrieval import Embedder, Entry, Index
from moecl_jax.serving.rag import Rag, rag_query
from moecl_jax.testing import write_model
from moecl_jax.weights.load import load_model

pytest.importorskip("faiss")

PROMPT = "w1 {notes} w2 {question} w3"
NOTES = {"w10 w11": [1.0, 0.0], "w20 w21": [0.6, 0.8], "w30": [0.0, 1.0]}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_model(write_model(tmp_path_factory.mktemp("model")), dtype="float32")


@pytest.fixture
def embedder():
    vectors = {**NOTES, "w5": [1.0, 0.1]}
    return Embedder("plane", lambda texts: np.array([vectors[text] for text in texts]))


@pytest.fixture
def index():
    made = Index("plane")
    made.add([Entry(text, source=f"{text[1]}.md:1") for text in NOTES], np.array([*NOTES.values()]))
    return made


def continued(model, text, count=4, slots=64):
    """What the frozen decoder writes greedily, by whole passes over the text so far."""
    ids = model.tokenizer.encode(text)
    decoder, variables = model.architecture.frozen_decoder(), {"params": model.params}
    start, positions = len(ids), jnp.arange(slots)[None]
    one_text = jnp.ones((1, slots), jnp.int32), jnp.zeros((1, slots), jnp.int32)
    for _ in range(count):
        tokens = jnp.array([ids + [0] * (slots - len(ids))])
        hidden, _ = decoder.apply(variables, tokens, positions, *one_text, jnp.ones((1, slots)))
        logits = decoder.apply(variables, hidden, method="logits")
        ids.append(int(logits[len(ids) - 1].argmax()))
        if ids[-1] == model.tokenizer.eos_token_id:
            break
    return model.tokenizer.decode(ids[start:], skip_special_tokens=True).strip()


def test_the_nearest_passages_stand_in_the_prompt(model, embedder, index):
    rag = Rag(model, index, embedder=embedder, count=2, max_tokens=4, prompt=PROMPT)
    answer = rag.query("w5")
    assert [hit.entry.source for hit in answer.sources] == ["1.md:1", "2.md:1"]
    assert answer.left_out == 0
    assert answer.text == continued(model, "w1 w10 w11 w20 w21 w2 w5 w3")


def test_without_passages_it_is_zero_shot(model, embedder, index):
    expected = continued(model, "w1 w2 w5 w3")
    for documents, count in ((index, 0), (Index("plane"), 3)):
        answer = rag_query(
            "w5", documents, model, embedder=embedder, count=count, max_tokens=4, prompt=PROMPT
        )
        assert (answer.text, answer.sources) == (expected, ())


def test_what_is_deleted_is_no_source_any_more(model, embedder, index):
    rag = Rag(model, index, embedder=embedder, count=1, max_tokens=1, prompt=PROMPT)
    assert rag.query("w5").sources[0].id == 0
    index.delete(sources=["1.md"])
    assert rag.query("w5").sources[0].id == 1
    index.add([Entry("w10 w11")], np.array([[1.0, 0.1]]))
    assert rag.query("w5").sources[0].id == 3


def test_passages_that_do_not_fit_are_left_out(model):
    long = "w9 " * 600
    embedder = Embedder("same", lambda texts: np.ones((len(texts), 2)))
    index = Index("same")
    index.add([Entry(long), Entry(long), Entry("w8")], np.ones((3, 2)))
    rag = Rag(model, index, embedder=embedder, count=3, max_tokens=1, prompt=PROMPT)
    answer = rag.query("w5")
    assert ([hit.id for hit in answer.sources], answer.left_out) == ([0], 2)
    with pytest.raises(UserError, match="the question is too long"):
        rag.query("w5 " * 2000)


def test_a_folder_answers_with_its_files(model, tmp_path):
    (tmp_path / "a.md").write_text("# w40\nw41 w42\n\n# w43\nw44 w45 w46\n", encoding="utf-8")
    (tmp_path / "b.txt").write_text("w1 w2 w3\n", encoding="utf-8")
    rag = Rag(model, tmp_path, count=1, max_tokens=2)
    for text, source in (("w1 w2 w3", "b.txt:1"), ("# w43\nw44 w45 w46", "a.md:4")):
        [hit] = rag.query(text).sources
        assert (hit.entry.text, hit.entry.source) == (text, f"{tmp_path}/{source}")
        assert hit.similarity > 0.999


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"count": -1}, "at least 0"),
        ({"max_tokens": 0}, "at least 1"),
        ({"max_tokens": 5000}, "leaves no room"),
        ({"prompt": "{question}"}, "must contain '{notes}'"),
        ({"embedder": None}, "the index has embeddings by 'plane'"),
    ],
)
def test_a_mistake_is_named(model, embedder, index, values, said):
    with pytest.raises(UserError, match=said):
        Rag(model, index, **{"embedder": embedder, **values})


def test_an_empty_question_is_refused(model, embedder, index):
    with pytest.raises(UserError, match="question is empty"):
        Rag(model, index, embedder=embedder).query(" ")
