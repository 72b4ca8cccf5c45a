"""Batches: literal layouts, no slot used twice, no example lost, and packing changes no score."""

import dataclasses
import functools
import itertools
import math

import jax
import numpy as np
import pytest
from tiny import (
    ANSWERS,
    OPTIMIZER,
    batch_of,
    context_of,
    frozen_params,
    random_examples,
    random_parameters,
)

from moecl_jax.data.batching import (
    ROW_LENGTHS,
    BatchLayout,
    chunks,
    epoch_order,
    lay_out,
    make_batch,
    place,
    row_length,
)
from moecl_jax.data.tokenize import TokenizedExample
from moecl_jax.errors import UserError
from moecl_jax.serving.scoring import evaluation_step
from moecl_jax.training.steps import init_train_state, loss


def ids(*numbers):
    return np.array(numbers, np.int32)


def test_lay_out_appends_each_answer_as_a_branch():
    laid_out = lay_out(ids(5, 6, 7), [ids(8, 2), ids(9, 4, 2)])
    assert laid_out.tokens.tolist() == [5, 6, 7, 8, 9, 4]
    assert laid_out.positions.tolist() == [0, 1, 2, 3, 3, 4]
    assert laid_out.branches.tolist() == [0, 0, 0, 1, 2, 2]
    found = [(where.tolist(), targets.tolist()) for where, targets in laid_out.answers]
    assert found == [([2, 3], [8, 2]), ([2, 4, 5], [9, 4, 2])]


def test_lay_out_without_answers_is_the_prompt():
    laid_out = lay_out(ids(5, 6, 7), ())
    assert laid_out.tokens.tolist() == [5, 6, 7]
    assert laid_out.positions.tolist() == [0, 1, 2]
    assert laid_out.branches.tolist() == [0, 0, 0]
    assert laid_out.answers == ()


TWO_EXAMPLES = (TokenizedExample(ids(5, 6), 0), TokenizedExample(ids(7, 8, 9), 1))
TWO_ANSWERS = (ids(3, 2), ids(4, 1, 2))


def two_examples(packed, training, answers=TWO_ANSWERS):
    """A batch of three places, the last one empty."""
    layout = BatchLayout(3, packed, 16, continuations=2, answer_length=3)
    return make_batch(TWO_EXAMPLES, answers, layout, task_index=4, class_count=2, training=training)


def assert_rows(array, *rows):
    """The rows, each less its trailing zeros, which must fill 16 slots."""
    assert array.shape == (len(rows), 16)
    assert array.tolist() == [[*row, *[0] * (16 - len(row))] for row in rows]


def test_training_batch_has_the_right_answer_behind_each_prompt():
    batch = two_examples(packed=False, training=True)
    assert_rows(batch.tokens, [5, 6, 3], [7, 8, 9, 4, 1], [])
    assert_rows(batch.positions, [0, 1, 2], [0, 1, 2, 3, 4], [])
    assert_rows(batch.segments, [1, 1, 1], [2, 2, 2, 2, 2], [])
    assert_rows(batch.branches, [0, 0, 1], [0, 0, 0, 1, 1], [])
    assert batch.answer_positions.tolist() == [[[1, 2, 0]], [[18, 19, 20]], [[0, 0, 0]]]
    assert batch.answer_targets.tolist() == [[[3, 2, 0]], [[4, 1, 2]], [[0, 0, 0]]]
    assert batch.answer_mask.tolist() == [[[1, 1, 0]], [[1, 1, 1]], [[0, 0, 0]]]
    assert batch.last_token.tolist() == [1, 18, 0]


def test_packed_training_batch_has_the_longest_example_first():
    batch = two_examples(packed=True, training=True)
    assert_rows(batch.tokens, [7, 8, 9, 4, 1, 5, 6, 3])
    assert_rows(batch.positions, [0, 1, 2, 3, 4, 0, 1, 2])
    assert_rows(batch.segments, [2, 2, 2, 2, 2, 1, 1, 1])
    assert_rows(batch.branches, [0, 0, 0, 1, 1, 0, 0, 1])
    assert batch.answer_positions.tolist() == [[[6, 7, 0]], [[2, 3, 4]], [[0, 0, 0]]]
    assert batch.answer_targets.tolist() == [[[3, 2, 0]], [[4, 1, 2]], [[0, 0, 0]]]
    assert batch.answer_mask.tolist() == [[[1, 1, 0]], [[1, 1, 1]], [[0, 0, 0]]]
    assert batch.last_token.tolist() == [6, 2, 0]


