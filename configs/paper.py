"""The choices of the MoE-CL paper (arXiv 2509.18133), all together, on its stream of tasks.

    moecl train --config=configs/paper.py:base=PATH --workdir=runs/paper  # order 1

Not a recommendation: docs/howto/modes.md lists each choice beside the released code's and the
default here. `base` and `order` are those of configs/mtl5.py.
"""

from ml_collections import ConfigDict
from mtl5 import get_config as mtl5_config


def get_config(options: str = "") -> ConfigDict:
    """MTL5 as the paper describes it."""
    config = mtl5_config(options)
    config.moe_cl.shared = "moving"  # finished tasks are answered with the newest shared expert
    config.adversarial.objective = "paper"
    return config
