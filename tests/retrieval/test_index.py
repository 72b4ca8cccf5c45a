"""The index: what is near is found, what is deleted is not, and its file is whole or refused."""

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from moecl_jax.errors import UserError
from moecl_jax.retrieval import Entry, Index

pytest.importorskip("faiss")

ENTRIES = [
    Entry("a", "no", "first", "a.csv:2"),
    Entry("b", "yes", "first", "a.csv:3"),
    Entry("c", source="manual/b.md:1"),
    Entry("d", source="manual/b.md:9"),
]
VECTORS = np.array([[3, 0], [0, 2], [4, 3], [-1, 0]], np.float32)


@pytest.fixture
def index():
    made = Index("plane")
    assert made.add(ENTRIES, VECTORS) == [0, 1, 2, 3]
    return made


def found(hits):
    return [(hit.id, round(hit.similarity, 6)) for hit in hits]


def test_the_nearest_by_cosine_come_first(index):
    [east, north] = index.search(np.array([[2.0, 0.0], [0.0, 0.5]]), 3)
    assert found(east) == [(0, 1.0), (2, 0.8), (1, 0.0)]
    assert found(north) == [(1, 1.0), (2, 0.6), (0, 0.0)]
    assert east[1].entry == ENTRIES[2]


def test_of_equally_near_ones_the_older_comes_first(index):
    index.add([Entry("e")], VECTORS[:1] * 7)
    [hits] = index.search(VECTORS[:1], 2)
    assert found(hits) == [(0, 1.0), (4, 1.0)]


def test_it_searches_as_numpy_does():
    generator = np.random.default_rng(0)
    vectors, queries = (generator.normal(size=(n, 8)).astype(np.float32) for n in (300, 20))
    index = Index("random")
    index.add([Entry(str(place)) for place in range(300)], vectors)
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (queries, vectors)]
    cosines = unit[0].astype(np.float64) @ unit[1].T
    for hits, row in zip(index.search(queries, 10), cosines, strict=True):
        best = np.argsort(-row, kind="stable")[:10]
        assert [hit.id for hit in hits] == best.tolist()
        np.testing.assert_allclose([hit.similarity for hit in hits], row[best], atol=1e-6)


def test_an_empty_index_finds_nothing(tmp_path):
    index = Index("plane")
    assert index.search(VECTORS, 3) == [[], [], [], []]
    assert index.add([], np.zeros((0, 0))) == []
    index.save(tmp_path / "index")
    assert len(Index.load(tmp_path / "index")) == 0


def test_only_some_tasks_are_searched(index):
    [hits] = index.search(VECTORS[2:3], 4, tasks=["first"])
    assert found(hits) == [(0, 0.8), (1, 0.6)]
    assert index.search(VECTORS[:1], 4, tasks=["other"]) == [[]]


@pytest.mark.parametrize(
    ("which", "left"),
    [
        ({"ids": [0, 99]}, [1, 2, 3]),
        ({"tasks": ["first"]}, [2, 3]),
        ({"sources": ["manual/b.md"]}, [0, 1]),
        ({"sources": ["manual/b.md:9"]}, [0, 1, 2]),
        ({"ids": [1], "tasks": ["other"], "sources": ["b.md"]}, [0, 2, 3]),
    ],
)
def test_what_is_deleted_is_gone_from_memory_and_file(index, tmp_path, which, left):
    assert index.delete(**which) == 4 - len(left)
    index.save(tmp_path / "index")
    for each in (index, Index.load(tmp_path / "index")):
        assert list(each.entries) == left
        for hits in each.search(VECTORS, 10):
            assert sorted(hit.id for hit in hits) == left
    text = (tmp_path / "index").read_bytes()
    for number, entry in enumerate(ENTRIES):
        assert (json.dumps(entry.text).encode() in text) == (number in left)


def test_an_empty_name_deletes_nothing(index):
    """Nor does a variable of a shell that is not set."""
    index.add([Entry("e", "yes")], VECTORS[:1])
    assert index.delete(tasks=[""], sources=[""]) == 0 and len(index) == 5
    assert index.search(np.zeros((0, 0)), 3) == []


