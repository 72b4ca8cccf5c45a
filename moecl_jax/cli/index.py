"""`moecl index`: texts of a run that can be found again."""

import argparse

from moecl_jax.cli.command import Command, add_workdir, path
from moecl_jax.errors import UserError, printable

_SHOWN = 100  # characters of a text in a line
_OF = {
    "add": ("task", "input", "embedding"),
    "delete": ("task", "source", "id"),
    "search": ("task", "query", "count"),
}


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=tuple(_OF), help="what to do")
    add_workdir(parser, "the run; its index is the file index.safetensors in it")
    parser.add_argument(
        "--task",
        action="append",
        metavar="NAME",
        help="add: a finished task, whose training examples are added; delete: a task whose "
        "examples are deleted; search: a task whose examples alone are found. Several times for "
        "several",
    )
    parser.add_argument(
        "--input",
        action="append",
        type=path,
        metavar="PATH",
        help="add: a text or Markdown file, or a folder of them. Several times for several",
    )
    parser.add_argument(
        "--embedding",
        metavar="NAME",
        help="add: by what texts are near to each other, for a new index: frozen (the run's own "
        "model), wordllama or model2vec:NAME (default: frozen)",
    )
    parser.add_argument(
        "--source",
        action="append",
        metavar="FILE[:LINE]",
        help="delete: a document, or one passage of it, as 'search' names it",
    )
    parser.add_argument(
        "--id", action="append", type=int, metavar="N", help="delete: the entry with this number"
    )
    parser.add_argument(
        "--query", action="append", metavar="TEXT", help="search: the text to search for"
    )
    parser.add_argument(
        "--count", type=int, metavar="N", help="search: the most entries of a text (default: 5)"
    )


def _run(arguments: argparse.Namespace) -> int:
    for action, names in _OF.items():
        for name in names:
            if getattr(arguments, name) is not None and name not in _OF[arguments.action]:
                raise UserError(f"--{name} is of 'moecl index {action}'")
    return {"add": _add, "delete": _delete, "search": _search}[arguments.action](arguments)


def _add(arguments: argparse.Namespace) -> int:
    from moecl_jax.serving.indexing import add_to_index

    done = add_to_index(
        arguments.workdir,
        tasks=arguments.task or (),
        documents=arguments.input or (),
        embedding=arguments.embedding or "",
    )
    print(f"added: {done.added}; replaced: {done.replaced}; entries now: {done.total}")
    if done.skipped:
        print(f"left out: {done.skipped} examples that have input_ids and no text")
    return 0


def _delete(arguments: argparse.Namespace) -> int:
    from moecl_jax.serving.indexing import delete_from_index

    gone = delete_from_index(
        arguments.workdir,
        ids=arguments.id or (),
        tasks=arguments.task or (),
        sources=arguments.source or (),
    )
    print(f"deleted: {gone}")
    return 0 if gone else 1


def _search(arguments: argparse.Namespace) -> int:
    from moecl_jax.serving.indexing import search_index

    if not arguments.query:
        raise UserError("name what to search for: --query=TEXT")
    count = 5 if arguments.count is None else arguments.count
    found = search_index(arguments.workdir, arguments.query, count=count, tasks=arguments.task)
    for query, hits in zip(arguments.query, found, strict=True):
        print(f"{printable(query)[:_SHOWN]}: {len(hits)} found")
        for hit in hits:
            entry = hit.entry
            where = " ".join(filter(None, (entry.task, entry.source)))
            answer = f" [{printable(entry.answer)[:_SHOWN]}]" if entry.answer else ""
            print(f"  {hit.similarity:.3f}  id {hit.id}  {printable(where)}{answer}")
            print(f"         {printable(entry.text)[:_SHOWN]}")
    return 0


COMMAND = Command(
    name="index",
    summary="keep the texts of a run's tasks, and documents, so that they are found again",
    example="moecl index add --workdir=runs/first --task=trec --input=manual/\n"
    '  moecl index search --workdir=runs/first --query="How do I start?"\n'
    "  moecl index delete --workdir=runs/first --source=manual/setup.md",
    add_arguments=_add_arguments,
    run=_run,
)
