"""Tokenizers of GGUF files, built from the metadata: byte-level BPE, and SentencePiece's BPE.

Keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import itertools
from array import array
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.processors import TemplateProcessing

from moecl_jax.errors import UserError, one_line
from moecl_jax.models.light_tokenizer import LightTokenizer
from moecl_jax.outside import shortened
from moecl_jax.weights.tokenizer import blamed_on

# Values of tokenizer.ggml.token_type (enum llama_token_type of llama.cpp).
_NORMAL = 1
_CONTROL = 3
_USER_DEFINED = 4

_SPACE = "\u2581"
"""What SentencePiece writes a space as."""

_MOST_CHARACTERS = 256
"""Of a piece of a SentencePiece vocabulary, whose every cut is looked up; Gemma's have up to 31."""


def from_gguf(metadata: dict[str, Any], file: Path) -> LightTokenizer | None:
    """Builds the tokenizer that GGUF metadata describes; None when there is none.

    Args:
      metadata: all metadata of the file.
      file: where it came from, for messages.

    Raises:
      UserError: the tokenizer is of an unsupported kind, or a key is missing or inconsistent.
    """
    model = metadata.get("tokenizer.ggml.model")
    if model is None:
        return None
    if not isinstance(model, str) or model not in _BUILDERS:
        raise UserError(
            f"{file}: tokenizer.ggml.model is {shortened(model)}, which is not supported; expected "
            "'gpt2' (byte-level BPE) or 'llama' (SentencePiece). Load the Hugging Face version of "
            "the model instead."
        )
    template = metadata.get("tokenizer.chat_template")
    if template is not None and not isinstance(template, str):
        raise UserError(
            f"{file}: tokenizer.chat_template is {shortened(template)}; expected a text. Download "
            "the file again."
        )
    tokens = _texts(metadata, "tokenizer.ggml.tokens", file)
    names = {
        f"{role}_token": tokens[index]
        for role, index in _special_ids(metadata, len(tokens), file).items()
    }
    with blamed_on(str(file), "Download the file again."):
        core = _BUILDERS[model](metadata, tokens, file)
        return LightTokenizer(core, names, _of_type(metadata, tokens, _CONTROL, file), template)


def _byte_level_bpe(metadata: dict[str, Any], tokens: list[str], file: Path) -> Tokenizer:
    pre = metadata.get("tokenizer.ggml.pre")
    if not isinstance(pre, str) or pre not in _PRE_TOKENIZERS:
        raise UserError(
            f"{file}: tokenizer.ggml.pre is {shortened(pre)}, which is not supported. Supported: "
            f"{', '.join(_PRE_TOKENIZERS)}. Load the Hugging Face version of the model instead."
        )
    merges = [_pair(m, file) for m in _texts(metadata, "tokenizer.ggml.merges", file)]
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
            f"{file}: tokenizer.ggml.merges does not fit tokenizer.ggml.tokens: "
            f"{shortened(one_line(error), 200)}. Download the file again."
        ) from error
    tokenizer.pre_tokenizer = _PRE_TOKENIZERS[pre]()
    tokenizer.decoder = decoders.ByteLevel()
    if pre == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    _add_tokens(tokenizer, metadata, tokens, file)
    # llama.cpp's default: only the Llama 3 family starts every text with the token.
    if metadata.get("tokenizer.ggml.add_bos_token", pre == "llama-bpe"):
        _add_beginning(tokenizer, metadata, tokens, file)
    return tokenizer


