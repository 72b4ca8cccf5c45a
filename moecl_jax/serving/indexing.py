"""The index of a workdir: examples of its finished tasks, and documents, that can be found again.

    index.safetensors   the entries with their texts, beside the checkpoints

It holds texts only because a user asked for it. A rollback takes the entries of the tasks that are
undone out of it, and a removal those of the task (`runs.undo`).
"""

import dataclasses
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from moecl_jax.data.loading import load_task
from moecl_jax.errors import UserError, listed
from moecl_jax.models.model import Model
from moecl_jax.retrieval import (
    Embedder,
    Entry,
    Hit,
    Index,
    documents_of,
    embedder_named,
    passages_of,
)
from moecl_jax.runs.checkpoint import TaskCheckpoints
from moecl_jax.runs.lock import claimed
from moecl_jax.runs.names import INDEX_NAME
from moecl_jax.runs.workdir import load_settings
from moecl_jax.serving.rag import frozen_embedder, refuse_other_embedding
from moecl_jax.serving.session import open_run

FROZEN = "frozen"
_TEXTS = 4096  # embedded at a time
_VOCABULARY = 2**31  # above any id: examples of ids alone are left out


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
    if not (tasks or documents):
        raise UserError("name what is to be added: --task or --input")
    found = dict.fromkeys(file for place in documents for file in documents_of(Path(place)))
    passages = [passage for file in found for passage in passages_of(file)]
    with claimed(workdir):
        examples, skipped = _examples(workdir, dict.fromkeys(tasks))
        index = Index.load(_path(workdir)) if _path(workdir).exists() else None
        name = embedding or (FROZEN if index is None else index.embedding)
        embed = _embedder(workdir, name, model)
        index = Index(embed.name) if index is None else index
        refuse_other_embedding(index, embed)
        files = {file.as_posix() for file in found}
        replaced = index.delete(tasks=tasks, sources=files)
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
    embed = _embedder(workdir, index.embedding, model)
    refuse_other_embedding(index, embed)
    return index.search(embed(queries), count, tasks=tasks) if queries else []


def _path(workdir: Path) -> Path:
    return workdir / INDEX_NAME


def _embedder(workdir: Path, name: str, model: Model | None) -> Embedder:
    """An embedding by its name, also as an index has it."""
    if name.partition(":")[0] != FROZEN:
        return embedder_named(name)
    return frozen_embedder(open_run(workdir, model=model).evaluator)


def _examples(workdir: Path, names: Iterable[str]) -> tuple[list[Entry], int]:
    """Training examples of finished tasks as entries, and how many have no text."""
    settings, entries, skipped = load_settings(workdir), list[Entry](), 0
    tasks = {task.name: task for task in settings.task_objects()}
    finished = [
        name
        for name in settings.tasks[: TaskCheckpoints(workdir, settings.tasks).finished_count()]
        if not tasks[name].removed
    ]
    for name in names:
        if name not in finished:
            raise UserError(
                f"task '{name}' is not finished in {workdir}; finished are {listed(finished)}"
            )
        found = load_task(
            tasks[name], settings.data, seed=settings.seed, vocabulary_size=_VOCABULARY
        )
        with_text = [each for each in found.train if each.text]
        answers = [
            each.response if tasks[name].free_form else tasks[name].labels[each.label]
            for each in with_text
        ]
        entries += [
            Entry(each.text, answer, name, each.where)
            for each, answer in zip(with_text, answers, strict=True)
        ]
        skipped += len(found.train) - len(with_text)
    return entries, skipped