def test_evaluation_batch_has_every_label_as_a_branch():
    batch = two_examples(packed=False, training=False)
    assert_rows(batch.tokens, [5, 6, 3, 4, 1], [7, 8, 9, 3, 4, 1], [])
    assert_rows(batch.positions, [0, 1, 2, 2, 3], [0, 1, 2, 3, 3, 4], [])
    assert_rows(batch.segments, [1, 1, 1, 1, 1], [2, 2, 2, 2, 2, 2], [])
    assert_rows(batch.branches, [0, 0, 1, 2, 2], [0, 0, 0, 1, 2, 2], [])
    first, second, empty = batch.answer_positions.tolist()
    assert first == [[1, 2, 0], [1, 3, 4]]
    assert second == [[18, 19, 0], [18, 20, 21]]
    assert empty == [[0, 0, 0], [0, 0, 0]]
    assert batch.answer_targets[:2].tolist() == [[[3, 2, 0], [4, 1, 2]]] * 2
    assert batch.answer_mask[:2].tolist() == [[[1, 1, 0], [1, 1, 1]]] * 2
    assert not batch.answer_mask[2].any()


def test_packed_evaluation_batch_points_at_the_same_tokens():
    batch = two_examples(packed=True, training=False)
    assert_rows(batch.tokens, [7, 8, 9, 3, 4, 1, 5, 6, 3, 4, 1])
    assert_rows(batch.branches, [0, 0, 0, 1, 2, 2, 0, 0, 1, 2, 2])
    assert batch.answer_positions[0].tolist() == [[7, 8, 0], [7, 9, 10]]
    assert batch.answer_positions[1].tolist() == [[2, 3, 0], [2, 4, 5]]


@pytest.mark.parametrize("packed", [True, False])
def test_each_position_that_predicts_an_answer_is_listed_once(packed):
    batch = two_examples(packed=packed, training=False)
    assert batch.predicted.shape == (24,)  # a multiple of 8 an example
    real = batch.answer_mask > 0
    listed = batch.predicted[batch.answer_index]
    np.testing.assert_array_equal(listed[real], batch.answer_positions[real])
    assert batch.answer_index[real].max() + 1 == len(np.unique(batch.answer_positions[real])) == 8
    assert two_examples(packed=packed, training=True).predicted.shape == (0,)


def test_missing_labels_of_narrower_tasks_have_no_mask():
    layout = BatchLayout(2, True, 16, continuations=4, answer_length=3)
    batch = make_batch(
        TWO_EXAMPLES, TWO_ANSWERS, layout, task_index=0, class_count=2, training=False
    )
    assert batch.answer_mask.any(axis=-1).tolist() == [[True, True, False, False]] * 2


@pytest.mark.parametrize("training", [True, False])
def test_batch_for_a_classification_head_has_prompts_only(training):
    batch = two_examples(packed=False, training=training, answers=())
    assert_rows(batch.tokens, [5, 6], [7, 8, 9], [])
    assert_rows(batch.segments, [1, 1], [2, 2, 2], [])
    assert not batch.branches.any() and not batch.answer_mask.any()
    assert batch.last_token.tolist() == [1, 18, 0]


def test_last_batch_is_filled_up_with_weight_0():
    batch = two_examples(packed=True, training=True)
    assert batch.weights.tolist() == [1, 1, 0]
    assert batch.labels.tolist() == [0, 1, 0]
    assert (int(batch.task_index), int(batch.class_count)) == (4, 2)
    full = make_batch(
        TWO_EXAMPLES,
        TWO_ANSWERS,
        BatchLayout(2, True, 16, 2, 3),
        task_index=0,
        class_count=2,
        training=True,
    )
    assert full.weights.tolist() == [1, 1]


FREE_FORM = tuple(
    TokenizedExample(example.prompt, 0, response)
    for example, response in zip(TWO_EXAMPLES, (ids(3, 2), ids(4, 1, 2)), strict=True)
)


@pytest.mark.parametrize("training", [True, False])
def test_a_free_form_example_has_its_own_response_behind_its_prompt(training):
    layout = BatchLayout(3, False, 16, continuations=2, answer_length=3)
    batch = make_batch(FREE_FORM, (), layout, task_index=4, class_count=0, training=training)
    assert_rows(batch.tokens, [5, 6, 3], [7, 8, 9, 4, 1], [])
    assert_rows(batch.branches, [0, 0, 1], [0, 0, 0, 1, 1], [])
    assert batch.answer_mask.shape == (3, 1, 3)  # as long as the labels' answers: it fits
    assert batch.answer_positions[:, 0, :3].tolist() == [[1, 2, 0], [18, 19, 20], [0, 0, 0]]
    assert batch.answer_targets[:, 0, :3].tolist() == [[3, 2, 0], [4, 1, 2], [0, 0, 0]]
    assert batch.answer_mask[:, 0].sum(axis=-1).tolist() == [2, 3, 0]


