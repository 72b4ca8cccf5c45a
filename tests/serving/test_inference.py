"""`moecl evaluate` and `moecl predict` on a trained workdir."""

import json

import numpy as np
import pytest
from records import answers, read
from streams import tiny_settings

from moecl_jax.cli.main import main
from moecl_jax.errors import UserError
from moecl_jax.runs.history import Evaluation
from moecl_jax.runs.workdir import save_settings
from moecl_jax.serving.evaluator import Evaluator
from moecl_jax.serving.files import Files, predict_file
from moecl_jax.serving.session import open_run
from moecl_jax.training.trainer import train


@pytest.fixture(scope="module", params=["lm", "classification"])
def trained(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    settings = tiny_settings(folder, head=request.param, tasks=("two", "five"), epochs=1)
    return folder, train(settings, folder / "run")


def evaluate(workdir, split):
    return open_run(workdir).evaluate(split)


def predict(workdir, task, source, target):
    return predict_file(open_run(workdir), task, Files(source, target)).bad_rows


def test_evaluate_repeats_the_last_row_of_the_matrix(trained):
    folder, results = trained
    by_task = evaluate(folder / "run", "test")["tasks"]
    assert [by_task[name]["accuracy"] for name in ("two", "five")] == results["accuracy_matrix"][1]
    assert by_task["two"]["examples"] == 48
    assert all(entry["log_likelihood"] < 0 for entry in by_task.values())


def test_the_command_prints_nothing_but_json(trained, capsys):
    assert main(["evaluate", f"--workdir={trained[0] / 'run'}", "--split=validation"]) == 0
    assert set(json.loads(capsys.readouterr().out)["tasks"]) == {"two", "five"}


def test_the_command_prints_null_for_what_is_not_known(trained, monkeypatch, capsys):
    unknown = Evaluation(float("nan"), float("nan"), float("nan"))
    monkeypatch.setattr(Evaluator, "evaluate", lambda *_: unknown)
    assert main(["evaluate", f"--workdir={trained[0] / 'run'}"]) == 0
    entry = json.loads(capsys.readouterr().out)["tasks"]["two"]
    keys = ("accuracy", "scored_accuracy", "log_likelihood", "classification")
    assert entry == {"examples": 48, **dict.fromkeys(keys)}


@pytest.mark.slow
def test_a_long_text_is_cut_as_in_training(tmp_path):
    changes = {"head": "classification", "tasks": ("two",), "epochs": 1}
    changes["data__max_length"] = 6  # three words, "answer", a label and the end
    train(tiny_settings(tmp_path, **changes), tmp_path / "run")
    source = tmp_path / "data" / "two_test.jsonl"
    assert predict(tmp_path / "run", "two", source, tmp_path / "out.jsonl") == 0
    truth = [line["label"] for line in read(source)]
    answered = [line["label"] for line in answers(tmp_path / "out.jsonl")]
    assert all(line["truncated"] for line in answers(tmp_path / "out.jsonl"))
    right = np.mean([ours == label for ours, label in zip(answered, truth, strict=True)])
    expected = evaluate(tmp_path / "run", "test")["tasks"]["two"]["accuracy"]
    assert right == pytest.approx(expected)


def test_a_line_with_nan_is_no_json(trained, tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_text('{"text": "w1", "x": NaN}\n{"text": "w1"}\n', encoding="utf-8")
    assert predict(trained[0] / "run", "two", source, tmp_path / "out.jsonl") == 1
    bad, good = answers(tmp_path / "out.jsonl")
    assert "NaN is no JSON" in bad["error"] and "label" in good


def test_evaluate_refuses_an_unknown_split(trained):
    with pytest.raises(UserError, match="--split=dev is not one of train, validation, test"):
        evaluate(trained[0] / "run", "dev")


def test_predictions_agree_with_the_evaluation(trained, tmp_path):
    folder, _ = trained
    source = folder / "data" / "five_test.jsonl"
    assert predict(folder / "run", "five", source, tmp_path / "out.jsonl") == 0
    given, written = read(source), read(tmp_path / "out.jsonl")
    assert [line | {"prediction": None} for line in given] == [
        line | {"prediction": None} for line in written
    ]
    answered = answers(tmp_path / "out.jsonl")
    labels = [f"w{label}" for label in range(5)]
    for line in answered:
        assert list(line["probabilities"]) == labels
        assert sum(line["probabilities"].values()) == pytest.approx(1.0)
        best = int(np.argmax(line["logits"]))
        assert max(line["probabilities"], key=line["probabilities"].get) == labels[best]
    truth = [line["label"] for line in given]
    right = np.mean([line["label"] == label for line, label in zip(answered, truth, strict=True)])
    expected = evaluate(folder / "run", "test")["tasks"]["five"]["scored_accuracy"]
    assert right == pytest.approx(expected)


def test_text_and_its_token_ids_give_the_same_prediction(trained, tmp_path):
    folder, _ = trained
    source = tmp_path / "in.jsonl"
    # ids are 2 + the word's number; "answer" is 66; the template adds it to a text
    source.write_text('{"text": "w9 w8 w30", "id": 7}\n{"input_ids": [11, 10, 32, 66]}\n')
    assert predict(folder / "run", "two", source, tmp_path / "out.jsonl") == 0
    assert read(tmp_path / "out.jsonl")[0]["id"] == 7
    first, second = answers(tmp_path / "out.jsonl")
    np.testing.assert_allclose(first["logits"], second["logits"], rtol=1e-5)


def test_bad_lines_stop_nothing_and_are_counted(trained, tmp_path, capsys):
    folder, _ = trained
    lines = [
        b'{"text": "w9 w8"}',
        b"{not json",
        b'{"text": "  "}',
        b'{"other": 1}',
        b'{"text": "w9", "input_ids": [3]}',
        b'{"input_ids": [3, 900]}',
        b'{"input_ids": []}',
        b'{"input_ids": [3, true]}',
        b"[1]",
        b'\xff\xfe{"text": "w9"}',
        b'{"text": "w9 w7"}',
    ]
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_bytes(b"\n".join(lines) + b"\n")
    arguments = [f"--workdir={folder / 'run'}", "--task=two"]
    status = main(["predict", *arguments, f"--input={source}", f"--output={target}"])
    assert status == 1
    assert "bad lines: 9" in capsys.readouterr().out
    answered = answers(target)
    assert len(answered) == len(lines)
    assert ["error" in line for line in answered] == [False, *[True] * 9, False]
    assert "between 0 and 66" in answered[5]["error"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "six"}, "there is no task 'six'; the tasks are two, five"),
        ({"source": "absent.jsonl"}, "absent.jsonl does not exist"),
        ({"target": "in.jsonl"}, "are the same file"),
    ],
)
def test_predict_names_a_mistake(trained, tmp_path, changes, message):
    (tmp_path / "in.jsonl").write_text('{"text": "w9"}\n')
    values = {"task": "two", "source": "in.jsonl", "target": "out.jsonl", **changes}
    with pytest.raises(UserError, match=message):
        predict(
            trained[0] / "run",
            values["task"],
            tmp_path / values["source"],
            tmp_path / values["target"],
        )


def test_a_workdir_without_a_run_is_named(tmp_path):
    with pytest.raises(UserError, match="is no workdir"):
        evaluate(tmp_path, "test")


def test_a_run_without_a_finished_task_is_named(tmp_path):
    (tmp_path / "run").mkdir()
    save_settings(tiny_settings(tmp_path), tmp_path / "run")
    with pytest.raises(UserError, match="holds no finished task yet"):
        evaluate(tmp_path / "run", "test")
