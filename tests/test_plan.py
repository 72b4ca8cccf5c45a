"""What a training is planned to need, against numbers worked out by hand."""

import pytest

from moecl_jax.bench.plan import main, plan

ONE = {"data": 1, "fsdp": 1, "tensor": 1}


def test_a_7b_model_on_one_chip():
    found = plan("llama-2-7b", ONE, batch=8, length=512, rate=1e15, share=0.5)
    assert found.frozen == 2 * 6_738_415_616 + 2 * 65 * 4096  # norms are float32
    # Two experts of rank 8 on three projections, gate and discriminator; Adam keeps two more.
    expert = 32 * 8 * 3 * (4096 + 11008)
    assert found.trained == 3 * 4 * (2 * expert + 32 * 4096 * (2 + 4)) + 4
    assert found.inputs_of_layers == 32 * 8 * 512 * 4096 * 2
    assert found.seconds == found.flops / 0.5e15
    assert found.total == pytest.approx(16.7e9, rel=0.01)


def test_fsdp_divides_matrices_and_tokens_and_time():
    one = plan("llama-2-7b", ONE, batch=8, length=512, rate=1e15, share=0.5)
    eight = plan("llama-2-7b", {**ONE, "fsdp": 8}, batch=8, length=512, rate=1e15, share=0.5)
    norms = 65 * 4096 * 4
    assert eight.frozen == (one.frozen - norms) / 8 + norms
    assert eight.inputs_of_layers == one.inputs_of_layers / 8
    assert eight.gathered == one.gathered
    assert (eight.flops, eight.seconds) == (one.flops, one.seconds / 8)


def test_the_command_prints_a_table(monkeypatch, capsys):
    arguments = ["--shape=tiny", "--fsdp=2", "--batch=4", "--length=16", "--rate=1e12"]
    monkeypatch.setattr("sys.argv", ["plan", *arguments])
    assert main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line[:18].strip() for line in lines] == [
        *("frozen", "trained", "inputs of layers", "gathered", "hidden", "total"),
        *("FLOPs of a step", "a step"),
    ]
