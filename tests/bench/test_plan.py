"""The plan of a training against numbers worked out by hand."""

import pytest

from moecl_jax.bench.plan import Plan, PlannedTraining, main

ONE = {"data": 1, "fsdp": 1, "tensor": 1}


def plan(shape: str, sizes: dict[str, int], quantization: str = "none") -> Plan:
    """Plans steps of 8 examples with 512 tokens each."""
    return PlannedTraining.of(shape, 8, 512, quantization=quantization).plan(
        sizes, rate=1e15, share=0.5
    )


def test_a_7b_model_on_one_chip():
    found = plan("llama-2-7b", ONE)
    assert found.frozen == 2 * 6_738_415_616 + 2 * 65 * 4096  # norms are float32
    # Trained are two experts of rank 8 on three projections, the gate and the discriminator. Adam
    # keeps two moments of each weight.
    expert = 32 * 8 * 3 * (4096 + 11008)
    assert found.trained == 3 * 4 * (2 * expert + 32 * 4096 * (2 + 4)) + 4
    assert found.inputs_of_layers == 32 * 8 * 512 * 4096 * 2
    assert found.seconds == found.flops / 0.5e15
    assert found.total == pytest.approx(16.7e9, rel=0.01)


def test_fsdp_divides_matrices_and_tokens_and_time():
    one = plan("llama-2-7b", ONE)
    eight = plan("llama-2-7b", {**ONE, "fsdp": 8})
    norms = 65 * 4096 * 4
    assert eight.frozen == (one.frozen - norms) / 8 + norms
    assert eight.inputs_of_layers == one.inputs_of_layers / 8
    assert eight.gathered == one.gathered
    assert (eight.flops, eight.seconds) == (one.flops, one.seconds / 8)


@pytest.mark.parametrize(("quantization", "bits"), [("int8", 8), ("int4", 4)])
def test_quantised_layers_take_as_many_bits_as_they_are_named_for(quantization, bits):
    dense, small = plan("llama-2-7b", ONE), plan("llama-2-7b", ONE, quantization)
    kernels = 32 * (4 * 4096 * 4096 + 3 * 4096 * 11008)
    scales = 2 * kernels // 32  # one scale in bfloat16 for 32 weights
    assert dense.frozen - small.frozen == 2 * kernels - kernels * bits // 8 - scales
    assert (small.trained, small.flops) == (dense.trained, dense.flops)


def test_parts_divide_what_is_kept_of_tokens():
    whole, parts = (
        PlannedTraining.of("llama-2-7b", 8, 512, parts=count).plan(ONE, rate=1e15, share=0.5)
        for count in (1, 4)
    )
    assert (parts.frozen, parts.trained, parts.flops) == (whole.frozen, whole.trained, whole.flops)
    assert parts.inputs_of_layers == whole.inputs_of_layers / 4
    assert parts.hidden == whole.hidden / 4


def test_the_command_prints_a_table(monkeypatch, capsys):
    arguments = ["--shape=tiny", "--fsdp=2", "--batch=4", "--length=16", "--rate=1e12"]
    monkeypatch.setattr("sys.argv", ["plan", *arguments])
    assert main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line[:18].strip() for line in lines] == [
        *("frozen", "trained", "inputs of layers", "gathered", "hidden", "total"),
        *("FLOPs of a step", "a step"),
    ]


@pytest.mark.parametrize("steps", ["0", "5"])
def test_parts_are_as_many_as_examples_at_most(steps, monkeypatch, capsys):
    arguments = ["--shape=tiny", "--batch=4", "--length=16", "--rate=1e12"]
    monkeypatch.setattr("sys.argv", ["plan", *arguments, f"--accumulation-steps={steps}"])
    with pytest.raises(SystemExit) as error:
        main()
    assert error.value.code == 2
    assert "--accumulation-steps must be from 1 to --batch" in capsys.readouterr().err
