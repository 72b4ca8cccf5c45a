"""`moecl generate` on a trained workdir, and evaluation by generated answers."""

import json

import numpy as np
import pytest
from records import read, repeat_task, write
from streams import tiny_config, tiny_settings

from moecl_jax.cli.main import main
from moecl_jax.config.default import from_config
from moecl_jax.serving.text_scores import score_texts
from moecl_jax.training.trainer import train


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A stream of a label task and a free-form task, learned."""
    folder = tmp_path_factory.mktemp("generate")
    config = tiny_config(folder, epochs=6, selection="last", tasks=("two", "repeat"))
    with config.unlocked():
        config.definitions.repeat = repeat_task(folder / "data")
    config.data.max_length, config.data.max_response = 24, 4
    return folder, config, train(from_config(config), folder / "run")


def generate(folder, source, *options, task="repeat", status=0):
    target = source.with_suffix(".out")
    arguments = [f"--workdir={folder / 'run'}", f"--task={task}"]
    arguments += [f"--input={source}", f"--output={target}", *options]
    assert main(["generate", *arguments]) == status
    return read(target)


def test_answers_are_learned_and_the_base_model_does_not_know_them(trained, tmp_path):
    folder, _, results = trained
    source = tmp_path / "in.jsonl"
    source.write_bytes((folder / "data" / "repeat_test.jsonl").read_bytes())
    lines = generate(folder, source)
    wanted = [line["response"] for line in read(source)]
    written = [line["prediction"]["response"] for line in lines]
    assert np.shape(results["gate_weights"]) == (2, 2)  # of both tasks, in each layer
    right = score_texts(written, wanted, "exact_match")
    assert right == pytest.approx(results["accuracy_matrix"][1][1]) and right >= 0.9
    before = [line["prediction"]["response"] for line in generate(folder, source, "--base")]
    assert score_texts(before, wanted, "exact_match") == results["random_init"][1] == 0


def test_a_prompt_is_answered_on_the_terminal_as_in_a_file(trained, tmp_path, capsys):
    folder, _, _ = trained
    source = tmp_path / "in.jsonl"
    write(source, [{"text": "w11 w40 w41 w42", "id": 7}])
    (line,) = generate(folder, source)
    answer = {"task": "repeat", "response": "w21 w31"}
    assert line == {"text": "w11 w40 w41 w42", "id": 7, "prediction": answer}
    capsys.readouterr()
    arguments = [f"--workdir={folder / 'run'}", "--task=repeat", "--prompt=w11 w40 w41 w42"]
    assert main(["generate", *arguments]) == 0
    assert capsys.readouterr().out == "w21 w31\n"
    assert main(["generate", *arguments, "--max-tokens=1"]) == 0
    assert capsys.readouterr().out == "w21\n"


def test_a_label_task_s_answer_is_its_label(trained, tmp_path):
    folder, _, results = trained
    source = tmp_path / "in.jsonl"
    source.write_bytes((folder / "data" / "two_test.jsonl").read_bytes())
    lines = generate(folder, source, task="two")
    right = [line["prediction"]["response"] == line["label"] for line in lines]
    assert sum(right) / len(right) == pytest.approx(results["accuracy_matrix"][1][0])


def test_sampling_follows_its_seed(trained, tmp_path):
    folder, _, _ = trained
    source = tmp_path / "in.jsonl"
    write(source, [{"text": f"w11 w4{index} w41 w42"} for index in range(6)])
    options = ("--temperature=5", "--top-k=20")
    first, again = (generate(folder, source, *options, "--seed=1") for _ in range(2))
    assert first == again
    assert first != generate(folder, source, *options, "--seed=2")


def test_a_bad_line_stops_nothing(trained, tmp_path):
    folder, _, _ = trained
    source = tmp_path / "in.jsonl"
    source.write_text('{"text": "w11 w40 w41 w42"}\nnot json\n{"text": ""}\n', encoding="utf-8")
    lines = generate(folder, source, status=1)
    first, second, third = (line["prediction"] for line in lines)
    assert first["response"] == "w21 w31"
    assert "not a line of UTF-8 JSON" in second["error"]
    assert "a text that is not empty" in third["error"]


@pytest.mark.parametrize(
    "options, message",
    [
        ([], "give either --prompt, or both --input and --output"),
        (["--prompt=w1", "--input=a", "--output=b"], "give either --prompt"),
        (["--input=a"], "give either --prompt"),
        (["--input=absent", "--output=b"], "--input=absent does not exist"),
        (["--prompt= "], "the prompt ' ': expected either"),
        (["--prompt=w1", "--max-tokens=0"], "max_tokens = 0 must be at least 1"),
        (["--prompt=w1", "--max-tokens=5000"], "exceed the 2048 positions of the model"),
        (["--prompt=w1", "--temperature=nan"], "temperature = nan must be a number"),
        (["--prompt=w1", "--seed=4294967296"], "must be at least 0 and below 2**32"),
        (["--prompt=w1", "--top-p=2"], "top_p = 2.0 must be above 0 and at most 1"),
    ],
)
def test_wrong_arguments_are_explained(trained, capsys, options, message):
    workdir = f"--workdir={trained[0] / 'run'}"
    assert main(["generate", workdir, "--task=repeat", *options]) == 1
    assert message in capsys.readouterr().err


def test_a_cut_prompt_is_told(trained, tmp_path, capsys):
    folder, _, _ = trained
    source = tmp_path / "in.jsonl"
    write(source, [{"text": "w11 " * 40}, {"text": "w11 w40"}])
    lines = generate(folder, source)
    assert ["truncated" in line["prediction"] for line in lines] == [True, False]
    arguments = [f"--workdir={folder / 'run'}", "--task=repeat", f"--prompt={'w11 ' * 40}"]
    assert main(["generate", *arguments]) == 0
    assert "note: the prompt was cut to its first 20 tokens" in capsys.readouterr().err


@pytest.mark.parametrize("output", ["", "absent/out.jsonl"])
def test_an_output_that_cannot_be_written_is_named(trained, tmp_path, capsys, output):
    source = tmp_path / "in.jsonl"
    write(source, [{"text": "w1"}])
    target = tmp_path / output
    files = [f"--input={source}", f"--output={target}"]
    workdir = f"--workdir={trained[0] / 'run'}"
    assert main(["generate", workdir, "--task=repeat", *files]) == 1
    assert capsys.readouterr().err.startswith(f"moecl: error: {target}: ")


def test_classification_heads_write_no_text(tmp_path, capsys):
    settings = tiny_settings(tmp_path, head="classification", tasks=("two",), epochs=1)
    train(settings, tmp_path / "run")
    arguments = [f"--workdir={tmp_path / 'run'}", "--task=two", "--prompt=w1"]
    assert main(["generate", *arguments]) == 1
    assert "use 'moecl predict'" in capsys.readouterr().err


def test_generated_answers_evaluate_as_one_pass_does(trained, tmp_path):
    folder, config, results = trained
    run = json.loads((folder / "run" / "config.json").read_text())
    assert run["evaluation"]["answers"] == "scored"
    config = config.copy_and_resolve_references()
    config.evaluation.answers = "generated"
    repeated = train(from_config(config), tmp_path / "run")
    for key in ("accuracy_matrix", "random_init", "scored_accuracy_matrix"):
        assert repeated[key] == results[key]


def test_rouge_l_is_measured_on_generated_answers(trained, tmp_path):
    _, config, _ = trained
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.definitions.repeat.metric = "rouge_l"
    config.tasks = ("repeat",)
    # Half right: the second word is always wrong.
    for split in ("train", "test", "validation"):
        source = tmp_path / f"repeat_{split}.jsonl"
        lines = read(trained[0] / "data" / source.name)
        if split == "test":
            lines = [line | {"response": line["response"].split()[0] + " w63"} for line in lines]
        write(source, lines)
    config.definitions.repeat.path = str(tmp_path)
    measured = train(from_config(config), tmp_path / "run")
    assert measured["accuracy_matrix"][0][0] == pytest.approx(0.5, abs=0.05)
