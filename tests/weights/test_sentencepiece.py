"""SentencePiece vocabularies in GGUF files: literal pieces, and what transformers makes of them."""

from array import array
from pathlib import Path

import numpy as np
import pytest
from family_models import CASES, state_of
from gemma_files import BYTES, CONTROL, LEARNT, USERS, vocabulary, write_gemma
from hypothesis import given, settings
from hypothesis import strategies as st

from moecl_jax.data.task import Task
from moecl_jax.data.tokenize import BARE, prompt_format, tokenize_prompt
from moecl_jax.errors import UserError
from moecl_jax.weights.gguf_tokenizer import from_gguf
from moecl_jax.weights.load import load_backbone

FILE = Path("model.gguf")
SIZE = len(CONTROL) + len(USERS) + len(BYTES) + len(LEARNT)
TEXTS = [
    "the thin hen",
    "  the   two  spaces    and     five ",
    "你好的,世界!",
    "123 12 1",
    "naïve 🙂👍🏽\x00\x7f",
    "<b>in</b> a\n\n\n\tin\r\n",
    "▁the▁▁the",
    "<0x41> <eos> <unk> <start_of_turn>user\n",
    "",
    " ",
]


@pytest.fixture(name="tiny", scope="module")
def fixture_tiny():
    return from_gguf(vocabulary(), FILE)


def pieces(tokenizer, text):
    return tokenizer.convert_ids_to_tokens(tokenizer.encode(text, add_special_tokens=False))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # "▁t" is merged before "he", and "he" before "▁the" of these two.
        ("the the", ["t", "he", "▁the"]),
        ("a then", ["a", "▁the", "n"]),
        ("12 123", ["12", "▁", "12", "3"]),
        ("你好的", ["你好", "的"]),
        # Spaces come one, two or three in a piece, and line ends are cut out of a text.
        ("a   i", ["a", "▁▁▁", "i"]),
        ("a  a", ["a", "▁▁", "a"]),
        ("a\n\n\na", ["a", "\n\n", "\n", "a"]),
        ("<b>b", ["<b>", "b"]),
        # What is no piece becomes its bytes in UTF-8.
        ("é", ["<0xC3>", "<0xA9>"]),
        ("t🙂", ["t", "<0xF0>", "<0x9F>", "<0x99>", "<0x82>"]),
        ("\t", ["<0x09>"]),
        ("a<eos>", ["a", "<eos>"]),
    ],
)
def test_literal_pieces(tiny, text, expected):
    assert pieces(tiny, text) == expected


def test_ids_are_places_in_the_vocabulary(tiny):
    assert tiny.encode("the") == [2, *(tiny.convert_tokens_to_ids(p) for p in ("t", "he"))]
    first = len(CONTROL) + len(USERS) + len(BYTES)
    assert tiny.convert_tokens_to_ids("▁t") == first
    assert tiny.convert_tokens_to_ids("▁▁") == len(CONTROL) + USERS.index("  ")
    assert len(tiny) == first + len(LEARNT)


@pytest.mark.parametrize("text", TEXTS)
def test_texts_come_back(tiny, text):
    encoded = tiny(text, add_special_tokens=False, return_offsets_mapping=True)
    assert tiny.decode(encoded["input_ids"]) == text.replace("▁", " ")
    covered = {place for begin, end in encoded["offset_mapping"] for place in range(begin, end)}
    assert covered == set(range(len(text)))


def test_roles_and_the_beginning(tiny):
    roles = (tiny.bos_token, tiny.eos_token, tiny.unk_token, tiny.pad_token)
    assert roles == ("<bos>", "<eos>", "<unk>", "<pad>")
    assert sorted(tiny.all_special_ids) == list(range(len(CONTROL)))
    assert from_gguf(vocabulary(add_bos_token=False), FILE).encode("a") == [tiny.encode("a")[1]]
    unsaid = {k: v for k, v in vocabulary().items() if not k.endswith("add_bos_token")}
    assert from_gguf(unsaid, FILE).encode("a") == tiny.encode("a")


def test_a_chat_begins_once(tiny):
    """Its template writes the beginning of sequence itself."""
    records = [{"text": "x", "label": label} for label in "ab"]
    task = Task("t", train=records, template="Q {text}", chat=True)
    form = prompt_format(task, tiny)
    ids, cut = tokenize_prompt("你好 the", form, tiny, 99)
    text = "<bos><start_of_turn>user\nQ 你好 the<end_of_turn>\n<start_of_turn>model\n"
    assert not cut and tiny.decode(ids) == text
    assert [ids.tolist().count(special) for special in (2, 5, 6)] == [1, 2, 1]
    bare, _ = tokenize_prompt("你好 the", BARE, tiny, 99)
    assert bare[0] == 2 and 2 not in bare[1:]


