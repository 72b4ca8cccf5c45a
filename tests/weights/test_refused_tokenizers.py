"""Tokenizers that are damaged, hostile or of another model than the weights."""

import contextlib
import json
import os
from pathlib import Path

import pytest
from backbone_files import LFS_POINTER, edit_json, message_of

from moecl_jax import quiet
from moecl_jax.data.task import Task
from moecl_jax.data.tokenize import prompt_format
from moecl_jax.errors import UserError
from moecl_jax.testing import VOCABULARY, write_model
from moecl_jax.weights.load import load_backbone


@pytest.fixture(name="tiny")
def fixture_tiny(tmp_path) -> Path:
    """A model with a tokenizer, whose embedding has as many rows as that has tokens."""
    return write_model(tmp_path / "tiny")


def test_more_tokens_than_rows_are_refused(tiny):
    def add(content):
        content["model"]["vocab"]["w64"] = len(VOCABULARY)

    edit_json(tiny / "tokenizer.json", add)
    assert message_of(tiny).startswith(
        f"{tiny}: the tokenizer's token 'w64' has the id 67, and the embedding has 67 rows, for "
        "the ids below 67. Tokenizer and weights belong to different models"
    )


def added_token(content, *, special):
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    token = {"id": len(VOCABULARY), "content": "<image>", "special": special, **flags}
    content["added_tokens"].append(token)


def test_an_added_token_without_a_row_is_refused(tiny):
    edit_json(tiny / "tokenizer.json", lambda content: added_token(content, special=False))
    assert "the tokenizer's token '<image>' has the id 67" in message_of(tiny)


def test_a_special_token_without_a_row_is_read_as_text(tiny, caplog):
    """As in the text models of Gemma 3, whose tokenizers have a token in whose place images go."""
    caplog.set_level("INFO", "moecl_jax")
    before = load_backbone(tiny).tokenizer("w1 <image> w2")["input_ids"]
    edit_json(tiny / "tokenizer.json", lambda content: added_token(content, special=True))
    tokenizer = load_backbone(tiny).tokenizer
    assert tokenizer("w1 <image> w2")["input_ids"] == before == [3, 1, 4]
    assert max(tokenizer.get_vocab().values()) == len(VOCABULARY) - 1
    assert tokenizer.eos_token_id == 0
    assert "the embedding has no row for the special token '<image>'" in caplog.text


def test_an_end_of_sequence_that_is_no_token_is_refused(tiny):
    edit_json(tiny / "tokenizer_config.json", lambda content: content.update(eos_token="<end>"))
    expected = (
        f"{tiny}: the end-of-sequence token '<end>' is not in the vocabulary of tokenizer.json"
    )
    assert message_of(tiny).startswith(expected)


def test_an_end_of_sequence_that_is_added_by_the_config_has_a_row(tiny):
    """Older tokenizers name their added tokens there alone."""

    def name(content):
        content["added_tokens_decoder"] = {"67": {"content": "<end>", "special": True}}
        content["eos_token"] = "<end>"

    edit_json(tiny / "tokenizer_config.json", name)
    assert "the tokenizer's token '<end>' has the id 67" in message_of(tiny)


def test_a_template_that_adds_ids_without_rows_is_refused(tiny):
    def template(content):
        content["post_processor"] = {
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": "<eos>", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
            ],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}],
            "special_tokens": {"<eos>": {"id": "<eos>", "ids": [10**6], "tokens": ["<eos>"]}},
        }

    edit_json(tiny / "tokenizer.json", template)
    assert "it gives the id 1000000, and the embedding has 67 rows" in message_of(tiny)


def test_padding_to_an_absurd_length_takes_no_memory(tiny):
    def pad(content):
        content["padding"] = {
            "strategy": {"Fixed": 10**12},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "<eos>",
        }

    edit_json(tiny / "tokenizer.json", pad)
    assert load_backbone(tiny).tokenizer("w1")["input_ids"] == [3]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 10**5, "not valid JSON (lists and objects are nested more than 100 deep)"),
        ('{"a":' * 10**5, "not valid JSON (lists and objects are nested more than 100 deep)"),
        ("[]", "expected a JSON object"),
    ],
)
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_hostile_tokenizer_is_named(tiny, name, text, words):
    (tiny / name).write_text(text)
    assert message_of(tiny).startswith(f"{tiny / name}: {words}")


def test_what_is_not_read_may_be_anything(tiny):
    """A tokenizer.json makes the older files of a tokenizer superfluous."""
    for name in ("tokenizer.model", "vocab.json", "merges.txt"):
        (tiny / name).write_text(LFS_POINTER)
    assert load_backbone(tiny).tokenizer("w1")["input_ids"] == [3]
    (tiny / "tokenizer.json").unlink()
    assert message_of(tiny).startswith(f"{tiny / 'tokenizer.model'}: holds a Git LFS pointer")


def test_a_panic_of_rust_is_named(tiny, monkeypatch):
    class PanicException(BaseException):
        """As pyo3 raises it."""

    def panic(*_args, **_kwargs):
        raise PanicException("index out of bounds:\nthe len is 0")

    monkeypatch.setattr("transformers.PreTrainedTokenizerFast.from_pretrained", panic)
    message = message_of(tiny)
    assert message.startswith(
        f"{tiny}: the tokenizer cannot be read: index out of bounds: the len is 0. Download"
    )


def test_a_panic_of_rust_says_nothing_of_its_own(tiny, capfd):
    file = tiny / "tokenizer.json"
    content = json.loads(file.read_text())
    content["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}
    file.write_text(json.dumps(content))
    assert "Cannot parse precompiled_charsmap" in message_of(tiny)
    assert capfd.readouterr().err == ""


def test_what_else_is_written_meanwhile_is_kept(capfd):
    with quiet.panics():
        os.write(2, b"a note\n")
    with contextlib.suppress(ValueError), quiet.panics():
        os.write(2, b"another\n")
        raise ValueError
    assert capfd.readouterr().err == "a note\nanother\n"


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{% for i in range(10**12) %}a{% endfor %}", "OverflowError: Range too big"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
        ("{" * 100_000, "RecursionError"),
        ("{{ ''.__class__.__mro__ }}", "SecurityError: access to attribute '__class__'"),
        ("{{ messages[0].content * 100_000 }}", "must repeat once what the user says"),
    ],
)
def test_a_chat_template_runs_in_a_sandbox(tiny, template, words):
    tokenizer = load_backbone(tiny).tokenizer
    tokenizer.chat_template = template
    with pytest.raises(UserError) as caught:
        prompt_format(Task("x", source="none", labels=("a", "b"), chat=True), tokenizer)
    assert words in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1 and len(str(caught.value)) < 600
