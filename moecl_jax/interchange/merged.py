"""A trained LoRA merged into the weights of its LLM, as a Hugging Face folder.

Programs that know nothing of adapters serve it: one model, which answers as one task's parameters.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moecl_jax import reporting
from moecl_jax.errors import UserError
from moecl_jax.interchange.peft import Factors, trained_lora
from moecl_jax.kernels import from_bits
from moecl_jax.kernels.linear import dense
from moecl_jax.kernels.storage import QuantizedKernel
from moecl_jax.models.lora import ATTENTION_TARGETS
from moecl_jax.serving.session import open_stream
from moecl_jax.weights.folder import write_folder


def export_merged(workdir: Path, output: Path, *, expert: str | None = None) -> list[Path]:
    """Writes the LLM of a trained workdir with one expert merged into its weights.

        W' = W + lora_alpha / r A B

    The sum is taken in float32 and stored in the run's `model.dtype`. What was trained by
    sequential full fine-tuning is written as it is. Quantised weights are written as the numbers
    that they stand for. Classification heads are no part of the folder, which is reported.

    Args:
      workdir: workdir of a training.
      output: folder to write; it must not exist, or be empty.
      expert: which expert, as for `interchange.peft.export_peft`.

    Returns:
      The files written.

    Raises:
      UserError: nothing is finished, what was trained cannot be merged, `expert` names none of the
        experts, or the folder is not empty.
    """
    evaluator, store = open_stream(workdir)
    stream, history = store.restore()
    if history is None:
        raise UserError(f"{workdir} holds no finished task yet; train it with 'moecl train'")
    model, method, settings = evaluator.model, evaluator.method, evaluator.settings
    if method.traits.trains_llm:
        if expert is not None:
            raise UserError(f"--expert={expert}: {method.name} trains no expert; leave it out")
        weights = _in_full(method.llm_weights(model.params, stream.shared))
    else:
        factors = trained_lora(workdir, evaluator, stream, expert)
        scale = method.lora.alpha / method.lora.rank
        weights = merged(_in_full(model.params), factors, scale)
    if settings.head == "classification":
        reporting.current().message(
            "note: the classification heads are left out; the folder gives the hidden states that "
            "they read"
        )
    section = settings.model
    return write_folder(output, weights, section.path, np.dtype(model.dtype), section.family)


def merged(params: Mapping[str, Any], factors: Factors, scale: float) -> dict[str, Any]:
    """A decoder's parameters with a LoRA in them.

    Args:
      params: nested dict of float arrays, kernels `[L, I, O]`, as `weights.load.Backbone` has it.
      factors: `{projection: {"a": [L, I, r], "b": [L, r, O]}}`.
      scale: lora_alpha / r.

    Returns:
      The same with float32 kernels where there are factors.
    """
    layers = dict(params["layers"])
    for target, of_target in factors.items():
        block = "attention" if target in ATTENTION_TARGETS else "feed_forward"
        kernel = np.asarray(layers[block][target]["kernel"], np.float32)
        change = np.einsum("lir,lro->lio", of_target["a"], of_target["b"], optimize=True)
        projection = {**layers[block][target], "kernel": kernel + np.float32(scale) * change}
        layers[block] = {**layers[block], target: projection}
    return {**params, "layers": layers}


def _in_full(params: Any) -> Any:
    """A decoder's parameters on the host, without bits and small integers."""

    def read(leaf: Any) -> np.ndarray:
        if not isinstance(leaf, QuantizedKernel):
            return np.asarray(from_bits(leaf))
        layers = map(QuantizedKernel, leaf.values, leaf.scale)
        return np.stack([np.asarray(dense(layer, jnp.float32)) for layer in layers])

    return jax.tree.map(read, params, is_leaf=lambda leaf: isinstance(leaf, QuantizedKernel))
