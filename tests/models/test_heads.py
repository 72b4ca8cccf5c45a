"""Heads: masked classes, columns of their own, and scores that a slow decoder confirms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import CONFIG, context_of, frozen_params, random_examples, random_parameters

from moecl_jax.data.batching import BatchLayout, make_batch
from moecl_jax.models.decoder import Decoder
from moecl_jax.models.heads import answer_log_probabilities, class_logits, init_head
from moecl_jax.serving.scoring import evaluation_step

LOWEST = np.finfo(np.float32).min


def normal(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def test_class_logits_are_taken_at_the_last_tokens():
    hidden, head = normal(5, 4), normal(4, 3)
    logits = class_logits(hidden, jnp.array([4, 1]), head, jnp.int32(3))
    np.testing.assert_allclose(logits, hidden[[4, 1]] @ head, rtol=1e-6, atol=1e-6)


def test_classes_beyond_the_task_s_are_masked():
    logits = class_logits(normal(5, 4), jnp.array([4, 1]), normal(4, 3), jnp.int32(2))
    assert (logits[:, 2] == LOWEST).all()
    assert (jax.nn.softmax(logits, axis=-1)[:, 2] == 0).all()


def test_padding_a_head_changes_no_probability():
    hidden, last, head = normal(5, 4), jnp.array([4, 1]), normal(4, 2)
    narrow = class_logits(hidden, last, head, jnp.int32(2))
    for padding in (np.zeros((4, 3), np.float32), 100 * normal(4, 3)):
        wide = class_logits(hidden, last, np.hstack([head, padding]), jnp.int32(2))
        np.testing.assert_allclose(
            jax.nn.softmax(wide, axis=-1)[:, :2], jax.nn.softmax(narrow, axis=-1), rtol=1e-6
        )


def test_bfloat16_hidden_states_give_float32_logits():
    hidden = jnp.asarray(normal(5, 4), jnp.bfloat16)
    assert class_logits(hidden, jnp.array([0]), normal(4, 3), jnp.int32(3)).dtype == jnp.float32


def test_new_head_s_columns_do_not_depend_on_how_many_there_are():
    key = jax.random.key(0)
    wide = init_head(key, 16, 7)
    assert wide.shape == (16, 7)
    np.testing.assert_array_equal(init_head(key, 16, 3), wide[:, :3])
    assert np.abs(np.corrcoef(np.asarray(init_head(key, 4096, 3)).T) - np.eye(3)).max() < 0.08


def test_new_head_is_uniform():
    head = np.asarray(init_head(jax.random.key(0), 4096, 16), np.float64) * 64
    sigma = head.size**-0.5
    assert 0.999 < np.abs(head).max() <= 1
    assert abs(head.mean()) < 5 * sigma * (1 / 3) ** 0.5
    assert abs((head**2).mean() - 1 / 3) < 5 * sigma * (4 / 45) ** 0.5


def test_answer_log_probabilities_equal_numpy_s():
    logits, targets = 3 * normal(2, 3, 4, 11), np.random.default_rng(0).integers(0, 11, (2, 3, 4))
    targets[0, 0] = logits[0, 0].argmax(axis=-1)
    # Positions in another order than the answers', and one that no answer is predicted at.
    order = np.random.default_rng(1).permutation(24)
    flat = np.concatenate([logits.reshape(24, 11)[order], np.ones((1, 11), np.float32)])
    index = np.argsort(order).reshape(targets.shape)
    found, greedy = answer_log_probabilities(jnp.asarray(flat), jnp.asarray(targets), index)
    wide = logits.astype(np.float64)
    expected = wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True))
    expected = np.take_along_axis(expected, targets[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
    assert greedy[0, 0].all() and not greedy.all()
    np.testing.assert_array_equal(greedy, logits.argmax(axis=-1) == targets)


def test_answer_log_probabilities_survive_large_logits():
    zero = jnp.array([[[0]]])
    found, greedy = answer_log_probabilities(jnp.array([[1e4, 0.0, -1e4]]), zero, zero)
    assert (float(found[0, 0, 0]), bool(greedy[0, 0, 0])) == (0.0, True)


# The random model ends several texts of different lengths with this token.
END, LONGEST, PROMPTS = 3, 4, 24


class SlowDecoder:
    """The model with its experts, one whole text at a time and one token after another."""

    def __init__(self, chosen, active):
        self.chosen = chosen
        self.adapter = chosen.method.adapter(active)

    @functools.cached_property
    def _logits(self):
        decoder = self.chosen.decoder(training=False)

        @jax.jit
        def logits(tokens, params, adapter):
            shape = tokens.shape
            positions = jnp.broadcast_to(jnp.arange(shape[1])[None], shape)
            ones = jnp.ones(shape, jnp.int32)
            membership = jnp.ones((1, tokens.size))
            layout = (tokens, positions, ones, 0 * ones, membership)
            hidden, _ = decoder.apply({"params": params}, *layout, adapter)
            out = Decoder(CONFIG).apply({"params": params}, hidden, method="logits")
            return out.reshape(*shape, -1)

        return logits

    def logits(self, texts):
        """Logits of each of `PROMPTS` texts, `[S, V]` each."""
        grid = np.zeros((PROMPTS, 10), np.int32)
        for row, text in zip(grid, texts, strict=True):
            row[: len(text)] = text
        out = np.asarray(self._logits(grid, frozen_params(), self.adapter), np.float64)
        return [row[: len(text)] for row, text in zip(out, texts, strict=True)]

    def continuations(self, prompts):
        """What greedy decoding writes after each prompt, up to `END` or `LONGEST` tokens."""
        texts = [list(prompt) for prompt in prompts]
        for _ in range(LONGEST):
            for text, logits in zip(texts, self.logits(texts), strict=True):
                text.append(int(logits[-1].argmax()))
        written = [text[len(prompt) :] for text, prompt in zip(texts, prompts, strict=True)]
        return [
            tuple(tokens[: tokens.index(END) + 1] if END in tokens else tokens)
            for tokens in written
        ]

    def score(self, prompts, answer):
        """Summed log-probability of an answer after each prompt."""
        scores = []
        for logits in self.logits([[*prompt, *answer[:-1]] for prompt in prompts]):
            log_normaliser = np.log(np.exp(logits).sum(axis=-1, keepdims=True))
            at = (logits - log_normaliser)[-len(answer) :]
            scores.append(at[np.arange(len(answer)), answer].sum())
        return scores


@pytest.fixture(scope="module")
def decoded():
    """Prompts, answers, greedy continuations, scores and flags by the library, the slow decoder."""
    chosen = context_of("lm")
    active = random_parameters(chosen)
    slow = SlowDecoder(chosen, active)
    generator = np.random.default_rng(0)
    examples = random_examples(generator.integers(2, 7, PROMPTS).tolist())
    prompts = [example.prompt for example in examples]
    continuations = slow.continuations(prompts)
    ended = {tokens for tokens in continuations if tokens[-1] == END}
    # All that is ever written and ended, and three labels that never are.
    answers = sorted(ended | {(8, END), (9, 4, END), (9, 5, 6, END)})
    layout = BatchLayout(PROMPTS, True, 64, len(answers) + 1, LONGEST)
    batch = make_batch(
        examples,
        [np.array(answer, np.int32) for answer in answers],
        layout,
        task_index=0,
        class_count=len(answers),
        training=False,
    )
    step = jax.jit(functools.partial(evaluation_step, context=chosen))
    scores, flags, _ = step(active, frozen_params(), batch)
    return prompts, answers, continuations, scores, flags, slow


def test_a_label_is_the_answer_where_greedy_decoding_writes_it_and_ends(decoded):
    _, answers, continuations, _, flags, _ = decoded
    expected = np.array([[answer == written for answer in answers] for written in continuations])
    np.testing.assert_array_equal(flags[:, :-1], expected)
    right = {len(answer) for answer, hits in zip(answers, expected.T, strict=True) if hits.any()}
    assert right == {1, 2, 3}
    assert not expected.any(axis=1).all()


def test_scores_are_the_log_probabilities_of_one_label_at_a_time(decoded):
    prompts, answers, _, scores, _, slow = decoded
    expected = np.stack([slow.score(prompts, answer) for answer in answers], axis=1)
    np.testing.assert_allclose(scores[:, :-1], expected, atol=2e-5, rtol=0)


def test_a_label_that_does_not_exist_is_never_chosen(decoded):
    _, _, _, scores, flags, _ = decoded
    assert (scores[:, -1] == LOWEST).all()
    assert not flags[:, -1].any()
