"""Measures the speed of this machine: `python -m moecl_jax.bench`.

Measures matrix products and, in the same run, training steps, evaluation steps, generation and the
data pipeline. Speeds count only real tokens and useful FLOPs, by the formula in
moecl_jax/bench/flops.py. docs/reference/benchmark.md explains each number.
"""

import argparse
import dataclasses
import functools
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from moecl_jax.bench.flops import COUNTED_METHODS
from moecl_jax.bench.gauges import (
    Measurement,
    format_table,
    measure_ceiling,
    peak_memory,
    reset_peak_memory,
)
from moecl_jax.bench.inputs import LONGEST_TEXT, SHAPES, Inputs, build
from moecl_jax.bench.parts import (
    measure_batching,
    measure_evaluation,
    measure_generation,
    measure_tokenization,
    measure_training,
)
from moecl_jax.errors import UserError
from moecl_jax.kernels import ATTENTIONS, QUANTIZATIONS
from moecl_jax.models.decoder import REMAT_POLICIES
from moecl_jax.models.sharding import ONE_DEVICE
from moecl_jax.runs.log import plain
from moecl_jax.runs.workdir import write_json
from moecl_jax.training.facts import versions

PARTS = ("train", "evaluate", "mixed", "generate", "data")
MIXED_TASKS = 4  # tasks whose examples share a batch in the part "mixed"
LAYOUTS = ("packed", "padded", "padded_to_max")


