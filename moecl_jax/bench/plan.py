r"""Plans the memory and time of a training on many chips: `python -m moecl_jax.bench.plan`.

    python -m moecl_jax.bench.plan --shape=llama-2-70b --fsdp=64 --batch=64 --length=512 \
        --rate=459e12

The bytes of each chip follow from the shapes of all arrays (`jax.eval_shape`; nothing is allocated)
and the table in moecl_jax/models/sharding.py. The time follows from the useful FLOPs
(moecl_jax/bench/flops.py) and the speed of a chip. No chip is needed. With `--compile`, XLA reports
the memory of the step on one device of this machine. docs/howto/scaling.md explains what is
counted.
"""

import argparse
import dataclasses
import functools
import math
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, AxisType

from moecl_jax.bench.flops import Formula, Work
from moecl_jax.bench.inputs import (
    OPTIMIZER,
    RANDOM_ANSWERS,
    SHAPES,
    STREAM_TASKS,
    draw_frozen,
    formula_of,
    make_context,
    make_starting,
)
from moecl_jax.data.batching import Batch, BatchLayout, make_batch
from moecl_jax.data.tokenize import TokenizedExample
from moecl_jax.kernels import QUANTIZATIONS
from moecl_jax.methods.forward import StepContext
from moecl_jax.methods.parameters import Tree
from moecl_jax.models.model import Architecture
from moecl_jax.models.sharding import AXES, Placement
from moecl_jax.training.plan import step_memory
from moecl_jax.training.steps import Piece, TrainState, init_train_state, no_sums, train_piece


@dataclasses.dataclass(frozen=True)
class Plan:
    """The memory of one chip, in bytes, and the time of a step.

    Attributes:
      frozen: bytes of the frozen LLM's weights.
      trained: bytes of experts, gate, discriminator and the optimizer's state.
      inputs_of_layers: bytes of the layers' inputs, which model.remat = full keeps for the backward
        pass.
      gathered: bytes of one layer's weights, which fsdp gathers to compute that layer.
      hidden: bytes of the hidden values of one layer while it is computed, about 8 float32 arrays
        `[N, F]` for two experts.
      flops: useful FLOPs of a step on all chips together.
      seconds: time of a step at the given speed.
    """

    frozen: int
    trained: int
    inputs_of_layers: int
    gathered: int
    hidden: int
    flops: int
    seconds: float

    @property
    def total(self) -> int:
        """Bytes of one chip in all."""
        return self.frozen + self.trained + self.inputs_of_layers + self.gathered + self.hidden


