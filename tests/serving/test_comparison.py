"""Predictions of other systems beside a run's, on the same texts."""

from pathlib import Path

import numpy as np
import pytest
from records import read
from streams import tiny_settings

from moecl_jax.cli.main import main
from moecl_jax.errors import UserError
from moecl_jax.runs.classification import classify
from moecl_jax.runs.tables import format_systems
from moecl_jax.serving.comparison import gold_texts, other_predictions, run_predictions
from moecl_jax.serving.session import Session, open_run
from moecl_jax.training.trainer import train


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("comparison")
    train(tiny_settings(folder, tasks=("two", "five"), epochs=1), folder / "run")
    return folder


@pytest.fixture(scope="module")
def session(folder: Path) -> Session:
    return open_run(folder / "run")


@pytest.fixture
def gold(session, tmp_path):
    """Three texts with ids, and their labels."""
    (tmp_path / "gold.csv").write_text("id,text,label\na,w9,w0\nb,w8,w1\nc,w7 w3,w1\n")
    return gold_texts(session.evaluator.tasks[0], tmp_path / "gold.csv")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.csv", "label,id\nw1,c\nw0,a\nw1,b\nw0,z\n"),
        ("x.tsv", "id\tscore\na\t0.49\nb\t0.5\nc\t1\n"),
        (
            "x.jsonl",
            '{"id": "c", "score": 1}\n{"id": "b", "label": "w1"}\n{"id": "a", "score": 0}\n',
        ),
        (
            "x.jsonl",
            '{"id": "a", "label": "w1", "prediction": {"label": "w0"}}\n'
            '{"id": "b", "prediction": {"label": "w1"}}\n{"id": "c", "prediction": "w1"}\n',
        ),
    ],
)
def test_rows_find_their_texts_by_their_ids(gold, tmp_path, name, content):
    (tmp_path / name).write_text(content)
    assert gold.classes.tolist() == [0, 1, 1] and gold.ids == ["a", "b", "c"]
    assert other_predictions(tmp_path / name, gold).tolist() == [0, 1, 1]


def test_without_ids_rows_are_matched_by_their_order(session, folder, tmp_path):
    gold = gold_texts(session.evaluator.tasks[0], None)
    lines = read(folder / "data" / "two_test.jsonl")
    assert [f"w{place}" for place in gold.classes] == [line["label"] for line in lines]
    (tmp_path / "x.txt.csv").write_text("label\n" + "".join(f"{line['label']}\n" for line in lines))
    found = other_predictions(tmp_path / "x.txt.csv", gold)
    assert found.tolist() == gold.classes.tolist()
    expected = session.evaluate("test")["tasks"]["two"]["scored_accuracy"]
    assert np.mean(run_predictions(session, gold) == gold.classes) == pytest.approx(expected)
    (tmp_path / "short.csv").write_text("label\nw0\n")
    with pytest.raises(UserError, match="1 rows for 48 texts, which have no field 'id'"):
        other_predictions(tmp_path / "short.csv", gold)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("label\nw1\n", "no field 'id', by which its rows would find their texts"),
        ("id,label\na,w0\n", "2 of 3 texts have no row: b, c"),
        ("id,label\na,w0\na,w0\n", "row 2: the id 'a' stands twice"),
        ("id,x\na,0\nb,0\nc,0\n", "a row has none of 'label', 'score' and 'prediction'"),
        ("id,score\na,0\nb,1.5\nc,0\n", "the score '1.5' is no probability"),
        ("id,label\na\n", "row 1: 1 cells where the header has 2"),
    ],
)
def test_predictions_that_cannot_be_compared_are_refused(gold, tmp_path, content, message):
    (tmp_path / "x.csv").write_text(content)
    with pytest.raises(UserError, match=message):
        other_predictions(tmp_path / "x.csv", gold)


def test_a_score_is_of_two_labels(session, tmp_path):
    (tmp_path / "gold.csv").write_text("text,label\nw9,w4\n")
    gold = gold_texts(session.evaluator.tasks[1], tmp_path / "gold.csv")
    (tmp_path / "x.csv").write_text("score\n1\n")
    with pytest.raises(UserError, match="tells one of two labels, and task 'five' has 5"):
        other_predictions(tmp_path / "x.csv", gold)
    (tmp_path / "gold.csv").write_text("text,label\nw9,w7\n")
    with pytest.raises(UserError, match="row 1: the gold label in 'label' is 'w7'; expected one"):
        gold_texts(session.evaluator.tasks[1], tmp_path / "gold.csv")


def test_the_command_shows_runs_beside_other_systems(folder, gold, session, tmp_path, capsys):
    (tmp_path / "x.csv").write_text("id,label\na,w0\nb,nothing\nc,w1\n")
    files = [f"--gold={tmp_path / 'gold.csv'}", f"--predictions={tmp_path / 'x.csv'}"]
    assert main(["compare", f"--workdir={folder / 'run'}", "--task=two", *files]) == 0
    lines = capsys.readouterr().out.splitlines()
    ours = np.mean(run_predictions(session, gold) == gold.classes)
    assert lines[0].startswith("3 texts") and lines[1].split()[1] == f"{100 * ours:.1f}"
    other = lines[2].removeprefix(str(tmp_path / "x.csv")).split()
    assert other[:3] == ["66.7", "83.3", f"{100 * (2 / 3 - ours):+.1f}"]
    assert main(["compare", f"--workdir={folder / 'run'}", files[1]]) == 1
    assert "name it by --task" in capsys.readouterr().err


def test_the_table_of_systems():
    gold = [0, 0, 1, 1]
    systems = {"a": classify(("x", "y"), gold, gold), "b": classify(("x", "y"), gold, [0, 0, 0, 1])}
    table = format_systems(systems, [(0.0, 0.0), (-0.5, 0.0)])
    assert table.splitlines() == [
        "4 texts  accuracy  macro F1  difference    95% interval",
        "a           100.0     100.0",
        "b            75.0      73.3       -25.0  -50.0 ... +0.0",
        "",
        "F1      a     b",
        "x   100.0  80.0",
        "y   100.0  66.7",
    ]
