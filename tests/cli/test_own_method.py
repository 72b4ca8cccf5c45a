"""A method from a user's file through the commands: trained, resumed, swept, reported, served."""

import csv
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from streams import ROOT, assert_bit_equal, logged, restored, stop_after

from moecl_jax.cli.main import main
from moecl_jax.config.default import get_config
from moecl_jax.config.file import load_settings
from moecl_jax.errors import UserError
from moecl_jax.serving.session import open_run
from moecl_jax.testing import write_model, write_task

EXAMPLE = ROOT / "examples" / "hardest_replay.py"
SPEC = "hardest_replay:HardestReplay"
VARIANT = f"{SPEC}:hardest_replay.memory=16"
CONFIG = """
from ml_collections import ConfigDict
from moecl_jax.config.default import get_config as default_config

def get_config():
    config = default_config()
    config.model.path, config.model.dtype = {model!r}, "float32"
    for name, fields in {tasks!r}.items():
        config.definitions[name] = ConfigDict(fields)
    config.tasks = ("two", "five")
    config.batch.row_length = 64
    config.epochs, config.log_every, config.checkpoint_every = 1, 1, 2
    config.optimizer.learning_rate = 1e-2
    return config
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The working directory, which holds a config and the user's module, and nothing more."""
    folder = tmp_path_factory.mktemp("own")
    shutil.copy(EXAMPLE, folder)
    data = tmp_path_factory.mktemp("data")
    tasks = {
        name: write_task(data, name, classes) for name, classes in {"two": 2, "five": 5}.items()
    }
    content = CONFIG.format(model=str(write_model(data / "model")), tasks=tasks)
    (folder / "tiny.py").write_text(content, encoding="utf-8")
    modules = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "path", list(sys.path))
        yield folder
    for name in set(sys.modules) - modules:
        if name == "hardest_replay" or name.startswith("own_"):
            del sys.modules[name]


@pytest.fixture(scope="module")
def swept(folder: Path) -> Path:
    """A finished sweep of the built-in method and the user's."""
    grid = folder / "grid"
    methods = f"--methods=replay:replay.memory=16,{VARIANT}"
    assert main(["sweep", "--config=tiny.py", methods, f"--workdir={grid}"]) == 0
    return grid


@pytest.fixture(scope="module")
def whole(swept: Path) -> Path:
    """The workdir of the user's method, trained without an interruption."""
    return swept / VARIANT.replace(":", "+") / "seed0"


def train(workdir: Path, *overrides: str) -> int:
    overrides = ("--config.hardest_replay.memory=16", *overrides)
    named = f"--config.method={SPEC}"
    return main(["train", "--config=tiny.py", f"--workdir={workdir}", named, *overrides])


def results_of(workdir: Path) -> dict[str, object]:
    content: dict[str, object] = json.loads((workdir / "results.json").read_text(encoding="utf-8"))
    return {key: value for key, value in content.items() if key != "wall_seconds"}


@pytest.mark.slow
def test_killed_inside_the_second_task_it_resumes_bit_for_bit(folder, whole, monkeypatch):
    workdir = folder / "resumed"
    with monkeypatch.context() as patch:
        stop_after(patch, 9)  # of 6 steps a task; the last checkpoint is after 2 of the second
        assert train(workdir) == 130
    assert (workdir / "checkpoints" / "in_progress").is_dir()
    assert not (workdir / "results.json").exists()
    monkeypatch.delitem(sys.modules, "hardest_replay")  # as a new process would import it again
    assert train(workdir) == 0
    assert logged(workdir) == logged(whole)
    assert results_of(workdir) == results_of(whole)
    (_, ours, _), (_, theirs, _) = restored(workdir), restored(whole)
    assert_bit_equal((ours.shared, ours.memory), (theirs.shared, theirs.memory))


@pytest.mark.slow
def test_its_memory_holds_the_hardest_of_each_task_and_joins_batches(swept, whole):
    results, settings = results_of(whole), load_settings(str(whole / "config.json"))
    assert (results["method"], settings.method) == ("hardest_replay", SPEC)
    assert results["stored_examples"] == 16
    evaluator, state, _ = restored(whole)
    kept = np.asarray(state.memory["kept"])
    assert (kept.shape, kept.dtype) == ((16, 2), np.int32)
    assert np.bincount(kept[:, 0]).tolist() == [8, 8]
    # The second task's are those with the highest losses under the final parameters.
    examples = evaluator.load()[1].splits["train"]
    scores = evaluator.scores(evaluator.starting.task(state, "five", 1), 1, examples).scores
    losses = -scores[np.arange(len(examples)), [example.label for example in examples]]
    places = kept[kept[:, 0] == 1, 1]
    assert np.sort(losses[places]).tolist() == np.sort(losses)[-8:].tolist()
    # With the same memory the built-in method trains on other examples in the second task alone.
    replay = logged(swept / "replay+replay.memory=16" / "seed0")
    same = [a["loss"] == b["loss"] for a, b in zip(logged(whole), replay, strict=True)]
    assert same[:6] == [True] * 6 and not all(same[6:])


@pytest.mark.slow
def test_it_is_reported_beside_the_built_in_method(folder, swept, capsys):
    page = folder / "report.html"
    assert main(["report", f"--workdir={swept}", f"--output={page}"]) == 0
    assert str(page) in capsys.readouterr().out
    assert "hardest_replay" in page.read_text(encoding="utf-8")
    with page.with_suffix(".csv").open(encoding="utf-8", newline="") as file:
        assert {VARIANT, "replay:replay.memory=16"} <= {
            value for row in csv.reader(file) for value in row
        }


