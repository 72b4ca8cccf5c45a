"""Matrix products with a frozen or low-rank operand, and how frozen weights lie in memory."""

import functools
import math
from collections.abc import Callable
from typing import Any, TypeAlias

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.layout import Layout, with_layout_constraint

PROJECTED = "projected"  # names what `kept` gives, and the first half of low-rank products
QUANTIZATIONS = {"int8": 8, "int4": 4}  # bits of a weight
_GROUP = 32  # inputs of one output that share a scale


@flax.struct.dataclass
class QuantizedKernel:
    """A frozen kernel `[I, O]` as small integers with a scale for each group of inputs.

    Attributes:
      values: of 8 bits: int8 `[I, O]`. Of 4 bits: uint8 `[I / 2, O]`, input i in the lower half of
        the bytes in row i, input I / 2 + i in their upper half, both plus 8. (XLA's CPU backend
        spends a byte on an int4, and would widen all layers' at once.)
      scale: `[I / 32, O]`; groups are smaller where 32 does not divide I.
    """

    values: jax.Array
    scale: jax.Array


Kernel: TypeAlias = jax.Array | QuantizedKernel


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def dot(x: jax.Array, kernel: Kernel, dtype: Any = None, kernel_axis: int = -2) -> jax.Array:
    """Product of matrices that stays in the operands' dtype in the backward pass too.

    The default derivative of a bfloat16 product with a float32 accumulator multiplies float32
    by bfloat16, which has no fast kernel. Gradients that nobody asks for, such as a frozen
    kernel's, are dead code to XLA and are never computed. A quantised kernel has none; both passes
    expand it anew, so that it is never kept in full.

    Args:
      x: `[..., N, I]`.
      kernel: `[..., I, O]`; cast to the dtype of `x`.
      dtype: of the result; the default is that of `x`.
      kernel_axis: -1 where the kernel is `[..., O, I]`.

    Returns:
      `[..., N, O]`.
    """
    return _product(x, dense(kernel, x.dtype), -1, kernel_axis).astype(dtype or x.dtype)


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


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def kept(x: jax.Array, dtype: Any) -> jax.Array:
    """`x` rounded to `dtype`, which `--remat=projections` keeps for the backward pass.

    Bfloat16 is kept as its bits: to write one layer's bfloat16 into what is kept of all, XLA's CPU
    backend would convert that of all to float32 and back, in every layer. The gradient is not
    rounded.
    """
    return rounded_and_named(x, dtype)


@kept.defjvp
def _kept_jvp(
    dtype: Any, primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    return rounded_and_named(*primals, dtype), tangents[0]


def rounded_and_named(x: jax.Array, dtype: Any) -> jax.Array:
    """The value of `kept`: for a `custom_vjp`'s forward rule, which would hide `kept`'s name."""
    return from_bits(checkpoint_name(as_bits(x.astype(dtype)), PROJECTED)).astype(x.dtype)


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


def dense(kernel: Kernel, dtype: Any) -> jax.Array:
    """A kernel `[I, O]` in full."""
    if not isinstance(kernel, QuantizedKernel):
        return kernel.astype(dtype)
    values = kernel.values
    if values.dtype == jnp.uint8:
        values = jnp.concatenate([values & 15, values >> 4]).astype(jnp.int8) - 8
    grouped = values.reshape(len(kernel.scale), -1, values.shape[1]).astype(jnp.float32)
    scale = from_bits(kernel.scale).astype(jnp.float32)
    return (grouped * scale[:, None]).reshape(values.shape).astype(dtype)


def _product(a: jax.Array, b: jax.Array, a_axis: int, b_axis: int) -> jax.Array:
    """Contracts one axis of the last two each, over the leading axes one by one; in float32."""
    leading = tuple(range(a.ndim - 2))
    axes = ((a.ndim + a_axis,), (b.ndim + b_axis,))
    return lax.dot_general(a, b, (axes, (leading, leading)), preferred_element_type=jnp.float32)


def _transposed(x: jax.Array) -> jax.Array:
    """The last two axes exchanged; on a CPU in memory too.

    XLA's CPU backend has no bfloat16 kernel for a product over the first operand's rows. It would
    make both operands float32, and undo a mere transposition.
    """
    x = x.swapaxes(-1, -2)
    if jax.default_backend() != "cpu":
        return x
    return with_layout_constraint(x, Layout(tuple(range(x.ndim))))


def _forward(
    x: jax.Array, kernel: Kernel, dtype: Any, kernel_axis: int
) -> tuple[jax.Array, tuple[jax.Array, Kernel]]:
    return dot(x, kernel, dtype, kernel_axis), (x, kernel)


def _backward(
    dtype: Any, kernel_axis: int, residuals: tuple[jax.Array, Kernel], cotangent: jax.Array
) -> tuple[jax.Array, jax.Array | None]:
    del dtype
    x, kernel = residuals
    cotangent = cotangent.astype(x.dtype)
    x_cotangent = _product(cotangent, dense(kernel, x.dtype), -1, -3 - kernel_axis).astype(x.dtype)
    if isinstance(kernel, QuantizedKernel):
        return x_cotangent, None
    narrow = cotangent.shape[-1] < x.shape[-1]  # a wide product is faster than a tall one
    first, second = (cotangent, x) if narrow else (x, cotangent)
    gradient = _product(_transposed(first), second, -1, -2)
    if narrow == (kernel_axis == -2):
        gradient = lax.optimization_barrier(gradient).swapaxes(-1, -2)  # XLA would make it tall
    return x_cotangent, gradient.astype(kernel.dtype)


dot.defvjp(_forward, _backward)
