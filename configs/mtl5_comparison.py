"""MTL5 for comparing methods on two cores: the shared data, small, on SmolLM2-135M.

    bash launch/comparison.sh
    moecl train --config=configs/mtl5_comparison.py:order=1 --workdir=runs/one

The argument is that of `configs/mtl5_shared_smollm2.py`: `order=1|2|3` and `data=` a folder. All
methods take the same number of steps. launch/comparison.sh chooses each row's learning rate.
"""

from ml_collections import ConfigDict
from mtl5_shared_smollm2 import get_config as mtl5_config


def get_config(argument: str = "") -> ConfigDict:
    """Local MTL5, sized for a grid of methods and orders."""
    config = mtl5_config(argument)
    config.model.remat = "projections"
    config.data.max_length = 64
    config.batch.row_length = 64
    config.data.train_examples = 240
    config.data.validation_examples = 60
    config.data.test_examples = 250
    config.evaluation.early_examples = 60
    return config
