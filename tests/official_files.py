"""Checkpoints in the original's format from random tensors, and what they compute, in NumPy.

The forward pass here is written from the equations, in float64 and with the original's names; it
shares no code with the package.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors.numpy

LAYERS, WIDTH, FFN, HEADS, KV_HEADS, HEAD, VOCABULARY = 2, 24, 40, 4, 2, 6, 31
LAYER = "seq_module_.layer{}.wrapper_module_."
OUTPUT = "seq_module_.output.wrapper_module_.layers_."
FFN_SIZES = {"w1": (WIDTH, FFN), "w2": (FFN, WIDTH), "w3": (WIDTH, FFN)}
ATTENTION_SIZES = {
    "q": (WIDTH, HEADS * HEAD),
    "k": (WIDTH, KV_HEADS * HEAD),
    "v": (WIDTH, KV_HEADS * HEAD),
    "o": (HEADS * HEAD, WIDTH),
}

Tensors = dict[str, np.ndarray]


def write_base(folder: Path, seed: int = 0, **changes: Any) -> Tensors:
    """Writes a random Llama without a tokenizer; returns its tensors by Hugging Face's names."""
    config = {
        "model_type": "llama",
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "intermediate_size": FFN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD,
        "max_position_embeddings": 40,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
    } | changes
    width, ffn, layers = (
        config[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers")
    )
    generator = np.random.default_rng(seed)

    def draw(*shape: int) -> np.ndarray:
        return (generator.standard_normal(shape) * shape[-1] ** -0.5).astype(np.float32)

    state = {
        "model.embed_tokens.weight": draw(VOCABULARY, width),
        "model.norm.weight": 1 + draw(width),
        "lm_head.weight": draw(VOCABULARY, width),
    }
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        for name, (inputs, outputs) in ATTENTION_SIZES.items():
            size = (width if name == "o" else outputs, inputs if name == "o" else width)
            state[f"{prefix}self_attn.{name}_proj.weight"] = draw(*size)
        state[f"{prefix}mlp.gate_proj.weight"] = draw(ffn, width)
        state[f"{prefix}mlp.up_proj.weight"] = draw(ffn, width)
        state[f"{prefix}mlp.down_proj.weight"] = draw(width, ffn)
        for name in ("input_layernorm", "post_attention_layernorm"):
            state[f"{prefix}{name}.weight"] = 1 + draw(width)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v}))
    safetensors.numpy.save_file(state, folder / "model.safetensors")
    return state


def random_tensors(
    heads: Mapping[str, int],
    *,
    tasks: int | None = None,
    rank: int = 3,
    attention: Sequence[str] = (),
    narrow: bool = False,
) -> Tensors:
    """An adapter's tensors, all of them random.

    Args:
      heads: classes by task, or under "" of the one head.
      tasks: how many; as many as heads by default.
      rank: r.
      attention: letters of attention's projections with a LoRA.
      narrow: the shared experts in bfloat16 and the gates in float16.
    """
    generator = np.random.default_rng(7)
    count = len(heads) if tasks is None else tasks

    def draw(*shape: int) -> np.ndarray:
        return (0.3 * generator.standard_normal(shape)).astype(np.float32)

    tensors = {}
    for layer in range(LAYERS):
        prefix = LAYER.format(layer)
        for name, (inputs, outputs) in FFN_SIZES.items():
            for expert in range(count + 1):
                lora = f"{prefix}mlp_.mlp_.{name}_.loras_.expert{expert}.lora_"
                tensors[f"{lora}a_.weight"] = draw(rank, inputs)
                tensors[f"{lora}b_.weight"] = draw(outputs, rank)
        for name in attention:
            inputs, outputs = ATTENTION_SIZES[name]
            lora = f"{prefix}self_attn_.w{name}_.loras_.expert0.lora_"
            tensors[f"{lora}a_.weight"] = draw(rank, inputs)
            tensors[f"{lora}b_.weight"] = draw(outputs, rank)
        tensors[f"{prefix}mlp_.moes_.task_classifier_.weight"] = draw(count, WIDTH)
        tensors[f"{prefix}mlp_.moes_.gate_.weight"] = draw(2, WIDTH)
    for task, classes in heads.items():
        name = f"{OUTPUT}{task}_score_.weight" if task else f"{OUTPUT}score_.weight"
        tensors[name] = draw(classes, WIDTH)
    if narrow:
        for name, tensor in tensors.items():
            if ".expert0." in name:
                tensors[name] = tensor.astype(ml_dtypes.bfloat16)
            if "gate_" in name:
                tensors[name] = tensor.astype(np.float16)
    return tensors


