"""Model families: what config.json means for each architecture, and what its tensors are called.

One file holds one architecture, a subclass of `Family` under `@register`. A file is found by being
here. `values` reads config.json with checks and `rope` reads its rotary embeddings; both are for
all families. What belongs elsewhere: file formats (`huggingface`, `gguf`), and what the decoder
computes (`DecoderConfig` says all of it).
"""

import importlib
import pkgutil
from pathlib import Path
from typing import Any

from moecl_jax.errors import UserError
from moecl_jax.outside import shortened
from moecl_jax.plugins import load_class
from moecl_jax.weights.families.base import FAMILIES, Family, check_family, register

__all__ = ["FAMILIES", "Family", "family_named", "family_of", "register"]

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")


def family_named(named: str | type[Family] | None) -> Family | None:
    """The family that a user asks for, whatever a model's own files say.

    Args:
      named: "package.module:Class" or the class itself; "" or None where the files shall say it.

    Returns:
      The family, or None where `named` is "" or None.

    Raises:
      UserError: the class cannot be imported, is no `Family`, or lacks a part.
    """
    if named is None or named == "":
        return None
    if isinstance(named, str):
        return check_family(load_class(named, Family, "model family"), f"model family {named!r}")()
    return check_family(named, "model family")()


def family_of(raw: dict[str, Any], file: Path) -> Family:
    """The family that the key `model_type` of a config.json names.

    Args:
      raw: the content of config.json.
      file: where it came from, for messages.

    Raises:
      UserError: the key is missing, or no family has this name.
    """
    model_type = raw.get("model_type")
    supported = f"Supported: {', '.join(sorted(FAMILIES))}."
    if model_type is None:
        raise UserError(
            f"{file}: the key model_type is missing, so the model's family is not known. Download "
            f'the whole config.json, or add for example "model_type": "llama". {supported}'
        )
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        refused = {k: v for family in FAMILIES.values() for k, v in family.refused.items()}
        reason = refused.get(str(model_type), "which is not supported")
        raise UserError(f"{file}: model_type is {shortened(model_type)}, {reason}. {supported}")
    return FAMILIES[model_type]()
