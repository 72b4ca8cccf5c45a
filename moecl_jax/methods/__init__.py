"""Continual-learning methods: what is trained of each, what is kept, what is added to the loss.

One file a method, with its paper, equations, options and losses, on the interface in `base`. What
every method shares is here too: the parameters of a task (`parameters`), the state of a stream
(`stream`), the forward pass with a method's experts (`forward`) and the instruction losses. How a
model is trained, evaluated or saved does not belong here.

A method inside the package is found by being there. One from outside is registered by `register`,
passed as a class or an object, or named "package.module:Class" in a config.
"""

import importlib
import inspect
import pkgutil
from typing import Any

from moecl_jax.errors import UserError, suggestion
from moecl_jax.methods.base import (
    LossInputs,
    Method,
    NoOptions,
    Penalty,
    TaskEnd,
    TaskStart,
    Traits,
    blank,
)
from moecl_jax.methods.parameters import TaskParameters, Tree
from moecl_jax.methods.preceding import Asked, Preceding
from moecl_jax.outside import shortened
from moecl_jax.plugins import load_class

METHODS: dict[str, type[Method]] = {}
"""The known methods by name."""

_passed: dict[str, type[Method]] = {}  # classes given as objects, which need not be importable


def register(method: type[Method]) -> type[Method]:
    """Makes a method known by its name; may decorate its class.

    Raises:
      UserError: it is no complete method, or another one has its name.
    """
    check_method(method)
    known = METHODS.setdefault(method.name, method)
    if known is not method:
        raise UserError(
            f"{method.__module__}.{method.__qualname__}: a method named {method.name!r} is known "
            f"already ({known.__module__}.{known.__qualname__}); give this one another name"
        )
    return method


def find_method(name: str | type[Method]) -> type[Method]:
    """The class of a method.

    Args:
      name: name of a known method, "package.module:Class", or a class.

    Raises:
      UserError: there is none, or it is no complete method.
    """
    if isinstance(name, type):
        method = check_method(name)
        _passed[spec_of(method)] = method
        return method
    if not isinstance(name, str):
        raise UserError(f"config: method = {shortened(name)} must be a method's name, or its class")
    if name in _passed:
        return _passed[name]
    if ":" in name:
        return check_method(load_class(name, Method, "method"))
    if name not in METHODS:
        raise UserError(
            f"config: method = {shortened(name)} is not one of {', '.join(METHODS)}"
            f"{suggestion(name, METHODS)}; one of your own is named 'package.module:Class'"
        )
    return METHODS[name]


def spec_of(method: type[Method]) -> str:
    """How a config names a method: by its name if it is known, else "package.module:Class"."""
    if METHODS.get(method.name) is method:
        return method.name
    return f"{method.__module__}:{method.__qualname__}"


def check_method(method: Any) -> type[Method]:
    """Refuses a class that is no complete method, and gives it back.

    Raises:
      UserError: it is no subclass of `Method`, lacks a part, or its options cannot be read.
    """
    if not (isinstance(method, type) and issubclass(method, Method)):
        raise UserError(f"{method!r} is no method: expected a subclass of moecl_jax.Method")
    place = f"method {method.__module__}:{method.__qualname__}"
    if inspect.isabstract(method):
        missing = ", ".join(sorted(method.__abstractmethods__))
        raise UserError(f"{place} lacks {missing}; define them as moecl_jax.Method describes")
    name = getattr(method, "name", None)
    if not isinstance(name, str) or not name.isidentifier():
        raise UserError(
            f"{place}: name = {name!r} must be a text of letters, digits and '_': it names the "
            "method in results and its section in a config"
        )
    try:
        method.Options()
    except TypeError as error:
        raise UserError(
            f"{place}: Options must be a dataclass whose fields all have defaults ({error})"
        ) from error
    return method


for _module in pkgutil.iter_modules(__path__):
    _members = vars(importlib.import_module(f"{__name__}.{_module.name}"))
    for _member in _members.values():
        if (
            isinstance(_member, type)
            and issubclass(_member, Method)
            and _member.__module__ == f"{__name__}.{_module.name}"
            and "name" in vars(_member)
        ):
            register(_member)

__all__ = [
    "METHODS",
    "Asked",
    "LossInputs",
    "Method",
    "NoOptions",
    "Penalty",
    "Preceding",
    "TaskEnd",
    "TaskParameters",
    "TaskStart",
    "Traits",
    "Tree",
    "blank",
    "check_method",
    "find_method",
    "register",
    "spec_of",
]