def _sentencepiece(metadata: dict[str, Any], tokens: list[str], file: Path) -> Tokenizer:
    """SentencePiece's BPE (arXiv 1808.06226), as Gemma uses it.

    The vocabulary stands for the merges: two neighbours that make a piece are merged, the pieces
    that come first in the vocabulary first. Spaces are written as "\u2581", and a character that
    is no piece becomes its bytes.
    """
    _check_sentencepiece(metadata, tokens, file)
    # llama.cpp's converter writes the spaces of pieces that SentencePiece cuts out as spaces.
    spelled = [_SPACE * len(token) if not token.strip(" ") else token for token in tokens]
    vocabulary = {token: index for index, token in enumerate(spelled)}
    if len(vocabulary) < len(tokens):
        raise UserError(
            f"{file}: tokenizer.ggml.tokens has {len(tokens)} entries, of which "
            f"{len(tokens) - len(vocabulary)} are there twice. Download the file again."
        )
    types = _types(metadata, tokens, file)
    plain = {
        token: index
        for token, index in vocabulary.items()
        if types[index] in (_NORMAL, _USER_DEFINED)
    }
    unknown = _special_ids(metadata, len(tokens), file).get("unk")
    if unknown is None:
        raise UserError(
            f"{file}: the metadata key tokenizer.ggml.unknown_token_id is missing. Download the "
            "file again."
        )
    tokenizer = Tokenizer(
        BPE(
            vocab=vocabulary,
            merges=_merges(plain),
            unk_token=spelled[unknown],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Replace(" ", _SPACE)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    _add_tokens(tokenizer, metadata, tokens, file)
    if metadata.get("tokenizer.ggml.add_bos_token", True):  # llama.cpp's default
        _add_beginning(tokenizer, metadata, tokens, file)
    return tokenizer


def _check_sentencepiece(metadata: dict[str, Any], tokens: list[str], file: Path) -> None:
    """Refuses a vocabulary that would be read in another way.

    Raises:
      UserError: texts begin with a space that is not theirs, a piece is too long, or the pieces
        are not in the order of their scores.
    """
    key = "tokenizer.ggml.add_space_prefix"
    if metadata.get(key, True) is not False:
        raise UserError(
            f"{file}: {key} is {shortened(metadata.get(key, True))}, which is not supported yet; "
            "expected False, as in Gemma 3. Load the Hugging Face version of the model instead."
        )
    longest = max(map(len, tokens), default=0)
    if longest > _MOST_CHARACTERS:
        raise UserError(
            f"{file}: tokenizer.ggml.tokens has an entry of {longest} characters; expected at most "
            f"{_MOST_CHARACTERS}. Download the file again."
        )
    scores = _array(metadata, "tokenizer.ggml.scores", file, float, "numbers")
    types = _types(metadata, tokens, file)
    if len(scores) != len(tokens):
        raise UserError(
            f"{file}: tokenizer.ggml.scores has {len(scores)} entries, expected {len(tokens)} "
            "as in tokenizer.ggml.tokens. Download the file again."
        )
    learnt = [score for score, type_ in zip(scores, types, strict=True) if type_ == _NORMAL]
    if not all(before >= after for before, after in itertools.pairwise(learnt)):
        raise UserError(
            f"{file}: tokenizer.ggml.scores do not fall from each piece to the next, which is not "
            "supported yet. Load the Hugging Face version of the model instead."
        )


def _merges(pieces: Mapping[str, int]) -> list[tuple[str, str]]:
    """Every two pieces that make a third, in the order of the third and then longest first."""
    return [
        (piece[:cut], piece[cut:])
        for piece in pieces
        for cut in range(len(piece) - 1, 0, -1)
        if piece[:cut] in pieces and piece[cut:] in pieces
    ]


def _add_tokens(
    tokenizer: Tokenizer, metadata: dict[str, Any], tokens: list[str], file: Path
) -> None:
    """Makes the tokenizer cut special tokens and those of users out of a text, before all else."""
    special = _of_type(metadata, tokens, _CONTROL, file)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    whole = _of_type(metadata, tokens, _USER_DEFINED, file)
    # What is spelled otherwise in the vocabulary (runs of spaces) is left to the merges.
    whole = [token for token in whole if tokenizer.token_to_id(token) is not None]
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in whole])


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
        if type(index) is not int or not 0 <= index < size:
            raise UserError(
                f"{file}: {keys[role]} is {shortened(index)}; expected an id below {size}, the "
                "number of tokens. Download the file again."
            )
    return ids


def _of_type(metadata: dict[str, Any], tokens: list[str], kind: int, file: Path) -> list[str]:
    types = _types(metadata, tokens, file)
    return [token for token, type_ in zip(tokens, types, strict=True) if type_ == kind]


def _types(metadata: dict[str, Any], tokens: list[str], file: Path) -> list[int]:
    """The type of each token, of those above."""
    types = _numbers(metadata, "tokenizer.ggml.token_type", file)
    if len(types) != len(tokens):
        raise UserError(
            f"{file}: tokenizer.ggml.token_type has {len(types)} entries, expected {len(tokens)} "
            "as in tokenizer.ggml.tokens. Download the file again."
        )
    return types


def _texts(metadata: dict[str, Any], key: str, file: Path) -> list[str]:
    """An array of texts."""
    return _array(metadata, key, file, str, "texts")


def _numbers(metadata: dict[str, Any], key: str, file: Path) -> list[int]:
    """An array of whole numbers."""
    return _array(metadata, key, file, int, "whole numbers")


def _array(
    metadata: dict[str, Any], key: str, file: Path, kind: type[Any], expected: str
) -> list[Any]:
    value = metadata.get(key)
    if value is None:
        raise UserError(f"{file}: the metadata key {key} is missing. Download the file again.")
    entries = value[:1] if isinstance(value, array) else value  # those of an array have one type
    if not isinstance(value, list | array) or any(not isinstance(each, kind) for each in entries):
        raise UserError(
            f"{file}: {key} is {shortened(value)}; expected an array of {expected}. Download the "
            "file again."
        )
    return list(value)


def _pair(merge: str, file: Path) -> tuple[str, str]:
    """The two tokens that a merge joins."""
    left, space, right = merge.partition(" ")
    if not space or " " in right:
        raise UserError(
            f"{file}: tokenizer.ggml.merges holds {shortened(merge)}; expected two tokens with a "
            "space between them. Download the file again."
        )
    return left, right


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

# By the value of tokenizer.ggml.model.
_BUILDERS: dict[str, Callable[[dict[str, Any], list[str], Path], Tokenizer]] = {
    "gpt2": _byte_level_bpe,
    "llama": _sentencepiece,
}
