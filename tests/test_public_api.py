"""The package's public names: what there is, what types checkers see, what importing costs."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import moecl_jax

SOURCE = Path(moecl_jax.__file__)


def test_dir_lists_all_public_names() -> None:
    assert set(moecl_jax.__all__) <= set(dir(moecl_jax))
    assert sorted(set(moecl_jax.__all__)) == sorted(moecl_jax.__all__)


def test_type_checkers_see_the_names_that_there_are() -> None:
    """The imports under TYPE_CHECKING, and the homes from which names are imported when used."""
    tree = ast.parse(SOURCE.read_text(encoding="utf-8"))
    (block,) = (
        node
        for node in tree.body
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
    )
    seen = {
        alias.name: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    homes = {name: f"moecl_jax.{module}" for name, module in moecl_jax._MODULE_OF.items()}
    assert seen == homes
    assert {*homes, "__version__"} == set(moecl_jax.__all__)


@pytest.mark.parametrize("name", sorted({*moecl_jax.__all__} - {"__version__", "METHODS"}))
def test_a_public_name_is_there_and_explained(name: str) -> None:
    value = getattr(moecl_jax, name)
    assert len((inspect.getdoc(value) or "").split()) >= 3
    assert getattr(moecl_jax, name) is value


def test_every_built_in_method_is_public() -> None:
    public = [getattr(moecl_jax, name) for name in moecl_jax.__all__]
    assert all(method in public for method in moecl_jax.METHODS.values())


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    assert not hasattr(moecl_jax, "trainer_")
    with pytest.raises(ImportError, match="cannot import name 'Trainr'"):
        from moecl_jax import Trainr  # noqa: F401


@pytest.mark.parametrize("code", ["import moecl_jax", "import moecl_jax as mj; dir(mj)"])
def test_importing_the_package_imports_no_other(code: str) -> None:
    code = f"import sys; before = set(sys.modules); {code}; print(*set(sys.modules) - before)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    packages = {name.partition(".")[0] for name in run.stdout.split()}
    assert packages <= sys.stdlib_module_names | {"moecl_jax"}


def test_importing_the_package_loads_one_module_of_it() -> None:
    command = [sys.executable, "-X", "importtime", "-c", "import moecl_jax"]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    loaded = [line.rpartition("|")[2].strip() for line in run.stderr.splitlines()]
    assert [name for name in loaded if name.startswith("moecl_jax")] == ["moecl_jax"]
    assert not {"jax", "numpy", "flax"} & {name.partition(".")[0] for name in loaded}


def test_a_star_import_gives_the_public_names() -> None:
    code = "from moecl_jax import *; print(Trainer.__name__, load_model.__name__, len(METHODS))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["Trainer", "load_model", str(len(moecl_jax.METHODS))]
