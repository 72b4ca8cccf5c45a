"""What finished tasks cost the next one: `python -m moecl_jax.bench.tasks`.

Trains the task after 1, 10 and 100 finished ones, step by step in turn, so that whatever else the
machine does befalls all alike. Finished tasks' experts are finished and held as in a run, their
factors random. docs/benchmark.md says what each column is.
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

from moecl_jax.bench.gauges import WARM_UP, step_memory
from moecl_jax.bench.inputs import SHAPES, Inputs, build
from moecl_jax.bench.parts import RATE
from moecl_jax.errors import UserError
from moecl_jax.kernels import QUANTIZATIONS
from moecl_jax.methods.base import Tree
from moecl_jax.methods.state import Stream, finish
from moecl_jax.models.sharding import ONE_DEVICE
from moecl_jax.runs.checkpoint import TaskCheckpoints
from moecl_jax.training.steps import init_train_state, train_step
from moecl_jax.training.task_training import copy_tree


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a stream with so many finished tasks costs.

    Attributes:
      finished: tasks.
      seconds: median of a step of the next task.
      step_bytes: of a step on the device, by XLA's analysis: weights, what is trained, temporaries.
      host_bytes: of the finished tasks' experts and heads in host memory.
      checkpoint_bytes: of the last finished task's folder on disk, once a newer one is finished
        and with `keep_shared = 1`.
      shared_bytes: what such a folder holds more while it is the newest.
      expert_bytes: of its expert and head in memory.
    """

    finished: int
    seconds: float
    step_bytes: int
    host_bytes: int
    checkpoint_bytes: int
    shared_bytes: int
    expert_bytes: int


def measure(inputs: Inputs, counts: Sequence[int], tasks: int) -> list[Cost]:
    """Costs of streams with so many finished tasks.

    Args:
      inputs: model and texts.
      counts: of finished tasks.
      tasks: of each stream, finished or not; 0 for one more than are finished.
    """
    step = jax.jit(functools.partial(train_step, learner=inputs.learner), donate_argnums=0)
    # Padded to the longest of all, so that all batches have one shape.
    batches = [inputs.make_batch(each, "padded_to_max", training=True) for each in inputs.batches]
    streams = [_stream(inputs, count, tasks or count + 1) for count in counts]
    states, calls = [], []
    for stream, count in zip(streams, counts, strict=True):
        shared = copy_tree(stream.shared)  # for the step may overwrite what it is given
        active = inputs.initializer.begin(shared, count, memory=stream.memory)
        state = init_train_state(inputs.learner, active, inputs.initializer.training_key(count))
        states.append(state)
        calls.append(step.lower(state, inputs.frozen, batches[0], RATE).compile())
    seconds = np.zeros((len(batches), len(counts)))
    for number, batch in enumerate(batches):
        for place, call in enumerate(calls):
            begun = time.perf_counter()
            states[place], metrics = call(states[place], inputs.frozen, batch, RATE)
            jax.block_until_ready(metrics)
            seconds[number, place] = time.perf_counter() - begun
    medians = np.median(seconds[WARM_UP:], axis=0)
    return [
        _cost(stream, float(median), step_memory(call))
        for stream, median, call in zip(streams, medians, calls, strict=True)
    ]


def _stream(inputs: Inputs, count: int, tasks: int) -> Stream:
    """A stream of so many tasks, `count` of them finished."""
    stream = inputs.initializer.stream(tasks)
    for index in range(count):
        active = inputs.initializer.begin(stream.shared, index, memory=stream.memory)
        noised = functools.partial(_noised, np.random.default_rng(index))
        expert = jax.tree.map(noised, active.expert)
        active = dataclasses.replace(active, expert=expert)
        stream = finish(stream, f"task_{index}", active, len(inputs.answers))
    return stream


def _noised(generator: np.random.Generator, leaf: jax.Array) -> np.ndarray:
    """As after training: no B is zero, which would be saved in no space."""
    noise = generator.standard_normal(leaf.shape, np.float32)
    return np.asarray(leaf) + 0.01 * noise.astype(leaf.dtype)


def _cost(stream: Stream, seconds: float, step_bytes: int) -> Cost:
    last = list(stream.finished.values())[-1]
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = TaskCheckpoints(Path(folder))
        for index, name in enumerate(("older", "newest")):
            own, shared = {"expert": last.expert, "head": last.head}, {"shared": stream.shared}
            checkpoints.save_finished(index, name, own, shared, {}, keep_shared=1)
        older, newest = map(_size_on_disk, sorted(checkpoints.folder.iterdir()))
    return Cost(
        finished=len(stream.finished),
        seconds=seconds,
        step_bytes=step_bytes,
        host_bytes=sum(_bytes((each.expert, each.head)) for each in stream.finished.values()),
        checkpoint_bytes=older,
        shared_bytes=newest - older,
        expert_bytes=_bytes((last.expert, last.head)),
    )


def _size_on_disk(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _bytes(tree: Tree) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; the exit status is 1 after a mistake that standard error names."""
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
    add("--finished", default="1,10,100", metavar="N,N", help="tasks (default: %(default)s)")
    add(
        "--tasks",
        type=int,
        default=0,
        metavar="N",
        help="of each stream, finished or not (default: one more than are finished)",
    )
    add("--shape", choices=tuple(SHAPES), default="smollm2-135m", help="default: %(default)s")
    add("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="of the model")
    add("--quantization", choices=("none", *QUANTIZATIONS), default="none", help="default: none")
    add("--batch", type=int, default=8, metavar="B", help="examples a step (default: 8)")
    add("--length", type=int, default=64, metavar="N", help="tokens of each (default: 64)")
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
