"""The tables that commands print."""

import math

import pytest

from moecl_jax.cli.tables import format_comparison, format_matrix, format_results

METRICS = {"acc": 0.915, "bwt": -0.025, "fwt": 0.03, "forgetting": 0.025}


def test_matrix_is_aligned_and_tells_trained_from_untrained():
    table = format_matrix(["spam", "irony"], [[0.975, 0.51], [0.95, 0.88]], [0.5, 0.48], METRICS)
    assert table == (
        "accuracy in %; in parentheses: before the task's own training\n"
        "\n"
        "              spam   irony\n"
        "untrained    (50.0)  (48.0)\n"
        "after spam    97.5   (51.0)\n"
        "after irony   95.0    88.0\n"
        "\n"
        "acc 91.5  bwt -2.5  fwt +3.0  forgetting +2.5"
    )


def test_matrix_marks_what_was_not_measured():
    table = format_matrix(
        ["a", "b"], [[None, math.nan], [1.0, 1.0]], [0.5, 0.5], dict.fromkeys(METRICS)
    )
    assert table.splitlines()[4] == "after a        -      (-)"
    assert table.splitlines()[-1] == "acc -  bwt -  fwt -  forgetting -"


def test_matrix_of_another_size_raises():
    with pytest.raises(ValueError, match="2 tasks need an accuracy matrix"):
        format_matrix(["a", "b"], [[1.0]], [0.5, 0.5], METRICS)


def test_comparison_has_a_line_a_run():
    first = {"method": "moe_cl", "seed": 0, "metrics": METRICS, "wall_seconds": 123.4}
    second = {
        "method": "sequential_lora",
        "seed": 10,
        "metrics": {"acc": 1.0, "bwt": None, "fwt": None, "forgetting": None},
        "wall_seconds": 4000,
    }
    assert format_comparison([first, second]) == (
        "method           seed    acc   bwt   fwt  forgetting  wall time\n"
        "moe_cl              0   91.5  -2.5  +3.0        +2.5    0:02:03\n"
        "sequential_lora    10  100.0     -     -           -    1:06:40"
    )


def test_comparison_of_a_sweep_names_variant_and_order():
    run = {"method": "moe_cl", "seed": 0, "metrics": METRICS, "wall_seconds": 123.4}
    runs = [{**run, "variant": "moe_cl:epochs=2", "order": order} for order in ("1", "2")]
    assert format_comparison(runs) == (
        "method           order  seed   acc   bwt   fwt  forgetting  wall time\n"
        "moe_cl:epochs=2      1     0  91.5  -2.5  +3.0        +2.5    0:02:03\n"
        "moe_cl:epochs=2      2     0  91.5  -2.5  +3.0        +2.5    0:02:03"
    )
    without = format_comparison([{**runs[0], "order": None}])
    assert without.splitlines()[0].split()[:2] == ["method", "seed"]


def test_results_have_the_choice_of_tasks_below_the_matrix_where_it_was_measured():
    results = {
        "tasks": ["spam", "irony"],
        "accuracy_matrix": [[0.975, 0.51], [0.95, 0.88]],
        "random_init": [0.5, 0.48],
        "metrics": METRICS,
    }
    matrix = format_matrix(
        results["tasks"], results["accuracy_matrix"], results["random_init"], METRICS
    )
    assert format_results(results) == matrix
    choice = {"acc": 0.831, "accuracy": [0.9, 0.762], "choices": [[39, 1], [2, 38]]}
    assert format_results({**results, "task_free": choice}) == (
        f"{matrix}\n"
        "\n"
        "task chosen from the text: acc 83.1 (known task: 91.5)\n"
        "\n"
        "texts  as spam  as irony\n"
        "spam        39         1\n"
        "irony        2        38"
    )
