"""Measures time and memory: steps in a steady state, compilation, and plain matrix products."""

import contextlib
import dataclasses
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moecl_jax.bench.flops import Work
from moecl_jax.data.batching import Batch
from moecl_jax.kernels import dot, from_bits
from moecl_jax.methods.parameters import Tree
from moecl_jax.models.config import DecoderConfig
from moecl_jax.runs.tables import align_columns
from moecl_jax.training.plan import step_memory

WARM_UP_STEPS = 3  # run before the measured steps
_CEILING_RUNS = 5  # the fastest counts
_CEILING_ROWS = {"cpu": (512, 2048)}  # numbers of rows N, by backend
_CEILING_ROWS_ACCELERATOR = (2048, 8192)
_BANDWIDTH_WORDS = 2**26  # 256 MiB
_COLUMNS = (
    *("part", "examples/s", "tokens/s", "GFLOP/s", "of ceiling", "real slots"),
    *("step ms (p10-p90)", "compile s", "shapes", "step MB", "peak MB"),
)


@dataclasses.dataclass(frozen=True)
class Ceiling:
    """The speed at which the machine multiplies matrices.

    Attributes:
      flops_per_second: the highest speed, in FLOP/s.
      by_rows: the fastest of several runs for each number of rows N, in FLOP/s.
      products: describes the matrices that were multiplied.
    """

    flops_per_second: float
    by_rows: dict[int, float]
    products: str


@dataclasses.dataclass(frozen=True)
class CompiledFunction:
    """A function compiled for several shapes of batches.

    Attributes:
      calls: compiled function for each shape of a batch's tokens.
      seconds: time to trace and compile all of them.
      memory_bytes: memory of the largest one by XLA's own analysis: arguments, results and
        temporaries.
    """

    calls: dict[tuple[int, ...], Callable[..., Any]]
    seconds: float
    memory_bytes: int


@dataclasses.dataclass(frozen=True)
class Measurement:
    """The numbers measured for one part; None where a number has no meaning.

    Attributes:
      part: name of the part.
      steps: number of measured steps.
      examples_per_second: examples per second over all measured steps.
      tokens_per_second: real tokens per second, without padding.
      step_seconds: `median`, `p10` and `p90` of the time of a step.
      useful_flops_per_second: useful FLOPs, by `flops.Formula`, per second.
      useful_flops_per_token: useful FLOPs per real token.
      share_of_ceiling: useful FLOP/s divided by those of the ceiling.
      real_share: fraction of the computed slots that hold a real token.
      compile_seconds: time to compile for all shapes of batches.
      compiled_shapes: number of shapes of batches.
      step_memory_bytes: memory of a step, as `CompiledFunction.memory_bytes`.
      peak_memory_bytes: highest memory of the process or device, as `peak_memory` returns it.
      token_step: cost of writing one more token of each text: the median time `seconds`,
        `tokens_per_second` of all texts together, the `bytes` of weights, trained parameters and
        cache that have to be read, and `share_of_bandwidth`, how much of the measured
        `memory_bytes_per_second` reading them once in that time takes.
    """

    part: str
    steps: int
    examples_per_second: float
    tokens_per_second: float
    step_seconds: dict[str, float]
    useful_flops_per_second: float | None = None
    useful_flops_per_token: float | None = None
    share_of_ceiling: float | None = None
    real_share: float | None = None
    compile_seconds: float | None = None
    compiled_shapes: int | None = None
    step_memory_bytes: int | None = None
    peak_memory_bytes: int | None = None
    token_step: dict[str, float] | None = None

    @classmethod
    def of_steps(
        cls,
        part: str,
        seconds: np.ndarray,
        works: Sequence[Work],
        flops: Callable[[Work], int] | None = None,
        **more: Any,
    ) -> "Measurement":
        """Sums up the measured steps of a part.

        Args:
          part: name of the part.
          seconds: time of each step, `[steps]`.
          works: work of each step.
          flops: counts the useful FLOPs of a step; None if they have no meaning for this part.
          **more: values of further attributes.
        """
        total, tokens = float(seconds.sum()), sum(work.tokens for work in works)
        if flops is not None:
            useful = sum(map(flops, works))
            more["useful_flops_per_second"] = useful / total
            more["useful_flops_per_token"] = useful / tokens
        low, median, high = (float(q) for q in np.percentile(seconds, (10, 50, 90)))
        return cls(
            part=part,
            steps=len(seconds),
            examples_per_second=sum(work.examples for work in works) / total,
            tokens_per_second=tokens / total,
            step_seconds={"median": median, "p10": low, "p90": high},
            **more,
        )

    def with_share_of(self, ceiling: Ceiling) -> "Measurement":
        """Returns a copy that has its share of the ceiling."""
        if self.useful_flops_per_second is None:
            return self
        share = self.useful_flops_per_second / ceiling.flops_per_second
        return dataclasses.replace(self, share_of_ceiling=share)


def steady(
    run: Callable[[Any], Any], inputs: Sequence[Any], *, dispatches: bool = True
) -> np.ndarray:
    """Measures the time of each step after the first `WARM_UP_STEPS`.

    A step lasts from the end of the step before it to its own end. The host waits for the device
    before the first measured step and after the last one. In between, a second thread waits for
    each result, so that neither the loop nor the device waits for the other, as in training. The
    sum of the times is exact. A single time is late by as much as the thread wakes up late, which
    matters for steps of a few milliseconds.

    Args:
      run: runs one step; its results must not be donated to a later step.
      inputs: argument of `run` for each step.
      dispatches: whether `run` returns before the device is done; if not, no thread is needed.

    Returns:
      Seconds of each measured step, `[steps]`.
    """

    def end(results: Any) -> float:
        jax.block_until_ready(results)
        return time.perf_counter()

    for value in inputs[:WARM_UP_STEPS]:
        end(run(value))
    begun = time.perf_counter()
    if not dispatches:
        return np.diff([begun, *(end(run(value)) for value in inputs[WARM_UP_STEPS:])])
    with ThreadPoolExecutor(max_workers=1) as watcher:
        ends = [watcher.submit(end, run(value)) for value in inputs[WARM_UP_STEPS:]]
        return np.diff([begun, *(each.result() for each in ends)])


