"""Tokenizers, against literal ids and against those that transformers builds from the same file."""

import json
import subprocess
import sys
from array import array
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from moecl_jax.errors import UserError
from moecl_jax.models.light_tokenizer import LightTokenizer
from moecl_jax.weights.gguf_file import read_gguf
from moecl_jax.weights.gguf_tokenizer import from_gguf
from moecl_jax.weights.packaged import packaged_file
from moecl_jax.weights.tokenizer import from_folder

FILE = Path("model.gguf")


@pytest.fixture(name="metadata", scope="module")
def fixture_metadata() -> dict[str, Any]:
    return read_gguf(packaged_file("smollm2-135m"))[0]


@pytest.fixture(name="smollm2", scope="module")
def fixture_smollm2(metadata) -> Any:
    return from_gguf(metadata, FILE)


def tiny(pre: str = "gpt-2", **keys: Any) -> dict[str, Any]:
    """Metadata of a byte-level BPE over a few letters; "Ġ" stands for a space."""
    tokens = ["<s>", "</s>", "<tool>", "a", "b", "c", "Ġ", "1", "2", "ab", "Ġab", "12", "abc"]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3, 3, 4, *[1] * 10],
        "tokenizer.ggml.merges": ["a b", "Ġ ab", "1 2"],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
    } | {f"tokenizer.ggml.{key}": value for key, value in keys.items()}


def test_smollm2_gives_the_ids_of_transformers(smollm2, repository):
    oracle = np.load(repository / "tests/fixtures/smollm2_oracle.npz")
    assert len(oracle["tokenizer_texts"]) == 7
    for index, text in enumerate(oracle["tokenizer_texts"]):
        assert smollm2.encode(str(text)) == oracle[f"tokenizer_ids_{index}"].tolist(), text


def test_smollm2_literal_ids(smollm2):
    assert smollm2.encode("The capital of France is") == [504, 3575, 282, 4649, 314]
    assert smollm2.encode("<|im_end|>") == [2]
    assert smollm2.encode("x<|im_end|>") == [104, 2]
    assert len(smollm2) == 49152


WITHOUT_TRANSFORMERS = """
import sys
from moecl_jax.data.encoding import encode_between, special_texts
from moecl_jax.weights.load import load_backbone
tokenizer = load_backbone("smollm2-135m").tokenizer
[(ids, _)] = encode_between(["Hi <|im_end|>"], "It: ", "\\nIs:", tokenizer, special_tokens=True)
assert tokenizer.decode(ids) == "It: Hi <|im_end|>\\nIs:" and tokenizer.eos_token_id == 2
assert "transformers" not in sys.modules
assert tokenizer.pad_token == "<|im_end|>" and "transformers" in sys.modules
"""


def test_a_gguf_file_is_tokenised_without_transformers(repository):
    run = subprocess.run(
        [sys.executable, "-c", WITHOUT_TRANSFORMERS],
        cwd=repository,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr


SAME = (
    *("bos_token", "eos_token", "unk_token", "eos_token_id", "unk_token_id", "is_fast"),
    *("all_special_tokens", "all_special_ids", "special_tokens_map", "split_special_tokens"),
)


@pytest.mark.parametrize(
    ("roles", "special"),
    [
        ({"bos_token": "<s>", "eos_token": "</s>"}, ["<s>", "</s>"]),
        ({"eos_token": "ab", "unk_token": "a", "pad_token": "ab"}, ["</s>"]),  # not added before
        ({}, ["new"]),  # not in the vocabulary
    ],
)
def test_what_needs_no_transformers_is_what_it_gives(roles, special):
    core = from_gguf(tiny(), FILE).backend_tokenizer.to_str()
    light = LightTokenizer(Tokenizer.from_str(core), roles, special, None)
    whole = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(core),
        extra_special_tokens=special,
        clean_up_tokenization_spaces=False,
        **roles,
    )
    for tokenizer in (light.whole, light):
        assert tokenizer.backend_tokenizer.to_str() == whole.backend_tokenizer.to_str()
        for name in SAME:
            assert getattr(tokenizer, name) == getattr(whole, name), name
        assert str(tokenizer.added_tokens_decoder) == str(whole.added_tokens_decoder)
        assert tokenizer.get_vocab() == whole.get_vocab()
        assert len(tokenizer) == len(whole)
        for text in ("a ab ab12 <s>x</s> new", "", "cab <tool>"):
            assert tokenizer(text) == whole(text)
            for flag in (True, False):
                ids = tokenizer.encode(text, add_special_tokens=flag)
                assert ids == whole.encode(text, add_special_tokens=flag)
                shown = tokenizer.decode(ids, skip_special_tokens=flag)
                assert shown == whole.decode(ids, skip_special_tokens=flag)