def benchmark(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measures the parts that were asked for, and prints the speeds.

    Args:
      arguments: arguments of the command.

    Returns:
      The content of the JSON file: all numbers, with the settings and versions.

    Raises:
      UserError: if an argument is out of range, or the model or the texts cannot be read.
    """
    parts = list(dict.fromkeys(arguments.parts.split(",")))
    unknown = [part for part in parts if part not in PARTS]
    if unknown:
        raise UserError(f"--parts: {unknown[0]!r} is not one of {', '.join(PARTS)}")
    if arguments.output and not arguments.output.parent.is_dir():
        raise UserError(f"--output: {arguments.output.parent} is no folder; make it first")
    inputs = build(arguments)
    device = jax.devices()[0]
    print(f"{device.device_kind}, {cores()} cores; {_describe(inputs)}", flush=True)
    architecture = inputs.context.architecture
    gauge_ceiling = functools.partial(
        measure_ceiling, architecture.sizes, inputs.frozen, architecture.dtype
    )
    before, rows = gauge_ceiling(), []
    for measure in _measurements(parts, arguments.layout, texts=inputs.texts):
        reset_peak_memory()
        measured, peak = measure(inputs), peak_memory()
        rows += [dataclasses.replace(row, peak_memory_bytes=peak) for row in measured]
    ceiling = max(before, gauge_ceiling(), key=lambda each: each.flops_per_second)
    rows = [row.with_share_of(ceiling) for row in rows]
    print(f"ceiling: {ceiling.flops_per_second / 1e9:,.1f} GFLOP/s, {ceiling.products}")
    print(format_table(rows))
    files = {name: str(vars(arguments)[name] or "") for name in ("model", "texts", "output")}
    result: dict[str, Any] = {
        "settings": {**vars(arguments), "parts": parts, **files},
        "device": {
            "platform": device.platform,
            "kind": device.device_kind,
            "count": jax.device_count(),
            "cores": cores(),
        },
        "versions": versions(),
        "model": dataclasses.asdict(architecture.sizes),
        "ceiling": dataclasses.asdict(ceiling),
        "parts": [dataclasses.asdict(row) for row in rows],
    }
    if arguments.layout == "padded_to_max" and "train" in parts:
        packed, padded = (row for row in rows if row.part.startswith("train"))
        ratio = padded.examples_per_second / packed.examples_per_second
        print(f"padded_to_max trains {ratio:.2f} times as many examples/s as packed")
        result["padded_to_max_over_packed"] = ratio
    for row in rows:
        if row.token_step is not None:
            print(_describe_token_step(row.token_step, inputs.batch_size))
    if "mixed" in parts:
        one, mixed = (row for row in rows if row.part.startswith("evaluate"))
        ratio = mixed.examples_per_second / one.examples_per_second
        print(f"{MIXED_TASKS} tasks mixed are evaluated at {ratio:.0%} of the speed of one")
        result["mixed_over_one_task"] = ratio
    return result


def _measurements(
    parts: Sequence[str], layout: str, *, texts: bool
) -> list[Callable[[Inputs], list[Measurement]]]:
    """Lists the functions that measure the parts, in order.

    The layout padded_to_max is for training alone: training is then measured packed and padded, and
    all other parts packed.

    Args:
      parts: names of parts, some of `PARTS`.
      layout: one of `LAYOUTS`.
      texts: whether the examples are texts, whose tokenisation can be measured.
    """
    usual = "packed" if layout == "padded_to_max" else layout
    evaluate = functools.partial(measure_evaluation, layout=usual)
    measurements: dict[str, list[Callable[[Inputs], list[Measurement]]]] = {
        "train": [
            functools.partial(measure_training, layout=name)
            for name in dict.fromkeys((usual, layout))
        ],
        # The part "mixed" measures the batches of one task, too.
        "evaluate": [] if "mixed" in parts else [functools.partial(evaluate, tasks=(1,))],
        "mixed": [functools.partial(evaluate, tasks=(1, MIXED_TASKS))],
        "generate": [measure_generation],
        "data": [
            *([measure_tokenization] if texts else []),
            functools.partial(measure_batching, layout=usual),
        ],
    }
    return [measure for part in parts for measure in measurements[part]]


def cores() -> int:
    """Returns the number of CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
      argv: arguments after the program's name; those of the process by default.

    Returns:
      The exit status: 0, or 1 after a mistake in the arguments, which standard error then names.
    """
    arguments = _parser().parse_args(argv)
    try:
        result = benchmark(arguments)
    except UserError as error:
        print(f"bench: error: {error}", file=sys.stderr)
        return 1
    if arguments.output:
        write_json(arguments.output, plain(result))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    model = parser.add_mutually_exclusive_group()
    model.add_argument(
        "--shape",
        choices=tuple(SHAPES),
        default="smollm2-135m",
        help="random weights of a model of these sizes (default: smollm2-135m)",
    )
    add("--layers", type=int, default=0, metavar="N", help="layers of --shape (default: all)")
    model.add_argument("--model", metavar="PATH", help="instead: folder or file of a model")
    add("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="dtype of the model")
    add("--quantization", choices=("none", *QUANTIZATIONS), default="none", help="default: none")
    add("--parts", default=",".join(PARTS), help="parts to measure (default: %(default)s)")
    add("--batch", type=int, default=8, metavar="B", help="examples a step (default: 8)")
    add(
        "--length",
        type=int,
        default=0,
        metavar="N",
        help="tokens of each text with all labels: random texts have this length, and others are "
        f"cut to it (default: as AG News, about 60 tokens; cut to {LONGEST_TEXT})",
    )
    add(
        "--layout",
        choices=LAYOUTS,
        default="packed",
        help="layout of rows; padded_to_max trains both ways and compares (default: packed)",
    )
    add(
        "--remat",
        choices=("none", *REMAT_POLICIES),
        default="projections" if ONE_DEVICE.one_cpu else "full",
        help="default: %(default)s",
    )
    add("--attention", choices=tuple(ATTENTIONS), default="xla", help="default: xla")
    add("--dropout", type=float, default=0.05, help="dropout of the experts (default: 0.05)")
    add("--steps", type=int, default=20, metavar="N", help="measured steps (default: 20)")
    add("--method", choices=COUNTED_METHODS, default="moe_cl", help="default: moe_cl")
    add("--texts", type=Path, metavar="FILE.json", help='texts: a list of {"sentence": ...}')
    add("--output", type=Path, metavar="FILE.json", help="file to write all numbers to")
    return parser


def _describe(inputs: Inputs) -> str:
    lengths = [len(example.prompt) for example in inputs.examples]
    return (
        f"{len(lengths)} prompts of {min(lengths)} to {max(lengths)} tokens, mean "
        f"{np.mean(lengths):.1f}, {inputs.batch_size} a batch; {inputs.steps} steps a part"
    )


def _describe_token_step(step: dict[str, float], texts: int) -> str:
    return (
        f"one more token of {texts} texts takes {1e3 * step['seconds']:.1f} ms: "
        f"{step['tokens_per_second']:,.1f} written tokens/s; it has to read "
        f"{step['bytes'] / 1e6:,.1f} MB, {step['share_of_bandwidth']:.1%} of the measured memory "
        f"bandwidth of {step['memory_bytes_per_second'] / 1e9:,.1f} GB/s"
    )


if __name__ == "__main__":
    sys.exit(main())
