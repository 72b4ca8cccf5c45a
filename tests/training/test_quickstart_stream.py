"""The real configs, shrunk: SmolLM2-135M over real texts, from the command line to results.json."""

import json

import numpy as np
import pytest
from streams import ROOT

from moecl_jax.cli.main import main

pytestmark = pytest.mark.slow

SHRUNK = [
    "--config.data.train_examples=32",
    "--config.data.validation_examples=8",
    "--config.data.test_examples=16",
    "--config.epochs=1",
]


def run(config, workdir, *overrides):
    assert main(["train", f"--config={config}", f"--workdir={workdir}", *SHRUNK, *overrides]) == 0
    return json.loads((workdir / "results.json").read_text())


@pytest.mark.parametrize(
    "method", ["moe_cl", pytest.param("sequential_lora", marks=pytest.mark.long)]
)
def test_the_quickstart_trains_and_labels_texts(tmp_path, method):
    tasks = "--config.tasks=('sms_spam','movie_reviews')"
    overrides = (tasks, f"--config.method={method}", "--config.log_every=1")
    results = run(ROOT / "configs" / "quickstart.py", tmp_path / "run", *overrides)
    assert results["tasks"] == ["sms_spam", "movie_reviews"]
    assert np.isfinite(results["accuracy_matrix"]).all()
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss_instruction"] for line in lines]
    assert losses[3] < 0.7 * losses[0], "the first task's loss must fall within four steps"
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"text": "WINNER!! Claim your free prize now, call 09061701461"}\n')
    arguments = [f"--workdir={tmp_path / 'run'}", "--task=sms_spam", f"--input={source}"]
    assert main(["predict", *arguments, f"--output={target}"]) == 0
    assert json.loads(target.read_text())["prediction"]["label"] in ("spam", "ham")


@pytest.mark.shared
def test_mtl5_from_local_files_trains(tmp_path, shared):
    file, data = ROOT / "configs" / "mtl5_shared_smollm2.py", shared / "data" / "mtl5"
    config = f"{file}:order=1,data={data}"
    results = run(config, tmp_path / "run", "--config.data.max_length=64")
    assert results["tasks"] == ["dbpedia", "amazon", "yahoo", "agnews"]
    assert np.shape(results["accuracy_matrix"]) == (4, 4)