@pytest.mark.parametrize(
    "text",
    [
        "plain words, and punctuation!?",
        "naïve café: 日本語 🙂",
        "  leading,  double and trailing  ",
        "tab\t, newline\n\n, carriage return\r\n",
        "do n't . , 's clean up",
    ],
)
def test_smollm2_round_trips(smollm2, text):
    encoded = smollm2(text, return_offsets_mapping=True)
    assert smollm2.decode(encoded["input_ids"]) == text
    # Tokens that are bytes of one character share its offsets, so they overlap there.
    offsets = encoded["offset_mapping"]
    assert offsets == sorted(offsets)
    assert {position for a, b in offsets for position in range(a, b)} == set(range(len(text)))


def test_smollm2_splits_digits_one_by_one(smollm2):
    assert smollm2.tokenize("in 2024") == ["in", "Ġ", "2", "0", "2", "4"]
    assert smollm2("a 12", return_offsets_mapping=True)["offset_mapping"] == [
        (0, 1),
        (1, 2),
        (2, 3),
        (3, 4),
    ]


def test_smollm2_special_tokens(smollm2):
    roles = (smollm2.bos_token, smollm2.eos_token, smollm2.pad_token, smollm2.unk_token)
    assert roles == ("<|im_start|>", "<|im_end|>", "<|im_end|>", "<|endoftext|>")
    assert smollm2.convert_tokens_to_ids(list(roles)) == [1, 2, 2, 0]
    assert sorted(smollm2.all_special_ids) == list(range(17))
    assert smollm2.decode([1, 104, 2], skip_special_tokens=True) == "x"


def test_smollm2_chat_template(smollm2):
    text = smollm2.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert text.endswith("<|im_start|>user\nHi<|im_end|>\n")


def test_metadata_without_a_tokenizer_gives_none():
    assert from_gguf({}, FILE) is None


@pytest.mark.parametrize(
    ("pre", "text", "tokens"),
    [
        ("smollm", "ab ab12", ["ab", "Ġab", "1", "2"]),
        ("gpt-2", "ab ab12", ["ab", "Ġab", "12"]),
        ("qwen2", "ab ab12", ["ab", "Ġab", "1", "2"]),
        ("llama-bpe", "ab ab12", ["ab", "Ġab", "12"]),
        ("gpt-2", "abc", ["ab", "c"]),
        # Llama 3 takes a whole word that is in the vocabulary, whatever the merges.
        ("llama-bpe", "abc", ["abc"]),
        ("gpt-2", "a<tool>b</s>", ["a", "<tool>", "b", "</s>"]),
    ],
)
def test_pre_tokenizers(pre, text, tokens):
    assert from_gguf(tiny(pre), FILE).tokenize(text) == tokens


def test_user_defined_tokens_are_not_special():
    tokenizer = from_gguf(tiny(), FILE)
    assert tokenizer.decode([0, 2, 3, 1], skip_special_tokens=True) == "<tool>a"
    assert tokenizer.pad_token is None


