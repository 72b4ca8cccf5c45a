"""Prompts are cut in their text only; answers end in end of sequence."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from moecl_jax.data.examples import Example, TaskExamples
from moecl_jax.data.task import Task
from moecl_jax.data.tokenize import (
    PromptFormat,
    TokenizedExample,
    TokenizedTask,
    bare_prompts,
    prompt_format,
    tokenize_answers,
    tokenize_prompt,
    tokenize_task,
)
from moecl_jax.errors import UserError
from moecl_jax.weights.gguf_file import read_gguf
from moecl_jax.weights.gguf_tokenizer import from_gguf
from moecl_jax.weights.packaged import packaged_file

WORDS = ["<unk>", "<bos>", "<eos>", "classify", ":", "answer", "a", "b", "c", "d", "yes", "no"]
TEMPLATE = "classify : {text} answer :"
FORMAT = PromptFormat(TEMPLATE)


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


def define(*labels: str, **changes: Any) -> Task:
    values = {"name": "toy", "source": "none", "labels": labels, "template": TEMPLATE}
    return Task(**(values | changes))


def words(ids: np.ndarray) -> str:
    return " ".join(WORDS[index] for index in ids)


def test_prompt_that_fits_is_whole() -> None:
    prompt, cut = tokenize_prompt("a b c d", FORMAT, word_tokenizer(), 8)
    assert prompt.tolist() == [3, 4, 6, 7, 8, 9, 5, 4]
    assert prompt.dtype == np.int32
    assert not cut


def test_prompt_is_cut_at_the_end_of_its_text() -> None:
    prompt, cut = tokenize_prompt("a b c d", FORMAT, word_tokenizer(), 6)
    assert prompt.tolist() == [3, 4, 6, 7, 5, 4]
    assert cut


def test_special_tokens_and_template_stay() -> None:
    tokenizer = word_tokenizer(bos=True)
    prompt, cut = tokenize_prompt("a b", FORMAT, tokenizer, 5)
    assert (words(prompt), cut) == ("<bos> classify : answer :", True)
    with pytest.raises(UserError, match="template alone takes 5 tokens and 4 are left"):
        tokenize_prompt("a b", FORMAT, tokenizer, 4)


def test_words_of_the_template_in_the_text_are_text() -> None:
    prompt, _ = tokenize_prompt("answer : {text}", FORMAT, word_tokenizer(), 6)
    assert words(prompt) == "classify : answer : answer :"


@pytest.mark.parametrize(("max_prompt", "text"), [(11, "日本"), (10, "日"), (8, "日"), (7, "")])
def test_a_character_of_several_tokens_is_kept_whole(max_prompt: int, text: str) -> None:
    tokenizer = byte_tokenizer()
    prompt, cut = tokenize_prompt("日本語", PromptFormat("T:{text}\nA:"), tokenizer, max_prompt)
    assert tokenizer.decode(prompt) == f"T:{text}\nA:"
    assert cut


def test_slow_tokenizer_is_refused() -> None:
    slow: Any = SimpleNamespace(is_fast=False)
    with pytest.raises(UserError, match=r"fast tokenizer: a folder with tokenizer\.json"):
        tokenize_prompt("a", FORMAT, slow, 8)


def test_answers_end_in_end_of_sequence() -> None:
    answers = tokenize_answers(define("yes", "no", "no a"), word_tokenizer(bos=True))
    assert [answer.tolist() for answer in answers] == [[10, 2], [11, 2], [11, 6, 2]]
    assert all(answer.dtype == np.int32 for answer in answers)
    spaced = tokenize_answers(define("a", "b"), byte_tokenizer())
    assert byte_tokenizer().decode(spaced[0]) == " a<eos>"


def test_answers_must_differ_and_end() -> None:
    with pytest.raises(UserError, match=r"labels 'red' and 'blue' the same tokens \[0\]"):
        tokenize_answers(define("red", "blue"), word_tokenizer())
    with pytest.raises(UserError, match=r"no end-of-sequence token.*Set eos_token"):
        tokenize_answers(define("yes", "no"), word_tokenizer(eos_token=None))
    nothing: Any = SimpleNamespace(eos_token_id=2, encode=lambda *_, **__: [])
    with pytest.raises(UserError, match="no tokens for the label 'yes'"):
        tokenize_answers(define("yes", "no"), nothing)


def task(*train: str) -> TaskExamples:
    examples = tuple(Example(text, index % 2, "") for index, text in enumerate(train))
    return TaskExamples(define("yes", "no a"), examples, (), (Example("d", 1, ""),))


def tokenized(task: TaskExamples, *, max_length: int, over_long: str = "truncate") -> TokenizedTask:
    tokenizer = word_tokenizer()
    answers = tokenize_answers(task.definition, tokenizer)
    return tokenize_task(
        task, answers, tokenizer, max_length=max_length, max_response=4, over_long=over_long
    )


def test_task_leaves_room_for_its_longest_answer() -> None:
    result = tokenized(task("a", "a b", "a b c"), max_length=9)
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


def test_task_drops_what_does_not_fit() -> None:
    result = tokenized(task("a b c", "a", "a b"), max_length=9, over_long="drop")
    assert [words(example.prompt) for example in result.splits["train"]] == [
        "classify : a answer :",
        "classify : a b answer :",
    ]
    assert [example.label for example in result.splits["train"]] == [1, 0]
    assert result.dropped == {"train": 1, "validation": 0, "test": 0}
    assert result.truncated == {"train": 0, "validation": 0, "test": 0}


def test_task_errors_name_the_task() -> None:
    with pytest.raises(UserError, match="task 'toy': no train example fits in max_length = 8"):
        tokenized(task("a b"), max_length=8, over_long="drop")
    with pytest.raises(
        UserError, match=r"task 'toy' with max_length = 6 .*takes 3\): the template"
    ):
        tokenized(task("a b"), max_length=6)
    with pytest.raises(UserError, match="over_long = 'cut' must be"):
        tokenized(task("a"), max_length=9, over_long="cut")


def test_many_texts_are_like_one_at_a_time() -> None:
    texts = [" ".join("abcd"[: 1 + index % 4]) for index in range(1030)]
    result = tokenized(task(*texts), max_length=10)
    assert len(result.splits["train"]) == 1030
    for index in (0, 1, 2, 3, 1023, 1024, 1027, 1029):
        alone, _ = tokenize_prompt(texts[index], FORMAT, word_tokenizer(), 7)
        np.testing.assert_array_equal(result.splits["train"][index].prompt, alone)


def test_ids_are_the_whole_prompt_and_are_cut_at_their_end() -> None:
    examples = (
        Example("", 1, "", input_ids=(6, 7)),
        Example("a", 0, ""),
        Example("", 0, "", input_ids=(6, 7, 8, 9, 10, 11, 6)),
    )
    mixed = TaskExamples(define("yes", "no a"), examples, (), examples[:1])
    result = tokenized(mixed, max_length=9)
    found = [(words(example.prompt), example.label) for example in result.splits["train"]]
    assert found == [("a b", 1), ("classify : a answer :", 0), ("a b c d yes no", 0)]
    assert result.splits["train"][2].prompt.dtype == np.int32
    assert result.truncated == {"train": 1, "validation": 0, "test": 0}
    result = tokenized(mixed, max_length=9, over_long="drop")
    assert len(result.splits["train"]) == 2
    assert result.dropped == {"train": 1, "validation": 0, "test": 0}


def test_without_a_tokenizer_only_ids_are_taken() -> None:
    ids = Example("", 1, "f:1", input_ids=(6, 7, 8))
    limits: dict[str, Any] = {"max_length": 2, "max_response": 4, "over_long": "truncate"}
    result = tokenize_task(TaskExamples(define("yes", "no"), (ids,), (), ()), (), None, **limits)
    assert result.splits["train"][0].prompt.tolist() == [6, 7]  # no answer takes any room
    text = Example("a", 1, "f:2")
    with pytest.raises(UserError, match=r"^f:2: this example of task 'toy' is a text.*input_ids"):
        tokenize_task(TaskExamples(define("yes", "no"), (ids, text), (), ()), (), None, **limits)


def free_form(*pairs: tuple[str, str], **changes: Any) -> TaskExamples:
    examples = tuple(Example(text, 0, "", response) for text, response in pairs)
    return TaskExamples(define(response_field="response", **changes), examples, (), ())


def test_responses_end_in_end_of_sequence_unless_they_are_cut() -> None:
    pairs = ("a", "yes"), ("a b c", "no a b"), ("b", "no a b c d")
    result = tokenized(free_form(*pairs), max_length=10)  # 4 of them for the response
    train = result.splits["train"]
    assert [words(example.prompt) for example in train] == [
        "classify : a answer :",
        "classify : a b answer :",
        "classify : b answer :",
    ]
    responses = [example.response for example in train if example.response is not None]
    assert [words(ids) for ids in responses] == ["yes <eos>", "no a b <eos>", "no a b c"]
    assert all(ids.dtype == np.int32 for ids in responses)
    assert [example.response_text for example in train] == ["yes", "no a b", "no a b c d"]
    assert [example.label for example in train] == [0, 0, 0]
    assert result.truncated["train"] == 1
    assert result.truncated_responses["train"] == 1
    assert result.dropped["train"] == 0
    kept = tokenized(free_form(*pairs), max_length=10, over_long="drop")
    assert [example.response_text for example in kept.splits["train"]] == ["yes"]
    assert kept.dropped["train"] == 2
    assert (kept.truncated["train"], kept.truncated_responses["train"]) == (0, 0)


def test_responses_need_an_end_of_sequence() -> None:
    task = free_form(("a", "yes"))
    with pytest.raises(UserError, match="no end-of-sequence token"):
        tokenize_task(
            task,
            (),
            word_tokenizer(eos_token=None),
            max_length=9,
            max_response=2,
            over_long="drop",
        )


def test_a_task_without_training_examples_names_itself_and_the_key() -> None:
    result = tokenized(
        TaskExamples(define("yes", "no"), (), (), (Example("d", 1, ""),)), max_length=9
    )
    with pytest.raises(UserError, match=r"task 'toy' has no training examples.*Set `train`"):
        result.require_training_examples()


CHAT = (
    "{% for turn in messages %}<user> {{ turn.content }} {% endfor %}"
    "{% if add_generation_prompt %}<bot>{% endif %}"
)


def chat_tokenizer(template: str | None = CHAT) -> PreTrainedTokenizerFast:
    """The byte tokenizer, which adds a beginning, with a chat template that does so itself."""
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<eos> $A", special_tokens=[("<eos>", 0)]
    )
    tokenizer.chat_template = template
    return tokenizer


def test_a_chat_s_template_is_the_tokenizer_s_around_the_task_s() -> None:
    definition = define("yes", "no", chat=True, template="Say: {text}!")
    form = prompt_format(definition, chat_tokenizer())
    assert form == PromptFormat("<user> Say: {text}! <bot>", False, "")
    tokenizer = chat_tokenizer()
    prompt, _ = tokenize_prompt("{text} 日本", form, tokenizer, 99)
    assert tokenizer.decode(prompt) == "<user> Say: {text} 日本! <bot>"  # no second beginning
    answers = tokenize_answers(definition, tokenizer)
    assert [tokenizer.decode(ids) for ids in answers] == ["yes<eos>", "no<eos>"]
    plain = define("yes", "no", template="Say: {text}!")
    assert prompt_format(plain, tokenizer) == PromptFormat("Say: {text}!", True, " ")
    prompt, _ = tokenize_prompt("a", prompt_format(plain, tokenizer), tokenizer, 99)
    assert tokenizer.decode(prompt) == "<eos>Say: a!"


def test_a_free_form_chat_s_response_has_no_space_before_it() -> None:
    tokenizer = chat_tokenizer()
    result = tokenize_task(
        free_form(("a b", "so"), chat=True, template="{text}"),
        (),
        tokenizer,
        max_length=64,
        max_response=8,
        over_long="truncate",
    )
    (example,) = result.splits["train"]
    assert example.response is not None
    assert tokenizer.decode(example.prompt) == "<user> a b <bot>"
    assert tokenizer.decode(example.response) == "so<eos>"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, r"task 'toy' has chat = True.*no chat template.*tokenizer_config\.json"),
        ("{{ messages[0].content }}{{ messages[0].content }}", "must repeat once what the user"),
        ("nothing", "must repeat once what the user says"),
        ("{{ raise_exception('begin with a system turn') }}", "fails.*begin with a system turn"),
        ("{% if %}", "chat template fails on one user turn"),
    ],
)
def test_an_unfit_chat_template_is_named(template: str | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        prompt_format(define("yes", "no", chat=True), chat_tokenizer(template))


def test_smollm2_s_chat_template() -> None:
    file = packaged_file("smollm2-135m")
    smollm2: Any = from_gguf(read_gguf(file)[0], file)
    definition = define("spam", "ham", chat=True, template="Spam or ham? {text}")
    form = prompt_format(definition, smollm2)
    begin = "<|im_start|>user\nSpam or ham? "
    assert form.template.startswith("<|im_start|>system\n")
    assert form.template.endswith(begin + "{text}<|im_end|>\n<|im_start|>assistant\n")
    prompt, cut = tokenize_prompt("Win a prize", form, smollm2, 256)
    turns = [{"role": "user", "content": "Spam or ham? Win a prize"}]
    expected = smollm2.apply_chat_template(turns, add_generation_prompt=True)["input_ids"]
    assert (prompt.tolist(), cut) == (list(expected), False)
    spam, _ = tokenize_answers(definition, smollm2)
    assert smollm2.decode(spam) == "spam<|im_end|>"
    short, cut = tokenize_prompt("Win a prize " * 50, form, smollm2, len(prompt))
    assert (len(short), cut) == (len(prompt), True)
    assert smollm2.decode(short).endswith("<|im_end|>\n<|im_start|>assistant\n")


def test_a_bare_prompt_is_the_text_alone_or_the_given_ids() -> None:
    task = TaskExamples(define("yes", "no"), (Example("a b c", 0, "here"),), (), ())
    answers = (np.array([10, 2], np.int32),)
    options = {"max_length": 9, "max_response": 1, "over_long": "truncate"}
    tokenized = tokenize_task(task, answers, word_tokenizer(bos=True), **options)
    ids = TokenizedExample(np.array([3, 6, 5, 4], np.int32), 0)
    mixed = (ids, *tokenized.splits["train"], ids)
    bare = bare_prompts(mixed, word_tokenizer(bos=True), 3)
    assert [words(prompt) for prompt in bare] == [
        "classify a answer",
        "<bos> a b",
        "classify a answer",
    ]
    assert bare_prompts([ids], None, 4)[0].tolist() == [3, 6, 5, 4]
