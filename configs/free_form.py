"""Free text among labels: spam, the meanings of abbreviations, and question types, in a row.

    moecl train --config=configs/free_form.py --workdir=runs/free_form
    moecl generate --workdir=runs/free_form --task=slang --prompt=BRB --base
    moecl generate --workdir=runs/free_form --task=slang --prompt=BRB

The second command answers as the frozen model did before, the third as the trained one does. The
task "slang" speaks through the model's chat template; its score in the matrix is ROUGE-L.
"""

from ml_collections import ConfigDict
from quickstart import get_config as quickstart_config


def get_config() -> ConfigDict:
    """The stream with a free-form task in its middle."""
    config = quickstart_config()
    config.tasks = ("sms_spam", "slang", "trec")
    config.data.max_response = 24
    config.data.train_examples = 320
    return config
