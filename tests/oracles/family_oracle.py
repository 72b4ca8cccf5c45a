"""The tiny models of every family in transformers' own torch code, with plain LoRA modules."""

from typing import Any

import numpy as np
import torch
import transformers
from family_models import LENGTHS, RANK, SCALE, Results, cotangent, factor, text, weight
from torch import nn

from moecl_jax.models.lora import TARGETS
from moecl_jax.weights.families import FAMILIES


class LoraLinear(nn.Module):
    """A linear layer plus SCALE * x A B."""

    def __init__(self, base: nn.Linear, target: str, layer: int) -> None:
        super().__init__()
        self.base = base
        shapes = {"a": (base.in_features, RANK), "b": (RANK, base.out_features)}
        for kind, shape in shapes.items():
            value = torch.from_numpy(factor(target, kind, layer, shape))
            setattr(self, kind, nn.Parameter(value))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + SCALE * (x @ self.a @ self.b)


def torch_config(config: dict[str, Any]) -> transformers.PretrainedConfig:
    """Turns the content of a config.json into transformers' config, as from_pretrained does."""
    known = transformers.AutoConfig.for_model(config["model_type"])
    return type(known).from_dict(config)


def torch_model(config: dict[str, Any]) -> transformers.PreTrainedModel:
    """A case's model, with the weights of `family_models`."""
    model = transformers.AutoModelForCausalLM.from_config(
        torch_config(config), attn_implementation="eager"
    ).eval()
    for name, parameter in model.named_parameters():
        values = weight(name, tuple(parameter.shape))
        if "norm" in name:
            values -= np.float32(FAMILIES[config["model_type"]].norm_offset)
        parameter.data.copy_(torch.from_numpy(values))
    return model


def torch_results(model: transformers.PreTrainedModel) -> Results:
    """Logits and gradients of the texts as a right-padded batch. The model gets LoRA modules."""
    modules: dict[str, list[LoraLinear]] = {target: [] for target in TARGETS}
    for index, layer in enumerate(model.model.layers):
        for parent in (layer.self_attn, layer.mlp):
            for target in TARGETS:
                if hasattr(parent, target):
                    module = LoraLinear(getattr(parent, target), target, index)
                    setattr(parent, target, module)
                    modules[target].append(module)
    ids = torch.zeros(len(LENGTHS), max(LENGTHS), dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, length in enumerate(LENGTHS):
        ids[row, :length] = torch.from_numpy(text(row))
        mask[row, :length] = 1
    logits = model(input_ids=ids, attention_mask=mask).logits[mask.bool()]
    (logits * torch.from_numpy(cotangent())).sum().backward()
    gradients = {
        f"{target}.{kind}": np.stack([getattr(module, kind).grad.numpy() for module in layers])
        for target, layers in modules.items()
        for kind in ("a", "b")
    }
    return Results(logits.detach().numpy(), gradients)


def torch_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a full-size model's parameters, without its memory."""
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(torch_config(config))
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