def compile_shapes(
    function: Any, batches: Iterable[Batch], arguments: Callable[[Batch], tuple[Any, ...]]
) -> CompiledFunction:
    """Compiles a jitted function once for each shape of batch.

    Args:
      function: function that `jax.jit` has made.
      batches: all batches that the function will be called with.
      arguments: returns the arguments of the function for a batch.
    """
    calls: dict[tuple[int, ...], Any] = {}
    begun = time.perf_counter()
    for batch in batches:
        if batch.shape not in calls:
            calls[batch.shape] = function.lower(*arguments(batch)).compile()
    seconds = time.perf_counter() - begun
    return CompiledFunction(calls, seconds, max(map(step_memory, calls.values())))


def measure_ceiling(config: DecoderConfig, frozen: Tree, dtype: Any) -> Ceiling:
    """Measures how fast the machine multiplies matrices of the model's own sizes.

    A scan over the layers multiplies x `[N, D]` by each layer's up projection `[D, F]` and the
    result by its down projection `[F, D]`, which is 4 N D F FLOPs a layer, and only sums the
    results. The products are those of the model (`dot`), with the frozen weights where they are in
    memory. For each of several N the fastest of several runs counts.

    Args:
      config: sizes of the decoder.
      frozen: parameters of the decoder.
      dtype: dtype of the products.
    """
    ffn = frozen["layers"]["feed_forward"]
    kernels = ffn["up_proj"]["kernel"], ffn["down_proj"]["kernel"]
    layers, width, ffn_width = config.layers, config.width, config.ffn_width

    @jax.jit
    def products(x: jax.Array, kernels: tuple[jax.Array, jax.Array]) -> jax.Array:
        def layer(total: jax.Array, pair: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
            up, down = (from_bits(kernel) for kernel in pair)
            return total + dot(dot(x, up), down), None

        return jax.lax.scan(layer, jnp.zeros_like(x), kernels)[0]

    by_rows = {}
    for rows in _CEILING_ROWS.get(jax.default_backend(), _CEILING_ROWS_ACCELERATOR):
        x = jax.random.normal(jax.random.key(0), (rows, width), dtype)
        jax.block_until_ready(products(x, kernels))
        fastest = min(_seconds(products, x, kernels) for _ in range(_CEILING_RUNS))
        by_rows[rows] = 4 * layers * rows * width * ffn_width / fastest
    described = (
        f"{jnp.dtype(dtype).name} [N, {width}] x [{width}, {ffn_width}] and [N, {ffn_width}] x "
        f"[{ffn_width}, {width}], {layers} layers"
    )
    return Ceiling(max(by_rows.values()), by_rows, described)


def measure_bandwidth() -> float:
    """Measures the memory in bytes per second: a sum over an array that no cache holds.

    The fastest of several runs counts.
    """
    words = jnp.ones(_BANDWIDTH_WORDS, jnp.uint32)
    total = jax.jit(jnp.sum)
    jax.block_until_ready(total(words))
    return float(words.nbytes / min(_seconds(total, words) for _ in range(_CEILING_RUNS)))


def _seconds(function: Callable[..., Any], *arguments: Any) -> float:
    begun = time.perf_counter()
    jax.block_until_ready(function(*arguments))
    return time.perf_counter() - begun


def reset_peak_memory() -> None:
    """Resets the record of the process's highest memory, where Linux allows it."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> int | None:
    """Returns the highest memory use so far in bytes; None if the system does not report it.

    On an accelerator this is the most that its allocator had handed out at once since the process
    began. On CPU it is the resident memory of the process since `reset_peak_memory`, or since the
    process began where resetting is not allowed.
    """
    statistics = jax.devices()[0].memory_stats()
    if statistics:
        return statistics.get("peak_bytes_in_use")
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    if sys.platform == "win32":
        return None
    import resource  # does not exist on Windows

    highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return highest if sys.platform == "darwin" else 1024 * highest


def format_table(rows: Sequence[Measurement]) -> str:
    """Shows measurements as a table in plain text, a line each; "-" where there is no number."""
    return "\n".join(align_columns([_COLUMNS, *(_cells(row) for row in rows)]))


def _cells(row: Measurement) -> tuple[str, ...]:
    def shown(value: float | None, form: str, unit: float = 1.0) -> str:
        return "-" if value is None else format(value / unit, form)

    median, low, high = (f"{1e3 * row.step_seconds[key]:.1f}" for key in ("median", "p10", "p90"))
    return (
        row.part,
        shown(row.examples_per_second, ",.2f"),
        shown(row.tokens_per_second, ",.0f"),
        shown(row.useful_flops_per_second, ",.1f", 1e9),
        shown(row.share_of_ceiling, ".1%"),
        shown(row.real_share, ".1%"),
        f"{median} ({low}-{high})",
        shown(row.compile_seconds, ".1f"),
        shown(row.compiled_shapes, ".0f"),
        shown(row.step_memory_bytes, ",.0f", 1e6),
        shown(row.peak_memory_bytes, ",.0f", 1e6),
    )
