"""Four small tasks in a row on SmolLM2-135M, all from two PyPI wheels.

    moecl train --config=configs/quickstart.py --workdir=runs/quickstart

Question type (TREC, 6 classes), SMS spam, movie reviews and product reviews (2 classes each).
"""

from default import get_config as default_config
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The quickstart."""
    config = default_config()
    config.tasks = ("trec", "sms_spam", "movie_reviews", "product_reviews")
    config.data.max_length = 96
    config.batch.row_length = 96
    config.batch.evaluation_size = 32
    config.data.train_examples = 160
    config.data.validation_examples = 40
    config.data.test_examples = 60
    config.optimizer.learning_rate = 1e-3
    config.optimizer.clip_norm = 1.0
    config.epochs = 2
    return config
