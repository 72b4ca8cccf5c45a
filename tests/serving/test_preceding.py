"""What stands before prompts: a prefix that is read once, and pieces of a text's own."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from tiny import (
    CONFIG,
    batch_of,
    context_of,
    frozen_params,
    generator_of,
    random_examples,
    random_parameters,
    with_architecture,
)

from moecl_jax.data.demonstrations import (
    SEPARATOR,
    demonstration,
    fitting,
    front_of,
    one_after_another,
    separator_of,
    without_front,
)
from moecl_jax.data.tokenize import PromptFormat, TokenizedExample
from moecl_jax.methods.preceding import Preceding
from moecl_jax.methods.sequential_lora import SequentialLora
from moecl_jax.models.config import AttentionKind
from moecl_jax.models.lora import TARGETS
from moecl_jax.serving.generation import Sampling
from moecl_jax.serving.preceding import preceded, read_prefix
from moecl_jax.serving.scoring import evaluation_step

LENGTHS = [3, 9, 1, 6]
BEFORE = np.array([4, 11, 7, 19, 3, 3, 20], np.int32)
WINDOWS = {
    "attention_kinds": (AttentionKind(), AttentionKind(window=4, rope_theta=100.0)),
    "layer_kinds": (0, 1),
}


def ids(*tokens: int) -> np.ndarray:
    return np.array(tokens, np.int32)


def lists(arrays):
    return [array.tolist() for array in arrays]


def prefix_of(context, active, frozen, slots=16):
    tokens = np.zeros(slots, np.int32)
    tokens[: len(BEFORE)] = BEFORE
    step = jax.jit(functools.partial(read_prefix, context=context))
    return step(active, frozen, tokens, np.int32(len(BEFORE)))


def longer(examples):
    """The examples with the prefix as a part of their prompts."""
    return [
        dataclasses.replace(each, prompt=np.concatenate([BEFORE, each.prompt])) for each in examples
    ]


@pytest.mark.parametrize(
    ("packed", "changes"), [(True, WINDOWS), (False, {})], ids=["packed, windows", "padded"]
)
def test_scores_after_a_prefix_are_those_of_the_whole_prompt(packed, changes):
    sizes = dataclasses.replace(CONFIG, **changes)
    context = with_architecture(context_of(method=SequentialLora, targets=TARGETS), sizes=sizes)
    active, frozen = random_parameters(context, 0.5), frozen_params(sizes)
    step = jax.jit(functools.partial(evaluation_step, context=context))
    examples = random_examples(LENGTHS, seed=5)

    def batch(of):
        return batch_of(of, "lm", training=False, packed=packed)

    expected, answered, _ = step(active, frozen, batch(longer(examples)))
    prefix = prefix_of(context, active, frozen)
    found, also, _ = step(active, frozen, batch(examples), prefix=prefix)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(also, answered)
    alone, *_ = step(active, frozen, batch(examples))
    assert np.abs(np.asarray(alone) - np.asarray(expected)).max() > 0.1  # the prefix matters


@pytest.mark.slow
def test_texts_written_after_a_prefix_are_those_of_the_whole_prompt():
    sampling = Sampling(1.0, top_k=5)
    context = context_of(method=SequentialLora, targets=TARGETS)
    active, frozen = random_parameters(context, 0.5), frozen_params()
    generator, prefix = generator_of(context, frozen), prefix_of(context, active, frozen)
    examples = random_examples(LENGTHS, seed=6)
    write = functools.partial(
        generator.write, active, max_tokens=8, sampling=sampling, seed=3, batch_size=3
    )
    whole = write([example.prompt for example in longer(examples)])
    parted = write([example.prompt for example in examples], prefix=prefix)
    assert lists(parted) == lists(whole)
    first = generator.stream(
        active, examples[0].prompt, max_tokens=8, sampling=sampling, seed=3, prefix=prefix
    )
    assert list(first) == whole[0].tolist()


def test_pieces_are_put_before_prompts_by_hand():
    front, separator = ids(1), ids(9)
    examples = [TokenizedExample(ids(1, 5, 6), 0), TokenizedExample(ids(7), 1)]
    read = []

    def put(before, room):
        read.clear()
        return preceded(
            None, examples, before, front=front, separator=separator, room=room, read=read.append
        )

    common = put(Preceding(common=[ids(2, 3), ids(4)]), room=6)
    assert lists(read) == [[1, 4, 9, 2, 3, 9]]  # the most important one last
    assert lists(each.prompt for each in common.examples) == [[5, 6], [7]]
    assert (common.shown, common.left_out, common.own_limit) == (4, 0, 0)

    short = put(Preceding(common=[ids(2, 3), ids(4)]), room=5)
    assert lists(read) == [[1, 2, 3, 9]]
    assert (short.shown, short.left_out) == (2, 2)

    own = put(Preceding(own=[[ids(2, 3), ids(4)], []], own_limit=5), room=10)
    assert not read and own.prefix is None
    assert lists(each.prompt for each in own.examples) == [[1, 4, 9, 2, 3, 9, 5, 6], [7]]
    assert (own.shown, own.left_out, own.own_limit) == (2, 0, 6)

    limited = put(Preceding(own=[[ids(2, 3), ids(4)], [ids(4)]], own_limit=2), room=10)
    assert lists(each.prompt for each in limited.examples) == [[1, 4, 9, 5, 6], [1, 4, 9, 7]]
    assert (limited.shown, limited.left_out) == (2, 1)

    both = put(Preceding([ids(8)], [[ids(2)], [ids(4)]], own_limit=9), room=4)
    assert lists(read) == [[1, 8, 9]]
    assert lists(each.prompt for each in both.examples) == [[5, 6], [7]]  # one token of room
    assert (both.shown, both.left_out) == (2, 2)

    both = put(Preceding([ids(8)], [[ids(2)], [ids(4)]], own_limit=9), room=5)
    assert lists(each.prompt for each in both.examples) == [[2, 9, 5, 6], [4, 9, 7]]
    assert (both.shown, both.left_out, both.own_limit) == (4, 0, 3)

    nothing = put(Preceding(common=[ids(2, 3)]), room=0)
    assert not read and nothing.examples == examples
    assert (nothing.shown, nothing.left_out) == (0, 2)


@pytest.mark.parametrize(
    ("room", "used"), [(0, []), (2, [2]), (3, [0]), (5, [0, 2]), (8, [0, 1]), (10, [0, 1, 2])]
)
def test_pieces_that_fit_are_used_in_their_order(room, used):
    assert fitting([3, 5, 2], room) == used


def test_a_demonstration_has_no_end_but_in_a_chat():
    example = TokenizedExample(ids(1, 5, 6), 0, response=ids(7, 2))
    plain, chat = PromptFormat("{text}"), PromptFormat("{text}", special_tokens=False)
    assert demonstration(example, plain, ids(1), 2).tolist() == [5, 6, 7]
    assert demonstration(example, chat, ids(1), 2).tolist() == [5, 6, 7, 2]
    cut = dataclasses.replace(example, response=ids(7, 8))  # its end was cut away
    assert demonstration(cut, plain, ids(), 2).tolist() == [1, 5, 6, 7, 8]


def test_pieces_stand_one_after_another_with_the_first_one_last():
    assert one_after_another([ids(1, 2), ids(3)], ids(9)).tolist() == [3, 9, 1, 2, 9]
    assert one_after_another([], ids(9)).tolist() == []
    assert without_front(ids(1, 2), ids(1)).tolist() == [2]
    assert without_front(ids(2, 1), ids(1)).tolist() == [2, 1]
    assert without_front(ids(2), ids()).tolist() == [2]
    assert without_front(ids(1), ids(1)).tolist() == [1]  # a prompt has a token


class Spelling:
    """A tokenizer with an id for each character, which adds some before and after a text."""

    def __init__(self, before=(), after=()):
        self.before, self.after = list(before), list(after)

    def encode(self, text, *, add_special_tokens):
        own = [ord(character) for character in text]
        return [*self.before, *own, *self.after] if add_special_tokens else own


@pytest.mark.parametrize(
    ("before", "after", "front"), [((), (), []), ((1,), (), [1]), ((1, 3), (2,), [1, 3])]
)
def test_the_front_is_what_a_tokenizer_adds_before_a_text(before, after, front):
    assert front_of(Spelling(before, after)).tolist() == front


def test_a_chat_has_no_separator():
    spelled = Spelling((1,))
    line_ends = [ord(character) for character in SEPARATOR]
    assert separator_of(PromptFormat("{text}"), spelled).tolist() == line_ends
    assert separator_of(PromptFormat("{text}", special_tokens=False), spelled).tolist() == []
