"""The feed-forward network with low-rank experts, as in MoE-CL (arXiv 2509.18133, eq. 3 to 8).

For token states x, an expert e with factors A and B on the three projections, and
c = lora_alpha / r:

    h_g = W_g x,   h_u = W_u x                                     frozen; the same for all experts
    a_e = act(h_g + c B_g^e A_g^e drop(x)) * (h_u + c B_u^e A_u^e drop(x))
    m_e = A_d^e drop(a_e)
    z_e = W_d a_e + c B_d^e m_e                                    eq. 3 and 4
    beta = softmax(G x)                                            eq. 8
    out = beta_s z_s + beta_t z_t                                  eq. 7

The discriminator (eq. 5) is given the mean of z_s over each example's tokens. W_d and B_d are
linear, so they are applied after a sum over experts or tokens, exactly and once:

    out       = W_d (beta_s a_s + beta_t a_t) + sum_e c B_d^e (beta_e m_e)
    mean(z_s) = W_d mean(a_s) + c B_d^s mean(m_s)

Operands of products have the dtype of x; sums and all other arithmetic are float32.

Axes: N tokens, B examples, D width, F ffn width, r rank, E experts.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

from moecl_jax.kernels import (
    Factors,
    dropout,
    from_rank,
    gated_activation,
    low_rank,
    mean_over_tokens,
    save_for_backward,
    to_rank,
    weighted_sum,
)
from moecl_jax.models.lora import Adapter, Expert, LayerContext, site_seed

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "silu": jax.nn.silu,
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
}


@flax.struct.dataclass
class FrozenFfn:
    """The frozen projections of one layer's gated network: functions of `[N, I]` and a dtype.

    Attributes:
      gate_proj: W_g.
      up_proj: W_u.
      down_proj: W_d.
      activation: act, silu in most models.
    """

    gate_proj: Callable[[jax.Array, Any], jax.Array]
    up_proj: Callable[[jax.Array, Any], jax.Array]
    down_proj: Callable[[jax.Array, Any], jax.Array]
    activation: Callable[[jax.Array], jax.Array] = jax.nn.silu


# What the layers report of the input of each projection; gate_proj and up_proj have the same.
MOMENT_OF = {
    "gate_proj": "input_moment",
    "up_proj": "input_moment",
    "down_proj": "activation_moment",
}

# (frozen projections, x [N, D], adapter, context) -> out [N, D], and what the layer reports.
FeedForward = Callable[
    [FrozenFfn, jax.Array, Adapter, LayerContext], tuple[jax.Array, dict[str, jax.Array]]
]


class ExpertState(NamedTuple):
    """What an expert computes before W_d and B_d.

    Attributes:
      activation: a `[N, F]`, in the dtype of x.
      term: a in float32, as sums over experts take it.
      low_rank: m `[N, r]` in float32 and the factors A_d and B_d; `None` where the expert does not
        adapt W_d.
    """

    activation: jax.Array
    term: jax.Array
    low_rank: tuple[jax.Array, Factors] | None


def moe_layer(
    frozen: FrozenFfn,
    x: jax.Array,
    adapter: Adapter,
    context: LayerContext,
    *,
    scale: float,
    dropout_rate: float,
    adversarial: bool,
    second_moments: bool = False,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """MoE-CL's layer: a shared and a task expert under a token-wise gate (eq. 3 to 8).

    Args:
      frozen: the layer's frozen projections.
      x: `[N, D]`.
      adapter: `shared` and `task` experts, and `gate` G `[2, D]` (row 0 shared); or `gate`
        `[E, 2, D]` of several tasks and `choice` `[N, E]`, 1 for the task a token belongs to.
      context: membership of tokens and dropout seed.
      scale: c, lora_alpha / r.
      dropout_rate: dropout rate of both experts, each of which draws its own masks.
      adversarial: whether the discriminator's input is wanted.
      second_moments: whether those of the shared expert's inputs are wanted.

    Returns:
      `[N, D]`, and of each example's real tokens the mean of beta_s, `shared_weight` `[B]`, and,
      when `adversarial`, mean(z_s), `shared_pooled` `[B, D]` in float32; and what
      `second_moments_of` gives where it is wanted.
    """
    expert = functools.partial(
        _expert_state, frozen, x, context=context, scale=scale, dropout_rate=dropout_rate
    )
    members = context.membership

    beta = jax.nn.softmax(_gate_scores(x, adapter), axis=-1)  # eq. 8
    hidden = _frozen_hidden(frozen, x)
    shared = expert(hidden, adapter["shared"], index=0)  # eq. 3
    task = expert(hidden, adapter["task"], index=1)  # eq. 4
    low = _low_rank_out((shared, beta[:, :1]), (task, beta[:, 1:]), x=x, scale=scale)
    pooled = _mean_output(frozen, shared, x, members, scale) if adversarial else None  # eq. 5
    out = _output(frozen, weighted_sum((shared.term, task.term), beta), low, x)  # eq. 7

    reports = {"shared_weight": mean_over_tokens(beta[:, :1], members)[:, 0]}
    if pooled is not None:
        reports["shared_pooled"] = pooled
    if second_moments:
        reports |= second_moments_of(x, shared.activation, adapter["shared"], members)
    return out, reports


def lora_layer(
    frozen: FrozenFfn,
    x: jax.Array,
    adapter: Adapter,
    context: LayerContext,
    *,
    scale: float,
    dropout_rate: float,
    second_moments: bool = False,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """One LoRA expert, `adapter["expert"]`, alone: out = z_e. Arguments as `moe_layer`."""
    hidden = _frozen_hidden(frozen, x)
    only = _expert_state(
        frozen,
        x,
        hidden,
        adapter["expert"],
        index=0,
        context=context,
        scale=scale,
        dropout_rate=dropout_rate,
    )
    out = _output(frozen, only.term, _low_rank_out((only, None), x=x, scale=scale), x)
    if not second_moments:
        return out, {}
    moments = second_moments_of(x, only.activation, adapter["expert"], context.membership)
    return out, moments


def second_moments_of(
    x: jax.Array, activation: jax.Array, expert: Expert, membership: jax.Array
) -> dict[str, jax.Array]:
    """Second moments of what goes into the projections that an expert adapts.

    Args:
      x: `[N, D]`, what goes into gate_proj and up_proj.
      activation: `[N, F]`, what goes into down_proj.
      expert: factors of the adapted projections.
      membership: `[B, N]`, 1 where a token is a real token of an example, else 0.

    Returns:
      Sums over real tokens, in float32: of x x^T, `input_moment` `[D, D]`, and of a a^T,
      `activation_moment` `[F, F]`; each where a projection that it goes into is adapted.
    """

    def moment(rows: jax.Array) -> jax.Array:
        wide = rows.astype(jnp.float32)
        real = membership.sum(axis=0)[:, None] * wide
        return jnp.einsum("ni,nj->ij", real, wide, precision="highest")

    wanted = {MOMENT_OF[target] for target in expert if target in MOMENT_OF}
    rows = {"input_moment": x, "activation_moment": activation}
    return {name: moment(rows[name]) for name in sorted(wanted)}


def frozen_layer(
    frozen: FrozenFfn, x: jax.Array, adapter: Adapter, context: LayerContext
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The model's own gated network: out = W_d (act(W_g x) * W_u x)."""
    del adapter, context
    activation = gated_activation(*_frozen_hidden(frozen, x), frozen.activation, x.dtype)
    return save_for_backward(frozen.down_proj(activation, x.dtype), x.dtype), {}


