r"""What a training needs on many chips: `python -m moecl_jax.bench.plan`.

    python -m moecl_jax.bench.plan --shape=llama-2-70b --fsdp=64 --batch=64 --length=512 \
        --rate=459e12

Bytes of each chip come from the shapes of all arrays (`jax.eval_shape`, nothing is allocated) and
the table in moecl_jax/models/sharding.py; time from the useful FLOPs (moecl_jax/bench/flops.py) and
the chip's rate. No chip is needed. With `--compile` XLA says what the step needs on one device of
this machine. docs/scaling.md says what is counted and what is not.
"""

import argparse
import dataclasses
import functools
import math
import sys

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType

from moecl_jax.bench.flops import Formula, Work
from moecl_jax.bench.gauges import step_memory
from moecl_jax.bench.inputs import RANDOM_ANSWERS, SHAPES, TASKS, draw_frozen, learner_of
from moecl_jax.data.batching import Batch, Layout, make_batch
from moecl_jax.data.tokenize import TokenizedExample
from moecl_jax.kernels import QUANTIZATIONS
from moecl_jax.methods.base import Tree
from moecl_jax.methods.state import Initializer
from moecl_jax.models.sharding import AXES, Placement
from moecl_jax.training.steps import Learner, TrainState, init_train_state, train_step


@dataclasses.dataclass(frozen=True)
class Plan:
    """What one chip holds, in bytes, and how long a step takes.

    Attributes:
      frozen: weights of the LLM.
      trained: experts, gate, discriminator and the optimizer's state.
      inputs_of_layers: kept for the backward pass with model.remat = full.
      gathered: the weights of the largest layer, which fsdp gathers when it is its turn.
      hidden: of one layer while it is computed: about 8 float32 arrays [N, F] for two experts.
      flops: useful FLOPs of a step, of all chips together.
      seconds: of a step at the rate and share given.
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
        """Bytes of a chip."""
        return self.frozen + self.trained + self.inputs_of_layers + self.gathered + self.hidden


@dataclasses.dataclass(frozen=True)
class Training:
    """A training of MoE-CL with rank 8, bfloat16 and full rematerialisation, by its shapes alone.

    Attributes:
      learner: static parts of the step.
      frozen: parameters of the decoder.
      state: of a task's training.
      batch: examples of one length, without padding where rows of that length exist.
      parts: in which the batch is computed.
      formula: useful FLOPs.
      work: of a step.
    """

    learner: Learner
    frozen: Tree
    state: TrainState
    batch: Batch
    parts: int
    formula: Formula
    work: Work

    @classmethod
    def of(
        cls, shape: str, batch: int, length: int, *, quantization: str = "none", parts: int = 1
    ) -> "Training":
        """Of a key of `SHAPES`, and of `batch` examples with `length` tokens in `parts` parts."""
        config = SHAPES[shape]
        learner = learner_of("moe_cl", config, dropout=0.05, dtype="bfloat16", remat="full")
        initializer = Initializer(learner.method, 0, "lm", classes=4)

        def begin() -> TrainState:
            active = initializer.begin(initializer.shared(TASKS), 0)
            return init_train_state(learner, active, jax.random.key(0))

        state = jax.eval_shape(begin)
        draw = functools.partial(draw_frozen, config, learner.dtype, quantization)
        answer = RANDOM_ANSWERS[0]
        prompt = np.zeros(length - len(answer) + 1, np.int32)
        rows = Layout(
            batch,
            packed=True,
            row_length=1,
            continuations=1,
            answer_length=len(answer),
            parts=parts,
        )
        examples = [TokenizedExample(prompt, 0)] * batch
        active = state.active
        adapter = learner.method.adapter(active.shared, active.expert, state.memory)
        return cls(
            learner=learner,
            frozen=jax.eval_shape(draw, jax.eval_shape(lambda: jax.random.key(0))),
            state=state,
            batch=make_batch(
                examples, RANDOM_ANSWERS, rows, task_index=0, class_count=4, training=True
            ),
            parts=parts,
            formula=Formula.of(config, adapter, active.shared),
            work=Work(np.tile(np.arange(length), batch), 2 * batch, batch),
        )

    def plan(self, sizes: dict[str, int], rate: float, share: float) -> Plan:
        """What each chip of a mesh needs.

        Args:
          sizes: of the mesh's axes.
          rate: of a chip's bfloat16 products, FLOP/s.
          share: of that rate which a step reaches.
        """
        axes = tuple(sizes[axis] for axis in AXES)
        mesh = AbstractMesh(axes, AXES, axis_types=(AxisType.Auto,) * len(AXES))
        placement, one = Placement(mesh), Placement()
        config, itemsize = self.learner.method.config, self.learner.dtype.itemsize
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
        """What the step needs on one device of this machine, by XLA's own analysis of it."""
        step = jax.jit(functools.partial(train_step, learner=self.learner), donate_argnums=0)
        rate = np.float32(2e-4)
        return step_memory(step.lower(self.state, self.frozen, self.batch, rate).compile())


def main() -> int:
    """Prints a plan as a table."""
    parser = argparse.ArgumentParser(prog="plan", description=__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--shape", choices=tuple(SHAPES), required=True)
    for axis in AXES:
        add(f"--{axis}", type=int, default=1, metavar="N", help="size of the mesh's axis")
    add("--batch", type=int, required=True, metavar="B", help="examples a step, all chips together")
    add("--length", type=int, required=True, metavar="N", help="tokens of an example")
    add("--quantization", choices=("none", *QUANTIZATIONS), default="none", help="default: none")
    add("--accumulation-steps", type=int, default=1, metavar="N", help="as in a config")
    add("--rate", type=float, required=True, metavar="F", help="bfloat16 FLOP/s of a chip")
    add("--share", type=float, default=0.4, help="of the rate, reached (default: 0.4)")
    add("--compile", action="store_true", help="compile the step for one device of this machine")
    arguments = parser.parse_args()
    if not 1 <= arguments.accumulation_steps <= arguments.batch:
        parser.error("--accumulation-steps must be from 1 to --batch")
    sizes = {axis: getattr(arguments, axis) for axis in AXES}
    training = Training.of(
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
