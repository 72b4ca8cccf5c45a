"""Four small tasks in a row on SmolLM2-135M, all from two PyPI wheels.

    moecl train --config=configs/quickstart.py --workdir=runs/quickstart

Question type (TREC, 6 classes), SMS spam, movie reviews and product reviews (2 classes each).
"""

import importlib.util
from pathlib import Path

from ml_collections import ConfigDict


def default_config() -> ConfigDict:
    """The config of default.py beside this file."""
    path = Path(__file__).with_name("default.py")
    spec = importlib.util.spec_from_file_location("default", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()


def get_config() -> ConfigDict:
    """The quickstart."""
    config = default_config()
    config.tasks = ("trec", "sms_spam", "movie_reviews", "product_reviews")
    config.data.max_length = 96
    config.data.train_examples = 240
    config.data.validation_examples = 60
    config.data.test_examples = 150
    config.optimizer.learning_rate = 1e-3
    config.optimizer.clip_norm = 1.0
    config.epochs = 2
    return config
