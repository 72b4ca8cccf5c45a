"""`moecl strip` and `moecl ab`, from files to tables, thresholds and pages."""

import json

import numpy as np
import pytest
from scored import binary, calibrated

from moecl_jax import decisions
from moecl_jax.cli import main as cli


def write(path, samples, *, gold=True, form="prediction"):
    """Writes samples as `moecl predict` does, or as another system's scores."""
    with path.open("w") as file:
        for place, name in enumerate(samples.ids):
            line = {"id": name}
            if gold:
                line["label"] = samples.labels[samples.gold[place]]
            shares = dict(zip(samples.labels, samples.scores[place].tolist(), strict=True))
            if form == "prediction":
                line["prediction"] = {"label": max(shares, key=shares.get), "probabilities": shares}
            else:
                line["score"] = shares["spam"] * 100 + 5
            file.write(json.dumps(line) + "\n")
    return path


@pytest.fixture
def samples():
    return calibrated(np.random.default_rng(0), 4000)


def run(capsys, *argv):
    status = cli.main([str(argument) for argument in argv])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_strip_shows_both_rules_and_saves_the_thresholds(samples, tmp_path, capsys):
    validation, test = samples.halves(0)
    first = write(tmp_path / "validation.jsonl", validation)
    second = write(tmp_path / "test.jsonl", test)
    saved = tmp_path / "t.json"
    status, out, err = run(
        capsys,
        *("strip", f"--predictions={second}", f"--calibration={first}"),
        *("--target-precision=0.95", f"--thresholds={saved}"),
    )
    assert (status, err) == (0, "")
    assert "2000 samples" in out
    for rule in ("guaranteed", "plain"):
        thresholds = decisions.choose(validation, 0.95, rule=rule)
        found = decisions.strip(test, thresholds)
        (line,) = [line for line in out.splitlines() if line.startswith(f"| `{rule}, all labels`")]
        cells = [cell.strip() for cell in line.split("|")]
        assert cells[3] == str(found.total.decided)
        assert cells[4] == f"{100 * found.total.rate.value:.1f}"
        assert cells[6] == f"{100 * found.total.precision.value:.1f}"
    assert decisions.Thresholds.load(saved) == decisions.choose(validation, 0.95)


def test_strip_halves_one_file_by_the_seed(samples, tmp_path, capsys):
    path = write(tmp_path / "all.jsonl", samples)
    arguments = ("strip", f"--predictions={path}", "--target-precision=0.9")
    outputs = [run(capsys, *arguments, f"--seed={seed}")[1] for seed in (0, 0, 1)]
    assert outputs[0] == outputs[1] != outputs[2]
    assert f"a random half of {path} (seed 0); 2000 others tested" in outputs[0]


def test_strip_says_why_a_label_is_never_decided_and_which_label_is_positive(tmp_path, capsys):
    few = binary([0.2, 0.9] * 8, [0, 1] * 8)
    path = write(tmp_path / "few.jsonl", few, form="score")
    path.write_text(path.read_text() + '{"id": "x", "error": "no text"}\n')
    status, out, err = run(capsys, "strip", f"--predictions={path}", "--target-precision=0.9")
    assert status == 0
    assert "Scores stand for the label spam" in out
    assert "spam is never decided: there are 8 validation samples" in out
    assert err == "Lines with an error, left out: 1\n"


def test_strip_without_gold_labels_in_the_test_file(samples, tmp_path, capsys):
    first = write(tmp_path / "validation.jsonl", samples)
    second = write(tmp_path / "new.jsonl", samples, gold=False)
    status, out, _ = run(
        capsys,
        *("strip", f"--predictions={second}", f"--calibration={first}", "--target-precision=0.9"),
    )
    assert status == 0
    (line,) = [line for line in out.splitlines() if line.startswith("| `plain, all labels`")]
    assert line.endswith("| - | - | - |")


def test_ab_prints_or_writes(samples, tmp_path, capsys):
    generator = np.random.default_rng(1)
    z = np.log(samples.scores[:, 1] / samples.scores[:, 0])
    blurred = binary(1 / (1 + np.exp(-z - generator.normal(0, 2, 4000))), None)
    baseline = write(tmp_path / "old.jsonl", blurred, gold=False, form="score")
    candidate = write(tmp_path / "new.jsonl", samples)
    arguments = ("ab", f"--baseline={baseline}", f"--candidate={candidate}")
    status, out, _ = run(capsys, *arguments, "--target-precision=0.9")
    assert status == 0
    assert out.startswith("# Decided alone at a precision of 90 %")
    assert "- label that one number stands for: spam" in out
    page = tmp_path / "page" / "ab.html"
    status, out, _ = run(capsys, *arguments, "--target-precision=0.9", f"--output={page}")
    assert status == 0
    assert out.startswith("By the rule guaranteed the candidate decides ")
    assert sorted(file.name for file in page.parent.iterdir()) == [
        "ab.csv",
        "ab.html",
        "ab.md",
        "ab_changed.csv",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--target-precision=90",), "target precision 90.0: expected a number above 0"),
        (("--target-precision=0.9", "--score=p"), "--score=p"),
        (("--target-precision=0.9", "--gold=truth"), "no gold labels; name their field by --gold"),
        (("--target-precision=0.9", "--calibration=missing.jsonl"), "missing.jsonl"),
    ],
)
def test_a_mistake_is_one_line(arguments, message, samples, tmp_path, capsys):
    path = write(tmp_path / "f.jsonl", samples.take(np.arange(30)))
    status, out, err = run(capsys, "strip", f"--predictions={path}", *arguments)
    assert (status, out) == (1, "")
    assert err.startswith("moecl: error: ")
    assert err.count("\n") == 1
    assert message in err