@pytest.mark.slow
def test_it_is_evaluated_and_predicts(folder, whole, capsys):
    capsys.readouterr()
    assert main(["evaluate", f"--workdir={whole}"]) == 0
    tasks = json.loads(capsys.readouterr().out)["tasks"]
    matrix = results_of(whole)["accuracy_matrix"]
    assert [tasks[name]["accuracy"] for name in ("two", "five")] == matrix[-1]
    (folder / "in.jsonl").write_text('{"text": "w9 w8 w30"}\n', encoding="utf-8")
    files = ["--input=in.jsonl", "--output=out.jsonl"]
    assert main(["predict", f"--workdir={whole}", "--task=five", *files]) == 0
    line = json.loads((folder / "out.jsonl").read_text(encoding="utf-8"))
    assert line["prediction"]["label"] in {f"w{index}" for index in range(5)}


@pytest.mark.slow
def test_a_workdir_whose_module_is_not_found_says_where_it_was_looked_for(
    whole, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if not (Path(p) / EXAMPLE.name).exists()])
    monkeypatch.delitem(sys.modules, "hardest_replay")
    with pytest.raises(UserError) as caught:
        open_run(whole)
    assert str(caught.value).startswith(f"{whole / 'config.json'}: method {SPEC!r}: there is no")
    assert f"working directory ({tmp_path})" in str(caught.value)


@pytest.mark.usefixtures("folder")
def test_its_options_are_a_section_of_the_config(capsys):
    named = f"--config.method={SPEC}"
    settings = load_settings("tiny.py", [named, "--config.hardest_replay.memory=3"])
    assert settings.options["hardest_replay"] == {"memory": 3, "batch": 4}
    method = settings.method_object()
    assert (method.name, method.options.memory, method.options.batch) == ("hardest_replay", 3, 4)
    assert get_config(SPEC).hardest_replay.to_dict() == {"memory": 64, "batch": 4}
    assert main(["train", "--config=tiny.py", "--workdir=never", named, "--config.lora.rnk=1"]) == 1
    assert "did you mean 'lora.rank'" in capsys.readouterr().err


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("memry=3", "unknown config key 'hardest_replay.memry'; did you mean 'hardest_replay.mem"),
        ("memory=x", "--config.hardest_replay.memory=x: invalid literal for int()"),
        ("memory=-1", "config: hardest_replay.memory = -1 must be at least 0"),
    ],
)
def test_wrong_options_are_named(override, message):
    overrides = [f"--config.method={SPEC}", f"--config.hardest_replay.{override}"]
    with pytest.raises(UserError) as caught:
        load_settings("tiny.py", overrides)
    assert str(caught.value).startswith(message)
    with pytest.raises(UserError, match=r"unknown config key 'hardest_replay\.memory'"):
        load_settings("tiny.py", ["--config.hardest_replay.memory=3"])  # of no method here


@pytest.mark.usefixtures("folder")
def test_a_file_may_name_it_and_set_a_part_of_its_options(folder):
    source = (folder / "tiny.py").read_text(encoding="utf-8")
    lines = (
        f"    config.method = {SPEC!r}\n"
        "    config.hardest_replay = ConfigDict({'memory': 5})\n"
        "    return config\n"
    )
    (folder / "named.py").write_text(source.replace("    return config\n", lines), encoding="utf-8")
    settings = load_settings("named.py", ["--config.hardest_replay.batch=2"])
    assert settings.options["hardest_replay"] == {"memory": 5, "batch": 2}
    other = load_settings("named.py", ["--config.method=ewc"])
    assert "hardest_replay" not in other.options and other.method == "ewc"


WRONG = """
import dataclasses
from moecl_jax import Method, Replay

class NoMethod:
    name = "no_method"

class Lacking(Method):
    name = "lacking"

class Nameless(Method):
    def init_shared(self, key, sizes, task_count): return {}
    def adapter(self, parameters, query=None): return {}

class Spaced(Replay):
    name = "my method"

class Demanding(Replay):
    name = "demanding"
    @dataclasses.dataclass(frozen=True)
    class Options:
        memory: int

not_a_class = 3
"""


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("own_absent:Gone", "there is no module 'own_absent'"),
        ("own_wrong:Gone", "has no 'Gone'. It has: Lacking, Nameless, Spaced, Demanding."),
        ("own_wrong:not_a_class", "3 is not a class"),
        ("own_wrong:NoMethod", "the class NoMethod does not inherit from moecl_jax.methods.base.M"),
        ("own_wrong:Lacking", "the class Lacking lacks adapter, init_shared"),
        ("own_wrong:Nameless", "the class Nameless lacks name"),
        ("own_wrong:Spaced", "name = 'my method' must be a text of letters, digits and '_'"),
        ("own_wrong:Demanding", "Options must be a dataclass whose fields all have defaults"),
        ("own_broken:Gone", "importing own_broken failed with KeyError: sides"),
        ("own wrong:Gone", 'expected "package.module:Class"'),
    ],
)
def test_what_is_no_method_is_an_error_when_the_config_is_read(folder, capsys, spec, message):
    (folder / "own_wrong.py").write_text(WRONG, encoding="utf-8")
    (folder / "own_broken.py").write_text("raise KeyError('sides')\n", encoding="utf-8")
    named = f"--config.method={spec}"
    assert main(["train", "--config=tiny.py", "--workdir=never", named]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("moecl: error: method ") and captured.err.count("\n") == 1
    assert message in captured.err
    assert not (folder / "never").exists()
    with pytest.raises(UserError, match=r"^method "):
        get_config(spec)