@pytest.mark.parametrize(("longest", "length"), [(2, 3), (4, 16), (16, 16), (17, 32), (33, 48)])
def test_few_response_lengths_are_compiled(longest, length):
    examples = [TokenizedExample(ids(5), 0, np.ones(count, np.int32)) for count in (1, longest)]
    batch = make_batch(
        examples, (), BatchLayout(2, True, 64, 5, 3), task_index=0, class_count=0, training=True
    )
    assert batch.answer_mask.shape == (2, 1, length)


def random_lengths(seed):
    generator = np.random.default_rng(seed)
    return generator.integers(1, 97, generator.integers(1, 65)).tolist()


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "padded"])
def test_every_sequence_has_slots_of_its_own(packed):
    for seed in range(50):
        lengths = random_lengths(seed)
        layout = BatchLayout(64, packed, 128, 1, 1)
        rows, offsets, shape = place(lengths, layout)
        assert (rows, offsets, shape) == place(lengths, layout)
        taken = np.zeros(shape, int)
        for row, offset, length in zip(rows, offsets, lengths, strict=True):
            assert offset + length <= shape[1]
            taken[row, offset : offset + length] += 1
        assert taken.max() == 1
        assert taken.sum() == sum(lengths)
        assert shape[0] == (len(set(rows)) if packed else 64)


def test_packed_rows_waste_little():
    """Of texts as long as reviews, at most a tenth of the slots is wasted, the last row aside."""
    for seed in range(20):
        generator = np.random.default_rng(seed)
        lengths = np.clip(generator.lognormal(4, 0.5, 64), 8, 256).astype(int).tolist()
        _, _, (rows, slots) = place(lengths, BatchLayout(64, True, 256, 1, 1, padded_length=256))
        assert slots == 256
        assert sum(lengths) > 0.9 * (rows - 1) * slots
        _, _, longer = place(lengths, BatchLayout(64, True, 256, 1, 1))
        assert longer == (rows, slots) or math.prod(longer) < 0.95 * rows * slots


def test_rows_are_long_enough_for_the_longest_example():
    assert place([5, 40], BatchLayout(2, True, 16, 1, 1))[2] == (1, 48)
    assert place([5, 40], BatchLayout(2, False, 16, 1, 1))[2] == (2, 48)
    assert place([5, 6], BatchLayout(2, False, 128, 1, 1))[2] == (2, 16)


def test_packed_rows_are_longer_where_that_saves_slots():
    layout = BatchLayout(8, True, 32, 1, 1)
    assert place([32, 32], layout)[2] == (2, 32)
    assert place([20, 20], layout)[2] == (1, 48)  # 48 slots for 64
    assert place([20, 20, 12, 12], layout)[2] == (2, 32)
    assert place([20, 20, 20], layout)[2] == (3, 32)  # 96 slots either way
    assert place([20, 20], dataclasses.replace(layout, padded_length=32))[2] == (2, 32)
    assert place([16] * 21, layout)[2] == (11, 32)  # 336 slots for 352: no twentieth


def test_rows_padded_to_a_maximum_all_have_it_unless_one_is_longer():
    layout = BatchLayout(3, False, 16, 1, 1, padded_length=100)
    assert place([5, 6], layout)[2] == (3, 100)
    assert place([5, 100], layout)[2] == (3, 100)
    assert place([5, 101], layout)[2] == (3, 128)  # in evaluation all labels follow the prompt


def test_row_length_is_the_next_of_a_few():
    found = [row_length(longest) for longest in (1, 16, 17, 48, 49, 4096)]
    assert found == [16, 16, 32, 48, 64, 4096]


def test_a_row_of_more_than_32_slots_wastes_at_most_a_third():
    for shorter, longer in itertools.pairwise(ROW_LENGTHS):
        assert longer <= 32 or 3 * (shorter + 1) >= 2 * longer


def test_too_long_an_example_is_an_error_that_names_the_setting():
    with pytest.raises(UserError, match=r"4097 tokens.*data\.max_length"):
        row_length(4097)