def test_an_id_is_never_given_again(index, tmp_path):
    index.delete(ids=[3])
    index.save(tmp_path / "index")
    again = Index.load(tmp_path / "index")
    assert again.add([Entry("e")], VECTORS[:1]) == [4]


def test_the_file_gives_the_index_again(index, tmp_path):
    odd = Entry("half \ud800, \u4e2d\u6587, \0", "a\nb", "t:x", "x y.md:3")
    index.add([odd], np.array([[0, 0]], np.float32))
    index.save(tmp_path / "index")
    again = Index.load(tmp_path / "index")
    assert again.embedding == "plane" and again.width == 2
    assert again.entries == index.entries
    queries = np.random.default_rng(1).normal(size=(5, 2))
    assert again.search(queries, 5) == index.search(queries, 5)


@pytest.mark.parametrize(
    ("vectors", "said"),
    [
        (np.ones((1, 3)), "width 2"),
        (np.ones((2, 2)), "1 entries were given 2"),
        (np.array([[np.nan, 1]]), "not finite"),
    ],
)
def test_vectors_that_do_not_fit_are_refused(index, vectors, said):
    with pytest.raises(UserError, match=said):
        index.add([Entry("e")], vectors)
    assert len(index) == 4 and found(index.search(VECTORS[:1], 1)[0]) == [(0, 1.0)]


def test_a_file_that_is_damaged_anywhere_is_refused(index, tmp_path):
    path = tmp_path / "index"
    index.save(path)
    whole = path.read_bytes()
    for place in range(0, len(whole), 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(UserError, match="cannot be read"):
            Index.load(path)
    for length in (0, 5, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match="cannot be read"):
            Index.load(path)
    path.unlink()
    with pytest.raises(UserError, match="does not exist"):
        Index.load(path)


SAVING = """
import sys, numpy as np
from pathlib import Path
from moecl_jax.retrieval import Entry, Index
path = Path(sys.argv[1])
index = Index.load(path)
print("begun", flush=True)
while True:
    index.add([Entry("text " * 20)] * 500, np.random.default_rng(len(index)).normal(size=(500, 64)))
    index.delete(ids=list(index.entries)[:500])
    index.save(path)
"""


@pytest.mark.slow
def test_it_is_whole_after_kills_while_it_is_saved(tmp_path, tried):
    path, generator = tmp_path / "index", np.random.default_rng(0)
    index = Index("random")
    index.add([Entry("text " * 20)] * 2000, generator.normal(size=(2000, 64)))
    index.save(path)
    seen, kills = {0}, 10
    for _ in range(kills):
        process = subprocess.Popen(
            [sys.executable, "-c", SAVING, str(path)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout.readline() == "begun\n"
        time.sleep(generator.uniform(0.02, 0.4))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        index = Index.load(path)
        assert len(index) == 2000
        assert len(index.search(np.ones((1, 64)), 2000)[0]) == 2000
        seen.add(min(index.entries))
    assert len(seen) > 1  # it was saved at all
    tried("SIGKILL while an index is saved", kills, "survived")


@pytest.mark.slow
def test_a_hundred_thousand_entries(tmp_path):
    count, width = 100_000, 32
    generator = np.random.default_rng(0)
    vectors = generator.normal(size=(count, width)).astype(np.float32)
    index = Index("random")
    index.add([Entry(f"text {place}", "yes", "first") for place in range(count)], vectors)
    gone = generator.choice(count, 1000, replace=False)
    for hits, place in zip(index.search(vectors[gone], 3), gone, strict=True):
        assert hits[0].id == place and hits[0].similarity > 0.999
    assert index.delete(ids=set(gone.tolist())) == 1000
    index.save(tmp_path / "index")
    for each in (index, Index.load(tmp_path / "index")):
        assert len(each) == count - 1000
        numbers = {hit.id for hits in each.search(vectors[gone], 100) for hit in hits}
        assert not numbers & set(gone.tolist())
        stays = np.setdiff1d(np.arange(count), gone)[:1000]
        assert [hits[0].id for hits in each.search(vectors[stays], 1)] == stays.tolist()
