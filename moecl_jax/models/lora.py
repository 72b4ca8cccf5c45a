"""Low-rank adapters (LoRA, arXiv 2106.09685): their targets, sizes, first values and seeds.

Axes: L layers, B examples, N tokens, I and O input and output widths of a projection, r rank.
An expert is a dict from projection name to `{"a": [I, r], "b": [r, O]}`, stacked to
`[L, I, r]` and `[L, r, O]` where it is stored.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from moecl_jax.kernels import Factors, dropout, hash_bits, low_rank
from moecl_jax.models.config import DecoderConfig

FFN_TARGETS = ("gate_proj", "up_proj", "down_proj")
ATTENTION_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")
TARGETS = FFN_TARGETS + ATTENTION_TARGETS

Expert = Mapping[str, Factors]
Adapter = Mapping[str, Any]  # what one layer is given: experts, gate


@flax.struct.dataclass
class LayerContext:
    """What a layer needs beside its input.

    Attributes:
      membership: `[B, N]`, 1 where a token is a real token of an example, else 0.
      seed: uint32 scalar of this layer and step for dropout, `None` in evaluation.
      places: `[N]` uint32, by which dropout tells tokens apart; `None` for their order.
    """

    membership: jax.Array
    seed: jax.Array | None = None
    places: jax.Array | None = None


# (projection, its input [N, I], adapter, context) -> what is added to its output, [N, O] float32.
AttentionTerm = Callable[[str, jax.Array, Adapter, LayerContext], jax.Array | None]


def projection_sizes(config: DecoderConfig) -> dict[str, tuple[int, int]]:
    """Input and output width of each projection that can be adapted."""
    width, ffn_width = config.width, config.ffn_width
    query, key = config.heads * config.head_width, config.kv_heads * config.head_width
    return {
        "gate_proj": (width, ffn_width),
        "up_proj": (width, ffn_width),
        "down_proj": (ffn_width, width),
        "q_proj": (width, query),
        "k_proj": (width, key),
        "v_proj": (width, key),
        "o_proj": (query, width),
    }


def init_expert(
    key: jax.Array, config: DecoderConfig, rank: int, targets: Sequence[str]
) -> dict[str, dict[str, jax.Array]]:
    """An expert that leaves the frozen model unchanged: A Kaiming-uniform (a = sqrt 5), B zero.

    Kaiming-uniform with a = sqrt 5 is the uniform distribution on +-1/sqrt(I).

    Args:
      key: PRNG key.
      config: sizes of the frozen decoder.
      rank: r.
      targets: names out of `TARGETS`.

    Returns:
      `{target: {"a": [L, I, r], "b": [L, r, O]}}` in float32.
    """
    # Two draws, so that experts on the FFN start alike whether attention is adapted or not.
    keys = [*jax.random.split(key, 3), *jax.random.split(jax.random.fold_in(key, 0), 4)]
    sizes = projection_sizes(config)
    expert = {}
    for target, target_key in zip(TARGETS, keys, strict=True):
        if target not in targets:
            continue
        inputs, outputs = sizes[target]
        bound = inputs**-0.5
        shape = (config.layers, inputs, rank)
        expert[target] = {
            "a": jax.random.uniform(target_key, shape, jnp.float32, -bound, bound),
            "b": jnp.zeros((config.layers, rank, outputs), jnp.float32),
        }
    return expert


def no_term(name: str, x: jax.Array, adapter: Adapter, context: LayerContext) -> None:
    """Attention as it is in the frozen model."""
    del name, x, adapter, context


def lora_term(
    name: str,
    x: jax.Array,
    adapter: Adapter,
    context: LayerContext,
    *,
    experts: Sequence[str],
    scale: float,
    dropout_rate: float,
) -> jax.Array | None:
    """Sum of the experts' low-rank terms on one projection of attention.

        sum_e c B_e A_e drop(x)

    MoE-CL's equations know the FFN alone. Here experts on attention are added without a gate, as
    plain LoRA would be; so the original's attention LoRA, one for all tasks, is the shared
    expert's.

    Args:
      name: out of `ATTENTION_TARGETS`.
      x: the projection's input, `[N, I]`.
      adapter: holds the experts.
      context: has the dropout seed.
      experts: their keys in `adapter`.
      scale: c, lora_alpha / r.
      dropout_rate: each expert draws its own mask for each projection.

    Returns:
      `[N, O]` in float32, or `None` where no expert adapts this projection.
    """
    total = None
    for index, expert in enumerate(experts):
        if name not in adapter[expert]:
            continue
        seed = site_seed(context.seed, index, TARGETS.index(name))
        term = low_rank(
            dropout(x, dropout_rate, seed, context.places), adapter[expert][name], scale
        )
        total = term if total is None else total + term
    return total


def site_seed(seed: jax.Array | None, expert: int, site: int) -> jax.Array | None:
    """Seed of one dropout mask in a layer; `None` in evaluation.

    Args:
      seed: uint32 scalar of the layer.
      expert: index of the expert.
      site: 0 and 1 for input and activation of the FFN, 3 to 6 for attention's projections.
    """
    if seed is None:
        return None
    place = 2 * expert + site if site < 2 else 2**16 * (expert + 1) + site
    return hash_bits(seed + jnp.uint32(place + 1))
