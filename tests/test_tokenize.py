"""Prompts are cut in their text only; answers end in end of sequence."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from moecl_jax.data.tasks import Example, Task
from moecl_jax.data.tokenize import tokenize_answers, tokenize_prompt, tokenize_task
from moecl_jax.errors import UserError

WORDS = ["<unk>", "<bos>", "<eos>", "classify", ":", "answer", "a", "b", "c", "d", "yes", "no"]
TEMPLATE = "classify : {text} answer :"


def word_tokenizer(bos: bool = False, **special: Any) -> PreTrainedTokenizerFast:
    """One token a word, numbered as in WORDS."""
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<bos> $A", special_tokens=[("<bos>", 1)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", **({"eos_token": "<eos>"} | special)
    )


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, by the byte-level alphabet of GPT-2."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(["<eos>", *alphabet])}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")


def words(ids: np.ndarray) -> str:
    return " ".join(WORDS[index] for index in ids)


def test_prompt_that_fits_is_whole() -> None:
    prompt, cut = tokenize_prompt("a b c d", TEMPLATE, word_tokenizer(), 8)
    assert prompt.tolist() == [3, 4, 6, 7, 8, 9, 5, 4]
    assert prompt.dtype == np.int32
    assert not cut


def test_prompt_is_cut_at_the_end_of_its_text() -> None:
    prompt, cut = tokenize_prompt("a b c d", TEMPLATE, word_tokenizer(), 6)
    assert prompt.tolist() == [3, 4, 6, 7, 5, 4]
    assert cut


def test_special_tokens_and_template_stay() -> None:
    tokenizer = word_tokenizer(bos=True)
    prompt, cut = tokenize_prompt("a b", TEMPLATE, tokenizer, 5)
    assert (words(prompt), cut) == ("<bos> classify : answer :", True)
    with pytest.raises(UserError, match="template alone takes 5 tokens and 4 are left"):
        tokenize_prompt("a b", TEMPLATE, tokenizer, 4)


def test_words_of_the_template_in_the_text_are_text() -> None:
    prompt, _ = tokenize_prompt("answer : {text}", TEMPLATE, word_tokenizer(), 6)
    assert words(prompt) == "classify : answer : answer :"


@pytest.mark.parametrize(("max_prompt", "text"), [(11, "日本"), (10, "日"), (8, "日"), (7, "")])
def test_a_character_of_several_tokens_is_kept_whole(max_prompt: int, text: str) -> None:
    tokenizer = byte_tokenizer()
    prompt, cut = tokenize_prompt("日本語", "T:{text}\nA:", tokenizer, max_prompt)
    assert tokenizer.decode(prompt) == f"T:{text}\nA:"
    assert cut


def test_slow_tokenizer_is_refused() -> None:
    slow: Any = SimpleNamespace(is_fast=False)
    with pytest.raises(UserError, match=r"fast tokenizer: a folder with tokenizer\.json"):
        tokenize_prompt("a", TEMPLATE, slow, 8)


def test_answers_end_in_end_of_sequence() -> None:
    answers = tokenize_answers(("yes", "no", "no a"), word_tokenizer(bos=True))
    assert [answer.tolist() for answer in answers] == [[10, 2], [11, 2], [11, 6, 2]]
    assert all(answer.dtype == np.int32 for answer in answers)
    spaced = tokenize_answers(("a", "b"), byte_tokenizer())
    assert byte_tokenizer().decode(spaced[0]) == " a<eos>"


def test_answers_must_differ_and_end() -> None:
    with pytest.raises(UserError, match=r"labels 'red' and 'blue' the same tokens \[0\]"):
        tokenize_answers(("red", "blue"), word_tokenizer())
    with pytest.raises(UserError, match=r"no end-of-sequence token.*Set eos_token"):
        tokenize_answers(("yes", "no"), word_tokenizer(eos_token=None))
    nothing: Any = SimpleNamespace(eos_token_id=2, encode=lambda *_, **__: [])
    with pytest.raises(UserError, match="no tokens for the label 'yes'"):
        tokenize_answers(("yes", "no"), nothing)


def task(*train: str) -> Task:
    examples = tuple(Example(text, index % 2, "") for index, text in enumerate(train))
    return Task("toy", ("yes", "no a"), TEMPLATE, examples, (), (Example("d", 1, ""),))


def test_task_leaves_room_for_its_longest_answer() -> None:
    result = tokenize_task(
        task("a", "a b", "a b c"), word_tokenizer(), max_length=9, over_long="truncate"
    )
    assert [words(example.prompt) for example in result.splits["train"]] == [
        "classify : a answer :",
        "classify : a b answer :",
        "classify : a b answer :",
    ]
    assert [example.label for example in result.splits["train"]] == [0, 1, 0]
    assert [len(result.splits[split]) for split in ("validation", "test")] == [0, 1]
    assert result.truncated == {"train": 1, "validation": 0, "test": 0}
    assert result.dropped == {"train": 0, "validation": 0, "test": 0}
    assert (result.name, result.labels) == ("toy", ("yes", "no a"))
    assert [answer.tolist() for answer in result.answers] == [[10, 2], [11, 6, 2]]


def test_task_drops_what_does_not_fit() -> None:
    result = tokenize_task(
        task("a b c", "a", "a b"), word_tokenizer(), max_length=9, over_long="drop"
    )
    assert [words(example.prompt) for example in result.splits["train"]] == [
        "classify : a answer :",
        "classify : a b answer :",
    ]
    assert [example.label for example in result.splits["train"]] == [1, 0]
    assert result.dropped == {"train": 1, "validation": 0, "test": 0}
    assert result.truncated == {"train": 0, "validation": 0, "test": 0}


def test_task_errors_name_the_task() -> None:
    with pytest.raises(UserError, match="task 'toy': no train example fits in max_length = 8"):
        tokenize_task(task("a b"), word_tokenizer(), max_length=8, over_long="drop")
    with pytest.raises(
        UserError, match=r"task 'toy' with max_length = 6 .*takes 3\): the template"
    ):
        tokenize_task(task("a b"), word_tokenizer(), max_length=6, over_long="truncate")
    with pytest.raises(UserError, match="over_long = 'cut' must be"):
        tokenize_task(task("a"), word_tokenizer(), max_length=9, over_long="cut")


def test_many_texts_are_like_one_at_a_time() -> None:
    texts = [" ".join("abcd"[: 1 + index % 4]) for index in range(1030)]
    result = tokenize_task(task(*texts), word_tokenizer(), max_length=10, over_long="truncate")
    assert len(result.splits["train"]) == 1030
    for index in (0, 1, 2, 3, 1023, 1024, 1027, 1029):
        alone, _ = tokenize_prompt(texts[index], TEMPLATE, word_tokenizer(), 7)
        np.testing.assert_array_equal(result.splits["train"][index].prompt, alone)
