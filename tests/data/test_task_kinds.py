"""Tiny streams of every kind of task: free-form, chat, token ids, without data or tokenizer."""

import json
import logging
import math

import numpy as np
import pytest
from ml_collections import ConfigDict
from records import answers, read, repeat_task, write
from streams import evaluator_of, logged, tiny_config, tiny_settings, training_of
from transformers import PreTrainedTokenizerFast

from moecl_jax.config.default import from_config
from moecl_jax.errors import UserError
from moecl_jax.serving.files import Files, predict_file
from moecl_jax.serving.session import open_run
from moecl_jax.training.trainer import train


def predict(workdir, task, source, target):
    return predict_file(open_run(workdir), task, Files(source, target)).bad_rows


CHAT = "w1 {% for turn in messages %}{{ turn.content }} {% endfor %}{{ '' }}w2 "


def add_chat_template(config):
    folder = config.model.path
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(folder)


@pytest.fixture
def mixed(tmp_path):
    """A config of a label task and a free-form task."""
    config = tiny_config(tmp_path)
    with config.unlocked():
        config.definitions.repeat = repeat_task(tmp_path / "data")
    config.tasks = ("two", "repeat")
    config.data.max_length = 24
    config.data.max_response = 4
    return config


@pytest.mark.slow
def test_free_form_and_label_tasks_make_one_stream(mixed, tmp_path, caplog):
    caplog.set_level(logging.INFO, "moecl_jax")
    mixed.epochs = 6
    mixed.selection = "last"
    results = train(from_config(mixed), tmp_path / "run")
    assert np.shape(results["accuracy_matrix"]) == (2, 2)
    assert results["random_init"][1] == 0
    assert results["accuracy_matrix"][1][1] >= 0.9  # greedy decoding writes the two words and ends
    assert results["scored_accuracy_matrix"][1][1] is None  # no labels to choose from
    losses = [e["loss_instruction"] for e in logged(tmp_path / "run") if e["task"] == "repeat"]
    assert losses[-1] < 0.3 * losses[0]
    by_task = open_run(tmp_path / "run").evaluate("test")["tasks"]
    assert by_task["repeat"]["accuracy"] == results["accuracy_matrix"][1][1]
    assert by_task["repeat"]["log_likelihood"] < 0
    assert "repeat: train 48, validation 12, test 12" in caplog.text
    with pytest.raises(UserError, match=r"task 'repeat' answers in free text.*moecl generate"):
        source = tmp_path / "data" / "repeat_test.jsonl"
        predict(tmp_path / "run", "repeat", source, tmp_path / "out.jsonl")


def test_labels_keep_their_shapes_beside_responses(mixed, tmp_path):
    alone = tiny_config(tmp_path, tasks=("two",))
    mixed, alone = (evaluator_of(from_config(config)) for config in (mixed, alone))
    assert mixed.layout(8) == alone.layout(8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head": "classification"}, "head = 'classification', and task 'repeat' has a response_f"),
        ({"data__max_response": 24}, "data.max_response = 24 leaves no room for a prompt"),
        ({"data__max_response": 0}, "data.max_response = 0 must be at least 1"),
    ],
)
def test_a_config_without_room_for_a_response_is_refused(mixed, changes, message):
    for key, value in changes.items():
        *path, last = key.split("__")
        (mixed[path[0]] if path else mixed)[last] = value
    with pytest.raises(UserError, match=message):
        evaluator_of(from_config(mixed))


@pytest.mark.slow
@pytest.mark.parametrize("head", ["lm", "classification"])
def test_a_chat_is_trained_and_predicted_alike(tmp_path, head):
    config = tiny_config(tmp_path, tasks=("two",), epochs=1, head=head)
    config.definitions.two.update({"template": "{text}"})
    with config.definitions.two.unlocked():
        config.definitions.two.chat = True
    with pytest.raises(UserError, match=r"task 'two' has chat = True.*no chat template"):
        train(from_config(config), tmp_path / "run")
    add_chat_template(config)
    train(from_config(config), tmp_path / "run")
    source = tmp_path / "data" / "two_test.jsonl"
    ids = [
        {"input_ids": [3, *(2 + int(word[1:]) for word in line["text"].split()), 4]}
        for line in read(source)
    ]
    write(tmp_path / "ids.jsonl", ids)  # w1, the text, w2
    for name, given in (("text", source), ("ids", tmp_path / "ids.jsonl")):
        assert predict(tmp_path / "run", "two", given, tmp_path / f"{name}.out") == 0
    answered = answers(tmp_path / "text.out")
    logits = [[line["logits"] for line in answers(tmp_path / f"{n}.out")] for n in ("text", "ids")]
    np.testing.assert_allclose(logits[0], logits[1], rtol=1e-5)
    truth = [line["label"] for line in read(source)]
    right = np.mean([line["label"] == label for line, label in zip(answered, truth, strict=True)])
    expected = open_run(tmp_path / "run").evaluate("test")["tasks"]["two"]["scored_accuracy"]
    assert right == pytest.approx(expected)


def ids_task(config, name="two"):
    """Rewrites a task's files with token ids in place of its texts."""
    definition = config.definitions[name]
    for split in ("train", "validation", "test"):
        path = f"{definition.path}/{definition[split]}"
        with open(path, encoding="utf-8") as file:
            records = [json.loads(line) for line in file]
        with open(path, "w", encoding="utf-8") as file:
            for record in records:
                ids = [2 + int(word[1:]) for word in record["text"].split()] + [66]  # "answer"
                line = {"input_ids": ids, "label": record["label"]}
                file.write(json.dumps(line) + "\n")


