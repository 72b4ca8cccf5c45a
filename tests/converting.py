"""The commands that convert the original's checkpoints, and predictions from ids."""

import json

from moecl_jax.cli.main import main

PROMPTS = ([5, 9, 30, 2, 2, 17, 8], [1], [12, 11, 10, 0, 4])


def convert(base, adapter, workdir, *arguments):
    places = [f"--base={base}", f"--adapter={adapter}", f"--workdir={workdir}"]
    return main(["convert", "official", *places, *arguments])


def export(workdir, output, form="safetensors"):
    return main(["export", f"--workdir={workdir}", f"--format={form}", f"--output={output}"])


def write_ids(file, prompts, labels=None):
    lines = [{"input_ids": list(ids)} for ids in prompts]
    for line, label in zip(lines, labels or (), strict=False):
        line["label"] = label
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def predicted(workdir, task, folder, prompts=PROMPTS):
    """The logits that `moecl predict` writes."""
    source, target = write_ids(folder / "in.jsonl", prompts), folder / "out.jsonl"
    places = [f"--workdir={workdir}", f"--input={source}", f"--output={target}"]
    assert main(["predict", f"--task={task}", *places]) == 0
    return [json.loads(line)["prediction"]["logits"] for line in target.read_text().splitlines()]