def _gate_scores(x: jax.Array, adapter: Adapter) -> jax.Array:
    """G x, `[N, 2]` in float32, with the gate of each token's own task."""
    gate = adapter["gate"]
    scores = x.astype(jnp.float32) @ gate.reshape(-1, x.shape[1]).T
    if gate.ndim == 3:
        scores = jnp.einsum("neg,ne->ng", scores.reshape(len(x), -1, 2), adapter["choice"])
    return scores


def _frozen_hidden(frozen: FrozenFfn, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """h_g = W_g x and h_u = W_u x, in float32 that is rounded to the dtype of x."""
    gate, up = frozen.gate_proj(x, jnp.float32), frozen.up_proj(x, jnp.float32)
    return save_for_backward(gate, x.dtype), save_for_backward(up, x.dtype)


def _expert_state(
    frozen: FrozenFfn,
    x: jax.Array,
    hidden: tuple[jax.Array, jax.Array],
    expert: Expert,
    *,
    index: int,
    context: LayerContext,
    scale: float,
    dropout_rate: float,
) -> ExpertState:
    """a_e and m_e of one expert, the first or second (`index`) of its layer."""
    gate, up = hidden
    dropped = dropout(x, dropout_rate, site_seed(context.seed, index, 0), context.places)
    if "gate_proj" in expert:
        gate = gate + low_rank(dropped, expert["gate_proj"], scale)
    if "up_proj" in expert:
        up = up + low_rank(dropped, expert["up_proj"], scale)
    activation = gated_activation(gate, up, frozen.activation, x.dtype)
    term = activation.astype(jnp.float32)
    if "down_proj" not in expert:
        return ExpertState(activation, term, None)
    dropped = dropout(activation, dropout_rate, site_seed(context.seed, index, 1), context.places)
    factors = expert["down_proj"]
    return ExpertState(activation, term, (to_rank(dropped, factors), factors))


def _low_rank_out(
    *weighted: tuple[ExpertState, jax.Array | None], x: jax.Array, scale: float
) -> jax.Array:
    """sum_e c B_d^e (beta_e m_e), `[N, D]` in float32; a beta of `None` is 1."""
    total = jnp.zeros(x.shape, jnp.float32)
    for state, beta in weighted:
        if state.low_rank:
            total = total + from_rank(*state.low_rank, scale, beta, x.dtype)
    return total


def _mean_output(
    frozen: FrozenFfn, state: ExpertState, x: jax.Array, membership: jax.Array, scale: float
) -> jax.Array:
    """mean(z_e) = W_d mean(a_e) + c B_d mean(m_e), `[B, D]` in float32."""
    mean = mean_over_tokens(state.activation, membership).astype(x.dtype)
    pooled = frozen.down_proj(mean, jnp.float32)
    if state.low_rank:
        middle, factors = state.low_rank
        pooled = pooled + scale * (mean_over_tokens(middle, membership) @ factors["b"])
    return pooled


def _output(frozen: FrozenFfn, mixed: jax.Array, low: jax.Array, x: jax.Array) -> jax.Array:
    """W_d (mixed) + low, `[N, D]` in the dtype of x."""
    out = frozen.down_proj(mixed.astype(x.dtype), jnp.float32) + low
    return save_for_backward(out, x.dtype).astype(x.dtype)
