"""Texts without a task's name: how the stream is evaluated on them, and `moecl predict`."""

import json
import shutil

import numpy as np
import pytest
from records import answers, read
from streams import CLASSES, tiny_settings

from moecl_jax.cli.main import main
from moecl_jax.data.tokenize import bare_prompts
from moecl_jax.errors import UserError
from moecl_jax.runs.features import TaskFeatures
from moecl_jax.runs.tables import format_task_free
from moecl_jax.serving.files import Files, predict_file
from moecl_jax.serving.session import open_run, open_stream
from moecl_jax.serving.task_free import evaluate_task_free
from moecl_jax.training.trainer import StreamTraining, train


@pytest.fixture(scope="module", params=["lm", "classification"])
def trained(request, tmp_path_factory):
    """A finished stream whose tasks have labels in common: settings, folder and results."""
    folder = tmp_path_factory.mktemp(request.param)
    settings = tiny_settings(folder, head=request.param, epochs=1)
    return settings, folder, train(settings, folder / "run")


def predict(workdir, task, source, target):
    return predict_file(open_run(workdir), task, Files(source, target)).bad_rows


def restored_features(workdir):
    """Evaluator, state and features of a workdir."""
    evaluator, store = open_stream(workdir)
    stream, _ = store.restore()
    return evaluator, stream, store.restore_features(stream)


def known_results(workdir):
    """The same, with the tokenised tasks and their results where the task is known."""
    evaluator, stream, features = restored_features(workdir)
    tasks = evaluator.load()
    known = StreamTraining(evaluator, tasks, open_stream(workdir)[1], workdir).evaluate_all(stream)
    return evaluator, stream, features, tasks, known


def assert_features_are_of_the_training_texts(settings, workdir):
    evaluator, _, features = restored_features(workdir)
    expected = TaskFeatures.blank(32)
    for task in evaluator.load():
        expected = expected.joined(
            TaskFeatures.of(task.name, evaluator.features(task.splits["train"]))
        )
    assert features.names == settings.tasks
    for name, array in expected.arrays.items():
        np.testing.assert_array_equal(features.arrays[name], array)


def test_the_newest_checkpoint_has_the_features_of_all_tasks(trained):
    settings, folder, _ = trained
    assert_features_are_of_the_training_texts(settings, folder / "run")
    saved = [path.parent.name for path in (folder / "run" / "checkpoints").glob("*/features")]
    assert saved == ["002_fourteen"]


def test_the_template_is_not_in_the_features(trained):
    evaluator, _ = open_stream(trained[1] / "run")
    task = evaluator.load()[0]
    bare = bare_prompts(task.splits["train"], evaluator.model.tokenizer, 256)
    answer = evaluator.model.tokenizer.convert_tokens_to_ids("answer")
    for example, ids in zip(task.splits["train"], bare, strict=True):
        assert [*ids, answer] == example.prompt.tolist()


def test_accuracy_is_that_of_predictions_for_the_chosen_tasks(trained, tmp_path):
    """Each text's answer is right if its text is that of the right label."""
    settings, folder, results = trained
    task_free = results["task_free"]
    accuracy, choices = [], []
    for name in CLASSES:
        source, target = folder / "data" / f"{name}_test.jsonl", tmp_path / f"{name}.jsonl"
        assert predict(folder / "run", None, source, target) == 0
        given, answered = read(source), answers(target)
        choices.append([sum(line["task"] == other for line in answered) for other in CLASSES])
        for line in answered:
            assert len(line["probabilities"]) == CLASSES[line["task"]]
        right = [a["label"] == b["label"] for a, b in zip(given, answered, strict=True)]
        accuracy.append(np.mean(right))
    assert task_free["choices"] == choices
    assert np.sum(choices) == 3 * 48
    if settings.head == "classification":  # the LM head's greedy answer may be no label at all
        np.testing.assert_allclose(task_free["accuracy"], accuracy)
    assert task_free["acc"] == pytest.approx(np.mean(task_free["accuracy"]))


def test_a_line_is_labelled_as_by_its_task(trained, tmp_path):
    _, folder, _ = trained
    lines = [line for name in CLASSES for line in read(folder / "data" / f"{name}_test.jsonl")[:9]]
    source, chosen = tmp_path / "in.jsonl", tmp_path / "chosen.jsonl"
    source.write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    assert predict(folder / "run", None, source, chosen) == 0
    assert len({line["task"] for line in answers(chosen)}) > 1
    for name in CLASSES:
        assert predict(folder / "run", name, source, tmp_path / "named.jsonl") == 0
        for ours, named in zip(answers(chosen), answers(tmp_path / "named.jsonl"), strict=True):
            if ours["task"] == name:
                assert ours["label"] == named["label"]
                np.testing.assert_allclose(ours["logits"], named["logits"], rtol=1e-4, atol=1e-5)


