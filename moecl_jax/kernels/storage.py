"""How frozen weights lie in memory: bfloat16 as its bits, kernels as small integers.

These functions have no twin: both forms of the kernels read the same stored weights.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, TypeAlias

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

QUANTIZATIONS = {"int8": 8, "int4": 4}  # bits of a weight
_GROUP = 32  # inputs of one output that share a scale


@flax.struct.dataclass
class QuantizedKernel:
    """A frozen kernel `[I, O]` as small integers with a scale for each group of inputs.

    Attributes:
      values: integers of 8 bits: int8 `[I, O]`. Those of 4 bits: uint8 `[I / 2, O]`, input i in the
        lower half of the bytes in row i, input I / 2 + i in their upper half, both plus 8. (XLA's
        CPU backend spends a byte on an int4, and would widen all layers' at once.)
      scale: `[I / 32, O]`; groups are smaller where 32 does not divide I.
    """

    values: jax.Array
    scale: jax.Array


StoredKernel: TypeAlias = jax.Array | QuantizedKernel


def as_bits(tree: Any) -> Any:
    """Frozen bfloat16 weights as their uint16 bits, for backends without bfloat16 arithmetic.

    XLA's CPU backend rewrites a slice of a bfloat16 array as a slice of a float32 one, so that a
    scan over layers converts every layer's weights to float32 in every step. Bits are sliced as
    they are: on two cores that is 1.6 times the matrix product rate, and no float32 copy.
    """

    def view(leaf: jax.Array) -> jax.Array:
        return leaf.view(jnp.uint16) if leaf.dtype == jnp.bfloat16 else leaf

    return jax.tree.map(view, tree)


def from_bits(tree: Any) -> Any:
    """The bfloat16 arrays that `as_bits` stored; any other array as it is."""

    def view(leaf: jax.Array) -> jax.Array:
        return lax.bitcast_convert_type(leaf, jnp.bfloat16) if leaf.dtype == jnp.uint16 else leaf

    return jax.tree.map(view, tree)


def quantize(kernel: jax.Array, bits: int) -> QuantizedKernel:
    """The nearest integers to a kernel's weights, group by group.

        w ~ s q,   s = max |w| / (2^(bits - 1) - 1/2),   q in -2^(bits - 1) .. 2^(bits - 1) - 1

    Args:
      kernel: `[I, O]`; I even if `bits` is 4.
      bits: 8 or 4.
    """
    inputs, outputs = kernel.shape
    grouped = kernel.astype(jnp.float32).reshape(-1, math.gcd(inputs, _GROUP), outputs)
    largest = 2.0 ** (bits - 1)
    scale = (jnp.abs(grouped).max(axis=1) / (largest - 0.5)).astype(kernel.dtype)
    steps = jnp.maximum(scale[:, None].astype(jnp.float32), jnp.finfo(jnp.float32).tiny)
    values = jnp.round(grouped / steps).clip(-largest, largest - 1).reshape(kernel.shape)
    if bits == 8:
        return QuantizedKernel(values.astype(jnp.int8), scale)
    lower, upper = jnp.split((values + largest).astype(jnp.uint8), 2)
    return QuantizedKernel(lower | upper << 4, scale)


def quantize_layers(
    params: Any, quantization: str, over_layers: Callable[..., Any] = lax.map
) -> Any:
    """A decoder's parameters with the kernels of all layers quantised, and nothing else.

    Embedding, output projection, norms and biases stay as they are.

    Args:
      params: nested dict, as `weights.load.Backbone` has it.
      quantization: a key of `QUANTIZATIONS`, or "none".
      over_layers: maps a function over the leading axis of the kernels.
    """
    if quantization == "none":
        return params
    each = functools.partial(quantize, bits=QUANTIZATIONS[quantization])

    def convert(tree: Any) -> Any:
        if not isinstance(tree, dict):
            return tree
        return {
            name: over_layers(each, leaf) if name == "kernel" else convert(leaf)
            for name, leaf in tree.items()
        }

    return {**params, "layers": convert(params["layers"])}


def one_by_one(function: Callable[[Any], Any], arrays: Any) -> Any:
    """As `lax.map`, from host to host memory with one slice at a time on the device."""
    compiled = jax.jit(function)
    parts = [jax.device_get(compiled(array)) for array in arrays]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *parts)
