"""Measures what finished tasks cost the next one: `python -m moecl_jax.bench.tasks`.

Trains the next task of streams with 1, 10 and 100 finished tasks. Their steps take turns, so that
other work of the machine slows all of them equally. The experts of finished tasks are kept as in a
run, with random factors. docs/howto/benchmark.md explains each column.
"""

import argparse
import dataclasses
import functools
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from moecl_jax.bench.gauges import WARM_UP_STEPS
from moecl_jax.bench.inputs import OPTIMIZER, SHAPES, Inputs, build, jit_train_step
from moecl_jax.bench.parts import LEARNING_RATE
from moecl_jax.errors import UserError
from moecl_jax.kernels import QUANTIZATIONS
from moecl_jax.methods.parameters import Tree
from moecl_jax.methods.stream import StreamState
from moecl_jax.models.sharding import ONE_DEVICE
from moecl_jax.runs.checkpoint import TaskCheckpoints
from moecl_jax.training.plan import step_memory
from moecl_jax.training.steps import init_train_state


@dataclasses.dataclass(frozen=True)
class StreamCost:
    """The time, memory and disk space of a stream with some finished tasks.

    Attributes:
      finished: number of finished tasks.
      seconds: median time of a training step of the next task.
      step_bytes: device memory of such a step by XLA's analysis: frozen weights, trainable
        parameters and temporaries.
      host_bytes: host memory of the experts and heads of all finished tasks.
      checkpoint_bytes: disk space of the last finished task's checkpoint once a newer task is
        finished, with `keep_shared = 1`.
      shared_bytes: additional disk space of that checkpoint while it is the newest.
      expert_bytes: memory of one task's expert and head.
    """

    finished: int
    seconds: float
    step_bytes: int
    host_bytes: int
    checkpoint_bytes: int
    shared_bytes: int
    expert_bytes: int


def measure(inputs: Inputs, counts: Sequence[int], tasks: int) -> list[StreamCost]:
    """Measures streams with different numbers of finished tasks.

    Args:
      inputs: model and examples.
      counts: number of finished tasks of each stream.
      tasks: number of tasks of each stream, finished or not; 0 for one more than are finished.

    Returns:
      The cost of each stream.
    """
    step, starting = jit_train_step(inputs.context), inputs.starting
    # Rows are padded to the longest example of all, so that all batches have one shape.
    batches = [inputs.make_batch(each, "padded_to_max", training=True) for each in inputs.batches]
    streams = [_stream(inputs, count, tasks or count + 1) for count in counts]
    states, calls = [], []
    for stream, count in zip(streams, counts, strict=True):
        parameters = starting.begin(stream.shared, count, memory=stream.memory)
        key, start = starting.training_key(count), starting.task_start(count)
        state = init_train_state(inputs.context.method, OPTIMIZER, parameters, key, start)
        states.append(state)
        calls.append(step.lower(state, inputs.frozen, batches[0], LEARNING_RATE).compile())
    seconds = np.zeros((len(batches), len(counts)))
    for number, batch in enumerate(batches):
        for place, call in enumerate(calls):
            begun = time.perf_counter()
            states[place], metrics = call(states[place], inputs.frozen, batch, LEARNING_RATE)
            jax.block_until_ready(metrics)
            seconds[number, place] = time.perf_counter() - begun
    medians = np.median(seconds[WARM_UP_STEPS:], axis=0)
    return [
        _cost(stream, float(median), step_memory(call))
        for stream, median, call in zip(streams, medians, calls, strict=True)
    ]


def _stream(inputs: Inputs, count: int, tasks: int) -> StreamState:
    """Makes a stream of `tasks` tasks, the first `count` of which are finished."""
    stream = inputs.starting.stream(tasks)
    for index in range(count):
        parameters = inputs.starting.begin(stream.shared, index, memory=stream.memory)
        noised = functools.partial(_noised, np.random.default_rng(index))
        parameters = parameters.replace(expert=jax.tree.map(noised, parameters.expert))
        stream = stream.after(f"task_{index}", parameters, len(inputs.answers))
    return stream