def test_text_never_becomes_a_control_token(tiny):
    ids, _ = tokenize_prompt("a<end_of_turn><bos>", BARE, tiny, 99)
    assert ids[0] == 2 and not set(ids[1:].tolist()) & set(range(len(CONTROL)))
    assert tiny.decode(ids[1:]) == "a<end_of_turn><bos>"


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"add_space_prefix": True}, "add_space_prefix is True, which is not supported yet"),
        ({"scores": None}, "tokenizer.ggml.scores is missing"),
        ({"scores": [0.0]}, "scores has 1 entries, expected"),
        ({"scores": [1, 2]}, "scores is [1, 2]; expected an array of numbers"),
        ({"scores": array("f", range(SIZE))}, "scores do not fall from each piece to the next"),
        ({"scores": array("f", [np.nan] * SIZE)}, "scores do not fall from each piece to the next"),
        ({"token_type": [1]}, "token_type has 1 entries"),
        ({"unknown_token_id": SIZE}, f"unknown_token_id is {SIZE}; expected an id below {SIZE}"),
        ({"bos_token_id": -1}, "bos_token_id is -1; expected an id below"),
        ({"tokens": ["a"] * SIZE}, f"has {SIZE} entries, of which {SIZE - 1} are there twice"),
        ({"tokens": ["  ", "▁▁", *map(str, range(SIZE - 2))]}, "of which 1 are there twice"),
        ({"tokens": ["a" * 257] * SIZE}, "tokens has an entry of 257 characters; expected at most"),
    ],
)
def test_bad_vocabularies_are_named(keys, words):
    assert len(vocabulary()["tokenizer.ggml.tokens"]) == SIZE
    with pytest.raises(UserError) as caught:
        from_gguf(vocabulary(**keys), FILE)
    assert str(caught.value).startswith(f"{FILE}: ") and words in str(caught.value)


@pytest.mark.parametrize("key", ["unknown_token_id", "add_space_prefix", "bos_token_id"])
def test_keys_that_are_missing_are_named(key):
    metadata = vocabulary()
    del metadata[f"tokenizer.ggml.{key}"]
    with pytest.raises(UserError, match=key):
        from_gguf(metadata, FILE)


@pytest.fixture(name="both", scope="module")
def fixture_both(tmp_path_factory):
    """The tokenizer of a whole model here, and in transformers."""
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("gemma")
    config = CASES["Gemma 3"] | {"vocab_size": len(vocabulary()["tokenizer.ggml.tokens"])}
    write_gemma(folder / "m.gguf", config, state_of(config), tokenizer=vocabulary())
    theirs = AutoTokenizer.from_pretrained(folder, gguf_file="m.gguf", local_files_only=True)
    return load_backbone(folder / "m.gguf").tokenizer, theirs


@pytest.mark.oracle
def test_transformers_reads_the_same(both):
    ours, theirs = both
    assert ours.get_vocab() == theirs.get_vocab()
    assert ours.get_added_vocab() == theirs.get_added_vocab()
    turns = [{"role": "user", "content": "你好"}]
    options = {"tokenize": False, "add_generation_prompt": True}
    assert ours.apply_chat_template(turns, **options) == theirs.apply_chat_template(
        turns, **options
    )
    for text in TEXTS:
        assert ours(text, return_offsets_mapping=True) == theirs(text, return_offsets_mapping=True)
        assert ours.tokenize(text) == theirs.tokenize(text), text
        ids = ours.encode(text)
        for skip in (False, True):
            assert ours.decode(ids, skip_special_tokens=skip) == theirs.decode(
                ids, skip_special_tokens=skip
            )


@pytest.mark.oracle
@pytest.mark.slow
@settings(max_examples=500, deadline=None, derandomize=True, database=None)
@given(st.lists(st.one_of(st.sampled_from([*LEARNT, *USERS, *CONTROL, " "]), st.text(max_size=3))))
def test_transformers_reads_any_text_the_same(both, parts):
    ours, theirs = both
    assert ours.encode("".join(parts)) == theirs.encode("".join(parts))
