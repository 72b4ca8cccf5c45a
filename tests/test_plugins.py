"""Classes named as "package.module:Class": found, checked, and refused with the reason."""

import abc
import os
import subprocess
import sys
from typing import ClassVar

import pytest

from moecl_jax.errors import UserError
from moecl_jax.plugins import check_class, load_class


class Shape(abc.ABC):
    """A base as the library's: a name and an abstract method are required, a colour is not."""

    name: ClassVar[str]
    colour: ClassVar[str] = "red"

    @abc.abstractmethod
    def area(self) -> float: ...


class Square(Shape):
    name = "square"

    def area(self) -> float:
        return 1.0


class Bare(Shape):
    pass


NOT_A_CLASS = 3


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory of its own; modules and the search path are put back after the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def message_of(spec, base=Shape):
    with pytest.raises(UserError) as caught:
        load_class(spec, base, "shape")
    return str(caught.value)


def test_a_file_in_the_working_directory_is_found(folder):
    package = folder / "my_shapes_a"
    package.mkdir()
    (package / "round.py").write_text(
        "from test_plugins import Square\nclass Circle(Square):\n    name = 'circle'\n"
    )
    found = load_class("my_shapes_a.round:Circle", Square, "shape")
    assert (found.__name__, found.name) == ("Circle", "circle")
    assert load_class("my_shapes_a.round:Circle", Square, "shape") is found
    assert sys.path.count(str(folder)) == 1
    assert sys.path[-1] == str(folder)


def test_the_working_directory_is_searched_once_where_python_has_it(folder, monkeypatch):
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    load_class("test_plugins:Square", object, "shape")
    assert str(folder) not in sys.path


def test_an_installed_script_finds_the_file_too(folder):
    """In a process whose search path does not begin with the working directory."""
    (folder / "my_shapes_b.py").write_text("class Circle: pass\n")
    code = (
        "from moecl_jax.plugins import load_class\n"
        "print(load_class('my_shapes_b:Circle', object, 'shape').__name__)\n"
    )
    environment = {**os.environ, "PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code]
    output = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert output.stdout == "Circle\n"


@pytest.mark.parametrize("spec", ["", "Circle", "module:", ":Circle", "a b:C", "a:B:C", "a.:C"])
def test_a_malformed_name_is_refused(spec):
    message = message_of(spec)
    assert message.startswith(f"shape {spec!r}: ")
    assert 'expected "package.module:Class"' in message


def test_a_missing_module_is_named(folder):
    message = message_of("no_such_module.inside:Circle")
    assert "there is no module 'no_such_module'" in message
    assert f"working directory ({folder})" in message
    assert "PYTHONPATH" in message
    (folder / "my_shapes_c").mkdir()
    assert "no module 'my_shapes_c.inside'" in message_of("my_shapes_c.inside:Circle")


def test_a_module_that_cannot_be_imported_is_named(folder):
    (folder / "my_shapes_d.py").write_text("import no_such_module\n")
    assert "my_shapes_d imports 'no_such_module', which is" in message_of("my_shapes_d:Circle")
    (folder / "my_shapes_e.py").write_text("raise KeyError('sides')\n")
    assert "importing my_shapes_e failed with KeyError: sides." in message_of("my_shapes_e:Circle")
    (folder / "my_shapes_f.py").write_text("def (:\n")
    assert "importing my_shapes_f failed with SyntaxError" in message_of("my_shapes_f:Circle")


def test_a_missing_attribute_is_named():
    message = message_of("test_plugins:Circle")
    assert "test_plugins.py has no 'Circle'" in message
    assert "It has: Shape, Square, Bare." in message


def test_what_is_no_subclass_is_refused():
    message = message_of("test_plugins:Square", int)
    assert "the class Square does not inherit from builtins.int" in message
    assert "class Square(int): ..." in message
    assert "3 is not a class" in message_of("test_plugins:NOT_A_CLASS")


def test_missing_parts_are_named():
    assert "the class Bare lacks area, name." in message_of("test_plugins:Bare")
    with pytest.raises(UserError, match=r"^the shape: the class Bare lacks area, name\."):
        check_class(Bare, Shape, "the shape")
    assert check_class(Square, Shape, "the shape") is Square
