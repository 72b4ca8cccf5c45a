"""`moecl compare`: matrices, one table, and results that are broken or absent."""

import json

import pytest
from report_runs import write_run

from moecl_jax.cli import main as cli

MATRIX = [[0.9, 0.1], [0.7, 0.8]]


def compared(capsys, *workdirs, status=0):
    """What the command prints to standard output, or as its error."""
    assert cli.main(["compare", *(f"--workdir={workdir}" for workdir in workdirs)]) == status
    captured = capsys.readouterr()
    return captured.err if status else captured.out


def test_each_matrix_and_one_table(tmp_path, capsys):
    first = write_run(tmp_path / "a", "moe_cl", ["irony", "trec"], MATRIX)
    second = write_run(
        tmp_path / "b", "sequential_lora", ["irony", "trec"], MATRIX, wall_seconds=60
    )
    output = compared(capsys, first, second)
    assert output.count("after irony") == 2
    assert f"moe_cl ({first})" in output
    assert output.splitlines()[-3].split()[:3] == ["method", "seed", "acc"]
    assert output.splitlines()[-1].split()[-1] == "0:01:00"
    assert "not comparable" not in output


def test_other_tasks_are_told(tmp_path, capsys):
    first = write_run(tmp_path / "a", "moe_cl", ["irony", "trec"], MATRIX)
    second = write_run(tmp_path / "b", "moe_cl", ["irony", "spam"], MATRIX)
    assert "not comparable" in compared(capsys, first, second)


def test_no_results(tmp_path, capsys):
    error = compared(capsys, tmp_path, status=1)
    assert error.startswith(f"moecl: error: {tmp_path / 'results.json'} does not exist")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("{", "cannot read {path}: "),
        ("[]", "{path} is broken: expected a JSON object"),
        ('{"method": "moe_cl"}', "{path} is broken: it lacks tasks, accuracy_matrix"),
        ({"random_init": [0.5]}, "{path} is broken: random_init has"),
        ({"metrics": {}}, "{path} is broken: metrics lacks acc"),
        ({"wall_seconds": None}, "{path} is broken: "),
    ],
)
def test_broken_results(tmp_path, capsys, change, message):
    path = write_run(tmp_path / "a", "moe_cl", ["irony", "trec"], MATRIX) / "results.json"
    if isinstance(change, dict):
        change = json.dumps(json.loads(path.read_text()) | change)
    path.write_text(change)
    error = compared(capsys, path.parent, status=1)
    assert error.startswith(f"moecl: error: {message.format(path=path)}")
