"""Continued pre-training on a folder of texts before the first task."""

import math

import jax
import numpy as np
import pytest
from streams import assert_bit_equal, logged, restored, stop_after, tiny_settings, training_of

from moecl_jax.errors import UserError
from moecl_jax.methods.next_token import next_tokens
from moecl_jax.testing import write_model
from moecl_jax.training import pretraining
from moecl_jax.training.pretraining import PRETRAINED_NAME, Texts, batch_of_rows, rows_of
from moecl_jax.training.trainer import train
from moecl_jax.weights.tokenizer import from_folder


def write_texts(folder, paragraphs=120):
    """Paragraphs in which each word tells the next one."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    texts = [
        " ".join(f"w{(start + 5 * step) % 64}" for step in range(12))
        for start in generator.integers(0, 64, paragraphs)
    ]
    (folder / "first.txt").write_text("\n\n".join(texts[:70]) + "\n", encoding="utf-8")
    (folder / "below").mkdir()
    (folder / "below" / "second.txt").write_text("\n\n".join(texts[70:]), encoding="utf-8")
    return texts


def settings_with(tmp_path, **changes):
    texts = tmp_path / "texts"
    if not texts.exists():
        write_texts(texts)
    return tiny_settings(
        tmp_path,
        tasks=("two",),
        epochs=1,
        data__max_length=32,
        self_supervised__texts=str(texts),
        **{"self_supervised__steps": 40, **changes},
    )


def test_texts_become_rows_of_equal_length(tmp_path):
    tokenizer = from_folder(write_model(tmp_path))  # w0 is 2, w1 is 3, ..., and the end is 0
    texts = ["w3 w4", "w5", "w6 w7 w8 w9"]
    found = [row.tolist() for row in rows_of(texts, tokenizer, 3)]
    assert found == [[5, 6, 0], [7, 0, 8], [9, 10, 11]]  # the last end alone predicts nothing
    assert [row.tolist() for row in rows_of(texts[:2], tokenizer, 3)] == [[5, 6, 0], [7, 0]]


def test_rows_become_a_batch_with_empty_places():
    batch = batch_of_rows([np.array([5, 6, 2]), np.array([7, 2])], 3, 4)
    assert batch.tokens.tolist() == [[5, 6, 2, 0], [7, 2, 0, 0], [0] * 4]
    assert batch.segments.tolist() == [[1, 1, 1, 0], [2, 2, 0, 0], [0] * 4]
    assert batch.positions.tolist() == [[0, 1, 2, 3]] * 3
    assert batch.weights.tolist() == [1.0, 1.0, 0.0]
    tokens, follows = next_tokens(batch)
    assert np.array(tokens)[np.array(follows) > 0].tolist() == [6, 2, 2]


def test_one_paragraph_in_twenty_is_held_out_and_the_rest_is_shuffled(tmp_path):
    written = write_texts(tmp_path / "texts")
    texts = Texts(tmp_path / "texts", seed=3)
    held_out = list(texts.held_out())
    first, second = list(texts.training(0)), list(texts.training(1))
    assert len(held_out) == 6 and len(first) == 114
    assert sorted(held_out + first) == sorted(written)
    assert sorted(first) == sorted(second) and first != second
    assert first == list(texts.training(0))


@pytest.mark.slow
def test_what_tasks_share_learns_the_texts(tmp_path):
    settings = settings_with(tmp_path, method="slao")  # which answers by another tree in a task
    run = training_of(settings, tmp_path / "run")
    stream, _ = run.store.restore()
    trained, found = pretraining.pretrained(run.evaluator, stream, None)
    assert found["perplexity_after"] < 0.8 * found["perplexity_before"]
    assert found["steps"] == 40 and found["tokens"] > 40 * 8 * 16
    before, after = (tree["expert"]["gate_proj"]["b"] for tree in (stream.shared, trained.shared))
    assert not np.any(before) and np.all(np.any(after, axis=(1, 2)))  # in each layer


@pytest.mark.slow
def test_the_perplexity_is_that_of_the_model_alone_before(tmp_path):
    settings = settings_with(tmp_path, self_supervised__steps=0)
    run = training_of(settings, tmp_path / "run")
    stream, _ = run.store.restore()
    _, facts = pretraining.pretrained(run.evaluator, stream, None)
    assert facts["perplexity_after"] == facts["perplexity_before"]
    tokenizer = from_folder(tmp_path / "model")
    texts = Texts(tmp_path / "texts", 0).held_out()
    total, count = 0.0, 0
    model = run.evaluator.model
    decoder = model.architecture.frozen_decoder()
    for row in rows_of(texts, tokenizer, 32):
        ids = row[None]
        ones, places = np.ones_like(ids), np.arange(len(row))[None]
        hidden, _ = decoder.apply(
            {"params": model.params}, ids, places, ones, 0 * ones, np.ones((1, len(row)))
        )
        logits = decoder.apply({"params": model.params}, hidden, method="logits")
        rows = np.array(jax.nn.log_softmax(logits), np.float64)
        total -= rows[np.arange(len(row) - 1), row[1:]].sum()
        count += len(row) - 1
    assert facts["held_out_tokens"] == count
    assert facts["perplexity_before"] == pytest.approx(math.exp(total / count), rel=1e-4)


@pytest.mark.slow
def test_no_steps_are_no_pre_training_and_an_interrupted_run_goes_on(tmp_path, monkeypatch):
    none = settings_with(tmp_path, self_supervised__steps=0)
    train(none, tmp_path / "none")
    plain = train(none.changed({"self_supervised": {"texts": ""}}), tmp_path / "plain")
    assert "pretraining" not in plain
    assert logged(tmp_path / "none") == logged(tmp_path / "plain")

    settings = settings_with(tmp_path, self_supervised__steps=20, checkpoint_every=2)
    whole = train(settings, tmp_path / "whole")
    assert whole["pretraining"]["perplexity_after"] < whole["pretraining"]["perplexity_before"]
    assert whole["random_init"] == plain["random_init"]
    assert logged(tmp_path / "whole") != logged(tmp_path / "plain")
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            train(settings, tmp_path / "run")
    assert (tmp_path / "run" / PRETRAINED_NAME).exists()

    def never(*_):
        raise AssertionError

    with monkeypatch.context() as patch:
        patch.setattr(pretraining, "_Pretraining", never)
        again = train(settings, tmp_path / "run")
    assert again["pretraining"] == whole["pretraining"]
    assert logged(tmp_path / "run") == logged(tmp_path / "whole")
    assert_bit_equal(restored(tmp_path / "run")[1].shared, restored(tmp_path / "whole")[1].shared)


def test_what_was_pre_trained_goes_on_with_more_tasks(tmp_path):
    """The discriminator has a row for each task."""
    settings = settings_with(tmp_path, self_supervised__steps=1)
    run = training_of(settings, tmp_path / "run")
    before, facts = pretraining.pretrained(run.evaluator, run.store.restore()[0], tmp_path / "run")
    more = training_of(settings.changed({"tasks": ("two", "five")}), tmp_path / "run")
    fresh, _ = more.store.restore()
    after, again = pretraining.pretrained(more.evaluator, fresh, tmp_path / "run")
    assert again == facts
    rows = after.shared["discriminator"]
    assert np.array_equal(rows[:, :1], before.shared["discriminator"])
    assert np.array_equal(rows[:, 1:], fresh.shared["discriminator"][:, 1:])


@pytest.mark.parametrize("method", ["per_task", "o_lora", "mocl"])
def test_methods_that_carry_nothing_on_are_refused(tmp_path, method):
    run = training_of(settings_with(tmp_path, method=method), tmp_path / "run")
    stream, _ = run.store.restore()
    with pytest.raises(UserError, match=f"method = '{method}' has nothing that all tasks carry on"):
        pretraining.pretrained(run.evaluator, stream, None)


def test_texts_that_are_not_there_are_named(tmp_path):
    (tmp_path / "texts").mkdir()
    run = training_of(settings_with(tmp_path), tmp_path / "run")
    stream, _ = run.store.restore()
    with pytest.raises(UserError, match=r"texts' holds no text files \(\.txt\); name a folder"):
        pretraining.pretrained(run.evaluator, stream, None)
    (tmp_path / "texts" / "one.txt").write_text("w1 w2 w3", encoding="utf-8")
    with pytest.raises(UserError, match="hold too little text: one paragraph in 20 is held out"):
        pretraining.pretrained(run.evaluator, stream, None)


def test_a_loss_that_is_not_finite_ends_it_soon(tmp_path, monkeypatch):
    def broken(shared, optimizer_state, *_, **__):
        return shared, optimizer_state, float("nan")

    monkeypatch.setattr(pretraining, "pretraining_step", broken)
    run = training_of(settings_with(tmp_path), tmp_path / "run")
    with pytest.raises(UserError, match="has after 1 steps a loss that is not finite; lower"):
        pretraining.pretrained(run.evaluator, run.store.restore()[0], None)


def test_a_damaged_file_is_named(tmp_path):
    run = training_of(settings_with(tmp_path), tmp_path / "run")
    stream, _ = run.store.restore()
    file = tmp_path / "run" / PRETRAINED_NAME
    pretraining._save(file, stream.shared, {"steps": 3})
    found, facts = pretraining._load(file, stream.shared)
    assert facts == {"steps": 3}
    assert_bit_equal(found, stream.shared)
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(UserError, match=r"pretrained\.safetensors is damaged: .*Delete it to pre"):
        pretraining.pretrained(run.evaluator, stream, tmp_path / "run")
