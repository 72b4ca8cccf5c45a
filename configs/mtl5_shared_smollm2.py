"""MTL5 from local JSON files, small, on SmolLM2-135M: a real stream that two cores can train.

    moecl train --config=configs/mtl5_shared_smollm2.py:order=1 --workdir=runs/mtl5_small

The argument is `order=1|2|3` and, after a comma, `data=` the folder that holds agnews, amazon,
dbpedia and yahoo, each with train.json, dev.json and test.json: lists of `{"sentence", "label"}`.
"""

from default import get_config as default_config
from ml_collections import ConfigDict
from mtl5 import parse_argument

from moecl_jax.data.catalog import MTL5_ORDERS, shared_mtl5


def get_config(argument: str = "") -> ConfigDict:
    """Local MTL5 in the order of the argument."""
    values = parse_argument(argument, {"order": "1", "data": "../shared/data/mtl5"})
    config = default_config()
    config.tasks = tuple(MTL5_ORDERS[int(values["order"])])
    for name in config.tasks:
        config.definitions[name] = ConfigDict(shared_mtl5(values["data"], name).to_fields())
    config.data.max_length = 128
    config.data.train_examples = 200
    config.data.validation_examples = 50
    config.data.test_examples = 80
    config.batch.evaluation_size = 32
    config.optimizer.learning_rate = 1e-3
    config.optimizer.clip_norm = 1.0
    config.epochs = 2
    return config
