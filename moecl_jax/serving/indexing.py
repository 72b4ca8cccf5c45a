"""The index of a workdir: examples of its finished tasks, and documents, that can be found again.

    index.safetensors   the entries with their texts, beside the checkpoints

It holds texts only because a user asked for it. A rollback takes the entries of the tasks that are
undone out of it, and a removal those of the task (`runs.undo`).
"""

import dataclasses
from collections.abc import Collection, Sequence
from pathlib import Path

from moecl_jax import reporting
from moecl_jax.data.loading import load_task
from moecl_jax.data.task import Task
from moecl_jax.errors import UserError
from moecl_jax.models.model import Model
from moecl_jax.retrieval import Embedder, Entry, Hit, Index, embedder_named, passages_of
from moecl_jax.runs.names import INDEX_NAME
from moecl_jax.runs.workdir import claimed, load_settings
from moecl_jax.serving.rag import frozen_embedder, refuse_other_embedding
from moecl_jax.serving.session import Session, open_run

FROZEN = "frozen"
_TEXTS = 4096  # embedded at a time


@dataclasses.dataclass(frozen=True)
class Added:
    """What was added to an index.

    Attributes:
      added: number of new entries.
      replaced: number of older entries of the same task or file, which they replace.
      skipped: number of examples without a text (`input_ids` alone).
      total: number of entries now.
    """

    added: int
    replaced: int
    skipped: int
    total: int


def add_to_index(
    workdir: str | Path,
    *,
    tasks: Sequence[str] = (),
    documents: Sequence[str | Path] = (),
    embedding: str = "",
    model: Model | None = None,
) -> Added:
    """Adds the training examples of finished tasks, and passages of documents.

    What is added again replaces what it was: a task by its name, a document by that of its file.

    Args:
      workdir: folder of the run; the index is made if there is none.
      tasks: names of finished tasks.
      documents: text or Markdown files, or folders of them.
      embedding: "frozen", the run's own model, "wordllama" or "model2vec:NAME"; "" takes that of
        the index, and "frozen" for a new one.
      model: the run's model, if it is loaded already.

    Raises:
      UserError: there is no such task or document, the index has another embedding, or another
        process works in the workdir.
    """
    workdir = Path(workdir)
    load_settings(workdir)  # before a folder is claimed that is no workdir
    passages = [passage for place in documents for passage in passages_of(Path(place))]
    with claimed(workdir):
        index = Index.load(_path(workdir)) if _path(workdir).exists() else None
        session = _session(workdir, embedding, index, model) if tasks else None
        embed = _embedder(workdir, embedding, index, model, session)
        index = Index(embed.name) if index is None else index
        refuse_other_embedding(index, embed)
        examples, skipped = _examples(session, tasks) if session else ([], 0)
        files = {passage.source.rpartition(":")[0] for passage in passages}
        replaced = index.delete(tasks=set(tasks), sources=files)
        entries = [*examples, *passages]
        for first in range(0, len(entries), _TEXTS):
            some = entries[first : first + _TEXTS]
            index.add(some, embed([entry.text for entry in some]))
        index.save(_path(workdir))
    return Added(len(entries), replaced, skipped, len(index))


def delete_from_index(
    workdir: str | Path,
    *,
    ids: Collection[int] = (),
    tasks: Collection[str] = (),
    sources: Collection[str] = (),
) -> int:
    """Deletes entries, which no search finds again, and writes the file without them.

    Args:
      workdir: folder of the run.
      ids: ids of entries, as a search gives them.
      tasks: names of tasks.
      sources: sources, or files.

    Returns:
      Number of entries that were deleted.

    Raises:
      UserError: nothing is asked for, nothing was indexed, or another process works in the workdir.
    """
    workdir = Path(workdir)
    load_settings(workdir)
    if not (ids or tasks or sources):
        raise UserError("name the entries to delete: --id, --task or --source")
    with claimed(workdir):
        index = Index.load(_path(workdir))
        gone = index.delete(ids=set(ids), tasks=set(tasks), sources=set(sources))
        if gone:
            index.save(_path(workdir))
    return gone


def search_index(
    workdir: str | Path,
    queries: Sequence[str],
    *,
    count: int = 5,
    tasks: Collection[str] | None = None,
    model: Model | None = None,
) -> list[list[Hit]]:
    """The nearest entries of each text.

    Args:
      workdir: folder of the run.
      queries: texts.
      count: the most entries of a text.
      tasks: names of tasks, of which alone entries are found; None for all entries.
      model: the run's model, if it is loaded already.

    Raises:
      UserError: nothing was indexed, a text is empty, or the run's model is another one now.
    """
    workdir = Path(workdir)
    load_settings(workdir)
    if count < 1:
        raise UserError(f"count = {count} must be at least 1")
    for place, query in enumerate(queries):
        if not query.strip():
            raise UserError(f"text {place} is empty")
    index = Index.load(_path(workdir))
    embed = _embedder(workdir, "", index, model, None)
    refuse_other_embedding(index, embed)
    return index.search(embed(queries), count, tasks=tasks) if queries else []


def _path(workdir: Path) -> Path:
    return workdir / INDEX_NAME


def _embedder(
    workdir: Path, embedding: str, index: Index | None, model: Model | None, session: Session | None
) -> Embedder:
    """The embedding that is asked for, or that of the index."""
    name = embedding or (FROZEN if index is None else index.embedding)
    if name.partition(":")[0] != FROZEN:
        return embedder_named(name)
    session = open_run(workdir, model=model) if session is None else session
    return frozen_embedder(session.evaluator)


def _session(workdir: Path, embedding: str, index: Index | None, model: Model | None) -> Session:
    del embedding, index
    return open_run(workdir, model=model)


def _examples(session: Session, names: Sequence[str]) -> tuple[list[Entry], int]:
    """Training examples of finished tasks as entries, and how many have no text."""
    evaluator, entries, skipped = session.evaluator, [], 0
    for name in names:
        task = evaluator.tasks[evaluator.index(name)]
        if name not in session.tasks:
            raise UserError(f"task '{name}' is not finished; finished are {session.tasks}")
        found = load_task(
            task,
            evaluator.settings.data,
            seed=evaluator.settings.seed,
            vocabulary_size=evaluator.model.sizes.vocabulary_size,
        )
        entries += [
            Entry(each.text, _answer(task, each.label, each.response), name, each.where)
            for each in found.train
            if each.text
        ]
        skipped += sum(not each.text for each in found.train)
        reporting.current().message(f"{name}: {len(found.train)} training examples")
    return entries, skipped


def _answer(task: Task, label: int, response: str) -> str:
    return response if task.free_form else task.labels[label]
