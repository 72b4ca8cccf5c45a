"""Writes the parts of the reference that the code itself knows: methods, settings, commands, API.

`conf.py` calls `write` before each build. Every function takes what it describes as an argument, so
that a page follows the code without a second list.
"""

import dataclasses
import importlib
import inspect
import os
import pkgutil
import re
import shutil
import subprocess
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import moecl_jax
from moecl_jax.methods import METHODS
from moecl_jax.runs.settings import SECTIONS, Settings

SECTION = re.compile(r"(Args|Attributes|Raises|Returns|Yields|Example|Note):$")
ENTRY = re.compile(r"([\w, *]+?)(?: \(.*?\))?: (.*)")
COMMAND = re.compile(r"^    ([a-z][\w-]*) ", re.MULTILINE)


def write(docs: Path) -> None:
    """Writes every generated file below the folder of the documentation."""
    fragments = {
        "methods.md": methods_table(METHODS),
        "method_sections.md": method_sections(METHODS),
        "configuration.md": settings_tables([Settings, *SECTIONS.values()]),
        "command_line.md": command_line(),
        "api.md": public_api(moecl_jax),
    }
    for name, text in fragments.items():
        _write(docs / "_generated" / name, text)
    pages = room_pages(moecl_jax)
    for name, text in pages.items():
        _write(docs / "reference" / "modules" / f"{name}.md", text)
    for stale in (docs / "reference" / "modules").glob("*.md"):
        if stale.stem not in pages:
            stale.unlink()
    notebooks = docs / "tutorials" / "notebooks"
    notebooks.mkdir(exist_ok=True)
    for notebook in sorted((docs.parent / "examples").glob("*.ipynb")):
        shutil.copyfile(notebook, notebooks / notebook.name)


def attribute_docs(described: type) -> dict[str, str]:
    """What the section `Attributes:` of a class's docstring says of each attribute."""
    docs: dict[str, str] = {}
    names: list[str] = []
    level = None  # the indentation of the section's entries, inside it
    for line in (inspect.getdoc(described) or "").splitlines():
        if SECTION.match(line):
            level = 0 if line.startswith("Attributes") else None
        elif level is None or not line.strip():
            continue
        elif _indent(line) == (level := level or _indent(line)) and (
            entry := ENTRY.fullmatch(line.strip())
        ):
            names = [name.strip() for name in entry[1].split(",")]
            docs |= dict.fromkeys(names, entry[2])
        else:
            docs |= {name: f"{docs[name]} {line.strip()}" for name in names}
    return docs


def options_table(described: type, prefix: str = "", without: Collection[str] = ()) -> str:
    """A table of a dataclass's fields: key, default, allowed values and meaning.

    Fields that are sections of their own are left out.

    Args:
      described: a dataclass whose docstring has a section `Attributes:`.
      prefix: stands before each name, such as "ewc.".
      without: names of further fields that are left out.
    """
    docs = attribute_docs(described)
    rows = [
        (f"`{prefix}{field.name}`", _default(field), _allowed(field), docs.get(field.name, ""))
        for field in dataclasses.fields(described)
        if not dataclasses.is_dataclass(field.default) and field.name not in without
    ]
    return table(("key", "default", "allowed", "meaning"), rows) if rows else ""


def methods_table(methods: Mapping[str, type]) -> str:
    """A table of all methods: name, class, and the first line of the class's docstring."""
    rows = [
        (f"[`{name}`](#method-{_anchor(name)})", f"`{method.__name__}`", _summary(method))
        for name, method in methods.items()
    ]
    return table(("method", "class", "what it is"), rows)


def method_sections(methods: Mapping[str, Any]) -> str:
    """A section a method: its paper and equations, and a table of each section of its options."""
    sections = []
    for name, method in methods.items():
        module = inspect.getdoc(sys.modules[method.__module__]) or ""
        text = [f"(method-{_anchor(name)})=", f"### `{name}`", "", _fence("text", module)]
        nested = {
            field.name: type(field.default)
            for field in dataclasses.fields(method.Options)
            if dataclasses.is_dataclass(field.default)
        }
        for key, described in {name: method.Options, **nested}.items():
            text += ["", options_table(described, prefix=f"{key}.")]
        sections.append("\n".join(text).rstrip())
    return "\n\n".join(sections)


def settings_tables(sections: Iterable[type]) -> str:
    """Tables of a config's values, one for each section.

    Args:
      sections: dataclasses of the sections. `KEY` of each is the name of its section in a config,
        "" for the values outside all sections. A field `options` is no key: it holds the sections
        of the methods.
    """
    parts = []
    for described in sections:
        key = getattr(described, "KEY", "")
        title = f"### `{key}`" if key else "### Outside all sections"
        rows = options_table(described, f"{key}." if key else "", without=("options",))
        parts.append(f"{title}\n\n{_summary(described)}\n\n{rows}")
    return "\n\n".join(parts)


def command_line() -> str:
    """The help of `moecl` and of each of its commands."""
    overview = _help()
    parts = [_fence("text", overview)]
    for command in dict.fromkeys(COMMAND.findall(overview)):
        parts.append(f"### moecl {command}\n\n{_fence('text', _help(command))}")
    return "\n\n".join(parts)


