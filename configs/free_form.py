"""Free text among labels: spam, the meanings of abbreviations, and question types, in a row.

    moecl train --config=configs/free_form.py --workdir=runs/free_form
    moecl generate --workdir=runs/free_form --task=slang --prompt=BRB --base
    moecl generate --workdir=runs/free_form --task=slang --prompt=BRB

The second command answers as the frozen model did before, the third as the trained one does. The
task "slang" speaks through the model's chat template; its score in the matrix is ROUGE-L.
"""

from default import get_config as default_config
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = default_config()
    config.tasks = ("sms_spam", "slang", "trec")
    config.data.max_length = 96
    config.data.max_response = 24
    config.batch.row_length = 96
    config.batch.evaluation_size = 32
    config.data.train_examples = 320
    config.data.validation_examples = 40
    config.data.test_examples = 60
    config.optimizer.learning_rate = 1e-3
    config.optimizer.clip_norm = 1.0
    config.epochs = 2
    return config
