"""Sections of settings: frozen dataclasses whose fields carry their range or their choices.

Each room declares the sections that it reads: what a value means stands in the docstring of its
section, its default and its range in the field. `runs.settings` puts them together.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Self

from moecl_jax.errors import UserError, suggestion

_RANGE = ("least", "above", "most", "below", "choices")


def setting(
    default: Any,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
    choices: Sequence[str] | None = None,
) -> Any:
    """A field of a section with its range.

    Args:
      default: the default value, which also gives the type.
      least: smallest value that is allowed.
      above: the value must be larger than this.
      most: largest value that is allowed.
      below: the value must be smaller than this.
      choices: the values that are allowed; of a tuple, the values that may stand in it.
    """
    limits = {"least": least, "above": above, "most": most, "below": below, "choices": choices}
    return dataclasses.field(default=default, metadata={"limits": limits})


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
        raise UserError(f"config: {key} = {values!r} must be a section of keys and values")
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
            hint = suggestion(key, known)
            raise UserError(
                f"unknown config key {key!r}{hint or '; the keys are ' + ', '.join(sorted(known))}"
            )


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
    if kind not in expected or (type(value) is kind and kind is not float):
        return value
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        if math.isfinite(value):
            return float(value)
        raise UserError(f"config: {key} = {value} must be a finite number")
    raise UserError(f"config: {key} = {value!r} must be {expected[kind]}")


def _tuple(key: str, value: Any, default: tuple[Any, ...]) -> tuple[Any, ...]:
    """A list or tuple as a tuple, its values in the type of the default's first one."""
    if not isinstance(value, list | tuple):
        raise UserError(f"config: {key} = {value!r} must be a list of values, such as {default}")
    return tuple(typed(key, each, default[0]) if default else each for each in value)


def _check_range(key: str, value: Any, limits: Mapping[str, Any]) -> None:
    for kind in _RANGE:
        limit = limits.get(kind)
        if limit is None:
            continue
        if kind == "choices":
            for each in value if isinstance(value, tuple) else (value,):
                if each not in limit:
                    raise UserError(
                        f"config: {key} = {each!r} is not one of {', '.join(map(str, limit))}"
                    )
        elif kind == "least" and value < limit:
            raise UserError(f"config: {key} = {value} must be at least {limit}")
        elif kind == "above" and value <= limit:
            raise UserError(f"config: {key} = {value} must be above {limit}")
        elif kind == "most" and value > limit:
            raise UserError(f"config: {key} = {value} must be at most {limit}")
        elif kind == "below" and value >= limit:
            raise UserError(f"config: {key} = {value} must be below {limit}")
