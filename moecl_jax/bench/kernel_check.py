"""Compares kernels with their references on the device: `python -m moecl_jax.bench.kernel_check`.

Each kernel is run in bfloat16 at the sizes of a model, with its gradients, beside its plain twin in
float32. The tests compare both at small sizes on a CPU; this command is for the device at hand.
"""

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moecl_jax.bench.inputs import SHAPES
from moecl_jax.errors import one_line
from moecl_jax.kernels import ATTENTIONS, KERNELS, MADE_FOR, quantize
from moecl_jax.models.config import DecoderConfig
from moecl_jax.runs.log import plain
from moecl_jax.runs.workdir import write_json

LARGEST_ERROR = 0.05  # of the largest value; bfloat16 keeps 8 bits, and sums take other orders
_TOKENS, _ROWS, _SLOTS, _RANK = 256, 2, 128, 8


@dataclasses.dataclass(frozen=True)
class Case:
    """One use of a kernel.

    Attributes:
      name: name that the table shows.
      kernel: key of `KERNELS`.
      arguments: positional arguments; the first `differentiated` get gradients.
      options: keyword arguments.
      differentiated: number of arguments that get gradients.
    """

    name: str
    kernel: str
    arguments: tuple[Any, ...]
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    differentiated: int = 1


def cases(sizes: DecoderConfig) -> list[Case]:
    """Lists what is compared.

    Args:
      sizes: sizes of the model.
    """
    width, ffn_width, dtype = sizes.width, sizes.ffn_width, jnp.bfloat16
    keys = iter(jax.random.split(jax.random.key(0), 16))

    def draw(*shape: int) -> jax.Array:
        return jax.random.normal(next(keys), shape, dtype)

    x, kernel = draw(_TOKENS, width), draw(width, ffn_width) * width**-0.5
    factors = {"a": draw(width, _RANK) * width**-0.5, "b": draw(_RANK, ffn_width)}
    gate, up = (draw(_TOKENS, ffn_width).astype(jnp.float32) for _ in range(2))
    query = draw(_ROWS, _SLOTS, sizes.heads, sizes.head_width)
    key, value = (draw(_ROWS, _SLOTS, sizes.kv_heads, sizes.head_width) for _ in range(2))
    mask = jnp.broadcast_to(jnp.tril(jnp.ones((_SLOTS, _SLOTS), bool)), (_ROWS, 1, _SLOTS, _SLOTS))
    attention = {
        "scale": sizes.head_width**-0.5,
        "causal": True,
        "segments": jnp.ones((_ROWS, _SLOTS), jnp.int32),
    }
    return [
        Case("dot", "dot", (x, kernel), differentiated=2),
        *(Case(f"affine, int{bits}", "affine", (x, quantize(kernel, bits))) for bits in (8, 4)),
        Case("low_rank", "low_rank", (x, factors, 2.0), differentiated=2),
        Case("gated_activation", "gated_activation", (gate, up, jax.nn.silu, dtype), {}, 2),
        Case("vocabulary_logits", "vocabulary_logits", (x[:8], draw(sizes.vocabulary_size, width))),
        *(
            Case(
                f"attention, {name}",
                "attention",
                (query, key, value, mask),
                {**attention, "implementation": name},
                3,
            )
            for name in attentions_of(jax.default_backend())
        ),
    ]


def attentions_of(backend: str) -> list[str]:
    """Names of the implementations of attention that a backend has.

    Args:
      backend: name that JAX gives it, such as "gpu".
    """
    return [name for name in ATTENTIONS if MADE_FOR.get(name, backend) == backend]


def compare(case: Case) -> dict[str, Any]:
    """Runs a kernel and its reference.

    Args:
      case: what to run.

    Returns:
      `kernel`; `error` and `gradient_error`, the largest difference as a share of the largest value
      of the reference; `milliseconds` of the fast form's values; `ok`, whether both errors are at
      most `LARGEST_ERROR`.
    """
    forms, count = KERNELS[case.kernel], case.differentiated
    rest = case.arguments[count:]

    def outcome(form: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
        return jax.jit(lambda *chosen: form(*chosen, *rest, **case.options))

    def gradients(form: Callable[..., jax.Array]) -> Callable[..., Any]:
        def total(*chosen: Any) -> jax.Array:
            out = form(*chosen, *rest, **case.options).astype(jnp.float32)
            return jnp.sum(
                out * jnp.sin(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape)
            )

        return jax.jit(jax.grad(total, argnums=tuple(range(count))))

    chosen = case.arguments[:count]
    fast = outcome(forms.fast)
    values, slopes = fast(*chosen), gradients(forms.fast)(*chosen)
    begun = time.perf_counter()
    jax.block_until_ready(fast(*chosen))
    seconds = time.perf_counter() - begun
    with jax.default_matmul_precision("highest"):
        error = _difference(values, outcome(forms.reference)(*chosen))
        gradient_error = _difference(slopes, gradients(forms.reference)(*chosen))
    return {
        "kernel": case.name,
        "error": error,
        "gradient_error": gradient_error,
        "milliseconds": 1e3 * seconds,
        "ok": error <= LARGEST_ERROR and gradient_error <= LARGEST_ERROR,  # False for NaN
    }


def _difference(ours: Any, theirs: Any) -> float:
    def share(a: jax.Array, b: jax.Array) -> float:
        ours, theirs = (np.asarray(each, np.float32) for each in (a, b))
        return float(np.abs(ours - theirs).max() / max(float(np.abs(theirs).max()), 1e-30))

    shares = [share(*pair) for pair in zip(*map(jax.tree.leaves, (ours, theirs)), strict=True)]
    return float(np.max(shares))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
      argv: arguments after the program's name; those of the process by default.

    Returns:
      The exit status: 0, or 1 if a kernel failed or differs.
    """
    parser = argparse.ArgumentParser(prog="kernel_check", description=__doc__, allow_abbrev=False)
    parser.add_argument("--shape", choices=tuple(SHAPES), default="llama-2-7b")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.json")
    arguments = parser.parse_args(argv)
    device = jax.devices()[0]
    described = {
        "platform": jax.default_backend(),
        "kind": device.device_kind,
        "count": jax.device_count(),
    }
    rows: list[dict[str, Any]] = []
    for case in cases(SHAPES[arguments.shape]):
        try:
            rows.append(compare(case))
        except Exception as error:  # one kernel that fails stops no other
            rows.append({"kernel": case.name, "ok": False, "problem": one_line(error)[:200]})
        write_json(arguments.output, plain({"device": described, "kernels": rows}))
        print(json.dumps(plain(rows[-1])), flush=True)
    bad = [row["kernel"] for row in rows if not row["ok"]]
    if bad:
        print(f"kernel_check: error: not as the reference: {', '.join(bad)}", file=sys.stderr)
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
