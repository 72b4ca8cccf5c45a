"""Sections of settings: frozen dataclasses whose fields carry their range or their choices.

Each room declares the sections that it reads: what a value means stands in the docstring of its
section, its default and its range in the field. `runs.settings` puts them together.
"""

import dataclasses
import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Self

from moecl_jax.errors import UserError, listed, suggestion
from moecl_jax.outside import shortened

# A limit by its name: its words in messages, and the comparison of a value with it.
_LIMITS = {
    "least": ("at least", operator.ge),
    "above": ("above", operator.gt),
    "most": ("at most", operator.le),
    "below": ("below", operator.lt),
}


def setting(
    default: Any,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
    choices: Sequence[str] | None = None,
    by_task: bool = False,
) -> Any:
    """A field of a section with its range. Each number has a lower and an upper limit.

    Args:
      default: the default value, which also gives the type.
      least: smallest value that is allowed.
      above: the value must be larger than this.
      most: largest value that is allowed.
      below: the value must be smaller than this.
      choices: the values that are allowed; of a tuple, the values that may stand in it, none of
        them twice.
      by_task: whether it may differ from task to task of a stream: it changes how a task is
        trained, and neither shapes nor what finished tasks answer.
    """
    limits = {"least": least, "above": above, "most": most, "below": below, "choices": choices}
    return dataclasses.field(default=default, metadata={"limits": limits, "by_task": by_task})


@dataclasses.dataclass(frozen=True)
class Section:
    """Base of all sections: checks types and ranges when an instance is made.

    Attributes:
      KEY: what stands before the section's keys in a config, such as "lora"; "" at the top.

    Raises:
      UserError: a value has another type or lies outside its range; names the key.
    """

    KEY: ClassVar[str] = ""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if field.default is dataclasses.MISSING:
                continue
            key = f"{self.KEY}.{field.name}" if self.KEY else field.name
            value = typed(key, getattr(self, field.name), field.default)
            object.__setattr__(self, field.name, value)
            _check_range(key, value, field.metadata.get("limits", {}))

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Self:
        """The section with these values; what is left out has its default.

        Raises:
          UserError: a key is unknown, or a value is not allowed.
        """
        return section(cls, cls.KEY, values)


def keys_by_task(cls: type[Any], key: str) -> set[str]:
    """Dotted keys of a dataclass that may differ from task to task.

    Args:
      cls: a dataclass; a field that is a section itself has its own name in keys.
      key: name of the section; "" at the top.
    """
    found = set()
    for field in dataclasses.fields(cls):
        if dataclasses.is_dataclass(field.default):
            found |= keys_by_task(type(field.default), field.name)
        elif field.metadata.get("by_task", False):
            found.add(f"{key}.{field.name}" if key else field.name)
    return found


def section(cls: type[Any], key: str, values: Mapping[str, Any]) -> Any:
    """An instance of any dataclass with these values.

    Args:
      cls: a dataclass whose fields all have defaults.
      key: name of the section in messages.
      values: values by field; what is left out has its default. A field that is a section itself
        may be given as a mapping too, and has its own name in messages.

    Raises:
      UserError: `values` is no mapping, a key is unknown, or a value is not allowed.
    """
    if not isinstance(values, Mapping):
        raise UserError(f"config: {key} = {shortened(values)} must be a section of keys and values")
    fields = {field.name: field for field in dataclasses.fields(cls)}
    refuse_unknown([f"{key}.{name}" for name in values], [f"{key}.{name}" for name in fields])
    checked: dict[str, Any] = {}
    for name, value in values.items():
        place, default = f"{key}.{name}", fields[name].default
        if dataclasses.is_dataclass(default) and not isinstance(value, type(default)):
            checked[name] = section(type(default), name, value)
        else:
            checked[name] = typed(place, value, default)
            _check_range(place, checked[name], fields[name].metadata.get("limits", {}))
    try:
        return cls(**checked)
    except UserError as error:
        message = str(error)
        if message.startswith("config:"):
            raise
        raise UserError(f"config: {key}.{message}") from error


def refuse_unknown(keys: Iterable[str], known: Sequence[str]) -> None:
    """Refuses keys that do not exist.

    Raises:
      UserError: names the first unknown key and the known one that is most like it.
    """
    for key in keys:
        if key not in known:
            section = key.rpartition(".")[0]
            beside = [name for name in sorted(known) if name.rpartition(".")[0] == section]
            hint = suggestion(key, known) or f"; the keys are {listed(beside or known, 500)}"
            raise UserError(f"unknown config key {shortened(key)}{hint}")


def typed(key: str, value: Any, default: Any) -> Any:
    """A value in the type of its default.

    Whole numbers stand for floats, lists for tuples and mappings for sections; nothing else is
    converted.

    Raises:
      UserError: the value has another type, or is a number that is not finite.
    """
    expected = {bool: "True or False", int: "a whole number", float: "a number", str: "a text"}
    kind = type(default)
    if dataclasses.is_dataclass(default):
        return value if isinstance(value, kind) else section(kind, key.rpartition(".")[2], value)
    if isinstance(default, tuple):
        return _tuple(key, value, default)
    if kind is str and isinstance(value, str) and "\0" in value:
        raise UserError(f"config: {key} = {shortened(value)} must not hold a NUL character")
    if kind not in expected or (type(value) is kind and kind is not float):
        return value
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if math.isfinite(number):
            return number
        raise UserError(f"config: {key} = {shortened(value)} must be a finite number")
    raise UserError(f"config: {key} = {shortened(value)} must be {expected[kind]}")


def _tuple(key: str, value: Any, default: tuple[Any, ...]) -> tuple[Any, ...]:
    """A list or tuple as a tuple, its values in the type of the default's first one."""
    if not isinstance(value, list | tuple):
        raise UserError(
            f"config: {key} = {shortened(value)} must be a list of values, such as {default}"
        )
    return tuple(typed(key, each, default[0]) if default else each for each in value)


def _check_range(key: str, value: Any, limits: Mapping[str, Any]) -> None:
    if limits.get("choices") is not None:
        _check_choices(key, value, limits["choices"])
    bounds = {kind: limits[kind] for kind in _LIMITS if limits.get(kind) is not None}
    broken = [kind for kind, bound in bounds.items() if not _LIMITS[kind][1](value, bound)]
    if broken:
        # The limit that is broken comes first, then the other end of the range.
        kinds = sorted(bounds, key=lambda kind: kind not in broken)
        allowed = " and ".join(f"{_LIMITS[kind][0]} {bounds[kind]}" for kind in kinds)
        raise UserError(f"config: {key} = {shortened(value)} must be {allowed}")


def _check_choices(key: str, value: Any, choices: Sequence[str]) -> None:
    for each in value if isinstance(value, tuple) else (value,):
        if each not in choices:
            raise UserError(
                f"config: {key} = {shortened(each)} is not one of {', '.join(map(str, choices))}"
            )
    if isinstance(value, tuple) and len(set(value)) < len(value):
        raise UserError(f"config: {key} = {shortened(value)} must hold none of them twice")
