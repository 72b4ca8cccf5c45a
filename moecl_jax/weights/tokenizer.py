"""Tokenizers of backbones, from a Hugging Face folder or from the metadata of a GGUF file."""

import contextlib
import json
import os
from array import array
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.processors import TemplateProcessing

from moecl_jax import quiet, reporting
from moecl_jax.errors import UserError, one_line
from moecl_jax.outside import shortened
from moecl_jax.weights.files import map_bytes, read_object

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# Values of tokenizer.ggml.token_type (enum llama_token_type of llama.cpp).
_CONTROL = 3
_USER_DEFINED = 4

# One of these files makes a folder a tokenizer's.
_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")
# What transformers reads beside tokenizer.json, if it is there, and what it reads without that.
_OBJECTS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_TEMPLATE = "chat_template.jinja"
_PARTS = ("tokenizer.model", "vocab.json", "merges.txt")


def from_folder(folder: Path) -> "PreTrainedTokenizerFast | None":
    """Loads the tokenizer of a Hugging Face folder; None when it holds none.

    Nothing is downloaded and no code of the folder is run.

    Raises:
      UserError: the tokenizer cannot be read, has no fast version (which offsets need), or ends
        texts by a token that it does not have.
    """
    if not any(os.path.lexists(folder / name) for name in _FILES):
        return None
    # Imported late, like below: it takes seconds, which callers without a tokenizer need not wait.
    with quiet.transformers():
        from transformers import PreTrainedTokenizerFast
    as_written = os.path.lexists(folder / "tokenizer.json")
    contents = {
        name: read_object(folder / name, nan_as_null=True)  # as transformers does
        for name in ("tokenizer.json", *_OBJECTS)
        if os.path.lexists(folder / name)
    }
    for name in (_TEMPLATE, *(() if as_written else _PARTS)):
        if os.path.lexists(folder / name):
            map_bytes(folder / name)
    # transformers 5 rebuilds the steps of tokenizer.json when the config names a model's class
    # (GPT2Tokenizer loses SmolLM2's splitting of digits); the general class takes it as it is.
    reader: Any = PreTrainedTokenizerFast
    if not as_written:
        with quiet.transformers():
            from transformers import AutoTokenizer  # imports PyTorch where that is installed
        reader = AutoTokenizer
    with _blamed_on(
        str(folder), "Download tokenizer.json and tokenizer_config.json of the model again."
    ):
        tokenizer = reader.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise UserError(
            f"{folder}: the tokenizer {type(tokenizer).__name__} has no fast version. "
            "Add the tokenizer.json of the model."
        )
    # transformers gives a token that the files lack the next free id, which no one has trained.
    end = tokenizer.eos_token
    if as_written and end is not None and not _holds(contents, end):
        raise UserError(
            f"{folder}: the end-of-sequence token {shortened(end)} is not in the vocabulary of "
            "tokenizer.json. Correct eos_token in tokenizer_config.json, or download both again."
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
    model = metadata.get("tokenizer.ggml.model")
    if model is None:
        return None
    if model != "gpt2":
        raise UserError(
            f"{file}: tokenizer.ggml.model is {shortened(model)}, which is not supported; expected "
            "'gpt2' (byte-level BPE). Load the Hugging Face version of the model instead."
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
    with quiet.transformers():
        from transformers import PreTrainedTokenizerFast
    with _blamed_on(str(file), "Download the file again."):
        return PreTrainedTokenizerFast(
            tokenizer_object=_byte_level_bpe(metadata, tokens, file),
            chat_template=template,
            clean_up_tokenization_spaces=False,
            extra_special_tokens=_of_type(metadata, tokens, _CONTROL, file),
            **names,
        )


def fit_to_rows(tokenizer: "PreTrainedTokenizerFast", rows: int, place: Path) -> None:
    """Checks that the embedding has a row for every id that the tokenizer gives.

    Special tokens without a row are taken out of the tokenizer, so that their text is read as any
    other, and that is reported: Gemma 3's text models have one, in whose place images go.

    Args:
      tokenizer: tokenizer of the model; changed in place.
      rows: number of rows of the token embedding.
      place: file or folder of the model, for messages.

    Raises:
      UserError: another token has no row, or the tokenizer fails on a short text.
    """
    added = tokenizer.added_tokens_decoder
    needed = {tokenizer.eos_token, tokenizer.bos_token, tokenizer.unk_token}
    beyond = {name: index for name, index in tokenizer.get_vocab().items() if index >= rows}
    for name, index in beyond.items():
        if name in needed or index not in added or not added[index].special:
            raise UserError(
                f"{place}: the tokenizer's token {shortened(name)} has the id {index}, and the "
                f"embedding has {rows} rows, for the ids below {rows}. Tokenizer and weights "
                "belong to different models: download both again, or save the model with an "
                "embedding of the tokenizer's size."
            )
    advice = "Download the tokenizer of the model again."
    if beyond:
        with _blamed_on(str(place), advice):
            core = _without(tokenizer.backend_tokenizer, beyond)
            tokenizer._tokenizer = core  # type: ignore[assignment]  # declared as None
        more = f" (and {len(beyond) - 1} more)" if len(beyond) > 1 else ""
        reporting.current().message(
            f"note: {place}: the embedding has no row for the special token "
            f"{shortened(next(iter(beyond)))}{more}; its text is read as any other"
        )
    with _blamed_on(str(place), advice):
        core = tokenizer.backend_tokenizer
        core.no_padding()  # to a length that tokenizer.json says
        ids = core.encode("The 1st text.\n").ids
        if not all(0 <= index < rows for index in ids):
            raise ValueError(f"it gives the id {max(ids)}, and the embedding has {rows} rows")


def _without(core: Tokenizer, tokens: Mapping[str, int]) -> Tokenizer:
    """A tokenizer less some of its added tokens."""
    content = json.loads(core.to_str())
    content["added_tokens"] = [
        entry for entry in content["added_tokens"] if entry["content"] not in tokens
    ]
    vocabulary = content["model"].get("vocab")
    if isinstance(vocabulary, dict):
        content["model"]["vocab"] = {k: v for k, v in vocabulary.items() if k not in tokens}
    return Tokenizer.from_str(json.dumps(content))


def _holds(contents: Mapping[str, dict[str, Any]], token: str) -> bool:
    """Whether a token is in the files of a tokenizer, which transformers has read."""
    whole = contents["tokenizer.json"]
    vocabulary = whole["model"].get("vocab", ())
    listed = isinstance(vocabulary, list)  # of pairs of a piece and its score
    if token in (dict(vocabulary) if listed else vocabulary):
        return True
    written = [*whole.get("added_tokens", ())]
    written += contents.get("tokenizer_config.json", {}).get("added_tokens_decoder", {}).values()
    known = {entry.get("content") for entry in written} | {*contents.get("added_tokens.json", ())}
    return token in known


@contextlib.contextmanager
def _blamed_on(place: str, advice: str) -> Iterator[None]:
    """Turns whatever the packages of tokenizers raise into a UserError.

    Their Rust side raises plain Exception, and a panic of Rust is a BaseException.
    """
    try:
        with quiet.panics():
            yield
    except (UserError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        reason = one_line(error)
        reason = reason if len(reason) <= 300 else f"{reason[:300]}..."
        raise UserError(f"{place}: the tokenizer cannot be read: {reason}. {advice}") from error


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
        if type(index) is not int or not 0 <= index < size:
            raise UserError(
                f"{file}: {keys[role]} is {shortened(index)}; expected an id below {size}, the "
                "number of tokens. Download the file again."
            )
    return ids


def _of_type(metadata: dict[str, Any], tokens: list[str], kind: int, file: Path) -> list[str]:
    types = _numbers(metadata, "tokenizer.ggml.token_type", file)
    if len(types) != len(tokens):
        raise UserError(
            f"{file}: tokenizer.ggml.token_type has {len(types)} entries, expected {len(tokens)} "
            "as in tokenizer.ggml.tokens. Download the file again."
        )
    return [token for token, type_ in zip(tokens, types, strict=True) if type_ == kind]


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
    if not isinstance(value, list | array) or any(not isinstance(entry, kind) for entry in value):
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
