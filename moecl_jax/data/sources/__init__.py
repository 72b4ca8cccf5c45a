"""Sources of tasks' examples: one small class each, found by being in this folder.

What belongs here: how records are read from one kind of place. What they mean for a task (its text,
its label, what cannot be used) is the same for all sources and lies in `examples`.
"""

import dataclasses
import importlib
import inspect
import pkgutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from moecl_jax.data.sources.base import (
    INPUT_IDS,
    BadExample,
    Document,
    Held,
    NoOptions,
    Record,
    Source,
    open_document,
)
from moecl_jax.data.sources.files import FileSource
from moecl_jax.errors import UserError, listed, suggestion
from moecl_jax.outside import shortened
from moecl_jax.plugins import check_class, load_class

__all__ = [
    "INPUT_IDS",
    "SOURCES",
    "BadExample",
    "Document",
    "Held",
    "NoOptions",
    "Record",
    "Source",
    "find_source",
    "known_sources",
    "make_options",
    "open_document",
    "option_names",
    "source_named",
    "source_of_files",
]


def _found() -> dict[str, Source]:
    """The sources that the modules of this folder define, by name."""
    found: dict[str, Source] = {}
    for about in pkgutil.iter_modules(__path__, f"{__name__}."):
        module = importlib.import_module(about.name)
        for value in vars(module).values():
            own = inspect.isclass(value) and value.__module__ == module.__name__
            if own and issubclass(value, Source) and value.name:
                found[value.name] = value()
    return found


SOURCES: dict[str, Source] = _found()
"""The sources of this package, by the names that definitions have for them."""


def known_sources() -> str:
    """What a definition may call its source, for messages."""
    return f"{', '.join(SOURCES)}, or 'package.module:Class'"


def find_source(source: object, task: str) -> str:
    """The name of a source; one from outside the package is loaded, and its name holds it.

    Args:
        source: a key of `SOURCES`, "package.module:Class", a subclass of `Source`, or an object
            of one.
        task: the name of the task, for messages.

    Raises:
        UserError: there is no such source, its class cannot be loaded, or is no complete `Source`.
    """
    what = f"task '{task}': source"
    if isinstance(source, Held):
        return source
    if isinstance(source, str):
        if ":" in source:
            return Held(source, _made(load_class(source, Source, what), f"{what} {source!r}"))
        if source not in SOURCES:
            raise UserError(
                f"task '{task}': source = {shortened(source)} must be one of {known_sources()}."
            )
        return source
    made = source if isinstance(source, Source) else _made(check_class(source, Source, what), what)
    kind = type(made)
    if type(SOURCES.get(kind.name)) is kind:
        return kind.name
    return Held(f"{kind.__module__}:{kind.__qualname__}", made)


def _made(kind: type[Source], what: str) -> Source:
    try:
        return kind()
    except TypeError as error:
        raise UserError(
            f"{what}: {kind.__qualname__}() failed: {error}. A source is made without arguments; "
            "declare what it needs to know in its Options, and read it from task.options."
        ) from error


def source_named(name: object) -> Source:
    """The source of a name that `find_source` returned."""
    return name.held if isinstance(name, Held) else SOURCES[str(name)]


def source_of_files(files: Sequence[str], where: str) -> str:
    """The name of the source that the endings of files' names tell.

    Raises:
        UserError: they tell none, or several.
    """
    endings = {Path(file).suffix.lower().removeprefix(".") for file in files}
    known = [name for name, source in SOURCES.items() if isinstance(source, FileSource)]
    if len(endings) != 1 or not endings <= set(known):
        raise UserError(
            f"{where}: the endings of {listed(files) or 'no file'} do not tell one "
            f"source; expected names that all end in one of {', '.join(f'.{n}' for n in known)}. "
            f"Rename the files, or pass source, one of {', '.join(known)}."
        )
    return endings.pop()


def option_names(source: Source) -> list[str]:
    """The fields of a definition that only this source has."""
    return [field.name for field in dataclasses.fields(source.Options)]


def make_options(name: str, given: Any, task: str, taken: Collection[str]) -> Any:
    """An object of a source's `Options`.

    Args:
        name: what `find_source` returned for the source.
        given: a mapping, None for an empty one, or an object of the source's `Options`.
        task: the name of the task, for messages.
        taken: the fields of every task, which no source may have as its own.

    Raises:
        UserError: a field is unknown, missing or wrong.
    """
    source, where = source_named(name), f"task '{task}': source '{name}'"
    if isinstance(given, source.Options):
        return given
    known = dataclasses.fields(source.Options)
    names = [field.name for field in known]
    clash = [name for name in names if name in taken]
    if clash:
        raise UserError(
            f"{where}: its Options have a field '{clash[0]}', which every task has. Rename it."
        )
    given = {} if given is None else given
    if not isinstance(given, Mapping):
        raise UserError(
            f"{where}: options = {shortened(given)} must be a mapping, or an object of "
            f"{source.Options.__qualname__}."
        )
    for key in given:
        if key not in names:
            raise UserError(
                f"{where} has no field {shortened(key)}{suggestion(str(key), names) or '.'} Its "
                f"own fields are {', '.join(names) or 'none'}."
            )
    default = dataclasses.MISSING
    needed = [f.name for f in known if f.default is default and f.default_factory is default]
    missing = [name for name in needed if name not in given]
    if missing:
        raise UserError(f"{where} needs {', '.join(missing)}; add it to the fields of the task.")
    values = {key: tuple(v) if isinstance(v, list) else v for key, v in given.items()}
    try:
        return source.Options(**values)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