def public_api(package: ModuleType) -> str:
    """Autodoc directives for all public names of the package, in their order."""
    parts = []
    for name in getattr(package, "__all__", ()):
        if name.startswith("__"):
            continue
        found = getattr(package, name)
        if inspect.ismodule(found):
            continue
        kind = "data"
        if inspect.isclass(found):
            kind = "class"
        elif callable(found):
            kind = "function"
        members = ["   :members:"] if kind == "class" else []
        parts.append("\n".join([f".. auto{kind}:: {package.__name__}.{name}", *members]))
    return _fence("{eval-rst}", "\n\n".join(parts)) if parts else ""


def room_pages(package: ModuleType) -> dict[str, str]:
    """A page for each subpackage of the package, and one for the modules outside all of them."""
    pages = {}
    top = []
    for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        name = module.name.rpartition(".")[2]
        if name.startswith("_"):
            continue
        if module.ispkg:
            pages[name] = _room_page(module.name)
        else:
            top.append(module.name)
    # A folder that has no __init__.py yet is a room as well.
    for folder in Path(package.__path__[0]).iterdir():
        if folder.is_dir() and folder.name not in pages and any(folder.glob("*.py")):
            pages[folder.name] = _room_page(f"{package.__name__}.{folder.name}")
    pages["top_level"] = "\n".join(["# Top level", "", *map(_module, top), ""])
    return dict(sorted(pages.items()))


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; a bar in a cell is escaped."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines
    )


def escape(lines: list[str]) -> None:
    """Makes a docstring, in place, valid reStructuredText.

    Docstrings here are sections as Google has them, of plain text with code spans as in Markdown. A
    code span becomes a literal. An indented block outside all sections is shown as it stands.
    Characters that reStructuredText would read as markup are escaped.
    """
    result: list[str] = []
    section = ""
    for paragraph in re.split(r"\n\s*\n", "\n".join(lines).strip("\n")):
        text = paragraph.splitlines()
        if text and _indent(text[0]) == 0:
            header = SECTION.match(text[0])
            section = header[1] if header else ""
            if section == "Example":
                result += ["For example:", ""]
                text = text[1:]
        listed = bool(text) and text[0].startswith("- ")
        plain = listed or section not in ("", "Example")
        if plain or not any(_indent(line) for line in text):
            result += _escape("\n".join(text)).splitlines()
        else:
            result += ["::", "", *(f"   {line}" for line in text)]
        result.append("")
    lines[:] = result


def _room_page(room: str) -> str:
    package = importlib.import_module(room)
    title = room.rpartition(".")[2]
    parts = [f"# {title}", "", _fence("{eval-rst}", f".. automodule:: {room}\n   :no-members:")]
    for module in pkgutil.walk_packages(package.__path__, f"{room}."):
        last = module.name.rpartition(".")[2]
        if not last.startswith("_"):
            parts += ["", _module(module.name)]
    return "\n".join([*parts, ""])


def _module(name: str) -> str:
    title = name.partition(".")[2]
    directive = _fence("{eval-rst}", f".. automodule:: {name}\n   :members:")
    return f"## {title}\n\n{directive}\n"


def _help(*command: str) -> str:
    """The help text of the command, as wide as a page."""
    done = subprocess.run(
        [sys.executable, "-m", "moecl_jax", *command, "--help"],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(moecl_jax.__file__).parents[1],
        env={**os.environ, "COLUMNS": "90"},
    )
    return done.stdout.rstrip()


def _escape(text: str) -> str:
    """Code spans become literals, which no letter may touch; other markup is escaped."""
    parts = re.split(r"(`[^`]+`)", text)
    for place in range(1, len(parts), 2):
        parts[place] = f"`{parts[place]}`"
        if re.match(r"[\w(]", parts[place + 1]):
            parts[place] += "\\ "
        if re.search(r"\w\Z", parts[place - 1]):
            parts[place] = "\\ " + parts[place]
    parts[::2] = map(_escape_text, parts[::2])
    return "".join(parts)


def _escape_text(text: str) -> str:
    text = re.sub(r"([*|\\])", r"\\\1", text)
    return re.sub(r"_(?=\W|$)", r"\\_", text)


def _fence(kind: str, text: str) -> str:
    ticks = "````" if "```" in text else "```"
    return f"{ticks}{kind}\n{text}\n{ticks}"


def _default(field: Any) -> str:
    if field.default is not dataclasses.MISSING:
        return f"`{field.default!r}`"
    if field.default_factory is not dataclasses.MISSING:
        return f"`{field.default_factory()!r}`"
    return ""


def _allowed(field: Any) -> str:
    """The limits of a field made by `moecl_jax.settings.setting`."""
    signs = {"least": "≥", "above": ">", "most": "≤", "below": "<"}
    limits = field.metadata.get("limits", {})
    if limits.get("choices"):
        return ", ".join(f"`{choice}`" for choice in limits["choices"])
    return ", ".join(
        f"{sign} {limits[k]}" for k, sign in signs.items() if limits.get(k) is not None
    )


def _summary(described: type) -> str:
    return (inspect.getdoc(described) or "").partition("\n")[0]


def _anchor(name: str) -> str:
    return name.replace("_", "-")


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = text.rstrip("\n") + "\n"
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")