def test_epoch_order_is_a_permutation_given_by_its_arguments():
    order = epoch_order(seed=1, task_index=2, epoch=3, count=100)
    assert sorted(order.tolist()) == list(range(100))
    np.testing.assert_array_equal(epoch_order(1, 2, 3, 100), order)
    for other in ((0, 2, 3), (1, 0, 3), (1, 2, 0), (2, 1, 3), (1, 3, 2)):
        assert (epoch_order(*other, 100) != order).any()


@pytest.mark.parametrize("count", [1, 7, 8, 9])
def test_an_epoch_shows_every_example_once(count):
    pieces = list(chunks(epoch_order(0, 0, 0, count), 4))
    assert sorted(index for piece in pieces for index in piece) == list(range(count))
    assert [len(piece) for piece in pieces[:-1]] == [4] * ((count - 1) // 4)
    assert 1 <= len(pieces[-1]) <= 4


EXAMPLES = random_examples([5, 3, 9, 1, 7])


def all_layouts(head, training):
    batches = [
        batch_of(EXAMPLES, head, training=training, packed=packed, batch_size=6)
        for packed in (True, False)
    ]
    to_max = BatchLayout(6, False, 32, len(ANSWERS), max(map(len, ANSWERS)), padded_length=40)
    answers = ANSWERS if head == "lm" else ()
    batches.append(
        make_batch(EXAMPLES, answers, to_max, task_index=1, class_count=3, training=training)
    )
    assert len({batch.tokens.shape for batch in batches}) == 3
    return batches


@pytest.mark.parametrize("head", ["lm", "classification"])
def test_packing_changes_no_training_loss(head):
    chosen = context_of(head)
    state = init_train_state(chosen.method, OPTIMIZER, random_parameters(chosen), jax.random.key(0))
    value = jax.jit(functools.partial(loss, context=chosen))
    packed, *padded = (
        value(state.active, state, frozen_params(), batch)[1]
        for batch in all_layouts(head, training=True)
    )
    assert packed.keys() >= {"loss", "loss_instruction", "loss_adversarial"}
    for name, number in packed.items():
        for other in padded:
            np.testing.assert_allclose(number, other[name], atol=1e-5, rtol=0, err_msg=name)


@pytest.mark.parametrize("head", ["lm", "classification"])
def test_packing_changes_no_score(head):
    chosen = context_of(head)
    step = jax.jit(functools.partial(evaluation_step, context=chosen))
    active = random_parameters(chosen)
    (packed, is_packed, _), *others = (
        step(active, frozen_params(), batch) for batch in all_layouts(head, training=False)
    )
    assert packed.shape == (6, len(ANSWERS))
    for padded, is_padded, _ in others:
        np.testing.assert_allclose(packed[:5], padded[:5], atol=1e-5, rtol=0)
        np.testing.assert_array_equal(is_packed[:5], is_padded[:5])


def test_a_response_scores_and_trains_as_a_label_of_the_same_text():
    responses = [
        TokenizedExample(example.prompt, 0, ANSWERS[example.label]) for example in EXAMPLES
    ]
    chosen = context_of("lm")
    active = random_parameters(chosen)
    layout = BatchLayout(6, True, 32, 1, 1)
    step = jax.jit(functools.partial(evaluation_step, context=chosen))
    state = init_train_state(chosen.method, OPTIMIZER, active, jax.random.key(0))
    value = jax.jit(jax.value_and_grad(functools.partial(loss, context=chosen), has_aux=True))
    free_form = [
        make_batch(responses, (), layout, task_index=1, class_count=0, training=training)
        for training in (True, False)
    ]
    (_, metrics), gradient = value(active, state, frozen_params(), free_form[0])
    scores, answered, _ = step(active, frozen_params(), free_form[1])
    as_labels = [batch_of(EXAMPLES, "lm", training=t, batch_size=6) for t in (True, False)]
    (_, metrics_of_labels), gradient_of_labels = value(active, state, frozen_params(), as_labels[0])
    scores_of_labels, answered_of_labels, _ = step(active, frozen_params(), as_labels[1])
    at = np.arange(5), [example.label for example in EXAMPLES]
    assert scores.shape == (6, 1)
    np.testing.assert_allclose(scores[:5, 0], scores_of_labels[at], atol=1e-5, rtol=0)
    np.testing.assert_array_equal(answered[:5, 0], answered_of_labels[at])
    for name, number in metrics.items():
        np.testing.assert_allclose(number, metrics_of_labels[name], atol=1e-5, rtol=0)
    jax.tree.map(
        lambda ours, theirs: np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=1e-4),
        gradient,
        gradient_of_labels,
    )
