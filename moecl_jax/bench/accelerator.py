"""Checks a fresh accelerator within minutes: `python -m moecl_jax.bench.accelerator`.

Compares the kernels with their references on the device, measures the latency of one text, decoding
and training at a model's sizes with random weights, and trains the demo's first task. Each part is
a process of its own with a time limit. One that fails or takes too long is reported, and stops
nothing. Prints a Markdown table. docs/howto/benchmark.md has the command.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from moecl_jax.bench.kernel_check import attentions_of
from moecl_jax.runs.log import plain
from moecl_jax.runs.workdir import write_json
from moecl_jax.testing import write_model, write_task

SHAPES = ("llama-2-7b", "smollm2-135m", "tiny")
_ROOT = Path(__file__).resolve().parents[2]
_DEMO_TASK = "trec"


@dataclasses.dataclass(frozen=True)
class Part:
    """One command of the check.

    Attributes:
      name: name that the table shows.
      command: what follows `python -m`.
      limit: seconds that it may take.
      figures: reads what the command has written, as text for the table and as numbers.
    """

    name: str
    command: tuple[str, ...]
    limit: float
    figures: Callable[[], tuple[str, Any]]


def run_part(part: Part, seconds: float) -> dict[str, Any]:
    """Runs a part in a process of its own.

    Args:
      part: what to run.
      seconds: time that is left for all parts.

    Returns:
      `part`, `outcome` ("ok", "failed", "too slow" or "no time left"), `seconds`, `figures` as
      text, `numbers`, and `problem`, the last line on standard error, or None.
    """
    row: dict[str, Any] = {"part": part.name, "seconds": 0.0, "figures": "", "numbers": None}
    row |= {"command": " ".join(part.command), "problem": None}
    problem: str | None
    limit = min(part.limit, seconds)
    if limit < 1:
        return row | {"outcome": "no time left"}
    begun = time.monotonic()
    try:
        done = subprocess.run(
            [sys.executable, "-m", *part.command],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=limit,
            check=False,
            cwd=_ROOT,
            env=_environment(),
        )
    except subprocess.TimeoutExpired:
        outcome, problem = "too slow", f"stopped after {limit:.0f} s"
    else:
        lines = done.stderr.strip().splitlines()
        outcome = "failed" if done.returncode else "ok"
        problem = (lines[-1] if lines else f"status {done.returncode}") if done.returncode else None
    try:  # what was written before a part failed counts
        row["figures"], row["numbers"] = part.figures()
    except (OSError, ValueError, LookupError, TypeError) as error:
        if outcome == "ok":
            outcome, problem = "failed", f"its output cannot be read: {error}"
    return row | {"outcome": outcome, "seconds": time.monotonic() - begun, "problem": problem}


def format_markdown(result: dict[str, Any]) -> str:
    """Shows the result of a check as a Markdown table.

    Args:
      result: what `check` returns.
    """
    device = result["device"]
    named = f"{device['kind']} ({device['platform']})" if device else "unknown device"
    lines = [
        f"{named}, `--shape={result['shape']}`, {result['seconds']:.0f} s in all",
        "",
        "| part | outcome | s | figures |",
        "| --- | --- | --- | --- |",
    ]
    for row in result["parts"]:
        said = "; ".join(text for text in (row["figures"], row["problem"]) if text)
        cells = (row["part"], row["outcome"], f"{row['seconds']:.0f}", said.replace("|", "/"))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def check(shape: str, seconds: float, folder: Path) -> dict[str, Any]:
    """Runs all parts.

    Args:
      shape: one of `SHAPES`.
      seconds: time for all parts together; parts that it does not suffice for are left out.
      folder: empty folder for what the parts write.

    Returns:
      `shape`, `seconds`, `device` (None if no part told it) and `parts`, a row for each.
    """
    end, begun = time.monotonic() + seconds, time.monotonic()
    result: dict[str, Any] = {"shape": shape, "seconds": 0.0, "device": None, "parts": []}
    rows = result["parts"]

    def run(part: Part) -> None:
        print(f"{part.name} ...", file=sys.stderr, flush=True)
        rows.append(run_part(part, end - time.monotonic()))

    kernels = folder / "kernels.json"
    command = ("moecl_jax.bench.kernel_check", f"--shape={shape}", f"--output={kernels}")
    run(Part("kernels", command, 120, lambda: _of_kernels(kernels)))
    if kernels.exists():
        result["device"] = json.loads(kernels.read_text(encoding="utf-8"))["device"]
    platform = (result["device"] or {}).get("platform", "cpu")
    for part in _parts(shape, platform, folder):
        run(part)
    result["seconds"] = time.monotonic() - begun
    return result


def _parts(shape: str, platform: str, folder: Path) -> Iterator[Part]:
    """All parts but the kernels, the most wanted ones first."""
    tiny = shape == "tiny"
    latency = ("--batch=1", "--length=48" if tiny else "--length=300")
    batch = ("--batch=2", "--length=32") if tiny else ("--batch=8", "--length=512")
    steps = "--steps=1" if tiny else "--steps=5"

    def bench(name: str, *options: str, limit: float) -> Part:
        output = folder / f"{name.replace(' ', '_').replace(',', '')}.json"
        command = ("moecl_jax.bench", f"--shape={shape}", *options, f"--output={output}")
        return Part(name, command, limit, lambda: _of_bench(output))

    def generate(quantization: str) -> Part:
        options = (*batch, "--parts=generate", steps, f"--quantization={quantization}")
        return bench(f"generate, {quantization}", *options, limit=90)

    yield bench("latency of one text", *latency, "--parts=evaluate", "--steps=10", limit=90)
    yield generate("none")
    yield _demo(tiny, folder)
    for remat in ("projections", "full", "none"):
        for name in attentions_of(platform):
            kinds = (f"--remat={remat}", f"--attention={name}")
            options = (*batch, "--parts=train", steps, *kinds)
            yield bench(f"train, {remat}, {name}", *options, limit=75)
    yield generate("int8")


def _demo(tiny: bool, folder: Path) -> Part:
    """Trains the demo's first task; in its place a tiny task and model for the shape "tiny"."""
    workdir, config = folder / "demo", folder / "demo_config.py"
    changes = [f"config.tasks = ({_DEMO_TASK!r},)"]
    if tiny:
        task = write_task(folder / "data", _DEMO_TASK, 2)
        changes += [
            f"config.model.path = {str(write_model(folder / 'model'))!r}",
            f"config.definitions[{_DEMO_TASK!r}] = {task!r}",
            "config.epochs = 1",
        ]
    config.write_text(
        "import sys\n\n"
        f"sys.path.insert(0, {str(_ROOT / 'configs')!r})\n"
        f"from {'default' if tiny else 'quickstart'} import get_config as start\n\n\n"
        "def get_config():\n"
        "    config = start()\n"
        + "".join(f"    {line}\n" for line in changes)
        + "    return config\n",
        encoding="utf-8",
    )
    command = ("moecl_jax", "train", f"--config={config}", f"--workdir={workdir}")
    return Part("demo, first task", command, 150, lambda: _of_demo(workdir))


