"""Scores of examples and of generated texts, against numbers worked by hand."""

import math

import numpy as np
import pytest

from moecl_jax.data.batching import BatchLayout
from moecl_jax.data.task import Task
from moecl_jax.data.tokenize import TokenizedExample, TokenizedTask
from moecl_jax.progress import EVALUATE, WRITE
from moecl_jax.runs.classification import NO_LABEL
from moecl_jax.serving.evaluator import Evaluator
from moecl_jax.serving.scoring import Scores, Scoring, evaluate_examples, score
from moecl_jax.serving.text_scores import labels_of, rouge_l, score_texts

PROMPT = np.array([5, 6], np.int32)


def test_label_scores():
    scores = Scores(
        np.log([[0.6, 0.3], [0.1, 0.2], [0.4, 0.1]]).astype(np.float32),
        np.array([[True, False], [False, False], [False, True]]),
    )
    examples = [TokenizedExample(PROMPT, label) for label in (0, 1, 1)]
    result = evaluate_examples(scores, examples, ("x", "y"))
    assert result.predicted.tolist() == [0, NO_LABEL, 1]
    assert result.right.tolist() == [True, False, True]
    assert result.classification["support"] == [1, 2]
    assert result.accuracy == pytest.approx(2 / 3)
    assert result.scored_accuracy == pytest.approx(2 / 3)
    # shares of the right labels: 0.6 / 0.9, 0.2 / 0.3, 0.1 / 0.5
    assert result.log_likelihood == pytest.approx(np.log([2 / 3, 2 / 3, 1 / 5]).mean(), rel=1e-6)


def test_free_form_scores():
    examples = [TokenizedExample(PROMPT, 0, np.array([3, 2], np.int32))] * 4
    answered = np.array([[True], [False], [False], [True]])
    scores = Scores(np.array([[-1.0], [-2.0], [-3.5], [-0.5]], np.float32), answered)
    gates = {"shared_weight": np.array([[0.25, 0.75, 0.5, 0.5], [1.0, 0.0, 0.0, 0.0]])}
    scores = Scores(scores.scores, scores.answered, gates)
    result = evaluate_examples(scores, examples, ())
    assert (result.accuracy, result.log_likelihood) == (0.5, -1.75)
    assert result.shared_weight == (0.5, 0.25)
    assert math.isnan(result.scored_accuracy)


@pytest.mark.parametrize(("classes", "columns"), [(3, 3), (0, 1)])
def test_nothing_to_score_is_nan(classes, columns):
    def never(*_):
        raise AssertionError

    scoring = Scoring(BatchLayout(2, True, 16, 3, 3))
    scores = score(never, None, None, (), (), scoring, class_count=classes)
    assert scores.scores.shape == scores.answered.shape == (0, columns)
    result = evaluate_examples(scores, (), ())
    for value in (result.accuracy, result.scored_accuracy, result.log_likelihood):
        assert math.isnan(value)
    assert math.isnan(score_texts((), (), "rouge_l"))


@pytest.mark.parametrize(
    ("generated", "expected", "value"),
    [
        ("The cat sat.", "the black cat sat down", 6 / 8),  # lcs: the cat sat
        ("a b c d", "d c b a", 2 / 8),
        ("a b c", "a b c", 1.0),
        ("a a a", "a", 2 / 4),
        ("a x b y c", "a b c z", 6 / 9),
        ("no", "yes", 0.0),
        ("", "yes", 0.0),
        ("don't", "Don't!", 1.0),
        ("3,14", "3 14", 1.0),
        ("我喜欢猫", "我不喜欢狗。", 6 / 9),  # 我 喜 欢, of 4 and 5 characters
        ("用JAX写", "用 jax 写", 1.0),
        ("\U00020000の", "の", 2 / 3),
        ("😀", "😀", 1.0),
        ("😀", "😡", 0.0),
    ],
)
def test_rouge_l_of_worked_examples(generated, expected, value):
    assert rouge_l(generated, expected) == pytest.approx(value)
    assert rouge_l(expected, generated) == pytest.approx(value)


def table_lcs(first, second):
    """The textbook's table."""
    table = np.zeros((len(first) + 1, len(second) + 1), int)
    for i, ours in enumerate(first):
        for j, theirs in enumerate(second):
            grown = table[i, j] + 1 if ours == theirs else max(table[i, j + 1], table[i + 1, j])
            table[i + 1, j + 1] = grown
    return int(table[-1, -1])


def test_rouge_l_equals_the_textbook_s_table():
    generator = np.random.default_rng(0)
    for _ in range(200):
        first, second = (
            [f"w{word}" for word in generator.integers(0, 6, generator.integers(1, 80))]
            for _ in range(2)
        )
        expected = 2 * table_lcs(first, second) / (len(first) + len(second))
        assert rouge_l(" ".join(first), " ".join(second)) == pytest.approx(expected)


def test_texts_are_scored_by_their_mean():
    generated, expected = [" a\n b", "a b c", "B"], ["a b", "a b", "b"]
    assert score_texts(generated, expected, "exact_match") == pytest.approx(1 / 3)
    assert score_texts(generated, expected, "rouge_l") == pytest.approx((1 + 4 / 5 + 1) / 3)
    with pytest.raises(ValueError, match="zip"):
        score_texts(["a"], ["a", "b"], "rouge_l")


def test_a_written_answer_is_a_label_if_its_ids_are_exactly_that():
    answers = [np.array(ids, np.int32) for ids in ([4, 2], [4, 7, 2])]
    written = [np.array(ids, np.int32) for ids in ([4], [4, 7], [7], [4, 7, 7], [])]
    assert labels_of([*written, None], answers).tolist() == [0, 1] + [NO_LABEL] * 4


def test_written_answers_are_counted_of_the_tasks_that_write(monkeypatch):
    """A session evaluates some of a stream's tasks; their places in it tell what they write."""
    evaluator = object.__new__(Evaluator)
    evaluator.tasks = [Task(name, labels=("a", "b"), source="none") for name in ("x", "y")]
    monkeypatch.setattr(Evaluator, "writes", lambda _, index: index == 1)
    splits = {"test": (TokenizedExample(PROMPT, 0),) * 3}
    y = TokenizedTask(evaluator.tasks[1], splits, {}, {}, {})
    assert evaluator.work([y], "test") == {EVALUATE: 6.0, WRITE: 3}
