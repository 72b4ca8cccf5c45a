"""Tokenizers of backbones: from a Hugging Face folder, and checked against the embedding."""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer

from moecl_jax import quiet, reporting
from moecl_jax.errors import UserError, one_line
from moecl_jax.models.light_tokenizer import AnyTokenizer, LightTokenizer
from moecl_jax.outside import shortened
from moecl_jax.weights.files import map_bytes, read_object

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

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
    with blamed_on(
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


def fit_to_rows(tokenizer: AnyTokenizer, rows: int, place: Path) -> None:
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
        with blamed_on(str(place), advice):
            core = _without(tokenizer.backend_tokenizer, beyond)
            if isinstance(tokenizer, LightTokenizer):
                tokenizer.replace_backend(core)
            else:
                tokenizer._tokenizer = core
        more = f" (and {len(beyond) - 1} more)" if len(beyond) > 1 else ""
        reporting.current().message(
            f"note: {place}: the embedding has no row for the special token "
            f"{shortened(next(iter(beyond)))}{more}; its text is read as any other"
        )
    with blamed_on(str(place), advice):
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
def blamed_on(place: str, advice: str) -> Iterator[None]:
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
