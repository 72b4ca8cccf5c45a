"""Accuracy with changed texts: hand-worked shares, and a run that measures it."""

import math

import numpy as np
import pytest
from report_runs import write_run
from streams import tiny_settings

from moecl_jax.cli.main import main
from moecl_jax.data.perturbing import perturbed
from moecl_jax.data.tokenize import TokenizedExample
from moecl_jax.errors import UserError
from moecl_jax.report import report
from moecl_jax.runs.history import Evaluation
from moecl_jax.runs.results import Results
from moecl_jax.runs.tables import format_robustness
from moecl_jax.serving.robustness import evaluate_perturbed
from moecl_jax.serving.session import open_run
from moecl_jax.training.trainer import train

GOLD = np.array([0, 1, 0, 1])
TEXTS = ("A good one", "a bad one", "123", "")  # the last one was given as input_ids
EXAMPLES = [
    TokenizedExample(np.array([place], np.int32), int(label), text=text)
    for place, (label, text) in enumerate(zip(GOLD, TEXTS, strict=True))
]


def evaluation(predicted):
    predicted = np.array(predicted)
    return Evaluation(float((predicted == GOLD).mean()), 0.0, 0.0, ("x", "y"), GOLD, predicted)


class Answering:
    """Answers in a given way each time it is asked, and keeps what it was asked."""

    def __init__(self, *answers):
        self.answers, self.asked = list(answers), []

    def prompt_of(self, index):
        assert index == 3
        return lambda example: (np.array([len(example.text)], np.int32), False)

    def evaluate(self, parameters, index, examples):
        assert (parameters, index) == ("parameters", 3)
        self.asked.append(examples)
        return evaluation(self.answers.pop(0))


def test_accuracies_and_texts_that_are_right_with_every_change():
    evaluator = Answering([0, 1, 0, 0], [1, 1, 0, 1])
    known = evaluation([0, 1, 1, 1])
    found = evaluate_perturbed(
        evaluator, "parameters", 3, EXAMPLES, known, ("case", "swaps", "split"), 0.5
    )
    assert found.accuracy["case"] == 0.75 and found.accuracy["swaps"] == 0.75
    assert math.isnan(found.accuracy["split"])
    assert found.changed == {"case": 0.5, "swaps": 0.5, "split": 0.0}
    assert found.under_attack == 0.25  # the second text alone
    for kind, asked in zip(("case", "swaps"), evaluator.asked, strict=True):
        texts = [example.text for example in asked]
        assert texts == [perturbed(text, kind, 0.5) for text in TEXTS]
        assert [example.prompt.tolist() for example in asked] == [
            [len(texts[0])],
            [len(texts[1])],
            [2],
            [3],
        ]
        assert [example.label for example in asked] == GOLD.tolist()


def test_nothing_that_changes_is_nothing_measured():
    found = evaluate_perturbed(
        Answering(), "parameters", 3, EXAMPLES, evaluation(GOLD), ("split",), 1
    )
    assert math.isnan(found.under_attack) and found.changed == {"split": 0.0}
    none = Evaluation(math.nan, math.nan, math.nan)
    found = evaluate_perturbed(Answering(), "parameters", 3, [], none, ("case",), 1)
    assert all(math.isnan(v) for v in (found.under_attack, *found.changed.values()))


ROBUSTNESS = {
    "rate": 0.1,
    "accuracy": {"typos": [0.9, 0.815], "split": [None, None]},
    "changed": {"typos": [1.0, 1.0], "split": [0.0, 0.0]},
    "under_attack": [0.88, 0.79],
    "acc_under_attack": 0.835,
}


def test_the_table_of_a_terminal():
    matrix = [[0.975, 0.5], [0.975, 0.88]]
    assert format_robustness(["spam", "irony"], ROBUSTNESS, matrix) == "\n".join(
        [
            "with changed texts (10 % of the places in each)",
            "",
            "              spam   irony",
            "as they are   97.5    88.0",
            "typos         90.0    81.5",
            "split            -       -",
            "under attack  88.0    79.0",
            "",
            "acc under attack 83.5",
        ]
    )


def test_results_and_report_have_it(tmp_path):
    matrix = [[0.975, 0.5], [0.975, 0.88]]
    runs = [
        write_run(tmp_path / "tried", "moe_cl", ["spam", "irony"], matrix, robustness=ROBUSTNESS),
        write_run(tmp_path / "plain", "replay", ["spam", "irony"], matrix),
    ]
    results = Results.load(runs[0])
    assert results.accuracy_with("typos").tolist() == [0.9, 0.815]
    assert results.accuracy_with(None).tolist() == [0.88, 0.79]
    assert np.isnan(Results.load(runs[1]).accuracy_with(None)).all()
    assert str(results).endswith("acc under attack 83.5")
    report(runs, tmp_path / "report.html")
    table = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "| acc under attack |" in table
    assert "## Accuracy with typos on each task at the end" in table
    assert "## Accuracy under attack on each task at the end" in table
    assert "Accuracy with split" not in table  # it changed nothing
    assert "under_attack_acc" in (tmp_path / "report.csv").read_text(encoding="utf-8")


def test_a_broken_robustness_is_refused(tmp_path):
    broken = {**ROBUSTNESS, "under_attack": [0.88]}
    folder = write_run(tmp_path / "run", "moe_cl", ["a", "b"], [[1, 0], [1, 1]], robustness=broken)
    with pytest.raises(UserError, match=r"robustness\.under_attack has the shape 1, but 2 was"):
        Results.load(folder)


@pytest.mark.slow
def test_a_run_measures_it_and_so_does_evaluate(tmp_path, capsys):
    kinds = ("case", "homophones")
    settings = tiny_settings(
        tmp_path,
        tasks=("two", "five"),
        evaluation__perturbations=kinds,
        evaluation__perturbation_rate=0.5,
    )
    results = train(settings, tmp_path / "run")
    found = results["robustness"]
    assert found["changed"] == {"case": [1.0, 1.0], "homophones": [0.0, 0.0]}
    assert found["accuracy"]["homophones"] == [None, None]
    for name, attacked, plain in zip(
        ("two", "five"), found["under_attack"], results["accuracy_matrix"][-1], strict=True
    ):
        assert 0 <= attacked <= plain, name
    session = open_run(tmp_path / "run")
    again = session.evaluate(perturbations=kinds, perturbation_rate=0.5)["tasks"]
    for place, name in enumerate(("two", "five")):
        measured = again[name]["robustness"]
        assert measured["accuracy"]["case"] == found["accuracy"]["case"][place]
        assert measured["under_attack"] == found["under_attack"][place]
    assert "robustness" not in session.evaluate()["tasks"]["two"]
    assert train(settings, tmp_path / "run")["robustness"] == found
    arguments = ["evaluate", f"--workdir={tmp_path / 'run'}", "--perturb=case,typo"]
    assert main(arguments) == 1
    assert "perturbations = 'typo' is not one of typos, swaps" in capsys.readouterr().err
