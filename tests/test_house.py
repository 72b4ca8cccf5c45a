"""The house: rooms import from rooms below alone, no library code prints, files are short."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "moecl_jax"
# Top first; a room imports from rooms below it, and from the modules at the top of the package.
FLOORS = (
    ("cli",),
    ("report", "bench", "service"),
    ("config",),
    ("interchange",),
    ("training",),
    ("serving",),
    ("runs",),
    ("methods",),
    ("data",),
    ("weights",),
    ("models",),
    ("kernels", "decisions", "retrieval"),
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
FILES = sorted(PACKAGE.rglob("*.py"))
TOP_MODULES = {
    "errors",
    "outside",
    "plugins",
    "programs",
    "progress",
    "quiet",
    "reporting",
    "settings",
    "stopping",
    "testing",
    "writing",
}


def imported_modules(tree: ast.Module) -> set[str]:
    """Modules of the package that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name for name in names if name.startswith("moecl_jax.")}


def test_every_folder_is_a_known_room():
    rooms = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    assert rooms == set(FLOOR_OF)


def test_the_modules_at_the_top_are_few_and_known():
    modules = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__", "__main__"}
    assert modules == TOP_MODULES


@pytest.mark.parametrize("room", FLOOR_OF)
def test_a_room_imports_only_from_rooms_below(room):
    for file in sorted((PACKAGE / room).rglob("*.py")):
        for name in imported_modules(ast.parse(file.read_text(encoding="utf-8"))):
            other = name.split(".")[1]
            if other == room or other not in FLOOR_OF:
                continue
            assert FLOOR_OF[other] > FLOOR_OF[room], f"{file.relative_to(PACKAGE)} imports {name}"


def test_modules_at_the_top_import_no_room():
    for name in TOP_MODULES:
        tree = ast.parse((PACKAGE / f"{name}.py").read_text(encoding="utf-8"))
        rooms = {module.split(".")[1] for module in imported_modules(tree)} & set(FLOOR_OF)
        assert not rooms, f"{name}.py imports from {rooms}"


def test_only_commands_reports_and_benchmarks_print():
    for file in FILES:
        if file.relative_to(PACKAGE).parts[0] in ("cli", "report", "bench"):
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            called = node.func if isinstance(node, ast.Call) else None
            prints = isinstance(called, ast.Name) and called.id == "print"
            assert not prints, f"{file.relative_to(PACKAGE)}:{node.lineno} prints"


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_files_are_short_and_say_what_they_are(file):
    text = file.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 500
    assert ast.get_docstring(ast.parse(text))


@pytest.mark.parametrize("room", FLOOR_OF)
def test_a_room_says_what_belongs_in_it(room):
    docstring = ast.get_docstring(
        ast.parse((PACKAGE / room / "__init__.py").read_text(encoding="utf-8"))
    )
    assert docstring is not None
    assert len(docstring.split()) > 30, f"{room}/__init__.py: a paragraph, not a line"


def test_importing_the_package_starts_neither_jax_nor_numpy():
    code = "import sys, moecl_jax; print(sorted({'jax', 'numpy', 'flax'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_is_there():
    import moecl_jax

    for name in moecl_jax.__all__:
        assert getattr(moecl_jax, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'trainer'"):
        moecl_jax.trainer  # noqa: B018


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_the_description_of_an_argument_can_be_read_alone(file):
    fragment = re.compile(r"^ +[a-z_]+(, [a-z_]+)*: (of|as|in|by|from|with) ", re.MULTILINE)
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
            found = fragment.search(ast.get_docstring(node) or "")
            assert not found, f"{file.relative_to(PACKAGE)}: {found[0].strip()} ..."
