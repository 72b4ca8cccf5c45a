"""An index of texts: the nearest to a query are found by the cosine of their embeddings.

Search is exact: faiss compares a query with every vector (`IndexFlatIP`), and numbers given once
are never given again (`IndexIDMap2`). So a deletion leaves nothing behind, neither in memory nor in
the file, which is written anew.

The file is one safetensors file, so that vectors and texts can never be of two moments:

    embeddings  [n, D] float32, of length 1
    ids         [n] int64
    entries     [bytes] uint8, a JSON list of n objects: text, answer, task, source
    metadata    format, embedding, next_id, digest

Axes: n entries, q queries, D width.
"""

import dataclasses
import hashlib
import importlib
import json
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from moecl_jax.errors import UserError, one_line
from moecl_jax.outside import parse_json
from moecl_jax.writing import whole_file

_FORMAT = "moecl_jax.index 1"


@dataclasses.dataclass(frozen=True)
class Entry:
    """A text that can be found.

    Attributes:
      text: the text, as it is embedded and shown.
      answer: the label or response of an example; "" for a passage of a document.
      task: name of the example's task; "" for a passage.
      source: where it comes from, as "file:line"; "" if that is not known.
    """

    text: str
    answer: str = ""
    task: str = ""
    source: str = ""


@dataclasses.dataclass(frozen=True)
class Hit:
    """An entry that was found.

    Attributes:
      id: number of the entry, by which it can be deleted.
      entry: the entry.
      similarity: cosine of its embedding and the query's, from -1 to 1.
    """

    id: int
    entry: Entry
    similarity: float


