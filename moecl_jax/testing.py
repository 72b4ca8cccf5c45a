"""A tiny model, its tokenizer and tiny tasks on disk, to try a whole run within seconds."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import safetensors.numpy
import tokenizers

from moecl_jax import quiet

with quiet.transformers():
    from transformers import PreTrainedTokenizerFast

WORDS = 64  # w0 to w63
VOCABULARY = ("<eos>", "<unk>", *(f"w{index}" for index in range(WORDS)), "answer")
_WIDTH, _FFN_WIDTH, _LAYERS, _HEADS, _KV_HEADS, _HEAD_WIDTH = 32, 48, 2, 4, 2, 8


def write_model(folder: Path, seed: int = 0, *, core: tokenizers.Tokenizer | None = None) -> Path:
    """Writes a random Llama of 2 layers and width 32 as a Hugging Face folder.

    Args:
      folder: gets the model; it need not exist.
      seed: seed of the weights.
      core: its tokenizer, with tokens "<eos>" and "<unk>". By default one that has a token for each
        of `VOCABULARY`, separated by white space.

    Returns:
      The folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    core = _words() if core is None else core
    rows = core.get_vocab_size()
    config = {
        "model_type": "llama",
        "vocab_size": rows,
        "hidden_size": _WIDTH,
        "intermediate_size": _FFN_WIDTH,
        "num_hidden_layers": _LAYERS,
        "num_attention_heads": _HEADS,
        "num_key_value_heads": _KV_HEADS,
        "head_dim": _HEAD_WIDTH,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")

    rng = np.random.default_rng(seed)
    attention = {"q": _HEADS, "k": _KV_HEADS, "v": _KV_HEADS}
    tensors = {
        "model.embed_tokens.weight": rng.normal(size=(rows, _WIDTH)),
        "model.norm.weight": np.ones(_WIDTH),
    }
    for layer in range(_LAYERS):
        name = f"model.layers.{layer}"
        shapes = {
            **{f"self_attn.{p}_proj": (h * _HEAD_WIDTH, _WIDTH) for p, h in attention.items()},
            "self_attn.o_proj": (_WIDTH, _HEADS * _HEAD_WIDTH),
            "mlp.gate_proj": (_FFN_WIDTH, _WIDTH),
            "mlp.up_proj": (_FFN_WIDTH, _WIDTH),
            "mlp.down_proj": (_WIDTH, _FFN_WIDTH),
        }
        for part, (outputs, inputs) in shapes.items():
            weight = rng.normal(size=(outputs, inputs)) * inputs**-0.5
            tensors[f"{name}.{part}.weight"] = weight
        for part in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{name}.{part}.weight"] = np.ones(_WIDTH)
    tensors = {name: tensor.astype(np.float32) for name, tensor in tensors.items()}
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>", unk_token="<unk>")
    tokenizer.save_pretrained(folder)
    return folder


def byte_tokenizer() -> tokenizers.Tokenizer:
    """A tokenizer with a token for each byte, which reads and writes any text."""
    tokens = ["<eos>", "<unk>", *sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())]
    ids = {token: index for index, token in enumerate(tokens)}
    core = tokenizers.Tokenizer(tokenizers.models.BPE(ids, []))
    core.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = tokenizers.decoders.ByteLevel()
    return core


def _words() -> tokenizers.Tokenizer:
    ids = {word: index for index, word in enumerate(VOCABULARY)}
    core = tokenizers.Tokenizer(tokenizers.models.WordLevel(ids, unk_token="<unk>"))
    core.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return core


def write_task(
    folder: Path,
    name: str,
    classes: int,
    *,
    examples: int = 48,
    length: int = 6,
    seed: int = 0,
    shift: int = 0,
) -> dict[str, object]:
    """Writes a task whose label is told by one word of the text, and returns its definition.

    Args:
      folder: gets `NAME_train.jsonl`, `NAME_validation.jsonl` and `NAME_test.jsonl`.
      name: name of the task.
      classes: number of labels; label c is the word `w{c}`, told by the word `w{c + classes}`.
      examples: number of examples in each split.
      length: words of a text.
      seed: seed of the texts.
      shift: label c is told by the word of label c + shift, so that tasks contradict each other.

    Returns:
      The fields of a `moecl_jax.data.task.Task`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng((seed, classes, *name.encode()))
    seen: set[str] = set()
    for split in ("train", "validation", "test"):
        lines = []
        for index in range(examples):
            label = index % classes
            telling = (label + shift) % classes + classes
            text = _new_text(rng, seen, telling, range(2 * classes, WORDS), length)
            lines.append(json.dumps({"text": text, "label": f"w{label}"}))
        path = folder / f"{name}_{split}.jsonl"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return {
        "source": "jsonl",
        "path": str(folder),
        **{split: f"{name}_{split}.jsonl" for split in ("train", "validation", "test")},
        "labels": tuple(f"w{label}" for label in range(classes)),
        "template": "{text} answer",
    }


def _new_text(
    rng: np.random.Generator, seen: set[str], telling: int, others: Sequence[int], length: int
) -> str:
    while True:
        words = rng.choice(np.array(others), size=length)
        words[rng.integers(length)] = telling
        text = " ".join(f"w{word}" for word in words)
        if text not in seen:
            seen.add(text)
            return text