def test_misrouted_texts_are_asked_as_the_chosen_task_and_others_reuse_their_answer(
    trained, monkeypatch
):
    """Of texts of "five" given to "two" the label w1 may be right, w4 cannot."""
    evaluator, stream, features, tasks, known = known_results(trained[1] / "run")
    two, five = (tasks[index].splits["test"] for index in (0, 1))
    monkeypatch.setattr(TaskFeatures, "choose", lambda *_: np.array([1, 0] * 24))
    asked = []
    original = evaluator.evaluate

    def evaluate(parameters, index, examples):
        asked.append((index, len(examples)))
        return original(parameters, index, examples)

    monkeypatch.setattr(evaluator, "evaluate", evaluate)
    result = evaluate_task_free(evaluator, tasks, stream, features, known)
    assert result["choices"][:2] == [[24, 24, 0], [24, 24, 0]]
    shared = [place for place in range(1, 48, 2) if five[place].label < 2]
    # every label of "two" is one of "five"; texts of "fourteen" go to both
    assert asked[:2] == [(1, 24), (0, len(shared))]
    as_two = original(
        evaluator.starting.task(stream, "two", 0), 0, [five[place] for place in shared]
    )
    expected = (known[1].right[::2].sum() + as_two.right.sum()) / 48
    assert result["accuracy"][1] == pytest.approx(expected)
    as_five = original(evaluator.starting.task(stream, "five", 1), 1, list(two[::2]))
    expected = (known[0].right[1::2].sum() + as_five.right.sum()) / 48
    assert result["accuracy"][0] == pytest.approx(expected)


def test_where_every_choice_is_right_the_figure_is_the_known_task_s(trained, monkeypatch):
    _, folder, results = trained
    evaluator, stream, features, tasks, known = known_results(folder / "run")
    turns = iter(range(3))
    monkeypatch.setattr(TaskFeatures, "choose", lambda *_: np.full(48, next(turns)))
    result = evaluate_task_free(evaluator, tasks, stream, features, known)
    assert result["accuracy"] == results["accuracy_matrix"][-1]
    assert result["choices"] == (48 * np.eye(3, dtype=int)).tolist()


def test_a_run_that_was_finished_says_the_same_again(trained):
    settings, folder, results = trained
    assert train(settings, folder / "run")["task_free"] == results["task_free"]


def test_bad_lines_stop_nothing_where_the_task_is_chosen(trained, tmp_path, capsys):
    _, folder, _ = trained
    lines = [b'{"text": "w9"}', b"{no", b'{"input_ids": [3, 900]}', b'{"input_ids": [11, 66]}']
    lines.append(json.dumps({"input_ids": [3] * 5000}).encode())
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_bytes(b"\n".join(lines))
    arguments = [f"--workdir={folder / 'run'}", f"--input={source}", f"--output={target}"]
    assert main(["predict", *arguments]) == 1
    assert "bad lines: 3" in capsys.readouterr().out
    answered = answers(target)
    assert ["error" in line for line in answered] == [False, True, True, False, True]
    assert "has 5000 tokens; at most" in answered[4]["error"]
    assert answered[0]["task"] in CLASSES and "label" in answered[3]


@pytest.mark.slow
def test_tasks_are_added_to_features_or_to_a_run_that_has_none(tmp_path):
    """As after going back to a task whose features went with a newer checkpoint."""
    changes = {"method": "per_task", "head": "classification", "epochs": 1}
    settings = tiny_settings(tmp_path, tasks=("two",), **changes)
    assert train(settings, tmp_path / "run")["task_free"]["choices"] == [[48]]
    shutil.copytree(tmp_path / "run", tmp_path / "old")
    for kept in ("features", "own_features"):
        shutil.rmtree(tmp_path / "old" / "checkpoints" / "000_two" / kept)
    source, target = tmp_path / "data" / "two_test.jsonl", tmp_path / "out.jsonl"
    with pytest.raises(UserError, match=r"do not hold features .* Name one by --task: two"):
        predict(tmp_path / "old", None, source, target)
    assert predict(tmp_path / "old", "two", source, target) == 0
    settings = settings.changed({"tasks": ("two", "five")})
    task_free = train(settings, tmp_path / "run")["task_free"]
    assert np.shape(task_free["choices"]) == (2, 2)
    assert_features_are_of_the_training_texts(settings, tmp_path / "run")
    assert train(settings, tmp_path / "old")["task_free"] == task_free


def test_a_method_without_an_expert_a_task_must_be_told_the_task(tmp_path):
    settings = tiny_settings(
        tmp_path, method="sequential_lora", head="classification", tasks=("two",), epochs=1
    )
    assert train(settings, tmp_path / "run")["task_free"] is None
    source = tmp_path / "data" / "two_test.jsonl"
    with pytest.raises(UserError, match="'sequential_lora', which keeps no expert a task"):
        predict(tmp_path / "run", None, source, tmp_path / "out.jsonl")


def test_the_table_of_choices():
    task_free = {"acc": 0.831, "accuracy": [0.831, None], "choices": [[39, 1], [0, 0]]}
    matrix = [[0.9, 0.5], [0.85, None]]
    assert format_task_free(("spam", "irony"), task_free, matrix) == (
        "task chosen from the text: acc 83.1 (known task: 85.0)\n"
        "\n"
        "texts  as spam  as irony\n"
        "spam        39         1\n"
        "irony        0         0"
    )