@pytest.mark.parametrize(
    ("metadata", "ids"),
    [
        (tiny(), [3]),
        (tiny(add_bos_token=True), [0, 3]),
        (tiny("llama-bpe"), [0, 3]),
        (tiny("llama-bpe", add_bos_token=False), [3]),
    ],
)
def test_beginning_of_sequence(metadata, ids, tmp_path):
    tokenizer = from_gguf(metadata, FILE)
    assert tokenizer.encode("a") == ids
    assert tokenizer.encode("a", add_special_tokens=False) == [3]
    tokenizer.save_pretrained(tmp_path)
    assert from_folder(tmp_path).encode("a") == ids


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        (tiny("martian"), ["tokenizer.ggml.pre is 'martian'", "smollm, gpt-2, llama-bpe, qwen2"]),
        (tiny(model="bert"), ["tokenizer.ggml.model is 'bert'", "expected 'gpt2'"]),
        (tiny(merges=None), ["tokenizer.ggml.merges is missing"]),
        (tiny(tokens=None), ["tokenizer.ggml.tokens is missing"]),
        (tiny(merges=["a z"]), ["tokenizer.ggml.merges does not fit tokenizer.ggml.tokens"]),
        (tiny(merges=["a b", 3]), ["merges is ['a b', 3]; expected an array of texts"]),
        (tiny(merges=["a b c"]), ["merges holds 'a b c'; expected two tokens with a space"]),
        (tiny(merges=["ab"]), ["merges holds 'ab'; expected two tokens with a space"]),
        (tiny(tokens=array("i", [1, 2])), ["tokens is array('i', [1, 2]); expected an array of"]),
        (tiny(token_type="3" * 13), ["token_type is '3333333333333'; expected an array of whole"]),
        (tiny(pre=["gpt-2"]), ["tokenizer.ggml.pre is ['gpt-2'], which is not supported"]),
        (tiny(eos_token_id=True), ["tokenizer.ggml.eos_token_id is True; expected an id below"]),
        (tiny() | {"tokenizer.chat_template": 5}, ["chat_template is 5; expected a text"]),
        (tiny(token_type=[1]), ["tokenizer.ggml.token_type has 1 entries, expected 13"]),
        (tiny(eos_token_id=13), ["tokenizer.ggml.eos_token_id is 13", "below 13"]),
    ],
)
def test_bad_metadata_is_named(metadata, words):
    with pytest.raises(UserError) as caught:
        from_gguf(metadata, FILE)
    for word in (str(FILE), *words):
        assert word in str(caught.value)


def test_beginning_without_its_token_is_named():
    metadata = tiny(add_bos_token=True)
    del metadata["tokenizer.ggml.bos_token_id"]
    with pytest.raises(UserError, match=r"tokenizer\.ggml\.bos_token_id is missing"):
        from_gguf(metadata, FILE)


@pytest.mark.parametrize("named", ["TokenizersBackend", "GPT2Tokenizer", "LlamaTokenizer"])
def test_folder_tokenizer_is_taken_as_written(smollm2, tmp_path, named):
    """Also when the config names a class that would build other steps than tokenizer.json has."""
    smollm2.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    file = tmp_path / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"tokenizer_class": named}))
    tokenizer = from_folder(tmp_path)
    text = "<|im_start|>in 2024, naïve 日本"
    assert tokenizer(text, return_offsets_mapping=True) == smollm2(
        text, return_offsets_mapping=True
    )
    assert tokenizer.backend_tokenizer.to_str() == smollm2.backend_tokenizer.to_str()
    assert tokenizer.eos_token_id == 2
    assert tokenizer.chat_template == smollm2.chat_template


def test_folder_without_a_tokenizer_gives_none(tmp_path):
    assert from_folder(tmp_path) is None


def test_damaged_folder_tokenizer_is_named(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="the tokenizer cannot be read") as caught:
        from_folder(tmp_path)
    assert str(tmp_path) in str(caught.value)