def _noised(generator: np.random.Generator, leaf: jax.Array) -> np.ndarray:
    """Adds noise, for a B of zeros, as before training, would take no space on disk."""
    noise = generator.standard_normal(leaf.shape, np.float32)
    return np.asarray(leaf) + 0.01 * noise.astype(leaf.dtype)


def _cost(stream: StreamState, seconds: float, step_bytes: int) -> StreamCost:
    finished = [done for done in stream.finished.values() if done is not None]
    last = finished[-1]
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = TaskCheckpoints(Path(folder), ("older", "newest"))
        for index in range(2):
            own, shared = {"expert": last.expert, "head": last.head}, {"shared": stream.shared}
            checkpoints.save_finished(index, own, shared, {}, keep_shared=1)
        older, newest = map(_size_on_disk, sorted(checkpoints.folder.iterdir()))
    return StreamCost(
        finished=len(stream.finished),
        seconds=seconds,
        step_bytes=step_bytes,
        host_bytes=sum(_bytes((each.expert, each.head)) for each in finished),
        checkpoint_bytes=older,
        shared_bytes=newest - older,
        expert_bytes=_bytes((last.expert, last.head)),
    )


def _size_on_disk(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _bytes(tree: Tree) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
      argv: arguments after the program's name; those of the process by default.

    Returns:
      The exit status: 0, or 1 after a mistake in the arguments, which standard error then names.
    """
    arguments = _parser().parse_args(argv)
    try:
        counts = sorted(int(count) for count in arguments.finished.split(","))
        if counts[0] < 1:
            raise ValueError
    except ValueError:
        print(
            f"tasks: error: --finished={arguments.finished}: expected numbers from 1 on, joined by "
            "commas, such as 1,10,100",
            file=sys.stderr,
        )
        return 1
    if arguments.tasks and arguments.tasks <= counts[-1]:
        print(
            f"tasks: error: --tasks={arguments.tasks}: expected more than the {counts[-1]} that "
            "are finished",
            file=sys.stderr,
        )
        return 1
    try:
        costs = measure(build(arguments), counts, arguments.tasks)
    except UserError as error:
        print(f"tasks: error: {error}", file=sys.stderr)
        return 1
    first = costs[0]
    print(
        "finished  step ms  of the first  step MB  of the first  host MB  expert MB  saved MB  "
        "with shared"
    )
    for cost in costs:
        cells = (
            f"{cost.finished:8}",
            f"{1e3 * cost.seconds:7.1f}",
            f"{cost.seconds / first.seconds:12.3f}",
            f"{cost.step_bytes / 1e6:7.1f}",
            f"{cost.step_bytes / first.step_bytes:12.3f}",
            f"{cost.host_bytes / 1e6:7.2f}",
            f"{cost.expert_bytes / 1e6:9.2f}",
            f"{cost.checkpoint_bytes / 1e6:8.2f}",
            f"{(cost.checkpoint_bytes + cost.shared_bytes) / 1e6:11.2f}",
        )
        print("  ".join(cells))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tasks", description=__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add(
        "--finished",
        default="1,10,100",
        metavar="N,N",
        help="numbers of finished tasks (default: %(default)s)",
    )
    add(
        "--tasks",
        type=int,
        default=0,
        metavar="N",
        help="tasks of each stream, finished or not (default: one more than are finished)",
    )
    add("--shape", choices=tuple(SHAPES), default="smollm2-135m", help="default: %(default)s")
    add("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="dtype of the model")
    add("--quantization", choices=("none", *QUANTIZATIONS), default="none", help="default: none")
    add("--batch", type=int, default=8, metavar="B", help="examples a step (default: 8)")
    add("--length", type=int, default=64, metavar="N", help="tokens of each example (default: 64)")
    add("--steps", type=int, default=20, metavar="N", help="measured steps (default: 20)")
    remat: Any = "projections" if ONE_DEVICE.one_cpu else "full"
    parser.set_defaults(
        model=None,
        layers=0,
        texts=None,
        method="moe_cl",
        dropout=0.05,
        remat=remat,
        attention="xla",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
