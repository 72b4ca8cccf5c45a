"""Rotary embeddings in config.json: bases and scalings, in the old keys and in the new ones.

transformers 4 writes `rope_theta` and `rope_scaling`; transformers 5 writes `rope_parameters`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from moecl_jax.errors import UserError
from moecl_jax.models.config import LEAST_ROPE_THETA, MOST_NUMBER, RotaryScaling
from moecl_jax.outside import shortened
from moecl_jax.weights.families.values import Values

_SHARED_KEYS = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}

# Keys of rope_scaling and rope_parameters by rope_type, beside those that all have.
ROPE_TYPES: dict[str, set[str]] = {
    "default": set(),
    "linear": {"factor"},
    "llama3": {
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
    },
    # Only alpha counts, as in transformers: with it the frequencies do not depend on the length.
    "dynamic": {"alpha", "factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim"},
}


def read_rope(
    values: Values,
    theta_key: str,
    default_theta: float,
    objects: Mapping[str, dict[str, Any]],
    *,
    types: Sequence[str],
    head_width: int,
) -> tuple[float, RotaryScaling | None]:
    """Base and scaling of one rotary embedding.

    Args:
      values: config.json.
      theta_key: its key for the base, in old files.
      default_theta: base where nothing says it.
      objects: the objects of config.json that describe this embedding, by their key; empty where
        config.json lacks them.
      types: the keys of `ROPE_TYPES` that the family knows.
      head_width: size K of one head.

    Raises:
      UserError: two places disagree, or ask for something that is not implemented.
    """
    thetas, scalings = {}, {}
    if values.raw.get(theta_key) is not None:
        thetas[theta_key] = values.number(theta_key, least=LEAST_ROPE_THETA)
    for name, content in objects.items():
        rope = Values(content, values.file, f"{name}.")
        if rope.raw.get("rope_theta") is not None:
            thetas[f"{name}.rope_theta"] = rope.number("rope_theta", least=LEAST_ROPE_THETA)
        if rope.raw:
            context = values.raw.get("max_position_embeddings")
            scalings[name] = _scaling(name, rope, types, head_width, context)
    for found in (thetas, scalings):
        if len(set(found.values())) > 1:
            shown = found if found is thetas else {name: objects[name] for name in found}
            raise UserError(
                f"{values.file}: the values disagree: {shortened(shown, 400)}. Keep the right one "
                "only."
            )
    scaling, stretch = next(iter(scalings.values()), (None, 1.0))
    theta = next(iter(thetas.values()), default_theta) * stretch
    if not LEAST_ROPE_THETA <= theta <= MOST_NUMBER:
        raise UserError(
            f"{values.file}: the scaling by alpha makes the rotary base {theta:g}; expected "
            f"from {LEAST_ROPE_THETA:g} to {MOST_NUMBER:g}. Download the file again."
        )
    return theta, scaling


def _scaling(
    name: str, rope: Values, types: Sequence[str], head_width: int, context_length: int | None
) -> tuple[RotaryScaling | None, float]:
    """The scaling that an object of config.json asks for, and what it multiplies the base by."""
    raw = rope.raw
    kind = raw.get("rope_type", raw.get("type", "default"))
    supported = kind in types and set(raw) <= ROPE_TYPES[kind] | _SHARED_KEYS
    if kind == "dynamic":
        supported &= bool(raw.get("alpha"))
    if not supported or raw.get("partial_rotary_factor", 1.0) != 1.0:
        raise UserError(
            f"{rope.file}: {name} is {shortened(raw, 200)}, which is not supported yet. Supported "
            "are the rope_type 'default', 'linear' and 'llama3', each with its own keys only, and "
            "in hunyuan_v1_dense 'dynamic' with alpha. Use a model without it."
        )
    if kind == "linear":
        return RotaryScaling(rope.number("factor", least=1.0)), 1.0
    if kind == "llama3":
        length = rope.integer("original_max_position_embeddings", context_length)
        low, high = rope.number("low_freq_factor"), rope.number("high_freq_factor")
        band = (length / high, length / low)
        if not 1 / band[0] > 1 / band[1]:
            raise UserError(
                f"{rope.file}: {name} is {shortened(raw, 200)}; expected low_freq_factor < "
                "high_freq_factor."
            )
        return RotaryScaling(rope.number("factor", least=1.0), band), 1.0
    if kind == "dynamic":
        return None, rope.number("alpha") ** (head_width / (head_width - 2))
    return None, 1.0
