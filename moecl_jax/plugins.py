"""Classes of a user's own, named in a config as "package.module:Class"."""

import importlib
import inspect
import os
import sys
from types import ModuleType
from typing import Any, ClassVar, get_origin

from moecl_jax.errors import UserError, one_line


def load_class(spec: str, base: type, what: str) -> type:
    """Imports the class that `spec` names.

    The module is searched where Python searches, and last in the working directory: so a file
    there never replaces an installed package.

    Args:
      spec: "package.module:Class".
      base: what the class must inherit from.
      what: what the class is, for messages, for example "model family".

    Returns:
      The class, checked by `check_class`.

    Raises:
      UserError: `spec` is malformed, the module cannot be imported, it has no such attribute, or
        `check_class` refuses the attribute.
    """
    module_name, _, class_name = spec.partition(":")
    parts = [*module_name.split("."), class_name]
    if not all(part.isidentifier() for part in parts):
        raise UserError(
            f'{what} {spec!r}: expected "package.module:Class", for example "my_file:MyClass" for '
            "the class MyClass in my_file.py."
        )
    module = _import(module_name, spec, what)
    if not hasattr(module, class_name):
        near = [name for name, value in vars(module).items() if _is_own(value, base, module)]
        hint = f" It has: {', '.join(near)}." if near else ""
        where = getattr(module, "__file__", None) or module_name
        raise UserError(
            f"{what} {spec!r}: {where} has no {class_name!r}.{hint} Name a class that the module "
            "defines."
        )
    return check_class(getattr(module, class_name), base, f"{what} {spec!r}")


def check_class(value: Any, base: type, what: str) -> type:
    """Checks that `value` is a complete subclass of `base`, and returns it.

    Complete means that no abstract method is left, and that every class attribute which `base` or
    one of its own bases declares as `ClassVar` without a value has one.

    Args:
      value: what a user passed or named.
      base: what it must inherit from.
      what: what it is and how it was named, at the beginning of messages.

    Raises:
      UserError: it is no class, does not inherit from `base`, or lacks a part; the message names
        all missing parts.
    """
    wanted = f"{base.__module__}.{base.__qualname__}"
    if not inspect.isclass(value):
        raise UserError(f"{what}: {value!r} is not a class; expected a subclass of {wanted}.")
    if not issubclass(value, base):
        raise UserError(
            f"{what}: the class {value.__qualname__} does not inherit from {wanted}. Write "
            f"class {value.__name__}({base.__name__}): ..."
        )
    methods = sorted(getattr(value, "__abstractmethods__", ()))
    attributes = [name for name in _declared(value) if not hasattr(value, name)]
    missing = [*methods, *(name for name in attributes if name not in methods)]
    if missing:
        raise UserError(
            f"{what}: the class {value.__qualname__} lacks {', '.join(missing)}. Define what is "
            f"missing as {wanted} describes it."
        )
    return value


def _import(name: str, spec: str, what: str) -> ModuleType:
    _search_working_directory()
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or name
        if name == missing or name.startswith(f"{missing}."):
            raise UserError(
                f"{what} {spec!r}: there is no module {missing!r}. Python's packages, the folders "
                f"in PYTHONPATH and the working directory ({os.getcwd()}) are searched. Run the "
                "command where the module's file is, or add its folder to PYTHONPATH."
            ) from error
        raise UserError(
            f"{what} {spec!r}: {name} imports {missing!r}, which is not installed. Install it, or "
            "correct the import."
        ) from error
    except Exception as error:  # the module is a user's, whose code may raise anything
        raise UserError(
            f"{what} {spec!r}: importing {name} failed with {type(error).__name__}: "
            f"{one_line(error)}. Correct the module; python -c 'import {name}' shows where."
        ) from error


def _search_working_directory() -> None:
    """Lets modules be found in the working directory; `python -m` does so itself, a script not."""
    here = os.getcwd()
    if not any(os.path.abspath(folder) == here for folder in sys.path):
        sys.path.append(here)
        importlib.invalidate_caches()


def _declared(value: type) -> list[str]:
    """Class attributes that `value` and its bases annotate as `ClassVar`."""
    found: dict[str, None] = {}
    for ancestor in value.__mro__:
        for name, annotation in inspect.get_annotations(ancestor).items():
            text = annotation if isinstance(annotation, str) else ""
            if annotation is ClassVar or get_origin(annotation) is ClassVar or "ClassVar" in text:
                found[name] = None
    return list(found)


def _is_own(value: Any, base: type, module: ModuleType) -> bool:
    """Whether a module's attribute is a subclass of `base` that the module itself defines."""
    return (
        inspect.isclass(value) and issubclass(value, base) and value.__module__ == module.__name__
    )
