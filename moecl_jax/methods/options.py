"""A method's options as the sections of a config, and back.

Fields of `Options` are keys of the section that has the method's name; a field that is a dataclass
itself is a section of its own, named as the field. So `MoeCl.Options` has the sections `moe_cl`
(shared, snapshot_dtype, ...) and `adversarial` (objective, alpha, reduction).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from moecl_jax.errors import UserError
from moecl_jax.methods.base import Method
from moecl_jax.outside import shortened
from moecl_jax.settings import section

Sections = dict[str, dict[str, Any]]


def to_sections(method: type[Method], options: Any) -> Sections:
    """The sections of an instance of a method's options; none for a method without options."""
    sections: Sections = {}
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            sections[field.name] = dataclasses.asdict(value)
        else:
            sections.setdefault(method.name, {})[field.name] = value
    return sections


def from_sections(method: type[Method], sections: Mapping[str, Mapping[str, Any]]) -> Any:
    """An instance of a method's options; what the sections leave out has its default.

    Raises:
      UserError: a key is unknown, or a value is not allowed.
    """
    values = sections.get(method.name, {})
    if not isinstance(values, Mapping):
        raise UserError(
            f"config: {method.name} = {shortened(values)} must be a section of keys and values"
        )
    values = dict(values)
    for field in dataclasses.fields(method.Options):
        if dataclasses.is_dataclass(field.default) and field.name in sections:
            values[field.name] = sections[field.name]
    return section(method.Options, method.name, values)
