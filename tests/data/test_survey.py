"""All that is wrong with data, at once, against figures counted by hand."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moecl_jax.data.examples import load_examples
from moecl_jax.data.settings import DataSettings
from moecl_jax.data.survey import Survey, lengths, rendered, survey
from moecl_jax.data.task import Task
from moecl_jax.data.tokenize import tokenize_answers
from moecl_jax.testing import write_model
from moecl_jax.weights.tokenizer import from_folder

Line = tuple[Any, Any]


def write(folder: Path, split: str, lines: list[Line]) -> None:
    text = "\n".join(json.dumps({"text": text, "label": label}) for text, label in lines)
    (folder / f"{split}.jsonl").write_text(text + "\n")


def task_of(folder: Path, **fields: Any) -> Task:
    splits = {s: f"{s}.jsonl" for s in ("train", "validation", "test")}
    there = {s: name for s, name in splits.items() if (folder / name).exists()}
    return Task(
        "toy", source="jsonl", path=str(folder), **there, **{"labels": ("a", "b"), **fields}
    )


def look(task: Task, **settings: Any) -> Survey:
    data = DataSettings(**{"validation_fraction": 0.0, **settings})
    return survey(task, data, seed=0, vocabulary_size=100)


def test_all_problems_are_reported_at_once(tmp_path: Path) -> None:
    write(
        tmp_path,
        "train",
        [("one", "a"), ("two", "b"), ("", "a"), ("x", "c"), ("y", "d"), ("z", None), (7, "a")]
        + [(f"leak {i}", "a") for i in range(5)],
    )
    write(tmp_path, "test", [("three", "b"), *((f"leak {i}", "a") for i in range(5))])
    found = look(task_of(tmp_path))
    where, test = tmp_path / "train.jsonl", tmp_path / "test.jsonl"
    labels = "the labels are a, b. If the data hold others for them, name those in raw_labels"
    assert found.problems == (
        f"task 'toy', train: empty text, 1 of 12 examples: {where}:3: the text (text) is empty",
        "task 'toy', train: unknown label, 3 of 12 examples: "
        f"{where}:4: unknown label 'c'; {labels}; {where}:5: unknown label 'd'; {labels}; "
        f"{where}:6: unknown label 'None': it is missing",
        "task 'toy', train: text is no string, 1 of 12 examples: "
        f"{where}:7: field 'text' is 7, not a text",
        "task 'toy', train: texts that are also in test (a leak), 5 of 7 examples: "
        f"{where}:8 = {test}:2; {where}:9 = {test}:3; {where}:10 = {test}:4; ...",
    )
    assert found.warnings == ()
    skipping = look(task_of(tmp_path), on_bad_example="skip")
    assert skipping.problems == ()
    assert [line.partition(": ")[2].partition(":")[0] for line in skipping.warnings] == [
        "empty text (left out), 1 of 12 examples",
        "unknown label (left out), 3 of 12 examples",
        "text is no string (left out), 1 of 12 examples",
        "texts that are also in test (left out), 5 of 7 examples",
    ]
    assert skipping.examples is not None
    assert [example.text for example in skipping.examples.train] == ["one", "two"]


def test_what_training_stops_at_is_a_problem_and_the_other_way_round(tmp_path: Path) -> None:
    """Each kind of doubtful data, against what `load_examples` raises."""
    fine = [("one", "a"), ("two", "b"), ("three", "a"), ("four", "b")]
    cases: list[tuple[list[Line], list[Line], bool]] = [
        (fine, [("five", "a")], False),
        ([*fine, ("one", "a")], [("five", "a")], False),
        ([*fine, ("one", "b")], [("five", "a")], False),
        ([*fine, ("six", "c")], [("five", "a")], True),
        (fine, [("one", "a"), ("five", "b")], True),
        ([("one", "a"), ("two", "a")], [("five", "a")], True),
        (fine, fine, True),
        (fine, [("", "a")], True),
    ]
    for train, test, stops in cases:
        write(tmp_path, "train", train)
        write(tmp_path, "test", test)
        task = task_of(tmp_path)
        try:
            load_examples(
                task,
                seed=0,
                vocabulary_size=100,
                validation_from="train",
                validation_fraction=0.25,
                train_examples=0,
                validation_examples=0,
                test_examples=0,
                on_bad_example="error",
            )
            raised = False
        except Exception:
            raised = True
        assert raised is stops
        assert bool(look(task, validation_fraction=0.25).problems) is stops


def test_repeats_and_contradictions_are_counted_with_places(tmp_path: Path) -> None:
    lines = [("one", "a"), ("one ", "a"), ("two", "b"), ("one", "b"), ("two", "b")]
    write(tmp_path, "train", lines)
    found = look(task_of(tmp_path))
    where = tmp_path / "train.jsonl"
    assert found.problems == ()
    assert found.warnings == (
        "task 'toy', train: texts that stand there before, 2 of 5 examples: "
        f"{where}:2 = {where}:1; {where}:5 = {where}:3",
        "task 'toy', train: texts that stand there before with another label, 1 of 5 examples: "
        f"{where}:4 = {where}:1",
    )


def test_labels_that_cannot_be_learned_are_named(tmp_path: Path) -> None:
    write(tmp_path, "train", [("one", "a"), ("two", "A"), ("three", "a")])
    write(tmp_path, "test", [("four", "b")])
    found = look(task_of(tmp_path, labels=("a", "A", "b")))
    assert found.warnings == (
        "task 'toy': labels without a training example: b",
        "task 'toy': labels that differ in capitals alone: 'a' and 'A'",
    )
    write(tmp_path, "train", [("one", "a"), ("two", "a")])
    found = look(task_of(tmp_path))
    assert found.problems == (
        "task 'toy': all 2 training examples have the label 'a', so that nothing can be learned "
        "from them; give examples of b",
    )


def test_a_file_that_cannot_be_read_does_not_hide_what_is_wrong_with_another(
    tmp_path: Path,
) -> None:
    write(tmp_path, "test", [("one", "c")])
    (tmp_path / "train.jsonl").write_text("{")
    found = look(task_of(tmp_path))
    assert len(found.problems) == 2
    assert "malformed JSON" in found.problems[0]
    assert "test: unknown label, 1 of 1 examples" in found.problems[1]
    assert found.examples is None
    assert found.majority_accuracy() is None


def test_label_counts_and_the_majority_baseline(tmp_path: Path) -> None:
    write(tmp_path, "train", [(f"train {i}", "b" if i % 3 else "a") for i in range(9)])
    write(tmp_path, "test", [(f"test {i}", "a" if i % 4 else "b") for i in range(8)])
    found = look(task_of(tmp_path))
    assert found.label_counts() == {
        "train": {"a": 3, "b": 6},
        "validation": {"a": 0, "b": 0},
        "test": {"a": 6, "b": 2},
    }
    assert found.majority_accuracy() == 0.25  # always "b", which is 2 of 8


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return from_folder(write_model(tmp_path_factory.mktemp("model")))


def test_lengths_are_those_of_whole_texts(tmp_path: Path, tokenizer: Any) -> None:
    """One token a word; the template adds one, the label and its end two."""
    words = [*range(1, 96), 100, 100, 100, 100, 200]
    lines = [(" ".join(["w7"] * n) + (f" w{n % 60}" * 0), f"w{n % 2}") for n in words]
    write(tmp_path, "train", lines)
    task = task_of(tmp_path, labels=("w0", "w1"), template="{text} answer")
    settings = DataSettings(max_length=50, validation_fraction=0, on_bad_example="skip")
    examples = survey(task, settings, seed=0, vocabulary_size=100).examples
    assert examples is not None
    answers = tokenize_answers(task, tokenizer)
    found = lengths(examples, answers, tokenizer, settings)
    total = np.sort(np.array(words)) + 3
    assert found.percentiles == {50: 53, 90: 93, 95: 98, 99: 103, 100: 203}
    assert found.cut_share == np.mean(total > 50)
    assert np.mean(total > found.suggested) < 0.05 <= np.mean(total > found.suggested - 1)
    assert found.cut_responses == 0
    shown = rendered(examples, answers, tokenizer, settings)
    assert shown.where == f"{tmp_path}/train.jsonl:1"
    assert (shown.prompt, shown.answer) == ("w7 answer", ("w1", "<eos>"))


def test_responses_that_are_cut_are_counted(tmp_path: Path, tokenizer: Any) -> None:
    lines = [(f"w1 w{i}", " ".join(["w2"] * i)) for i in range(1, 11)]
    write(tmp_path, "train", lines)
    task = task_of(tmp_path, labels=(), response_field="label")
    settings = DataSettings(max_length=20, max_response=8, validation_fraction=0)
    examples = survey(task, settings, seed=0, vocabulary_size=100).examples
    assert examples is not None
    found = lengths(examples, (), tokenizer, settings)
    assert found.cut_responses == 0.3  # 8, 9 and 10 words with their end
    assert found.percentiles[100] == 2 + 8
    assert rendered(examples, (), tokenizer, settings).answer == ("w2", "<eos>")