class Index:
    """Entries with their embeddings.

    Attributes:
      embedding: name of the embedding that all vectors come from.
      entries: the entries by their ids, in the order in which they were added.
    """

    def __init__(self, embedding: str):
        """An empty index; its width is that of the first vectors that are added.

        Args:
          embedding: name of the embedding, as `Embedder.name` gives it.
        """
        self.embedding = embedding
        self.entries: dict[int, Entry] = {}
        self._next = 0
        self._searched: Any = None  # faiss' index; None while nothing was added

    def __len__(self) -> int:
        """Number of entries."""
        return len(self.entries)

    @property
    def width(self) -> int:
        """D; 0 while nothing was added."""
        return 0 if self._searched is None else int(self._searched.d)

    def add(self, entries: Sequence[Entry], embeddings: np.ndarray) -> list[int]:
        """Adds entries.

        Args:
          entries: n of them.
          embeddings: their embeddings, `[n, D]`, of any length.

        Returns:
          The ids that they get, which no other entry had or will have.

        Raises:
          UserError: there are not n vectors, they are of another width than those before or not
            finite, or faiss is not installed.
        """
        ids = np.arange(self._next, self._next + len(entries), dtype=np.int64)
        if len(embeddings) != len(entries):
            raise UserError(f"{len(entries)} entries were given {len(embeddings)} embeddings")
        if len(entries):
            self._put(ids, self._directions(embeddings))
            self.entries.update(zip(ids.tolist(), entries, strict=True))
            self._next += len(entries)
        return list(map(int, ids))

    def delete(
        self,
        *,
        ids: Collection[int] = (),
        tasks: Collection[str] = (),
        sources: Collection[str] = (),
    ) -> int:
        """Deletes the entries that have one of these ids, tasks or sources.

        An empty name is none: it does not stand for all entries without a task or a source.

        Args:
          ids: ids of entries.
          tasks: names of tasks.
          sources: sources, such as "setup.md:12", or files, for all passages of one.

        Returns:
          Number of entries that were deleted.
        """
        tasks, sources = set(tasks) - {""}, set(sources) - {""}
        gone = [
            number
            for number, entry in self.entries.items()
            if number in ids
            or entry.task in tasks
            or entry.source in sources
            or entry.source.rpartition(":")[0] in sources
        ]
        if gone:
            self._searched.remove_ids(np.array(gone, np.int64))
            for number in gone:
                del self.entries[number]
        return len(gone)

    def search(
        self, queries: np.ndarray, count: int, *, tasks: Collection[str] | None = None
    ) -> list[list[Hit]]:
        """The nearest entries of each query, nearest first; of equal ones found the older first.

        Args:
          queries: embeddings of the queries, `[q, D]`.
          count: the most entries of a query.
          tasks: names of tasks, of which alone entries are found; None for all entries.

        Returns:
          Hits of each query: none where the index is empty.

        Raises:
          UserError: the queries are of another width, or not finite.
        """
        among = list(self.entries)
        if tasks is not None:
            among = [number for number in among if self.entries[number].task in tasks]
        count = min(count, len(among))
        if count < 1 or not len(queries):
            return [[] for _ in range(len(queries))]
        faiss = _faiss()
        chosen: dict[str, Any] = {}
        if len(among) < len(self.entries):
            selector = faiss.IDSelectorBatch(np.array(among, np.int64))
            chosen["params"] = faiss.SearchParameters(sel=selector)
        found, ids = self._searched.search(self._directions(queries), count, **chosen)
        rows = zip(found.tolist(), ids.tolist(), strict=True)
        return [[self._hit(*each) for each in _ordered(*row)] for row in rows]

    def save(self, path: Path) -> None:
        """Writes the file whole or not at all.

        Raises:
          OSError: it cannot be written; names the path.
        """
        import safetensors.numpy

        arrays = self._arrays()
        metadata = {
            "format": _FORMAT,
            "embedding": self.embedding,
            "next_id": str(self._next),
        }
        metadata["digest"] = _digest(arrays, metadata)
        content = safetensors.numpy.save(arrays, metadata)
        with whole_file(path) as stream:
            stream.write(content)

    @classmethod
    def load(cls, path: Path) -> "Index":
        """Reads a file.

        Raises:
          UserError: there is none, it is damaged, or faiss is not installed.
        """
        import safetensors

        if not path.exists():
            raise UserError(f"{path} does not exist: nothing was indexed yet ('moecl index add')")
        try:
            with safetensors.safe_open(path, framework="numpy") as file:
                metadata = dict(file.metadata() or {})
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            digest = metadata.pop("digest", "")
            if metadata.get("format") != _FORMAT:
                raise ValueError("it is no index")
            if digest != _digest(arrays, metadata):
                raise ValueError("its content is not that which was written")
            return cls._of(arrays, metadata)
        except (OSError, ValueError, TypeError, LookupError, safetensors.SafetensorError) as error:
            raise UserError(
                f"the index {path} cannot be read: {one_line(error)}. Restore it from a copy, or "
                "delete it and index again."
            ) from error

    @classmethod
    def _of(cls, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> "Index":
        index = cls(metadata["embedding"])
        index._next = int(metadata["next_id"])
        entries = [Entry(**fields) for fields in parse_json(arrays["entries"].tobytes())]
        ids, vectors = arrays["ids"], arrays["embeddings"]
        index.entries = dict(zip(ids.tolist(), entries, strict=True))
        if len(vectors) != len(index) or len(ids) != len(index):
            raise ValueError("its parts are of different lengths")
        if len(index):
            index._put(ids, vectors)
        return index

    def _arrays(self) -> dict[str, np.ndarray]:
        """What the file holds, in faiss' order, which is that of the entries."""
        count = len(self)
        vectors = np.zeros((0, self.width), np.float32)
        if count:
            vectors = self._searched.index.reconstruct_n(0, count)
        listed = [dataclasses.asdict(entry) for entry in self.entries.values()]
        text = json.dumps(listed).encode()
        return {
            "embeddings": vectors,
            "ids": np.array(list(self.entries), np.int64),
            "entries": np.frombuffer(text, np.uint8),
        }

    def _put(self, ids: np.ndarray, directions: np.ndarray) -> None:
        faiss = _faiss()
        if self._searched is None:
            self._searched = faiss.IndexIDMap2(faiss.IndexFlatIP(directions.shape[1]))
        self._searched.add_with_ids(directions, ids)

    def _directions(self, vectors: np.ndarray) -> np.ndarray:
        """Vectors `[m, D]` as float32 of length 1; zeros stay zeros.

        Raises:
          UserError: they are of another width, or not finite.
        """
        wide = np.asarray(vectors, np.float32)
        if wide.ndim != 2 or (self.width and wide.shape[1] != self.width):
            raise UserError(
                f"embeddings of shape {list(wide.shape)} were given to an index of width "
                f"{self.width} (embedding {self.embedding!r})"
            )
        if not np.isfinite(wide).all():
            raise UserError(f"the embedding {self.embedding!r} gives vectors that are not finite")
        lengths = np.linalg.norm(wide, axis=1, keepdims=True)
        return np.ascontiguousarray(wide / np.where(lengths > 0, lengths, 1.0))

    def _hit(self, similarity: float, number: int) -> Hit:
        return Hit(number, self.entries[number], similarity)


def _ordered(similarities: Iterable[float], ids: Iterable[int]) -> list[tuple[float, int]]:
    pairs = zip(similarities, ids, strict=True)
    return sorted(pairs, key=lambda pair: (-pair[0], pair[1]))


def _digest(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> str:
    digest = hashlib.blake2b(json.dumps(metadata, sort_keys=True).encode(), digest_size=16)
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.shape} {array.dtype}".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _faiss() -> Any:
    """The module that searches.

    Raises:
      UserError: it is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of its generated wrappers
            return importlib.import_module("faiss")
    except ImportError as error:
        raise UserError(
            f"an index needs faiss, which cannot be imported ({one_line(error)}): "
            "pip install 'moecl_jax[retrieval]'"
        ) from error
