"""Tokenizers of backbones, from a Hugging Face folder or from the metadata of a GGUF file."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.processors import TemplateProcessing

from moecl_jax import quiet
from moecl_jax.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# Values of tokenizer.ggml.token_type (enum llama_token_type of llama.cpp).
_CONTROL = 3
_USER_DEFINED = 4

# One of these files makes a folder a tokenizer's.
_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")


def from_folder(folder: Path) -> "PreTrainedTokenizerFast | None":
    """Loads the tokenizer of a Hugging Face folder; None when it holds none.

    Nothing is downloaded and no code of the folder is run.

    Raises:
      UserError: the tokenizer cannot be read, or has no fast version (which offsets need).
    """
    # Imported late, like below: it takes seconds, which callers without a tokenizer need not wait.
    with quiet.transformers():
        from transformers import AutoTokenizer, PreTrainedTokenizerFast

    if not any((folder / name).exists() for name in _FILES):
        return None
    # transformers 5 rebuilds the steps of tokenizer.json when the config names a model's class
    # (GPT2Tokenizer loses SmolLM2's splitting of digits); the general class takes it as it is.
    as_written = (folder / "tokenizer.json").exists()
    reader = PreTrainedTokenizerFast if as_written else AutoTokenizer
    try:
        tokenizer = reader.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers raises whatever its many readers raise
        raise UserError(
            f"{folder}: the tokenizer cannot be read: {error}. Download tokenizer.json and "
            "tokenizer_config.json of the model again."
        ) from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise UserError(
            f"{folder}: the tokenizer {type(tokenizer).__name__} has no fast version. "
            "Add the tokenizer.json of the model."
        )
    return tokenizer


def from_gguf(metadata: dict[str, Any], file: Path) -> "PreTrainedTokenizerFast | None":
    """Builds the tokenizer that GGUF metadata describes; None when there is none.

    Args:
      metadata: all metadata of the file.
      file: where it came from, for messages.

    Raises:
      UserError: the tokenizer is of an unsupported kind, or a key is missing or inconsistent.
    """
    with quiet.transformers():
        from transformers import PreTrainedTokenizerFast

    model = metadata.get("tokenizer.ggml.model")
    if model is None:
        return None
    if model != "gpt2":
        raise UserError(
            f"{file}: tokenizer.ggml.model is {model!r}, which is not supported; expected 'gpt2' "
            "(byte-level BPE). Load the Hugging Face version of the model instead."
        )
    tokens = _list(metadata, "tokenizer.ggml.tokens", file)
    names = {
        f"{role}_token": tokens[index]
        for role, index in _special_ids(metadata, len(tokens), file).items()
    }
    return PreTrainedTokenizerFast(
        tokenizer_object=_byte_level_bpe(metadata, tokens, file),
        chat_template=metadata.get("tokenizer.chat_template"),
        clean_up_tokenization_spaces=False,
        extra_special_tokens=_of_type(metadata, tokens, _CONTROL, file),
        **names,
    )


def _byte_level_bpe(metadata: dict[str, Any], tokens: list[str], file: Path) -> Tokenizer:
    pre = metadata.get("tokenizer.ggml.pre")
    if pre not in _PRE_TOKENIZERS:
        raise UserError(
            f"{file}: tokenizer.ggml.pre is {pre!r}, which is not supported. Supported: "
            f"{', '.join(_PRE_TOKENIZERS)}. Load the Hugging Face version of the model instead."
        )
    merges = [tuple(merge.split(" ")) for merge in _list(metadata, "tokenizer.ggml.merges", file)]
    try:
        tokenizer = Tokenizer(
            BPE(
                vocab={token: index for index, token in enumerate(tokens)},
                merges=merges,
                ignore_merges=pre == "llama-bpe",
            )
        )
    except Exception as error:  # the Rust side raises plain Exception
        raise UserError(
            f"{file}: tokenizer.ggml.merges does not fit tokenizer.ggml.tokens: {error}. "
            "Download the file again."
        ) from error
    tokenizer.pre_tokenizer = _PRE_TOKENIZERS[pre]()
    tokenizer.decoder = decoders.ByteLevel()
    if pre == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.add_special_tokens(
        [AddedToken(t, normalized=False) for t in _of_type(metadata, tokens, _CONTROL, file)]
    )
    tokenizer.add_tokens(
        [AddedToken(t, normalized=False) for t in _of_type(metadata, tokens, _USER_DEFINED, file)]
    )
    # llama.cpp's default: only the Llama 3 family starts every text with the token.
    if metadata.get("tokenizer.ggml.add_bos_token", pre == "llama-bpe"):
        _add_beginning(tokenizer, metadata, tokens, file)
    return tokenizer


def _add_beginning(
    tokenizer: Tokenizer, metadata: dict[str, Any], tokens: list[str], file: Path
) -> None:
    """Makes the tokenizer start every text with the beginning-of-sequence token."""
    index = _special_ids(metadata, len(tokens), file).get("bos")
    if index is None:
        raise UserError(
            f"{file}: tokenizer.ggml.add_bos_token is true, but tokenizer.ggml.bos_token_id is "
            "missing. Download the file again."
        )
    bos = tokens[index]
    tokenizer.post_processor = TemplateProcessing(
        single=[bos, "$A"], pair=[bos, "$A", f"{bos}:1", "$B:1"], special_tokens=[(bos, index)]
    )


def _special_ids(metadata: dict[str, Any], size: int, file: Path) -> dict[str, int]:
    """Ids of the tokens with a role, of those roles that the metadata fills."""
    keys = {
        "bos": "tokenizer.ggml.bos_token_id",
        "eos": "tokenizer.ggml.eos_token_id",
        "unk": "tokenizer.ggml.unknown_token_id",
        "pad": "tokenizer.ggml.padding_token_id",
    }
    ids = {role: metadata[key] for role, key in keys.items() if key in metadata}
    for role, index in ids.items():
        if not isinstance(index, int) or not 0 <= index < size:
            raise UserError(
                f"{file}: {keys[role]} is {index!r}; expected an id below {size}, the number of "
                "tokens. Download the file again."
            )
    return ids


def _of_type(metadata: dict[str, Any], tokens: list[str], kind: int, file: Path) -> list[str]:
    types = _list(metadata, "tokenizer.ggml.token_type", file)
    if len(types) != len(tokens):
        raise UserError(
            f"{file}: tokenizer.ggml.token_type has {len(types)} entries, expected {len(tokens)} "
            "as in tokenizer.ggml.tokens. Download the file again."
        )
    return [token for token, type_ in zip(tokens, types, strict=True) if type_ == kind]


def _list(metadata: dict[str, Any], key: str, file: Path) -> list[Any]:
    value = metadata.get(key)
    if not isinstance(value, list):
        raise UserError(f"{file}: the metadata key {key} is missing. Download the file again.")
    return value


def _smollm() -> pre_tokenizers.PreTokenizer:
    digits = pre_tokenizers.Digits(individual_digits=True)
    return pre_tokenizers.Sequence([digits, _gpt2()])


def _gpt2() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def _split(digits: str) -> pre_tokenizers.PreTokenizer:
    """The pattern of Llama 3's and Qwen2's tokenizer.json, which differ in how digits group."""
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
        + digits
        + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([split, byte_level])


# By the value of tokenizer.ggml.pre; how a text is cut into words before BPE merges bytes.
_PRE_TOKENIZERS: dict[str, Callable[[], pre_tokenizers.PreTokenizer]] = {
    "smollm": _smollm,
    "gpt-2": _gpt2,
    "llama-bpe": lambda: _split(r"\p{N}{1,3}"),
    "qwen2": lambda: _split(r"\p{N}"),
}
