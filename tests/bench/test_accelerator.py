"""The check of a fresh accelerator, with tiny sizes on a CPU: every part, and parts that fail."""

import dataclasses
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from streams import ROOT

from moecl_jax.bench import kernel_check
from moecl_jax.bench.accelerator import Part, check, format_markdown, main, run_part
from moecl_jax.bench.inputs import SHAPES
from moecl_jax.kernels import KERNELS


def part_of(code, limit=20.0, figures=lambda: ("42 apples", 42)):
    return Part("apples", ("timeit", "-n1", "-r1", code), limit, figures)


def test_a_part_that_fails_is_reported_with_its_last_line():
    row = run_part(part_of("raise ValueError('rotten')"), 20)
    assert row["outcome"] == "failed" and row["problem"] == "ValueError: rotten"
    assert row["numbers"] == 42  # what it had written before


def test_a_part_that_takes_too_long_is_stopped():
    row = run_part(part_of("import time; time.sleep(60)", limit=1.0), 20)
    assert row["outcome"] == "too slow" and row["seconds"] < 15
    assert row["problem"] == "stopped after 1 s"


def test_a_part_has_no_more_than_the_time_that_is_left():
    row = run_part(part_of("import time; time.sleep(60)"), 1.5)
    assert row["outcome"] == "too slow" and row["seconds"] < 15
    assert run_part(part_of("pass"), 0.5)["outcome"] == "no time left"


def test_output_that_cannot_be_read_is_a_failure():
    def missing():
        raise FileNotFoundError("apples.json")

    row = run_part(part_of("pass", figures=missing), 20)
    assert row["outcome"] == "failed" and "apples.json" in row["problem"]


def test_the_table_has_a_line_for_each_part():
    rows = [run_part(part_of("pass"), 20), run_part(part_of("pass"), 0)]
    result = {"shape": "tiny", "seconds": 3.2, "device": None, "parts": rows}
    lines = format_markdown(result).splitlines()
    assert lines[0] == "unknown device, `--shape=tiny`, 3 s in all"
    assert lines[-2].startswith("| apples | ok | ") and lines[-2].endswith(" | 42 apples |")
    assert lines[-1] == "| apples | no time left | 0 |  |"


@pytest.mark.slow
@pytest.mark.parametrize("wrong", [1.2, jnp.nan])
def test_a_kernel_that_differs_from_its_reference_is_found(monkeypatch, wrong):
    case = kernel_check.cases(SHAPES["tiny"])[0]
    assert kernel_check.compare(case)["ok"]
    right = KERNELS["dot"]

    @jax.custom_jvp
    def broken_gradient(x):
        return x

    broken_gradient.defjvp(lambda primals, tangents: (primals[0], tangents[0] * wrong))
    values = dataclasses.replace(right, fast=lambda *a: right.fast(*a) * wrong)
    gradients = dataclasses.replace(right, fast=lambda *a: broken_gradient(right.fast(*a)))
    for broken in (values, gradients):
        monkeypatch.setitem(KERNELS, "dot", broken)
        assert not kernel_check.compare(case)["ok"]


@pytest.mark.slow
def test_one_kernel_that_fails_stops_no_other(monkeypatch, tmp_path, capsys):
    def fails(*_, **__):
        raise RuntimeError("no such\ninstruction")

    monkeypatch.setitem(KERNELS, "dot", dataclasses.replace(KERNELS["dot"], fast=fails))
    path = tmp_path / "kernels.json"
    assert kernel_check.main(["--shape=tiny", f"--output={path}"]) == 1
    rows = json.loads(path.read_text(encoding="utf-8"))["kernels"]
    assert [row["kernel"] for row in rows if not row["ok"]] == ["dot"]
    assert rows[0]["problem"] == "no such instruction" and len(rows) == 7
    assert capsys.readouterr().err == "kernel_check: error: not as the reference: dot\n"


def test_an_output_without_a_folder_is_refused_at_once(tmp_path, capsys):
    assert main(["--shape=tiny", f"--output={tmp_path / 'no' / 'a.json'}"]) == 1
    assert "is no folder; make it first" in capsys.readouterr().err


@pytest.mark.slow
def test_all_parts_are_left_out_when_there_is_no_time(tmp_path):
    rows = check("tiny", 0.5, tmp_path)["parts"]
    assert len(rows) == 8 and {row["outcome"] for row in rows} == {"no time left"}


@pytest.mark.slow
def test_the_script_runs_every_part_on_this_machine(tmp_path):
    script = ROOT / "launch" / "accelerator_check.sh"
    path = tmp_path / "check.json"
    done = subprocess.run(
        ["bash", str(script), "--shape=tiny", f"--output={path}"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHON": sys.executable, "JAX_PLATFORMS": "cpu"},
        check=False,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    result = json.loads(path.read_text(encoding="utf-8"))
    assert [row["part"] for row in result["parts"]] == [
        *("kernels", "latency of one text", "generate, none", "demo, first task"),
        *("train, projections, xla", "train, full, xla", "train, none, xla", "generate, int8"),
    ]
    assert {row["outcome"] for row in result["parts"]} == {"ok"}
    assert result["device"]["platform"] == "cpu" and result["seconds"] < 540
    assert done.stdout.count("\n| ") == 10  # a head, a rule, and the parts
