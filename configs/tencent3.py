"""Content compliance as in the paper (arXiv 2509.18133): Tencent3, three tasks in one of 3 orders.

    hf download tencent/Hunyuan-1.8B-Instruct --local-dir hunyuan
    moecl train --config=configs/tencent3.py:order=1,base=hunyuan,data=texts --workdir=runs/tencent3

Tencent's texts are not public. Yours go into data/NAME/{train,validation,test}.jsonl, an object a
line, with "label" 1 where the text breaks the rules and else 0, and with these fields, each a text
that may be empty:

    video              title, parent_comment, reply
    social             post_title, parent_comment, reply
    official_account   article_title, comment

The argument is any of these, joined by commas:

    order=1|2|3  video, social, official_account (the default); the same from the second; from the
                 third. The paper does not name its order
    base=        a Hugging Face folder, a .gguf file, or the name of a packaged model (default
                 gemma3-270m). The paper takes a Hunyuan model
    language=    of templates and labels, zh (the default) or en
    data=        the folder of the three tasks (default data/tencent3)

By default a finished task's answers do not change. The paper's own choices are
`--config.moe_cl.shared=moving --config.adversarial.objective=paper`. Its figures, 28.8% of the
samples decided alone in place of 13.5%, have not been repeated here.
"""

from default import get_config as default_config
from ml_collections import ConfigDict
from mtl5 import parse_argument

from moecl_jax.data.compliance import TENCENT3, tencent3

DEFAULTS = {"order": "1", "base": "gemma3-270m", "language": "zh", "data": "data/tencent3"}


def get_config(argument: str = "") -> ConfigDict:
    """The three tasks in the order, on the base model and in the language of the argument."""
    values = parse_argument(argument, DEFAULTS)
    first = int(values["order"]) - 1
    config = default_config()
    config.model.path = values["base"]
    config.tasks = (*tuple(TENCENT3)[first:], *tuple(TENCENT3)[:first])
    for name in config.tasks:
        task = tencent3(values["data"], name, values["language"])
        config.definitions[name] = ConfigDict(task.to_fields())
    config.data.max_length = 512
    config.checkpoint_every = 500
    return config
