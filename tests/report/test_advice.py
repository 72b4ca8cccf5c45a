"""`moecl advise`: costs worked out by hand, and what is advised under which need."""

import pytest
from report_runs import write_run
from streams import tiny_settings

from moecl_jax.cli import main as cli
from moecl_jax.cli.advise import seconds_a_text
from moecl_jax.report.advice import advice
from moecl_jax.training.trainer import train

TASKS = ["a", "b"]
# Rightly answered test texts of the two tasks: 90 of 100, 88 and 50.
RIGHT = {"keeps": 90, "small": 88, "replays": 95, "forgets": 50}
MATRICES = {
    "keeps": [[0.9, 0.1], [0.9, 0.9]],
    "small": [[0.88, 0.1], [0.88, 0.88]],
    "replays": [[1.0, 0.1], [0.95, 0.95]],
    "forgets": [[0.9, 0.1], [0.5, 0.5]],
}


def right(count, shift=0):
    """A hundred texts, so many answered rightly."""
    return "".join("1" if (place + shift) % 100 < count else "0" for place in range(100))


@pytest.fixture
def runs(tmp_path):
    """Four methods with three seeds each."""
    folders = []
    for place, (name, matrix) in enumerate(MATRICES.items()):
        for seed in range(3):
            extra = {"task_free": {"acc": 0.7, "accuracy": [0.7, 0.7], "choices": [[1, 0]] * 2}}
            folders.append(
                write_run(
                    tmp_path / f"{name}{seed}",
                    name,
                    TASKS,
                    matrix,
                    seed=seed,
                    steps=20,
                    wall_seconds=10.0 * (place + 1),
                    right=[right(RIGHT[name], 7 * place), right(RIGHT[name], 11 * place)],
                    stored_examples=8 if name == "replays" else 0,
                    parameters={"stored_bytes": 4_000_000 - 1_000_000 * place},
                    **(extra if name == "small" else {}),
                )
            )
    return folders


def line(text, start):
    [found] = [each for each in text.splitlines() if each.startswith(start)]
    return found.removeprefix(start)


def test_each_need_has_its_method(runs):
    text = advice(runs)
    assert line(text, "For the highest accuracy: ").startswith("replays, 95.0%, 5.0 points over ke")
    kept = line(text, "Where a finished task must not get worse: ")
    assert kept.startswith("keeps, 90.0%, 2.0 points over small (95% interval ")
    assert kept.endswith(": not settled).")
    assert line(text, "Where no text may be kept: ").startswith("keeps, 90.0%")
    assert line(text, "Where texts come without their task: ").startswith("small, 70.0%")
    assert "Fewer than three seeds" not in text and "For fast answers" not in text
    table = {row.split()[0]: row.split()[1:] for row in text.splitlines()[3:7]}
    assert table["keeps"][0] == "90.0"
    # most forgotten, MB a task, steps a task, time a task, texts kept
    assert table["replays"][-7:-2] == ["5.0", "1.00", "10", "0:00:15", "8"]
    assert table["forgets"][-7:-2] == ["40.0", "0.50", "10", "0:00:20", "0"]


def test_costs_are_compared_among_methods_that_are_as_accurate(runs):
    """Forgetting is cheapest, and no answer."""
    without = [run for run in runs if not run.name.startswith("replays")]
    text = advice(without)
    assert line(text, "For little room: ") == (
        "small, 1.50 MB a task, the least of those whose accuracy the runs do not tell apart "
        "(keeps, small)."
    )
    assert line(text, "For a short training: ").startswith("keeps, 5 s a task, the least of")
    assert "Where no text may be kept" not in text  # none keeps any: it rules nothing out


def test_latency_is_that_of_the_first_run_of_each(runs, tmp_path):
    seen = []

    def latency(workdir):
        seen.append(workdir)
        return 0.012 if workdir.name.startswith("small") else 0.03

    text = advice([run for run in runs if run.name[:-1] in ("keeps", "small")], latency)
    assert seen == [tmp_path / "keeps0", tmp_path / "small0"]
    assert line(text, "For fast answers: ").startswith("small, 12 ms a text")


def test_one_method_and_few_seeds(runs, capsys):
    assert cli.main(["advise", f"--workdir={runs[0]}"]) == 0
    assert "There is one method to choose from" in capsys.readouterr().out
    text = advice([runs[0], runs[3]])
    assert "Fewer than three seeds" in text


def test_none_meets_a_need(runs):
    text = advice([run for run in runs if run.name[:-1] in ("replays", "forgets")])
    assert line(text, "Where a finished task must not get worse: ") == "none of these."


def test_a_text_s_time_is_measured(tmp_path):
    train(tiny_settings(tmp_path, tasks=("two",), epochs=1), tmp_path / "run")
    assert 0 < seconds_a_text(tmp_path / "run") < 60
