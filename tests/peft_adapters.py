"""Random adapters in PEFT's format, and a much used recipe."""

import numpy as np

from moecl_jax.interchange.peft import PeftAdapter
from moecl_jax.models.lora import TARGETS, projection_sizes

BASE = "the/base"

# The settings of PEFT's much copied recipe for chat models.
BLOG = [
    "--config.lora.targets=('q_proj', 'v_proj')",
    "--config.lora.rank=8",
    "--config.lora.alpha=32",
    "--config.lora.dropout=0.05",
]


def random_adapter(config, targets=TARGETS, *, base=BASE, rank=4, lora_alpha=16.0):
    """An adapter without a zero in it, on some projections."""
    rng = np.random.default_rng(len(targets))

    def draw(deviation, *shape):
        return (deviation * rng.normal(size=shape)).astype(np.float32)

    expert = {
        target: {
            "a": draw(inputs**-0.5, config.layers, inputs, rank),
            "b": draw(0.05, config.layers, rank, outputs),
        }
        for target, (inputs, outputs) in projection_sizes(config).items()
        if target in targets
    }
    return PeftAdapter(base, rank, lora_alpha, 0.05, expert)
