"""The feed-forward network with low-rank experts: MoE-CL's pair, or one expert alone.

Axes: N tokens, B examples, D width, F ffn width, r rank, E experts.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax import lax

from moecl_jax.kernels.linear import dot, kept
from moecl_jax.models.lora import (
    Adapter,
    Expert,
    LayerContext,
    dropout,
    from_rank,
    low_rank,
    site_seed,
    to_rank,
)

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "silu": jax.nn.silu,
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
}


@flax.struct.dataclass
class FrozenFfn:
    """The frozen projections of one layer's gated network: functions of `[N, I]` and a dtype."""

    gate_proj: Callable[[jax.Array, Any], jax.Array]
    up_proj: Callable[[jax.Array, Any], jax.Array]
    down_proj: Callable[[jax.Array, Any], jax.Array]
    activation: Callable[[jax.Array], jax.Array] = jax.nn.silu


FeedForward = Callable[
    [FrozenFfn, jax.Array, Adapter, LayerContext], tuple[jax.Array, dict[str, jax.Array]]
]


def frozen_ffn(
    frozen: FrozenFfn, x: jax.Array, adapter: Adapter, context: LayerContext
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The model's own gated network: W_d (act(W_g x) * W_u x), act being silu in most models."""
    del adapter, context
    gate, up = _hidden(frozen, x)
    out = frozen.down_proj((frozen.activation(gate) * up).astype(x.dtype), x.dtype)
    return kept(out, x.dtype), {}


def mixture(
    frozen: FrozenFfn,
    x: jax.Array,
    experts: Sequence[Expert],
    weights: jax.Array | None,
    context: LayerContext,
    *,
    scale: float,
    dropout_rate: float,
    pool_first: bool,
) -> tuple[jax.Array, jax.Array | None]:
    """Weighted sum of the experts' FFN outputs, with one frozen down projection for all.

    An expert e's output is (MoE-CL, eq. 3 and 4; c = lora_alpha / r)

        a_e = act(W_g x + c B_g^e A_g^e drop(x)) * (W_u x + c B_u^e A_u^e drop(x))
        z_e = W_d a_e + c B_d^e A_d^e drop(a_e)

    and since W_d is linear, exactly

        sum_e beta_e z_e = W_d (sum_e beta_e a_e) + sum_e c B_d^e (beta_e A_d^e drop(a_e))
        mean(z_s)        = W_d mean(a_s) + c B_d^s mean(A_d^s drop(a_s))

    Args:
      frozen: the layer's frozen projections.
      x: `[N, D]`.
      experts: E experts with factors `[I, r]` and `[r, O]`.
      weights: beta `[N, E]`, rows of sum 1; or `None` for a plain sum (one expert alone).
      context: membership of tokens and dropout seed.
      scale: c.
      dropout_rate: each expert draws its own masks.
      pool_first: whether mean(z) of the first expert is wanted.

    Returns:
      `[N, D]`, and mean(z_0) `[B, D]` in float32 over each example's real tokens or `None`.
    """
    # Arithmetic is float32, whatever the products' operands are.
    hidden_gate, hidden_up = _hidden(frozen, x)
    activations, low_rank_out, pooled = [], jnp.zeros(x.shape, jnp.float32), None

    for index, expert in enumerate(experts):
        weight = None if weights is None else weights[:, index : index + 1]
        dropped = dropout(x, dropout_rate, site_seed(context.seed, index, 0))
        gate, up = hidden_gate, hidden_up
        if "gate_proj" in expert:
            gate = gate + low_rank(dropped, expert["gate_proj"], scale)
        if "up_proj" in expert:
            up = up + low_rank(dropped, expert["up_proj"], scale)
        gate, up = _round_gradient(gate, x.dtype), _round_gradient(up, x.dtype)
        activation = _computed_once((frozen.activation(gate) * up).astype(x.dtype))
        activations.append(activation.astype(jnp.float32))
        if "down_proj" in expert:
            dropped = dropout(activation, dropout_rate, site_seed(context.seed, index, 1))
            factors = expert["down_proj"]
            middle = to_rank(dropped, factors)
            low_rank_out = low_rank_out + from_rank(middle, factors, scale, weight, x.dtype)
        if pool_first and index == 0:
            mean = _mean(activation, context.membership).astype(x.dtype)
            pooled = frozen.down_proj(mean, jnp.float32)
            if "down_proj" in expert:
                pooled = pooled + scale * (_mean(middle, context.membership) @ factors["b"])

    if weights is None:
        mixed = functools.reduce(jnp.add, activations)
    else:
        mixed = _weighted(activations, weights)
    out = frozen.down_proj(mixed.astype(x.dtype), jnp.float32) + low_rank_out
    return kept(out, x.dtype).astype(x.dtype), pooled


def moe_ffn(
    frozen: FrozenFfn,
    x: jax.Array,
    adapter: Adapter,
    context: LayerContext,
    *,
    scale: float,
    dropout_rate: float,
    adversarial: bool,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """MoE-CL's layer: shared and task expert under a token-wise gate (eq. 7 and 8).

        beta = softmax(G x),   out = beta_s z_s + beta_t z_t

    Args:
      frozen: the layer's frozen projections.
      x: `[N, D]`.
      adapter: `shared` and `task` experts and `gate` `[2, D]` (row 0 shared); or `gate`
        `[E, 2, D]` of several tasks and `choice` `[N, E]`, 1 for the task a token belongs to.
      context: membership of tokens and dropout seed.
      scale: lora_alpha / r.
      dropout_rate: of both experts.
      adversarial: whether the discriminator's input is wanted.

    Returns:
      `[N, D]`, and of each example's real tokens the mean weight of the shared expert,
      `shared_weight` `[B]`, and, when `adversarial`, mean(z_s), `shared_pooled` `[B, D]`.
    """
    gate = adapter["gate"]
    scores = x.astype(jnp.float32) @ gate.reshape(-1, x.shape[1]).T
    if gate.ndim == 3:
        scores = jnp.einsum("neg,ne->ng", scores.reshape(len(x), -1, 2), adapter["choice"])
    weights = jax.nn.softmax(scores, axis=-1)
    out, pooled = mixture(
        frozen,
        x,
        (adapter["shared"], adapter["task"]),
        weights,
        context,
        scale=scale,
        dropout_rate=dropout_rate,
        pool_first=adversarial,
    )
    reports = {"shared_weight": _mean(weights[:, :1], context.membership)[:, 0]}
    return out, reports if pooled is None else {**reports, "shared_pooled": pooled}


def lora_ffn(
    frozen: FrozenFfn,
    x: jax.Array,
    adapter: Adapter,
    context: LayerContext,
    *,
    scale: float,
    dropout_rate: float,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """One LoRA expert, `adapter["expert"]`, alone. Arguments as `moe_ffn`."""
    out, _ = mixture(
        frozen,
        x,
        (adapter["expert"],),
        None,
        context,
        scale=scale,
        dropout_rate=dropout_rate,
        pool_first=False,
    )
    return out, {}


def _hidden(frozen: FrozenFfn, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What the frozen gate and up projections give, in float32 that is rounded to x's dtype."""
    gate, up = frozen.gate_proj(x, jnp.float32), frozen.up_proj(x, jnp.float32)
    return kept(gate, x.dtype), kept(up, x.dtype)


def _weighted(activations: Sequence[jax.Array], weights: jax.Array) -> jax.Array:
    """Sum of the experts' `[N, F]`, each times its column of `weights` `[N, E]`, rows of sum 1.

    It is the last one and weighted differences to it: of two weights, but one needs a gradient.
    """
    *others, mixed = activations
    for index, activation in enumerate(others):
        mixed = mixed + scaled(weights[:, index : index + 1], activation - activations[-1])
    return mixed


@jax.custom_vjp
def scaled(weight: jax.Array, x: jax.Array) -> jax.Array:
    """`weight` `[N, 1]` times `x` `[N, F]`."""
    return weight * x


def _scale_forward(
    weight: jax.Array, x: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return weight * x, (weight, x)


def _scale_backward(
    residuals: tuple[jax.Array, jax.Array], cotangent: jax.Array
) -> tuple[jax.Array, jax.Array]:
    weight, x = residuals
    products = x * cotangent
    if jax.default_backend() == "cpu":
        # XLA hands a sum to YNNPACK together with the product, and first makes float32 copies of
        # all that it reads; a matrix product is handed over alone.
        return products @ jnp.ones((x.shape[1], 1), x.dtype), weight * cotangent
    return products.sum(axis=1, keepdims=True), weight * cotangent


scaled.defvjp(_scale_forward, _scale_backward)


def _mean(values: jax.Array, membership: jax.Array) -> jax.Array:
    """Mean of `[N, F]` over each example's real tokens, `[B, F]` in float32."""
    total = dot(membership.astype(values.dtype), values, jnp.float32)
    return total / jnp.maximum(membership.sum(axis=1, keepdims=True), 1.0)


def _computed_once(x: jax.Array) -> jax.Array:
    """`x`; on a CPU it and its gradient are computed once, not anew in each loop that reads them.

    There such loops take as long as their arrays take to read and write. Accelerators fuse them.
    """
    return lax.optimization_barrier(x) if jax.default_backend() == "cpu" else x


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _round_gradient(x: jax.Array, dtype: Any) -> jax.Array:
    """`x`, with a gradient that is rounded to `dtype`, in which the products take it anyway."""
    del dtype
    return x


def _forward(x: jax.Array, dtype: Any) -> tuple[jax.Array, None]:
    return _round_gradient(x, dtype), None


def _backward(dtype: Any, _: None, cotangent: jax.Array) -> tuple[jax.Array]:
    return (_computed_once(cotangent.astype(dtype)).astype(cotangent.dtype),)


_round_gradient.defvjp(_forward, _backward)
