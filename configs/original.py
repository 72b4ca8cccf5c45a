"""The choices of the original PyTorch code, all together, on its stream of tasks (order 1).

    moecl train --config=configs/original.py:base=PATH --workdir=runs/original

Not a recommendation: docs/howto/modes.md lists each choice beside the paper's and the default here.
`base` is a Hugging Face folder, for example of Llama 2 7B. The order is the one of configs/mtl5.py.
"""

from ml_collections import ConfigDict
from mtl5 import get_config as mtl5_config


def get_config(options: str = "") -> ConfigDict:
    """MTL5 as the original code trains it."""
    config = mtl5_config(options)
    config.head = "classification"
    config.moe_cl.shared = "moving"
    config.adversarial.objective = "original"  # the softmax taken twice
    config.adversarial.alpha = 1.0
    config.data.over_long = "drop"
    config.data.validation_from = "test"
    config.batch.layout = "padded_to_max"
    config.batch.size = 8
    return config
