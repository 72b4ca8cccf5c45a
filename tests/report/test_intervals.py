"""Bootstrap intervals: against formulas that hold for large samples, and what is called settled."""

import json

import numpy as np
import pytest
from report_runs import write_run

from moecl_jax.report import report, tables
from moecl_jax.report.comparison import Comparison
from moecl_jax.report.intervals import Interval, interval
from moecl_jax.report.runs import read_runs
from moecl_jax.report.summary import Difference, difference, differences, summarize

NAMES = ["a", "b"]


def bits(generator, share, count):
    return (generator.random(count) < share).astype(float)


def test_of_one_run_it_is_that_of_the_texts():
    generator = np.random.default_rng(0)
    run = {"a": bits(generator, 0.7, 4000), "b": bits(generator, 0.4, 4000)}
    found = interval([run])
    p, q = run["a"].mean(), run["b"].mean()
    error = np.sqrt(p * (1 - p) / 4000 + q * (1 - q) / 4000) / 2
    assert found.low == pytest.approx((p + q) / 2 - 1.96 * error, abs=0.15 * error)
    assert found.high == pytest.approx((p + q) / 2 + 1.96 * error, abs=0.15 * error)
    assert found.runs == 1


def test_texts_that_all_runs_answer_alike_are_one_sample_and_runs_that_differ_another():
    generator = np.random.default_rng(1)
    same = bits(generator, 0.5, 900)
    error = np.sqrt(0.25 / 900)
    for runs in (1, 50):
        found = interval([{"a": same}] * runs)
        assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.1)
    # Texts alike, runs not: the interval is that of the runs' means.
    means = generator.random(400)
    found = interval([{"a": np.full(3, mean)} for mean in means])
    expected = 2 * 1.96 * means.std() / np.sqrt(400)
    assert found.high - found.low == pytest.approx(expected, rel=0.1)


def test_equal_answers_differ_by_nothing_and_unequal_texts_are_not_compared():
    zeros = np.zeros(5)
    assert interval([{"a": zeros}, {"a": zeros}]) == Interval(0.0, 0.0, 2)
    assert not interval([{"a": zeros}, {"b": zeros}]).known
    assert not interval([{"a": zeros}, {"a": np.zeros(4)}]).known
    assert not interval([]).known
    assert not interval([{"a": np.zeros(0)}]).known
    assert not interval([{}]).known
    assert not interval([{"a": np.zeros(1)}]).known  # nothing can be resampled


@pytest.mark.parametrize(
    ("found", "seeds", "settled"),
    [
        (Interval(0.1, 0.2, 3), 3, True),
        (Interval(-0.2, -0.1, 3), 3, True),
        (Interval(-0.1, 0.2, 3), 3, False),
        (Interval(0.0, 0.2, 3), 3, False),
        (Interval(0.1, 0.2, 2), 2, False),
        (Interval(0.1, 0.2, 5), 1, False),  # five orders of one seed
        (Interval(), 3, False),
    ],
)
def test_settled_excludes_0_and_takes_three_seeds(found, seeds, settled):
    assert Difference("a", "b", 0.15, found, seeds).settled is settled


def written(folder, method, rights, seeds):
    """Runs of a method that answers these texts rightly, with each seed."""
    folders = []
    for seed in seeds:
        right = [rights(seed) for _ in NAMES]
        last = [np.mean([int(c) for c in one]) for one in right]
        folders.append(
            write_run(
                folder / f"{method}{seed}", method, NAMES, [last, last], seed=seed, right=right
            )
        )
    return folders


def better(_):
    """90 of 100 texts."""
    return "1" * 85 + "0" * 10 + "1" * 5


def worse(seed):
    """80 to 82 of 100 texts, of which all but five are among those of `better`."""
    return "1" * (75 + seed) + "0" * (20 - seed) + "1" * 5


def test_pairs_of_runs_are_compared_text_by_text(tmp_path):
    folders = written(tmp_path, "ewc", better, range(3)) + written(tmp_path, "lwf", worse, range(3))
    first, second = summarize(read_runs(folders)[0])
    found = difference(first, second)
    assert found.difference == pytest.approx(0.09)
    assert found.interval.runs == 3
    assert 0.04 < found.interval.low < 0.07 < 0.11 < found.interval.high < 0.15
    # Taken apart they would not be told apart so clearly.
    assert first.interval.high - first.interval.low > 0.07
    table = tables.difference_table([first, second])
    cell = table.rows[0][1]
    assert cell.mark == "settled"
    assert cell.text.startswith("+9.0 [+") and " to +" in cell.text
    report(folders, tmp_path / "out" / "report.html")
    markdown = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert "9.0 points above the next, lwf. The 95% interval of the difference over 3" in markdown
    assert "it excludes 0" in markdown


def test_one_run_settles_nothing(tmp_path):
    folders = written(tmp_path, "ewc", better, [0]) + written(tmp_path, "lwf", worse, [0])
    (found,) = differences(summarize(read_runs(folders)[0]))
    assert found.interval.low > 0 and not found.settled
    report(folders, tmp_path / "out" / "report.html")
    markdown = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert "By the test texts alone" in markdown
    assert "1 seed cannot tell what another seed would change" in markdown
    assert "standard error" not in markdown and "excludes 0." not in markdown


def test_runs_without_a_partner_do_not_count(tmp_path):
    folders = written(tmp_path, "ewc", better, range(3)) + written(tmp_path, "lwf", worse, [2, 5])
    first, second = summarize(read_runs(folders)[0])
    found = difference(first, second)
    assert found.interval.runs == 1
    assert found.difference == pytest.approx(0.90 - 0.82)
    other = written(tmp_path / "more", "lwf", worse, [7])
    apart = difference(first, summarize(read_runs(other)[0])[0])
    assert not apart.interval.known
    assert apart.difference == pytest.approx(0.90 - 0.87)
    outcome = Comparison(read_runs([*folders[:3], *other])[0]).outcome
    assert outcome.endswith(
        "They share no order and seed, in which they could be compared in pairs."
    )


def test_runs_whose_accuracy_is_not_known_are_left_out_with_their_partners(tmp_path):
    folders = written(tmp_path, "ewc", better, range(3)) + written(tmp_path, "lwf", worse, range(3))
    path = folders[-1] / "results.json"
    content = json.loads(path.read_text())
    content["metrics"]["acc"] = None
    path.write_text(json.dumps(content))
    first, second = summarize(read_runs(folders)[0])
    found = difference(first, second)
    partners = [run.results.metrics["acc"] for run in first.runs[:2]]
    assert found.seeds == found.interval.runs == 2
    assert found.difference == pytest.approx(np.mean(partners) - second.accuracy)