@pytest.mark.parametrize("head", ["lm", "classification"])
def test_ids_train_as_their_texts_do(tmp_path, head):
    config = tiny_config(tmp_path, tasks=("two",), epochs=1, head=head)
    train(from_config(config), tmp_path / "texts")
    ids_task(config)
    train(from_config(config), tmp_path / "ids")
    assert logged(tmp_path / "texts") == logged(tmp_path / "ids")


@pytest.fixture
def without_tokenizer(tmp_path):
    config = tiny_config(tmp_path, tasks=("two",), epochs=1, head="classification")
    for path in (tmp_path / "model").glob("token*"):
        path.unlink()
    return config


def test_a_model_without_tokenizer_takes_ids(without_tokenizer, tmp_path):
    ids_task(without_tokenizer)
    without_tokenizer.data.max_length = 7  # no room is kept for an answer
    results = train(from_config(without_tokenizer), tmp_path / "run")
    assert 0 <= results["accuracy_matrix"][0][0] <= 1
    lines = [{"text": "w9"}, {"input_ids": [11, 10, 66]}, {"input_ids": [3] * 8}]
    write(tmp_path / "in.jsonl", lines)
    assert predict(tmp_path / "run", "two", tmp_path / "in.jsonl", tmp_path / "out.jsonl") == 2
    text, ids, long = answers(tmp_path / "out.jsonl")
    assert 'no tokenizer for a text; give "input_ids"' in text["error"]
    assert ids["label"] in ("w0", "w1")
    assert "8 tokens; at most 7 fit" in long["error"]


def test_texts_without_tokenizer_are_named(without_tokenizer, tmp_path):
    with pytest.raises(UserError, match=r"two_train\.jsonl:1: this example of task 'two' is a t"):
        train(from_config(without_tokenizer), tmp_path / "run")
    without_tokenizer.head = "lm"
    with pytest.raises(UserError, match="model holds no tokenizer, and head = 'lm' writes texts"):
        train(from_config(without_tokenizer), tmp_path / "run2")


def test_half_of_a_surrogate_pair_is_a_bad_line(tmp_path):
    train(tiny_settings(tmp_path, tasks=("two",), epochs=1), tmp_path / "run")
    source = tmp_path / "in.jsonl"
    source.write_bytes(b'{"text": "w9 \\ud800"}\n{"text": "w9", "id": "\\udfff"}\n{"text": "w9"}\n')
    assert predict(tmp_path / "run", "two", source, tmp_path / "out.jsonl") == 2
    first, second, third = answers(tmp_path / "out.jsonl")
    assert "surrogate" in first["error"] and "surrogate" in second["error"]
    assert "label" in third


def test_a_task_without_data_is_named_before_anything_is_trained(tmp_path):
    config = tiny_config(tmp_path, tasks=("two", "later"))
    with config.unlocked():
        config.definitions.later = ConfigDict({"source": "none", "labels": ("w1", "w2")})
    with pytest.raises(UserError, match=r"task 'later' has no training examples.*Set `train`"):
        train(from_config(config), tmp_path / "run")
    assert not list((tmp_path / "run").glob("metrics.jsonl"))


def test_a_task_without_test_data_scores_nothing(tmp_path):
    config = tiny_config(tmp_path, tasks=("two", "five"), epochs=1)
    config.definitions.two.test = ""
    _, results = training_of(from_config(config), tmp_path / "run").run()
    matrix = np.array(results["accuracy_matrix"], float)
    assert np.isnan(matrix[:, 0]).all() and np.isfinite(matrix[:, 1]).all()
    assert math.isnan(results["random_init"][0])


def test_validation_can_be_the_test_split(tmp_path, caplog):
    caplog.set_level(logging.INFO, "moecl_jax")
    config = tiny_config(tmp_path, tasks=("two",), epochs=1)
    config.data.validation_from = "test"
    config.definitions.two.validation = ""
    results = train(from_config(config), tmp_path / "run")
    assert results["validation_accuracy"][0] == results["accuracy_matrix"][0][0]
    assert results["selection"].startswith("best test (a leak) accuracy")
    assert "two: train 48, validation 48, test 48" in caplog.text
    assert "validation is the test split (data.validation_from)" in caplog.text


def test_rows_are_padded_to_the_maximum_when_asked_for(tmp_path):
    config = tiny_config(tmp_path, tasks=("two",))
    for layout, packed, length in (("padded", False, 0), ("padded_to_max", False, 256)):
        config.batch.layout = layout
        found = evaluator_of(from_config(config)).layout(8)
        assert (found.packed, found.padded_length) == (packed, length)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"source": "jsonl", "label": ("a",)}, "task 'own' has an unknown field 'label'"),
        ({"labels": ("a", "b")}, "task 'own' has no source"),
    ],
)
def test_a_mistyped_definition_is_named(tmp_path, fields, message):
    config = tiny_config(tmp_path, tasks=("own",))
    with config.unlocked():
        config.definitions.own = ConfigDict(fields)
    with pytest.raises(UserError, match=message):
        evaluator_of(from_config(config))
