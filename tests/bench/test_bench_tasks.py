"""The benchmark of what finished tasks cost the next one."""

import pytest

from moecl_jax.bench.tasks import main

SMALL = ["--shape=tiny", "--dtype=float32", "--batch=7", "--length=32", "--steps=5"]


@pytest.mark.slow
def test_costs_are_told_for_each_number_of_finished_tasks(capsys):
    assert main([*SMALL, "--finished=3,1"]) == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split()[0] == "finished"
    rows = [[float(cell) for cell in line.split()] for line in lines]
    assert [row[0] for row in rows] == [1, 3]
    assert rows[0][2] == rows[0][4] == 1
    # The discriminator has two more rows, of 32 weights in 2 layers, with two moments of Adam each.
    assert 1 < rows[1][4] < 1.03
    assert rows[1][5] == pytest.approx(3 * rows[0][5], abs=0.02)
    assert rows[0][6] == rows[1][6] > 0
    assert rows[0][7] == pytest.approx(rows[1][7], abs=0.02)
    assert 0 < rows[0][7] < rows[0][8]


@pytest.mark.slow
def test_a_stream_s_next_task_needs_no_more_memory_than_its_second(capsys):
    assert main([*SMALL, "--finished=1,3", "--tasks=4"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert rows[0][3] == rows[1][3]
    assert rows[1][4] == "1.000"


def test_a_stream_has_a_task_to_come(capsys):
    assert main([*SMALL, "--finished=1,3", "--tasks=3"]) == 1
    assert capsys.readouterr().err == (
        "tasks: error: --tasks=3: expected more than the 3 that are finished\n"
    )


@pytest.mark.parametrize("finished", ["0,1", "some"])
def test_numbers_of_tasks_are_checked(finished, capsys):
    assert main([*SMALL, f"--finished={finished}"]) == 1
    assert capsys.readouterr().err.startswith(f"tasks: error: --finished={finished}: expected")
