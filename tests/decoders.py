"""The frozen decoder run on tokens, for tests that compare its numbers with others'."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from moecl_jax.models.config import DecoderConfig
from moecl_jax.models.decoder import Decoder

SMOLLM2 = DecoderConfig(49152, 576, 1536, 30, 9, 3, 64, 100000.0, 1e-5, True, 8192)


@functools.partial(jax.jit, static_argnums=(0, 6))
def run(
    config: DecoderConfig,
    params: Any,
    tokens: Any,
    positions: Any,
    segments: Any,
    branches: Any,
    dtype: Any = jnp.float32,
) -> Any:
    """Hidden states `[R, S, D]` of `[R, S]` tokens."""
    decoder, membership = Decoder(config, dtype), jnp.ones((1, tokens.size))
    layout = (tokens, positions, segments, branches)
    out: Any = decoder.apply({"params": params}, *layout, membership)
    return out[0].reshape(*tokens.shape, -1)


@functools.partial(jax.jit, static_argnums=0)
def logits_of(config: DecoderConfig, params: Any, hidden: Any) -> Any:
    """Logits `[R, S, V]` of hidden states `[R, S, D]`."""
    flat = hidden.reshape(-1, config.width)
    logits: Any = Decoder(config).apply({"params": params}, flat, method="logits")
    return logits.reshape(*hidden.shape[:-1], -1)
