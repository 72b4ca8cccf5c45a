"""The benchmark: its formula against numbers worked out by hand, its parts, and its errors."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from moecl_jax.bench.__main__ import main
from moecl_jax.bench.flops import COUNTED_METHODS, Formula, Work
from moecl_jax.bench.inputs import LONGEST_TEXT, SHAPES, STREAM_TASKS, random_frozen, random_texts
from moecl_jax.data.batching import BatchLayout, make_batch
from moecl_jax.data.tokenize import TokenizedExample
from moecl_jax.kernels import from_bits
from moecl_jax.methods import METHODS
from moecl_jax.methods.moe_cl import Adversarial, MoeCl
from moecl_jax.methods.stream import StartingValues
from moecl_jax.models.config import AttentionKind
from moecl_jax.models.lora import FFN_TARGETS
from moecl_jax.models.settings import Lora
from moecl_jax.testing import write_model
from moecl_jax.weights import gguf
from moecl_jax.weights.packaged import packaged_file

# The shape "tiny" has two layers, each with 2 * 32 * 32 + 2 * 32 * 16 weights of attention and
# 3 * 32 * 48 of the FFN.
TINY_FROZEN = 2 * (3072 + 4608)
# A layer has two experts of rank 8, each with 8 * (32 + 48) weights for each of three projections,
# and a gate of 2 * 32.
TINY_TRAINED = 2 * (2 * 3 * 8 * 80 + 64)
HEADS_WIDTH = 4 * 8
ROW_KEYS = {
    "part",
    "steps",
    "examples_per_second",
    "tokens_per_second",
    "step_seconds",
    "useful_flops_per_second",
    "useful_flops_per_token",
    "share_of_ceiling",
    "real_share",
    "compile_seconds",
    "compiled_shapes",
    "step_memory_bytes",
    "peak_memory_bytes",
    "token_step",
}


def formula_of(shape, method="moe_cl", objective="original"):
    lora, sizes = Lora(8, 16.0, 0.0, FFN_TARGETS), SHAPES[shape]
    adversarial = {"adversarial": Adversarial(objective, 0.1)}
    chosen = METHODS[method](lora, **(adversarial if METHODS[method] is MoeCl else {}))
    starting = StartingValues(chosen, sizes, 0, "lm", 4)
    parameters = jax.eval_shape(lambda: starting.begin(starting.shared(STREAM_TASKS), 0))
    return Formula.of(sizes, chosen.adapter(parameters), parameters.shared)


def batch_of(lengths, *, training, packed=True, row_length=32):
    """Makes a batch of examples with two labels, whose texts have 2 and 3 tokens."""
    answers = (np.array([5, 2], np.int32), np.array([6, 7, 2], np.int32))
    examples = [
        TokenizedExample(np.arange(n, dtype=np.int32), i % 2) for i, n in enumerate(lengths)
    ]
    layout = BatchLayout(len(lengths) + 1, packed, row_length, 2, 3)
    return make_batch(examples, answers, layout, task_index=0, class_count=2, training=training)


def test_formula_of_the_tiny_shape_by_hand():
    formula = formula_of("tiny")
    assert formula.frozen_weights == TINY_FROZEN
    assert formula.trained_weights == TINY_TRAINED
    work = Work(positions=np.array([0, 1, 2, 0, 1]), predicted=3, examples=2)
    pairs = 2 * (1 + 2 + 3 + 1 + 2)
    logits = 3 * 32 * 64
    assert formula.forward(work) == (
        2 * 5 * (TINY_FROZEN + TINY_TRAINED) + 4 * pairs * HEADS_WIDTH + 2 * logits
    )
    assert formula.training(work) == (
        5 * (4 * TINY_FROZEN + 6 * TINY_TRAINED)
        + 12 * pairs * HEADS_WIDTH
        + 4 * logits
        + 4 * 2 * 2 * 32 * 48  # two examples, two layers
    )


def test_without_discriminator_nothing_is_pooled():
    work = Work(np.arange(7), 1, 1)
    with_it, without = formula_of("tiny"), formula_of("tiny", objective="off")
    assert with_it.training(work) - without.training(work) == 4 * 2 * 32 * 48


def test_sequential_lora_has_one_expert_and_no_gate():
    formula = formula_of("tiny", "sequential_lora")
    assert formula.trained_weights == 2 * 3 * 8 * 80
    assert not formula.pooled


def test_windows_end_what_a_token_sees():
    kinds = (AttentionKind(), AttentionKind(window=2))
    config = dataclasses.replace(SHAPES["tiny"], attention_kinds=kinds, layer_kinds=(0, 1))
    assert Formula(config, 0, False).pairs(np.arange(4)) == (1 + 2 + 3 + 4) + (1 + 2 + 2 + 2)


def test_smollm2_costs_what_was_worked_out_before():
    """Without experts, and with logits at all 61 tokens, a step costs 0.55 GFLOP a token."""
    formula = Formula(SHAPES["smollm2-135m"], trained_weights=0, pooled=False)
    everywhere = formula.training(Work(np.arange(61), 61, 1)) / 61
    assert everywhere == pytest.approx(0.55e9, abs=0.01e9)
    answers_alone = formula.training(Work(np.arange(61), 2, 1)) / 61
    assert everywhere - answers_alone == pytest.approx(4 * 49152 * 576 * 59 / 61)
    assert answers_alone == pytest.approx(0.435e9, rel=1e-3)


def test_training_work_is_the_same_in_every_layout():
    packed = Work.of_batch(batch_of([9, 4, 6], training=True))
    padded = Work.of_batch(batch_of([9, 4, 6], training=True, packed=False))
    # 1, 2 and 1 tokens are fed after the prompts. All tokens of the right labels are predicted.
    assert packed.tokens == padded.tokens == 10 + 6 + 7
    assert packed.predicted == padded.predicted == 2 + 3 + 2
    assert packed.examples == padded.examples == 3
    assert sorted(packed.positions) == sorted(padded.positions)


def test_continuations_share_their_prompt_and_its_logits():
    work = Work.of_batch(batch_of([9], training=False))
    assert work.tokens == 9 + 1 + 2
    assert work.predicted == 1 + 1 + 2  # the prompt's last token predicts the first of both labels
    # The second label does not see the first.
    assert sorted(work.positions) == [*range(9), 9, 9, 10]


def test_work_of_generation():
    work = Work.of_generation([3, 2], written=2)
    assert list(work.positions) == [0, 1, 2, 3, 0, 1, 2]
    assert (work.predicted, work.examples) == (4, 2)


def test_smollm2_shape_is_the_models():
    checkpoint, _ = gguf.read_checkpoint(packaged_file("smollm2-135m"))
    assert checkpoint.config == SHAPES["smollm2-135m"]


def test_llama_shape_has_the_published_number_of_weights():
    config = SHAPES["llama-2-7b"]
    norms = (2 * config.layers + 1) * config.width
    embeddings = 2 * config.vocabulary_size * config.width
    formula = Formula(config, 0, False)
    assert formula.frozen_weights + embeddings + norms == 6_738_415_616


def test_random_weights_are_kept_as_bits_on_cpu():
    params = random_frozen(SHAPES["tiny"], jax.numpy.bfloat16, "none")
    kernel = params["layers"]["feed_forward"]["up_proj"]["kernel"]
    assert kernel.dtype == np.uint16 and kernel.shape == (2, 32, 48)
    deviation = np.asarray(from_bits(kernel), np.float32).std()
    assert deviation == pytest.approx(0.02, rel=0.1)
    assert params["final_norm"]["scale"].dtype == np.float32


def test_random_texts_have_the_documented_lengths():
    lengths = np.array([len(text.input_ids) for text in random_texts(4000, 64, 0, fed=6)])
    assert lengths.min() >= 16 and lengths.max() <= LONGEST_TEXT - 6
    assert np.median(lengths) == pytest.approx(58, abs=1)
    assert lengths.mean() == pytest.approx(60.3, abs=1)
    fixed = random_texts(3, 64, 32, fed=6)
    assert {len(text.input_ids) for text in fixed} == {26}
    assert max(max(text.input_ids) for text in fixed) < 64


@pytest.mark.parametrize("method", sorted(METHODS))
def test_only_methods_whose_arithmetic_is_counted_are_measured(method, capsys):
    if method in COUNTED_METHODS:
        assert formula_of("tiny", method).trained_weights > 0
        return
    with pytest.raises(SystemExit):
        main([f"--method={method}", "--shape=tiny"])
    assert "invalid choice" in capsys.readouterr().err


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """The numbers of all parts with the shape "tiny"; all batches of a part have one shape."""
    path = tmp_path_factory.mktemp("bench") / "bench.json"
    small = ["--shape=tiny", "--dtype=float32", "--remat=none", "--batch=2", "--length=32"]
    assert main([*small, "--steps=2", "--layout=padded_to_max", f"--output={path}"]) == 0
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.slow
def test_every_part_runs_and_the_json_holds_it(result):
    assert set(result) == {
        *("settings", "device", "versions", "model", "ceiling", "parts"),
        *("padded_to_max_over_packed", "mixed_over_one_task"),
    }
    assert [row["part"] for row in result["parts"]] == [
        *("train, packed", "train, padded_to_max", "evaluate, packed"),
        *("evaluate, packed, 4 tasks mixed", "generate", "data, batch"),
    ]
    assert all(set(row) == ROW_KEYS for row in result["parts"])
    assert result["settings"]["parts"] == ["train", "evaluate", "mixed", "generate", "data"]
    assert result["model"]["width"] == 32 and result["device"]["platform"] == "cpu"
    assert set(result["ceiling"]) == {"flops_per_second", "by_rows", "products"}


@pytest.mark.slow
def test_rates_agree_with_one_another(result):
    ceiling = result["ceiling"]["flops_per_second"]
    assert ceiling == max(result["ceiling"]["by_rows"].values())
    for row in result["parts"][:5]:
        tokens, flops = row["tokens_per_second"], row["useful_flops_per_second"]
        assert flops == pytest.approx(row["useful_flops_per_token"] * tokens)
        assert row["share_of_ceiling"] == pytest.approx(flops / ceiling)
        assert row["steps"] == 2 and row["compiled_shapes"] == 1
    train, padded, evaluate, mixed, generate, batch = result["parts"]
    per_example = [row["tokens_per_second"] / row["examples_per_second"] for row in result["parts"]]
    # Prompts have 26 tokens. Training feeds 1 more, or 3 of the fourth label; evaluation feeds 6 of
    # all labels; generation feeds 32 of the 33 tokens that it writes.
    assert 26.99 < per_example[0] < 29.01
    assert per_example[1] == pytest.approx(per_example[0])
    assert per_example[2:5] == [pytest.approx(tokens) for tokens in (32, 32, 26 + 32)]
    assert evaluate["useful_flops_per_token"] == mixed["useful_flops_per_token"]
    ratio = mixed["examples_per_second"] / evaluate["examples_per_second"]
    assert result["mixed_over_one_task"] == ratio
    assert train["useful_flops_per_token"] == padded["useful_flops_per_token"]
    assert train["step_memory_bytes"] > 0 and evaluate["step_memory_bytes"] > 0
    assert generate["step_memory_bytes"] is None and batch["useful_flops_per_second"] is None


@pytest.mark.slow
def test_a_token_step_reads_weights_trained_parameters_and_cache_once(result):
    generate = result["parts"][4]
    assert [row["token_step"] is None for row in result["parts"]] == [True] * 4 + [False, True]
    step = generate["token_step"]
    norms, embedding = 2 * 2 * 32 + 32, 64 * 32
    # Two texts of 26 tokens, and half of the 33 that are written; 2 layers, keys and values of 2
    # heads of 8.
    cache = (2 * 26 + 33) * 2 * 2 * 2 * 8
    assert step["bytes"] == 4 * (TINY_FROZEN + norms + embedding + TINY_TRAINED + cache)
    assert step["tokens_per_second"] == pytest.approx(2 / step["seconds"])
    per_second = step["bytes"] / step["seconds"]
    assert step["share_of_bandwidth"] * step["memory_bytes_per_second"] == pytest.approx(per_second)


@pytest.mark.slow
def test_a_quantised_model_is_measured(tmp_path):
    path = tmp_path / "bench.json"
    small = ["--shape=tiny", "--batch=2", "--length=32", "--steps=1", "--parts=train"]
    assert main([*small, "--quantization=int4", f"--output={path}"]) == 0
    result = json.loads(path.read_text(encoding="utf-8"))
    assert result["settings"]["quantization"] == "int4"
    assert result["parts"][0]["share_of_ceiling"] > 0


@pytest.mark.slow
def test_a_shape_with_fewer_layers_is_measured(tmp_path):
    path = tmp_path / "bench.json"
    small = ["--shape=tiny", "--batch=2", "--length=32", "--steps=1", "--parts=train"]
    assert main([*small, "--layers=1", f"--output={path}"]) == 0
    assert json.loads(path.read_text(encoding="utf-8"))["model"]["layers"] == 1


@pytest.mark.slow
def test_batches_of_several_tasks_are_measured_beside_those_of_one(tmp_path):
    path = tmp_path / "bench.json"
    small = ["--shape=tiny", "--batch=2", "--length=32", "--steps=2", "--parts=mixed,mixed"]
    assert main([*small, f"--output={path}"]) == 0
    result = json.loads(path.read_text(encoding="utf-8"))
    one, mixed = result["parts"]
    assert [one["part"], mixed["part"]] == ["evaluate, packed", "evaluate, packed, 4 tasks mixed"]
    assert one["steps"] == mixed["steps"] == 2
    ratio = mixed["examples_per_second"] / one["examples_per_second"]
    assert result["mixed_over_one_task"] == ratio


def test_texts_are_tokenised_by_the_models_tokenizer(tmp_path, capsys):
    model, texts, output = (tmp_path / name for name in ("model", "texts.json", "out.json"))
    tokenizer = write_model(model) / "tokenizer.json"
    texts.write_text(json.dumps([{"sentence": "w1 w2 w3"}] * 5), encoding="utf-8")
    arguments = [f"--model={model}", f"--texts={texts}", "--parts=data", "--steps=1", "--batch=2"]
    assert main([*arguments, "--length=32"]) == 1
    # The tokenizer does not know the labels' words.
    assert "the same tokens" in capsys.readouterr().err

    known = tokenizer.read_text(encoding="utf-8")
    for index, word in enumerate(("World", "Sports", "Business", "Science", "or", "Technology")):
        known = known.replace(f'"w{50 + index}"', f'"{word}"')
    tokenizer.write_text(known, encoding="utf-8")
    assert main([*arguments, "--length=32", f"--output={output}"]) == 0
    rows = json.loads(output.read_text(encoding="utf-8"))["parts"]
    assert [row["part"] for row in rows] == ["data, tokenise", "data, batch"]
    ids = [row["tokens_per_second"] / row["examples_per_second"] for row in rows]
    # A step has two examples. Of their labels, "World" to "Science or Technology", all tokens but
    # the last are fed.
    assert ids[0] == pytest.approx(3) and 4 <= ids[1] <= 6


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            ["--parts=train,fly"],
            "--parts: 'fly' is not one of train, evaluate, mixed, generate, data",
        ),
        (["--batch=0"], "--batch=0 must be at least 1"),
        (["--layers=-1"], "--layers=-1 must be at least 0"),
        (["--steps=0"], "--steps=0 must be at least 1"),
        (["--length=-1"], "--length=-1 must be at least 0"),
        (["--length=6"], "--length=6 must be above 6"),
        (["--length=4000"], "at most 2015"),
        (["--dropout=1.0"], "--dropout=1.0 must be at least 0 and below 1"),
        (["--output=/no/such/folder/x.json"], "/no/such/folder is no folder"),
        (["--texts=missing.json"], "cannot read missing.json"),
    ],
)
def test_mistakes_are_named(arguments, message, capsys):
    assert main(["--shape=tiny", *arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith("bench: error: ") and message in error


@pytest.mark.parametrize(
    "content, message",
    [
        ([], "the list is empty"),
        ([{"sentence": "a"}, {"text": "b"}], 'expected a text in "sentence", found None'),
        ([{"sentence": "a"}], "needs a tokenizer"),
    ],
)
def test_mistakes_in_texts_are_named(tmp_path, content, message, capsys):
    texts = tmp_path / "texts.json"
    texts.write_text(json.dumps(content), encoding="utf-8")
    assert main(["--shape=tiny", f"--texts={texts}"]) == 1
    assert message in capsys.readouterr().err


def test_a_model_keeps_its_layers(capsys):
    assert main(["--model=folder", "--layers=2"]) == 1
    assert "--layers=2 is for a --shape; --model has its own" in capsys.readouterr().err


def test_a_model_and_a_shape_exclude_each_other(capsys):
    with pytest.raises(SystemExit) as error:
        main(["--shape=tiny", "--model=folder"])
    assert error.value.code == 2
    assert "not allowed with" in capsys.readouterr().err
