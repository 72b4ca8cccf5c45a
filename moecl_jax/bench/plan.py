r"""What a training needs on many chips: `python -m moecl_jax.bench.plan`.

    python -m moecl_jax.bench.plan --shape=llama-2-70b --fsdp=64 --batch=64 --length=512 \
        --rate=459e12

Bytes of each chip come from the shapes of all arrays (`jax.eval_shape`, nothing is allocated) and
the table in moecl_jax/sharding.py; time from the useful FLOPs (moecl_jax/bench/flops.py) and the
chip's rate. No chip is needed. docs/scaling.md says what is counted and what is not.
"""

import argparse
import dataclasses
import math
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, AxisType

from moecl_jax.bench.flops import Formula, Work
from moecl_jax.bench.inputs import SHAPES, TASKS, learner_of
from moecl_jax.methods.base import Tree
from moecl_jax.models.decoder import Decoder
from moecl_jax.sharding import AXES, Placement
from moecl_jax.state import Initializer
from moecl_jax.steps import init_train_state


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


def plan(
    shape: str, sizes: dict[str, int], batch: int, length: int, rate: float, share: float
) -> Plan:
    """Plans a training of MoE-CL with rank 8, bfloat16 weights and full rematerialisation.

    Args:
      shape: a key of `SHAPES`.
      sizes: of the mesh's axes.
      batch: examples a step, on all chips together.
      length: tokens of each example, all real.
      rate: of a chip's bfloat16 products, FLOP/s.
      share: of that rate which a step reaches.
    """
    config = SHAPES[shape]
    learner = learner_of("moe_cl", config, dropout=0.05, dtype="bfloat16", remat="full")
    initializer = Initializer(learner.method, 0, "lm", classes=4)
    mesh = AbstractMesh(
        tuple(sizes[axis] for axis in AXES), AXES, axis_types=(AxisType.Auto,) * len(AXES)
    )
    placement = Placement(mesh)

    def frozen_tree(key: jax.Array) -> Tree:
        ids = jnp.zeros((1, 2), jnp.int32)
        decoder = Decoder(config, learner.dtype)
        return decoder.init(key, ids, ids, ids, ids, jnp.zeros((1, 2)))["params"]

    def trained_tree(key: jax.Array) -> Any:
        active = initializer.begin(initializer.shared(TASKS), 0)
        state = init_train_state(learner, active, key)
        return state.active, state.optimizer_state

    key = jax.eval_shape(lambda: jax.random.key(0))
    frozen, trained = jax.eval_shape(frozen_tree, key), jax.eval_shape(trained_tree, key)
    tokens = -(-batch * length // placement.row_shards)
    layers = jax.tree.leaves(frozen["layers"])
    divided = mesh.shape["tensor"]
    work = Work(np.tile(np.arange(length), batch), 2 * batch, batch)
    active = jax.eval_shape(lambda: initializer.begin(initializer.shared(TASKS), 0))
    adapter = learner.method.adapter(active.shared, active.expert, active.memory)
    flops = Formula.of(config, adapter, active.shared).training(work)
    return Plan(
        frozen=placement.bytes_per_device(frozen),
        trained=placement.bytes_per_device(trained),
        inputs_of_layers=config.layers * tokens * config.width * learner.dtype.itemsize,
        gathered=sum(leaf.size * leaf.dtype.itemsize for leaf in layers)
        // (config.layers * divided),
        hidden=8 * tokens * config.ffn_width * 4 // divided,
        flops=flops,
        seconds=flops / (math.prod(sizes.values()) * rate * share),
    )


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
    add("--rate", type=float, required=True, metavar="F", help="bfloat16 FLOP/s of a chip")
    add("--share", type=float, default=0.4, help="of the rate, reached (default: 0.4)")
    arguments = parser.parse_args()
    sizes = {axis: getattr(arguments, axis) for axis in AXES}
    found = plan(
        arguments.shape, sizes, arguments.batch, arguments.length, arguments.rate, arguments.share
    )
    for name in ("frozen", "trained", "inputs_of_layers", "gathered", "hidden", "total"):
        print(f"{name.replace('_', ' '):18}{getattr(found, name) / 1e9:8.2f} GB a chip")
    speed = arguments.batch * arguments.length / found.seconds
    print(f"{'FLOPs of a step':18}{found.flops:8.2e}")
    print(f"{'a step':18}{found.seconds:8.3f} s, {speed:,.0f} tokens/s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
