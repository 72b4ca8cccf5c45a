"""Clocks and gauges: steady-state steps, compilation, memory, and the matrix-product ceiling."""

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
from moecl_jax.methods.base import Tree
from moecl_jax.models.config import DecoderConfig

WARM_UP = 3  # steps before the measured ones
_CEILING_RUNS = 5
_CEILING_ROWS = {"cpu": (512, 2048)}
_CEILING_ROWS_ACCELERATOR = (2048, 8192)
_COLUMNS = (
    *("part", "examples/s", "tokens/s", "GFLOP/s", "of ceiling", "real slots"),
    *("step ms (p10-p90)", "compile s", "shapes", "step MB", "peak MB"),
)


@dataclasses.dataclass(frozen=True)
class Ceiling:
    """The machine's rate of matrix products.

    Attributes:
      flops_per_second: the highest.
      by_rows: the best of several runs for each number of rows N.
      products: what was multiplied.
    """

    flops_per_second: float
    by_rows: dict[int, float]
    products: str


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A function compiled for several shapes of batches.

    Attributes:
      calls: by the shape of a batch's tokens.
      seconds: of tracing and compiling all.
      memory_bytes: of the largest, by XLA's own analysis: arguments, results and temporaries.
    """

    calls: dict[tuple[int, ...], Callable[..., Any]]
    seconds: float
    memory_bytes: int


@dataclasses.dataclass(frozen=True)
class Row:
    """What was measured of one part; None where a number has no meaning.

    Attributes:
      part: its name.
      steps: how many were measured.
      examples_per_second: of all measured steps together.
      tokens_per_second: real tokens, without padding.
      useful_flops_per_second: by `flops.Formula`.
      useful_flops_per_token: the same for each real token.
      share_of_ceiling: useful FLOP/s over the ceiling's.
      real_share: of the slots that are computed, those that hold a real token.
      step_seconds: median, p10 and p90 of the steps.
      compile_seconds: of all shapes.
      compiled_shapes: how many there are.
      step_memory_bytes: `Compiled.memory_bytes`.
      peak_memory_bytes: see `peak_memory`.
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

    @classmethod
    def of(
        cls,
        part: str,
        seconds: np.ndarray,
        works: Sequence[Work],
        flops: Callable[[Work], int] | None = None,
        **more: Any,
    ) -> "Row":
        """Sums up measured steps.

        Args:
          part: its name.
          seconds: of each step.
          works: of each step.
          flops: useful FLOPs of a step.
          **more: further fields.
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

    def against(self, ceiling: Ceiling) -> "Row":
        """With its share of the ceiling."""
        if self.useful_flops_per_second is None:
            return self
        share = self.useful_flops_per_second / ceiling.flops_per_second
        return dataclasses.replace(self, share_of_ceiling=share)


def steady(
    run: Callable[[Any], Any], inputs: Sequence[Any], *, dispatches: bool = True
) -> np.ndarray:
    """Seconds of each step after the first `WARM_UP`, from one step's end to the next one's.

    The host waits for the device before the first measured step and after the last. Between them
    a second thread watches results come, so that the loop never waits for the device nor the
    device for the loop, as in training. The sum is exact; a single step's time is as late as the
    thread wakes up, which matters for steps of a few milliseconds.

    Args:
      run: does a step; its results must not be donated to a later step.
      inputs: an argument for each step.
      dispatches: whether `run` returns before the device is done; if not, nothing is watched.
    """

    def end(results: Any) -> float:
        jax.block_until_ready(results)
        return time.perf_counter()

    for value in inputs[:WARM_UP]:
        end(run(value))
    begun = time.perf_counter()
    if not dispatches:
        return np.diff([begun, *(end(run(value)) for value in inputs[WARM_UP:])])
    with ThreadPoolExecutor(max_workers=1) as watcher:
        ends = [watcher.submit(end, run(value)) for value in inputs[WARM_UP:]]
        return np.diff([begun, *(each.result() for each in ends)])


def compile_shapes(
    function: Any, batches: Iterable[Batch], arguments: Callable[[Batch], tuple[Any, ...]]
) -> Compiled:
    """Compiles a jitted function once for each shape of batch.

    Args:
      function: made by `jax.jit`.
      batches: all that will come.
      arguments: of the function for a batch.
    """
    calls: dict[tuple[int, ...], Any] = {}
    begun = time.perf_counter()
    for batch in batches:
        if batch.shape not in calls:
            calls[batch.shape] = function.lower(*arguments(batch)).compile()
    seconds = time.perf_counter() - begun
    return Compiled(calls, seconds, max(map(step_memory, calls.values())))


def step_memory(compiled: Any) -> int:
    """Bytes of a compiled function's arguments, results and temporaries, by XLA's analysis."""
    analysis = compiled.memory_analysis()
    held = analysis.argument_size_in_bytes + analysis.output_size_in_bytes
    return int(held - analysis.alias_size_in_bytes + analysis.temp_size_in_bytes)


def measure_ceiling(config: DecoderConfig, frozen: Tree, dtype: Any) -> Ceiling:
    """The machine's rate of matrix products of the model's own sizes, and nothing else.

    Through `linear.dot` as in the model, in a scan over the layers with the frozen weights where
    they lie: x `[N, D]` by each layer's up projection `[D, F]`, its result by the down projection
    `[F, D]`; 4 N D F FLOPs a layer. Results are only summed. The best of several runs, for
    several N.

    Args:
      config: sizes of the decoder.
      frozen: its parameters.
      dtype: of the products.
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


def _seconds(function: Callable[..., Any], *arguments: Any) -> float:
    begun = time.perf_counter()
    jax.block_until_ready(function(*arguments))
    return time.perf_counter() - begun


def forget_peak() -> None:
    """Starts the mark of the process's highest memory anew, where Linux lets."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> int | None:
    """The highest memory so far [bytes]; None where nothing tells.

    On an accelerator what its allocator had handed out at most since the process began; on CPU
    the process's resident memory, since `forget_peak` where that has an effect.
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
    import resource  # not on Windows

    highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return highest if sys.platform == "darwin" else 1024 * highest


def format_table(rows: Sequence[Row]) -> str:
    """A line a part; "-" where a number has no meaning."""
    cells = [_COLUMNS, *(_cells(row) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for first, *others in cells:
        padded = [text.rjust(width) for text, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *padded]))
    return "\n".join(lines)


def _cells(row: Row) -> tuple[str, ...]:
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