def _of_kernels(path: Path) -> tuple[str, Any]:
    rows = json.loads(path.read_text(encoding="utf-8"))["kernels"]
    right = [row for row in rows if row["ok"]]
    text = f"{len(right)} of {len(rows)} as their references"
    if right:
        worst = max(max(row["error"], row["gradient_error"]) for row in right)
        text += f", largest error {worst:.2%}"
    return text, rows


def _of_bench(path: Path) -> tuple[str, Any]:
    """The figures of the only part that was measured."""
    measured = json.loads(path.read_text(encoding="utf-8"))
    (row,) = measured["parts"]
    texts = [
        f"{row['tokens_per_second']:,.0f} tokens/s",
        f"{row['useful_flops_per_second'] / 1e12:,.2f} TFLOP/s",
        f"{row['share_of_ceiling']:.1%} of ceiling",
        f"step {1e3 * row['step_seconds']['median']:,.1f} ms",
    ]
    step = row["token_step"]
    if step:
        texts.append(
            f"one more token of each text {1e3 * step['seconds']:,.2f} ms, "
            f"{step['share_of_bandwidth']:.1%} of bandwidth"
        )
    for name, key in (("step", "step_memory_bytes"), ("peak", "peak_memory_bytes")):
        if row[key]:
            texts.append(f"{name} {row[key] / 1e9:,.1f} GB")
    return ", ".join(texts), {"ceiling": measured["ceiling"], **row}


def _of_demo(workdir: Path) -> tuple[str, Any]:
    results = json.loads((workdir / "results.json").read_text(encoding="utf-8"))
    accuracy, before = results["accuracy_matrix"][0][0], results["scored_random_init"][0]
    text = (
        f"accuracy {before:.1%} before and {accuracy:.1%} after training, "
        f"{results['wall_seconds']:.0f} s"
    )
    numbers = {"accuracy": accuracy, "before": before, "wall_seconds": results["wall_seconds"]}
    return text, numbers


def _environment() -> dict[str, str]:
    """The environment of a part, in which this package is found wherever the part runs."""
    path = os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
      argv: arguments after the program's name; those of the process by default.

    Returns:
      The exit status: 0 if all parts are ok, else 1.
    """
    parser = argparse.ArgumentParser(prog="accelerator", description=__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--shape", choices=SHAPES, default="llama-2-7b", help="sizes (default: %(default)s)")
    add("--seconds", type=float, default=540, metavar="S", help="for all parts (default: 540)")
    add("--output", type=Path, metavar="FILE.json", help="file to write all numbers to")
    arguments = parser.parse_args(argv)
    if arguments.output and not arguments.output.parent.is_dir():
        message = f"--output: {arguments.output.parent} is no folder; make it first"
        print(f"accelerator: error: {message}", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as folder:
        result = check(arguments.shape, arguments.seconds, Path(folder))
    if arguments.output:
        write_json(arguments.output, plain(result))
    print(format_markdown(result))
    return int(any(row["outcome"] != "ok" for row in result["parts"]))


if __name__ == "__main__":
    sys.exit(main())
