"""All experts distilled into one LoRA: the teacher's answers by hand, and whole runs."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from streams import assert_bit_equal, logged, restored, tiny_settings

from moecl_jax.cli.main import main
from moecl_jax.data.task import SPLITS, Task
from moecl_jax.data.tokenize import TokenizedExample, TokenizedTask
from moecl_jax.errors import UserError
from moecl_jax.interchange.peft import export_peft, read_adapter
from moecl_jax.serving.session import open_run
from moecl_jax.training import distilling
from moecl_jax.training.distilling import Distilled, allotted, distil
from moecl_jax.training.trainer import train


@pytest.mark.parametrize(
    ("answers", "counts"),
    [
        (1, [[1, 0, 0], [0, 0, 1], [1, 0, 0]]),
        (4, [[3, 1, 0], [0, 0, 4], [2, 1, 1]]),
        (10, [[6, 3, 1], [0, 0, 10], [4, 3, 3]]),
    ],
)
def test_answers_are_allotted_in_proportion(answers, counts):
    third = 1 / 3
    probabilities = np.array([[0.62, 0.3, 0.08], [0.0, 0.0, 1.0], [third, third, third]])
    assert allotted(probabilities, answers).tolist() == counts


def test_the_loss_of_many_answers_is_the_divergence_of_teacher_and_student():
    generator = np.random.default_rng(0)
    teacher = generator.dirichlet(np.ones(5), size=20)
    student = generator.dirichlet(np.ones(5), size=20)
    divergence = np.sum(teacher * np.log(teacher / student), axis=1)
    entropy = -np.sum(teacher * np.log(teacher), axis=1)
    errors = []
    for answers in (1, 10, 100, 10_000):
        counts = allotted(teacher, answers)
        assert np.all(counts.sum(axis=1) == answers) and np.all(
            np.abs(counts / answers - teacher) < 1
        )
        loss = -np.sum(counts * np.log(student), axis=1) / answers
        errors.append(np.abs(loss - (divergence + entropy)).max())
    assert errors[3] < 2e-3 < errors[0] and errors[2] < errors[0]


def test_both_accuracies_are_shown():
    found = Distilled(["spam", "translation"], [0.975, float("nan")], [0.9, float("nan")])
    assert str(found) == "\n".join(
        [
            "accuracy in %  teacher  student",
            "spam              97.5     90.0",
            "translation          -        -",
        ]
    )


def test_wrong_arguments_are_named(tmp_path):
    with pytest.raises(UserError, match="answers = 0 must be at least 1"):
        distil(tmp_path / "run", tmp_path / "one", answers=0)
    with pytest.raises(UserError, match="is the teacher's workdir; name another folder"):
        distil(tmp_path / "run", tmp_path / "run")


def test_a_student_reads_the_texts_of_a_task_s_later_parts_and_no_others():
    def task(name, texts, **fields):
        split = tuple(TokenizedExample(np.zeros(1, np.int32), 0, text=text) for text in texts)
        made = Task(name, source="jsonl", train="x.jsonl", labels=("a", "b"), **fields)
        none = dict.fromkeys(SPLITS, 0)
        return TokenizedTask(made, dict.fromkeys(SPLITS, split), none, none, none)

    mail, news = task("mail", ["m1"]), task("news", ["n1"])
    more = task("mail_2", ["m2", "m3"], continues="mail")
    known = (mail, news, more)
    evaluator = SimpleNamespace(
        tasks=[each.definition for each in known],
        names=[each.name for each in known],
        index=lambda name: [each.name for each in known].index(name),
        same=lambda index: [1] if index == 1 else [0, 2],
        load=lambda tasks: [each for each in known if each.definition in tasks],
    )
    for count, texts in ((3, ["m1", "m2", "m3"]), (2, ["m1"])):
        state = SimpleNamespace(finished=dict.fromkeys(evaluator.names[:count]))
        session = SimpleNamespace(evaluator=evaluator, state=state, tasks=["mail", "news"])
        first, second = distilling._finished(session)
        assert [example.text for example in first.splits["train"]] == texts
        assert [example.text for example in first.splits["test"]] == ["m1"]
        assert [example.text for example in second.splits["train"]] == ["n1"]


def rows(file):
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


@pytest.mark.slow
def test_a_student_learns_what_the_teacher_answers(tmp_path, capsys):
    settings = tiny_settings(tmp_path, tasks=("two", "five"), epochs=1)
    train(settings, tmp_path / "teacher")
    one = tmp_path / "one"
    arguments = [f"--workdir={tmp_path / 'teacher'}", f"--into={one}", "--config.lora.rank=4"]
    assert main(["distil", *arguments]) == 0
    shown = capsys.readouterr().out
    assert "accuracy in %  teacher  student" in shown

    session = open_run(tmp_path / "teacher")
    given = rows(one / "teacher" / "five.train.jsonl")
    answers = session.predict([row["text"] for row in given], task="five")
    assert [row["label"] for row in given] == [answer.label for answer in answers]
    gold = rows(tmp_path / "data" / "five_test.jsonl")
    assert rows(one / "teacher" / "five.test.jsonl") == gold

    student = open_run(one)
    assert student.evaluator.method.name == "joint" and student.tasks == ["two", "five"]
    assert f"{100 * student.results.matrix[-1, 0]:.1f}" in shown
    export_peft(one, tmp_path / "adapter")
    sizes = student.evaluator.model.sizes
    adapter = read_adapter(tmp_path / "adapter", sizes, "tiny")
    assert adapter.rank == 4
    assert any(np.any(factors["b"]) for factors in adapter.expert.values())


@pytest.mark.slow
def test_with_a_teacher_that_is_always_right_it_is_joint_training(tmp_path, monkeypatch):
    settings = tiny_settings(tmp_path, tasks=("two", "five"), epochs=1)
    train(settings, tmp_path / "teacher")
    train(settings.changed({"method": "joint"}), tmp_path / "joint")

    def right(session, task, answers):
        del session, answers
        return 1.0, [(e, task.labels[e.label]) for e in task.splits["train"]]

    monkeypatch.setattr(distilling, "_taught", right)
    distil(tmp_path / "teacher", tmp_path / "one")
    assert logged(tmp_path / "one") == logged(tmp_path / "joint")
    assert_bit_equal(restored(tmp_path / "one")[1].shared, restored(tmp_path / "joint")[1].shared)


@pytest.mark.slow
def test_more_answers_and_a_quantised_student_that_goes_on(tmp_path):
    settings = tiny_settings(tmp_path, tasks=("two",), epochs=1)
    train(settings, tmp_path / "teacher")

    def quantised(student):
        return student.changed({"model": {"quantization": "int8"}})

    session = open_run(tmp_path / "teacher")
    one = tmp_path / "one"
    found = distil(session, one, answers=3, adjust=quantised)
    given = rows(one / "teacher" / "two.train.jsonl")
    texts = [row["text"] for row in given]
    assert len(given) == 3 * len(set(texts)) == 144
    assert open_run(one).evaluator.model.quantization == "int8"
    assert distil(session, one, answers=3, adjust=quantised) == found
    with pytest.raises(UserError, match=r"was begun with model\.quantization = 'int8'"):
        distil(session, one, answers=3)