def settings_of(tensors: Tensors, **changes: Any) -> dict[str, Any]:
    """The content of PREFIX.json for `random_tensors`."""
    experts = {name.split(".expert")[1].split(".")[0] for name in tensors if ".expert" in name}
    attention = {name.split("self_attn_.w")[1][0] for name in tensors if "self_attn_" in name}
    rank = next(len(tensor) for name, tensor in tensors.items() if "lora_a_" in name)
    return {
        "bias": "none",
        "peft_type": "MIXLORA",
        "r": rank,
        "lora_alpha": 2 * rank,
        "lora_dropout": 0.05,
        "target_modules": ["w1_proj", "w2_proj", "w3_proj", *(f"{a}_proj" for a in attention)],
        "num_experts": len(experts),
        "micro_batch_size": 8,
    } | changes


def write_adapter(prefix: Path, tensors: Tensors, **changes: Any) -> Path:
    """Writes PREFIX.safetensors, in the tensors' order, and PREFIX.json."""
    from moecl_jax.weights.safetensors_file import write_safetensors

    prefix.parent.mkdir(parents=True, exist_ok=True)
    write_safetensors(prefix.with_name(prefix.name + ".safetensors"), tensors)
    settings = json.dumps(settings_of(tensors, **changes))
    prefix.with_name(prefix.name + ".json").write_text(settings)
    return prefix


def class_logits(
    base: Tensors, adapter: Tensors, scale: float, expert: int, head: str, ids: Sequence[int]
) -> np.ndarray:
    """Logits of one example's classes, computed from the original's tensors in float64.

    Args:
      base: tensors by Hugging Face's names, of `write_base`.
      adapter: tensors by the original's names.
      scale: lora_alpha / r.
      expert: of the task, from 1 on.
      head: name of the head's tensor after `OUTPUT`.
      ids: the prompt.
    """
    base = {name: tensor.astype(np.float64) for name, tensor in base.items()}
    adapter = {name: tensor.astype(np.float64) for name, tensor in adapter.items()}
    length = len(ids)

    def norm(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * weight

    def lora(x: np.ndarray, name: str) -> Any:
        if f"{name}.lora_a_.weight" not in adapter:
            return 0.0
        a, b = (adapter[f"{name}.lora_{f}_.weight"] for f in "ab")
        return scale * x @ a.T @ b.T

    def rotate(x: np.ndarray) -> np.ndarray:
        angle = np.arange(length)[:, None] * 500.0 ** (-np.arange(0, HEAD, 2) / HEAD)
        cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
        first, second = x[..., : HEAD // 2], x[..., HEAD // 2 :]
        return np.concatenate([first * cos - second * sin, second * cos + first * sin], -1)

    def softmax(x: np.ndarray) -> np.ndarray:
        e = np.exp(x - x.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True)

    x = base["model.embed_tokens.weight"][list(ids)]
    for layer in range(LAYERS):
        ours, theirs = f"model.layers.{layer}.", LAYER.format(layer)

        def project(h: np.ndarray, name: str, ours: str = ours, theirs: str = theirs) -> np.ndarray:
            low = lora(h, f"{theirs}self_attn_.w{name}_.loras_.expert0")
            return h @ base[f"{ours}self_attn.{name}_proj.weight"].T + low

        h = norm(x, base[f"{ours}input_layernorm.weight"])
        q = rotate(project(h, "q").reshape(length, HEADS, HEAD))
        k = rotate(project(h, "k").reshape(length, KV_HEADS, HEAD))
        v = project(h, "v").reshape(length, KV_HEADS, HEAD)
        k, v = (np.repeat(t, HEADS // KV_HEADS, axis=1) for t in (k, v))
        scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(HEAD)
        scores = np.where(np.tril(np.ones((length, length), bool)), scores, -np.inf)
        mixed = np.einsum("hqk,khd->qhd", softmax(scores), v).reshape(length, HEADS * HEAD)
        x = x + project(mixed, "o")

        h = norm(x, base[f"{ours}post_attention_layernorm.weight"])
        beta = softmax(h @ adapter[f"{theirs}mlp_.moes_.gate_.weight"].T)
        for place, e in enumerate((0, expert)):
            name = f"{theirs}mlp_.mlp_.{{}}_.loras_.expert{e}"
            gate = h @ base[f"{ours}mlp.gate_proj.weight"].T + lora(h, name.format("w1"))
            up = h @ base[f"{ours}mlp.up_proj.weight"].T + lora(h, name.format("w3"))
            a = gate / (1 + np.exp(-gate)) * up
            z = a @ base[f"{ours}mlp.down_proj.weight"].T + lora(a, name.format("w2"))
            x = x + beta[:, place : place + 1] * z
    x = norm(x, base["model.norm.weight"])
    return x[-1] @ adapter[OUTPUT + head].T