@dataclasses.dataclass(frozen=True)
class PlannedTraining:
    """The shapes of a training of MoE-CL with rank 8, bfloat16 and full rematerialisation.

    Attributes:
      context: static parts of the training step.
      frozen: shapes of the frozen decoder's parameters.
      state: shapes of the training state of one task.
      batch: a batch of examples of one length, without padding where rows of that length exist.
      parts: number of parts in which the batch is computed, one after another.
      formula: counts the useful FLOPs of a step.
      work: work of a step.
    """

    context: StepContext
    frozen: Tree
    state: TrainState
    batch: Batch
    parts: int
    formula: Formula
    work: Work

    @classmethod
    def of(
        cls, shape: str, batch: int, length: int, *, quantization: str = "none", parts: int = 1
    ) -> "PlannedTraining":
        """Computes the shapes of a training.

        Args:
          shape: name of the model's sizes, a key of `SHAPES`.
          batch: number of examples a step, on all chips together.
          length: number of tokens of each example.
          quantization: `none`, or the name of a quantisation of the frozen layers.
          parts: number of parts in which a batch is computed, one after another.
        """
        architecture = Architecture(SHAPES[shape], jnp.dtype("bfloat16"), remat="full")
        context = make_context("moe_cl", architecture, dropout=0.05)
        starting = make_starting(context, classes=len(RANDOM_ANSWERS))

        def begin() -> TrainState:
            parameters = starting.begin(starting.shared(STREAM_TASKS), 0)
            return init_train_state(context.method, OPTIMIZER, parameters, jax.random.key(0))

        state = jax.eval_shape(begin)
        draw = functools.partial(draw_frozen, SHAPES[shape], architecture.dtype, quantization)
        answer, together = RANDOM_ANSWERS[0], -(-batch // parts)
        prompt = np.zeros(length - len(answer) + 1, np.int32)
        rows = BatchLayout(
            together,
            packed=True,
            row_length=1,
            continuations=1,
            answer_length=len(answer),
        )
        examples = [TokenizedExample(prompt, 0)] * together
        return cls(
            context=context,
            frozen=jax.eval_shape(draw, jax.eval_shape(lambda: jax.random.key(0))),
            state=state,
            batch=make_batch(
                examples,
                RANDOM_ANSWERS,
                rows,
                task_index=0,
                class_count=len(RANDOM_ANSWERS),
                training=True,
            ),
            parts=parts,
            formula=formula_of(context, state.answering),
            work=Work(np.tile(np.arange(length), batch), 2 * batch, batch),
        )

    def plan(self, sizes: dict[str, int], rate: float, share: float) -> Plan:
        """Computes the memory of each chip of a mesh, and the time of a step.

        Args:
          sizes: number of chips along each axis of the mesh, by the name of the axis.
          rate: speed of a chip's bfloat16 products, in FLOP/s.
          share: fraction of that speed that a step reaches.
        """
        axes = tuple(sizes[axis] for axis in AXES)
        mesh = AbstractMesh(axes, AXES, axis_types=(AxisType.Auto,) * len(AXES))
        placement, one = Placement(mesh), Placement()
        architecture = self.context.architecture
        config, itemsize = architecture.sizes, architecture.dtype.itemsize
        tokens = -(-self.work.tokens // (placement.row_shards * self.parts))
        divided = mesh.shape["tensor"]
        flops = self.formula.training(self.work)
        trained = self.state.active, self.state.optimizer_state
        layers = one.bytes_per_device(self.frozen["layers"])
        return Plan(
            frozen=placement.bytes_per_device(self.frozen),
            trained=placement.bytes_per_device(trained),
            inputs_of_layers=config.layers * tokens * config.width * itemsize,
            gathered=layers // (config.layers * divided),
            hidden=8 * tokens * config.ffn_width * 4 // divided,
            flops=flops,
            seconds=flops / (math.prod(axes) * rate * share),
        )

    def compiled_bytes(self) -> int:
        """Compiles the step for one device of this machine; returns its bytes by XLA's analysis."""
        step = functools.partial(train_piece, context=self.context, optimizer=OPTIMIZER)
        piece = Piece.of(1.0, 1.0, last=True)
        sums, rate = jax.eval_shape(no_sums, self.state.active), np.float32(2e-4)
        jitted = jax.jit(step, donate_argnums=(0, 1))
        lowered = jitted.lower(self.state, sums, self.frozen, self.batch, piece, rate)
        return step_memory(lowered.compile())


def main() -> int:
    """Runs the command, which prints a plan as a table; returns the exit status, 0."""
    parser = argparse.ArgumentParser(prog="plan", description=__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--shape", choices=tuple(SHAPES), required=True)
    for axis in AXES:
        add(
            f"--{axis}",
            type=int,
            default=1,
            metavar="N",
            help=f"chips along the mesh's axis {axis}",
        )
    add("--batch", type=int, required=True, metavar="B", help="examples a step, all chips together")
    add("--length", type=int, required=True, metavar="N", help="tokens of an example")
    add("--quantization", choices=("none", *QUANTIZATIONS), default="none", help="default: none")
    add(
        "--accumulation-steps",
        type=int,
        default=1,
        metavar="N",
        help="parts of a batch, as in a config",
    )
    add(
        "--rate", type=float, required=True, metavar="F", help="bfloat16 speed of a chip, in FLOP/s"
    )
    add(
        "--share",
        type=float,
        default=0.4,
        help="fraction of the rate that a step reaches (default: 0.4)",
    )
    add("--compile", action="store_true", help="compile the step for one device of this machine")
    arguments = parser.parse_args()
    if not 1 <= arguments.accumulation_steps <= arguments.batch:
        parser.error("--accumulation-steps must be from 1 to --batch")
    sizes = {axis: getattr(arguments, axis) for axis in AXES}
    training = PlannedTraining.of(
        arguments.shape,
        arguments.batch,
        arguments.length,
        quantization=arguments.quantization,
        parts=arguments.accumulation_steps,
    )
    found = training.plan(sizes, arguments.rate, arguments.share)
    for name in ("frozen", "trained", "inputs_of_layers", "gathered", "hidden", "total"):
        print(f"{name.replace('_', ' '):18}{getattr(found, name) / 1e9:8.2f} GB a chip")
    speed = arguments.batch * arguments.length / found.seconds
    print(f"{'FLOPs of a step':18}{found.flops:8.2e}")
    print(f"{'a step':18}{found.seconds:8.3f} s, {speed:,.0f} tokens/s")
    if arguments.compile:
        place = f"one device ({jax.default_backend()})"
        print(f"{'compiled':18}{training.compiled_bytes() / 1e9:8.2f} GB on {place}, by XLA")
    return 0


if __name__ == "__main__":
    sys.exit(main())
