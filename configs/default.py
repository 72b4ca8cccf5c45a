"""The default config, from which the others start. Its keys: docs/reference/configuration.md.

    moecl train --config=configs/default.py --workdir=runs/first --config.tasks="('trec','tweets')"

MoE-CL is described in arXiv 2509.18133; its experiments use r 8, lora_alpha 16, alpha 0.1,
learning rate 2e-4, AdamW, 3 epochs, and adapt the FFN projections only. Those are the defaults.

The adversarial objective is not the paper's by default but that of its released code, which was
measured better. Mean validation accuracy at the end of the quickstart stream, seed 0, 40 validation
examples a task (train configs/quickstart.py with --config.adversarial.objective=..., then
moecl evaluate --split=validation):

    off 0.869    original 0.863    confusion 0.813    paper 0.419    (sequential_lora 0.756)

The paper's form has no lower bound: the shared expert can raise L_GAN without end (here to 87) and
is lost to the earlier tasks while it does. `off` and `original` differ by less than the noise.

An override names a key: `--config.optimizer.learning_rate=1e-3`. An unknown key is an error.
"""

from moecl_jax.config.default import get_config

__all__ = ["get_config"]
