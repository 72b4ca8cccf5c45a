"""The method `retrieval`: what it reduces to, and what stands before a text."""

import numpy as np
import pytest
from records import read
from streams import assert_bit_equal, restored, tiny_settings

from moecl_jax.data.tokenize import TokenizedExample
from moecl_jax.errors import UserError
from moecl_jax.methods import METHODS, Asked, retrieval
from moecl_jax.methods.parameters import TaskParameters
from moecl_jax.retrieval import Embedder, Entry, Index
from moecl_jax.runs.results import Results
from moecl_jax.serving.session import open_run
from moecl_jax.training.trainer import train

TEXTS = ["w9 w8 w30", "w20 w3 w50 w2", "w11 w12"]
STREAM = {"tasks": ("two", "five")}
ANSWER = 66  # id of the template's last word; a word's id is 2 more than its number
NOTES = ("w8 w30 w9", "w50 w51 w52 w20")
WEIGHTS = np.random.default_rng(0).uniform(0.5, 1.5, 64)  # so that no two texts are equally near


def bag(texts):
    """Weighted counts of words."""
    found = np.zeros((len(texts), 64), np.float32)
    for place, text in enumerate(texts):
        for word in text.split():
            found[place, int(word[1:])] += WEIGHTS[int(word[1:])]
    return found


def ids_of(text):
    return [2 + int(word[1:]) for word in text.split()]


@pytest.fixture(autouse=True)
def bags(monkeypatch):
    monkeypatch.setattr(retrieval, "embedder_named", lambda name: Embedder(name, bag))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Finished streams of zero_shot and of few_shot with the nearest, and their data."""
    folder = tmp_path_factory.mktemp("retrieval")
    train(tiny_settings(folder, method="zero_shot", **STREAM), folder / "zero_shot")
    nearest = {"few_shot__choice": "nearest", "few_shot__k": 3, "few_shot__pool": 30}
    train(tiny_settings(folder, method="few_shot", **nearest, **STREAM), folder / "few_shot")
    return folder


def trained(folder, workdir, *, parts=(STREAM["tasks"],), **options):
    """The session of a stream that is trained in parts, each with the tasks before it."""
    options = {f"retrieval__{name}": value for name, value in options.items()}
    settings = tiny_settings(folder, method="retrieval", **options, **STREAM)
    for tasks in parts:
        train(settings.changed({"tasks": tasks}), workdir)
    return open_run(workdir)


def same(ours, theirs):
    assert np.array_equal(ours.results.matrix, theirs.results.matrix)
    for task in STREAM["tasks"]:
        assert ours.predict(TEXTS, task) == theirs.predict(TEXTS, task)  # bit for bit


def test_with_nothing_to_show_it_is_zero_shot(folder, tmp_path):
    same(trained(folder, tmp_path / "run", k=0), open_run(folder / "zero_shot"))


def test_with_the_models_features_it_is_few_shot(folder, tmp_path):
    """And a stream that grows is the one at once, bit for bit."""
    parts = (("two",), STREAM["tasks"])
    grown = trained(folder, tmp_path / "run", parts=parts, k=3, pool=30)
    same(grown, open_run(folder / "few_shot"))
    (_, ours, _), (_, theirs, _) = restored(tmp_path / "run"), restored(folder / "few_shot")
    assert_bit_equal(dict(ours.finished), dict(theirs.finished))


def nearest_by_hand(text, lines, count):
    """The examples of a file that are nearest to a text, by centred bags of words."""
    pool = bag([line["text"] for line in lines])
    centre = pool.mean(axis=0)
    own, pool = bag([text])[0] - centre, pool - centre
    cosines = pool @ own / np.linalg.norm(pool, axis=1) / np.linalg.norm(own)
    return [lines[place] for place in np.argsort(-cosines, kind="stable")[:count]]


def test_passages_then_examples_then_the_text(folder, tmp_path):
    pytest.importorskip("faiss")
    documents = tmp_path / "notes"
    documents.mkdir()
    for place, note in enumerate(NOTES):
        (documents / f"{place}.txt").write_text(note, encoding="utf-8")
    options = {"k": 2, "pool": 48, "embedding": "bag"}
    session = trained(folder, tmp_path / "run", documents=str(documents), passages=1, **options)
    zero_shot = open_run(folder / "zero_shot")
    for task in STREAM["tasks"]:
        lines = read(folder / "data" / f"{task}_train.jsonl")
        prompts = []
        for text in TEXTS[:2]:
            shown = nearest_by_hand(text, lines, 2)
            note = ids_of(NOTES[text != TEXTS[0]])
            before = [
                token
                for line in reversed(shown)
                for token in (*ids_of(line["text"]), ANSWER, *ids_of(line["label"]))
            ]
            prompts.append({"input_ids": [*note, *before, *ids_of(text), ANSWER]})
        expected = zero_shot.predict(prompts, task)
        for ours, theirs in zip(session.predict(TEXTS[:2], task), expected, strict=True):
            assert ours.label == theirs.label
            np.testing.assert_allclose(ours.logits, theirs.logits, rtol=1e-4, atol=1e-4)
    content = Results.load(tmp_path / "run").content
    assert content["demonstrations"]["shown"] == [3.0, 3.0]
    assert content["stored_examples"] == 96 and content["steps"] == 0


def test_it_is_served(folder, tmp_path, monkeypatch):
    """Programs are compiled with a text that any embedding can read."""
    pytest.importorskip("fastapi")
    from moecl_jax.service.labelling import Labeller

    session = trained(folder, tmp_path / "run", k=2, pool=10, embedding="bag")
    ones = Embedder("bag", lambda texts: np.ones((len(texts), 64)))
    with monkeypatch.context() as patch:
        patch.setattr(retrieval, "embedder_named", lambda _: ones)
        Labeller(open_run(tmp_path / "run")).prepare()
    labeller = Labeller(session)
    [read] = labeller.read([(TEXTS[0], "two")])
    [answer] = labeller.label([read.prompt])
    assert answer["label"] == session.predict(TEXTS[:1], "two")[0].label


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"documents": "notes"}, "needs an embedding that is not the frozen model's"),
        ({"k": -1}, "retrieval.k = -1 must be at least 0"),
        ({"pool": 0}, "retrieval.pool = 0 must be at least 1"),
    ],
)
def test_a_mistake_is_named(values, said):
    with pytest.raises(UserError, match=said):
        METHODS["retrieval"](**values)


def test_documents_may_be_an_index(tmp_path):
    pytest.importorskip("faiss")
    index = Index("bag")
    index.add([Entry("w8 w30", "w9"), Entry(NOTES[1])], bag(NOTES))
    index.save(tmp_path / "notes.safetensors")
    options = {"documents": str(tmp_path / "notes.safetensors"), "passages": 1, "k": 0}
    method = METHODS["retrieval"](embedding="bag", **options)
    asked = Asked(0, [TokenizedExample(np.zeros(1, np.int32), 0, text=TEXTS[0])], list, list, 1)
    parameters = TaskParameters({}, {}, {}, {})
    assert method.preceding(parameters, asked).own == [[list("w8 w30 w9")]]


def test_an_index_of_another_embedding_is_refused(folder, tmp_path):
    pytest.importorskip("faiss")
    Index("other").save(tmp_path / "notes.safetensors")
    with pytest.raises(UserError, match="has embeddings by 'other'"):
        trained(
            folder,
            tmp_path / "run",
            embedding="bag",
            documents=str(tmp_path / "notes.safetensors"),
        )
