"""Content compliance in Chinese: comments on race, region and gender, one task after another.

    moecl train --config=configs/cold.py --workdir=runs/cold
    moecl train --config=configs/cold.py:base=gemma3-270m,language=zh --workdir=runs/cold_gemma

COLDataset (arXiv 2201.06025) in the place of the paper's Tencent3, whose texts are not public. The
argument is any of these, joined by commas:

    base=        smollm2-135m (the default), which knows little Chinese; gemma3-270m, which knows
                 more; a Hugging Face folder or a .gguf file
    order=1|2|3  race, region, gender (the default); region, gender, race; gender, race, region
    language=    of templates and labels, en (the default) or zh
    data=        the folder that holds race, region and gender, each with train.tsv, val.tsv and
                 test.tsv (default ../shared/data/cold)
"""

from default import get_config as default_config
from ml_collections import ConfigDict
from mtl5 import parse_argument

from moecl_jax.data.compliance import cold

TASKS = ("race", "region", "gender")
DEFAULTS = {
    "order": "1",
    "base": "smollm2-135m",
    "language": "en",
    "data": "../shared/data/cold",
}


def get_config(argument: str = "") -> ConfigDict:
    """The three tasks in the order, on the base model and in the language of the argument."""
    values = parse_argument(argument, DEFAULTS)
    first = int(values["order"]) - 1
    config = default_config()
    config.model.path = values["base"]
    config.tasks = (*TASKS[first:], *TASKS[:first])
    for name in config.tasks:
        task = cold(values["data"], name, values["language"])
        config.definitions[name] = ConfigDict(task.to_fields())
    # Five texts stand in two of the splits.
    config.data.on_bad_example = "skip"
    config.data.max_length = 96
    config.batch.row_length = 96
    config.batch.evaluation_size = 32
    config.data.train_examples = 240
    config.data.validation_examples = 120
    config.data.test_examples = 250
    config.optimizer.learning_rate = 1e-3
    config.optimizer.clip_norm = 1.0
    config.epochs = 2
    return config
