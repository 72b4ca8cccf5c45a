"""The moecl command in process: help, overrides, and errors in one line."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import moecl_jax
from moecl_jax.cli import main as cli
from moecl_jax.config.file import load_config
from moecl_jax.errors import UserError
from moecl_jax.serving.files import Answered, Files

CONFIG = """
from ml_collections import ConfigDict

def get_config(argument="a=1"):
    name, value = argument.split("=")
    if name != "a":
        raise ValueError(f"the argument must be a=NUMBER,\\n  but it is {argument!r}")
    return ConfigDict({
        "seed": 0,
        "epochs": int(value),
        "method": "moe_cl",
        "shared_head": True,
        "tasks": ("spam", "irony"),
        "definitions": {"spam": {"labels": ["no"], "chat": {"warmup": 10}}},
        "optimizer": {"learning_rate": 2e-4},
    })
"""

RESULTS = {
    "method": "moe_cl",
    "tasks": ["spam", "irony"],
    "accuracy_matrix": [[0.975, 0.51], [0.95, 0.88]],
    "random_init": [0.5, 0.48],
    "metrics": {"acc": 0.915, "bwt": -0.025, "fwt": 0.03, "forgetting": 0.025},
    "seed": 0,
    "wall_seconds": 123.4,
}


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "small.py"
    path.write_text(CONFIG)
    return path


@pytest.fixture
def calls(monkeypatch):
    """Replaces the library's functions by ones that record their arguments."""
    recorded = {}

    homes = {
        "train": "moecl_jax.training.trainer",
        "open_run": "moecl_jax.serving.session",
        "Files": "moecl_jax.serving.files",
        "predict_file": "moecl_jax.serving.files",
        "convert_official": "moecl_jax.interchange.official",
        "export_official": "moecl_jax.interchange.official",
    }
    modules = {home: ModuleType(home) for home in homes.values()}
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)

    def replace(name, result):
        def function(*arguments, **options):
            recorded[name] = (*arguments, options) if options else arguments
            if isinstance(result, BaseException):
                raise result
            return result

        setattr(modules[homes[name]] if name in homes else session, name, function)

    session = recorded["session"] = ModuleType("session")
    replace("train", RESULTS)
    replace("open_run", session)
    replace("evaluate", {"split": "test", "accuracy": {"spam": 0.5}})
    modules[homes["Files"]].Files = Files
    replace("predict_file", Answered(0))
    replace("convert_official", ["spam", "irony"])
    replace("export_official", [Path("p.bin"), Path("p.json")])
    recorded["replace"] = replace
    return recorded


def trained_settings(calls, config_file, *overrides):
    assert cli.main(["train", f"--config={config_file}", "--workdir=w", *overrides]) == 0
    return calls["train"][0]


def error_of(capsys, *argv):
    """The error of a command that must fail with one line and status 1."""
    assert cli.main([str(argument) for argument in argv]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("moecl: error: ")
    assert captured.err.count("\n") == 1
    return captured.err.removeprefix("moecl: error: ").rstrip("\n")


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_help_of_each_command_has_an_example(command, capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main([command, "--help"])
    text = capsys.readouterr().out
    assert f"\n  moecl {command} " in text.partition("example")[2]
    assert "--workdir" in text or command in ("new", "check", "cache", "ab", "strip")


def test_each_file_that_declares_a_command_is_a_command(repository):
    files = (repository / "moecl_jax" / "cli").glob("*.py")
    declaring = {file.stem for file in files if "\nCOMMAND = " in file.read_text(encoding="utf-8")}
    assert declaring == set(cli.COMMANDS)


HELP = """
import contextlib, io, sys, time
before = set(sys.modules)
began = time.process_time()
from moecl_jax.cli.main import COMMANDS, main
for argv in ([], *([name] for name in COMMANDS)):
    with contextlib.suppress(SystemExit):
        main([*argv, "--help"])
seconds = time.process_time() - began
packages = {name.partition(".")[0] for name in set(sys.modules) - before}
assert packages <= sys.stdlib_module_names | {"moecl_jax"}, packages - sys.stdlib_module_names
assert seconds < 0.5, seconds
"""


def test_help_lists_the_commands_and_imports_no_other_package(repository):
    run = subprocess.run(
        [sys.executable, "-c", HELP], cwd=repository, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert all(f"\n    {name} " in run.stdout for name in cli.COMMANDS)


def test_module_is_the_command(repository):
    run = subprocess.run(
        [sys.executable, "-m", "moecl_jax", "--version"],
        cwd=repository,
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout == f"moecl {moecl_jax.__version__}\n"


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["tran"],
        ["train"],
        ["train", "--conf=x.py", "--workdir=w"],
        ["evaluate", "--workdir=w", "--config.seed=1"],
    ],
)
def test_wrong_arguments_exit_with_status_2(argv, capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(argv)
    assert "usage: moecl" in capsys.readouterr().err


def test_overrides_of_a_command_that_has_no_config_are_refused(capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(["compare", "--workdir=w", "--config.seed=1"])
    message = (
        "--config.seed=1: only 'moecl check', 'moecl train', 'moecl sweep' and 'moecl distil' have "
        "a config to override\n"
    )
    assert capsys.readouterr().err.endswith(message)


def test_train_gets_settings_that_cannot_change_and_prints_the_matrix(calls, config_file, capsys):
    settings = trained_settings(calls, config_file)
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.seed = 1
    assert settings.seed == 0
    assert calls["train"][1] == Path("w")
    output = capsys.readouterr().out
    assert "after irony" in output
    assert "acc 91.5" in output
    assert str(Path("w") / "results.json") in output


def test_a_config_that_was_loaded_is_locked(config_file):
    config = load_config(str(config_file))
    assert config.is_locked
    assert config.optimizer.schedule == "constant"  # what the file leaves out has its default


@pytest.mark.parametrize(
    ("overrides", "path", "value"),
    [
        (["--config.seed=7"], "seed", 7),
        (["--config.seed", "7"], "seed", 7),
        (["--config.optimizer.clip_norm", "7"], "optimizer.clip_norm", 7.0),
        (["--config.mesh.data", "-1"], "mesh.data", -1),
        (["--config.seed=7", "--config.seed=8"], "seed", 8),
        (["--config.model.path=a b=c --d"], "model.path", "a b=c --d"),
        (["--config.shared_head=false"], "shared_head", False),
        (["--config.shared_head", "false"], "shared_head", False),
        (["--noconfig.shared_head"], "shared_head", False),
        (["--config.tasks=('a', 'b', 'c')"], "tasks", ("a", "b", "c")),
        (["--config.definitions.spam.labels[0]=irony"], "definitions.spam.labels", ["irony"]),
        (["--config.optimizer.learning_rate=1e-3"], "optimizer.learning_rate", 1e-3),
        (["--config.optimizer.learning_rate=1"], "optimizer.learning_rate", 1.0),
        (["--config.definitions.spam.chat.warmup=0"], "definitions.spam.chat.warmup", 0),
        (["--config.lora.rank=4"], "lora.rank", 4),  # a key that the file leaves out
        (["--config.replay.memory=4"], "replay.memory", 4),
    ],
)
def test_overrides(calls, config_file, overrides, path, value):
    found = trained_settings(calls, config_file, *overrides).to_mapping()
    for key in path.split("."):
        found = found[key]
    assert found == value
    assert type(found) is type(value)


def test_a_placeholder_gets_its_value(calls, tmp_path, capsys):
    path = tmp_path / "placeholder.py"
    path.write_text(
        "from ml_collections import ConfigDict, config_dict\n"
        "def get_config(): return ConfigDict({'log_every': config_dict.placeholder(int)})\n"
    )
    assert trained_settings(calls, path, "--config.log_every=3").log_every == 3
    capsys.readouterr()
    error = error_of(capsys, "train", f"--config={path}", "--workdir=w")
    assert error == "config: log_every = None must be a whole number"


def test_overrides_may_stand_anywhere(calls, config_file):
    argv = ["train", "--config.seed=7", "--workdir", "w", "--config", f"{config_file}:a=5"]
    assert cli.main(argv) == 0
    settings, workdir, options = calls["train"]
    assert options == {"resume": "newest", "accept_changes": False}
    assert (settings.seed, settings.epochs, workdir) == (7, 5, Path("w"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--config.sed=1", "unknown config key 'sed'; did you mean 'seed'?"),
        (
            "--config.optimizer.learning_rat=1",
            "unknown config key 'optimizer.learning_rat'; did you mean 'optimizer.learning_rate'?",
        ),
        (
            "--config.warmup_fraction=1",
            "unknown config key 'warmup_fraction'; did you mean 'optimizer.warmup_fraction'?",
        ),
        (
            "--config.optimizer.lr=1",
            "unknown config key 'optimizer.lr'; did you mean 'optimizer.learning_rate'?",
        ),
        (
            "--config.seed.x=1",
            "unknown config key 'seed.x'; did you mean 'seed'?",
        ),
        ("--config.items=1", "unknown config key 'items'"),
        (
            "--config.zzzzzz=1",
            "unknown config key 'zzzzzz'; the keys are adversarial, adversarial_inputs, batch,",
        ),
        ("--config.=1", "unknown config key ''"),
        (
            "--config.optimizer={}",
            "config key 'optimizer' is a section; override its values, as --config.optimizer.KEY",
        ),
        ("--config.seed=one", "--config.seed=one: invalid literal for int()"),
        ("--config.seed=1.5", "--config.seed=1.5: invalid literal for int()"),
        ("--config.seed", "Missing value for flag --config.seed"),
        (
            "--config.definitions.spam.labels=a",
            "Type <class 'list'> of field config.definitions.spam.labels is not supported",
        ),
        (
            "--config.definitions.spam.labels[4]=a",
            "config key 'definitions.spam.labels[4]': list index out of range",
        ),
        ("--config.tasks[=a", "config key 'tasks[': Could not parse"),
    ],
)
def test_wrong_override_is_named(calls, config_file, capsys, override, message):
    error = error_of(capsys, "train", f"--config={config_file}", "--workdir=w", override)
    assert error.startswith(message)
    assert "train" not in calls


def test_missing_config_file_is_named_with_a_similar_one(config_file, capsys):
    wrong = config_file.with_name("smal.py")
    error = error_of(capsys, "train", f"--config={wrong}", "--workdir=w")
    assert error == f"config file {wrong} does not exist; did you mean {str(config_file)!r}?"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("x = 1\n", " must define get_config() that returns a ConfigDict"),
        ("def get_config(): return {}\n", " must define get_config() that returns a ConfigDict"),
        ("\nx = missing\n", ", line 2: NameError: name 'missing' is not defined"),
        ("\n\nx = = 1\n", ", line 3: SyntaxError: invalid syntax"),
        ("import absent_package\n", ", line 1: ModuleNotFoundError: No module named"),
        ("def get_config():\n  return {}['k']\n", ", line 2: KeyError: k"),
    ],
)
def test_broken_config_file_is_named(tmp_path, capsys, content, message):
    path = tmp_path / "broken.py"
    path.write_text(content)
    error = error_of(capsys, "train", f"--config={path}", "--workdir=w")
    assert error.startswith(f"config file {path}{message}")


def test_relative_config_file_is_named_with_its_line(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("broken.py").write_text("\nx = missing\n")
    error = error_of(capsys, "train", "--config=broken.py", "--workdir=w")
    assert error.startswith("config file broken.py, line 2: NameError")


def test_config_file_that_is_no_python_file(tmp_path, capsys):
    path = tmp_path / "config.yaml"
    path.write_text("{}")
    error = error_of(capsys, "train", f"--config={path}", "--workdir=w")
    assert error == f"config file {path} is neither FILE.py nor a workdir's config.json"


def test_a_workdir_s_config_json_is_a_config(calls, tmp_path):
    path = tmp_path / "config.json"
    definition = {"source": "jsonl", "train": "a.jsonl", "labels": ["no", "yes"]}
    content = {
        "seed": 3,
        "tasks": ["spam"],
        "lora": {"rank": 4},
        "definitions": {"spam": definition},
    }
    path.write_text(json.dumps(content))
    overrides = ["--config.lora.alpha=2", "--config.definitions.spam.labels=('ham', 'spam')"]
    settings = trained_settings(calls, path, *overrides)
    assert (settings.seed, settings.tasks) == (3, ("spam",))
    assert (settings.lora.rank, settings.lora.alpha) == (4, 2.0)
    assert settings.definitions["spam"]["labels"] == ("ham", "spam")
    assert settings.epochs == 3  # a key that the file lacks has its default


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "config file {path} does not exist"),
        ("{", "{path} is broken: Expecting"),
        ("[1]", "{path} is broken: expected an object of settings, and it is [1]"),
        ("[" * 100_000, "{path} is broken: lists and objects are nested more than"),
        ('{"seed": "x"}', "{path}: config: seed = 'x' must be a whole number (expected the"),
        ('{"seed": null}', "{path}: config: seed = None must be a whole number"),
        ('{"method": null}', "{path}: config: method = None must be a method's name"),
        ('{"lora": null}', "{path}: config: lora = None must be a section of keys and values"),
        ('{"lora": 4}', "{path}: config: lora = 4 must be a section of keys and values"),
        ('{"epochs": 1e999}', "{path} is broken: 1e999 is larger than any number"),
        ('{"model_type": "llama"}', "{path}: unknown config key 'model_type'"),
        ('{"lora": {"r": 4}}', "{path}: unknown config key 'lora.r'"),
    ],
)
def test_a_wrong_config_json_is_named(tmp_path, capsys, content, message):
    path = tmp_path / "config.json"
    if content is not None:
        path.write_text(content)
    error = error_of(capsys, "train", f"--config={path}", "--workdir=w")
    assert error.startswith(message.format(path=path))


def test_wrong_config_argument_shows_the_files_own_message(config_file, capsys):
    error = error_of(capsys, "train", f"--config={config_file}:b=1", "--workdir=w")
    assert error.endswith(": the argument must be a=NUMBER, but it is 'b=1'")


def test_user_error_is_one_line_and_interrupt_says_how_to_resume(calls, config_file, capsys):
    argv = ["train", f"--config={config_file}", "--workdir=w"]
    calls["replace"]("train", UserError("no such task: x"))
    assert error_of(capsys, *argv) == "no such task: x"
    calls["replace"]("train", KeyboardInterrupt())
    assert cli.main(argv) == 130
    assert capsys.readouterr().err == "interrupted; run the same command again to resume\n"
    calls["replace"]("train", ZeroDivisionError())  # a bug keeps its stack trace
    with pytest.raises(ZeroDivisionError):
        cli.main(argv)


def test_evaluate_prints_json(calls, capsys):
    assert cli.main(["evaluate", "--workdir=w", "--split=validation"]) == 0
    plain = {"perturbations": [], "perturbation_rate": 0.1}
    assert (calls["open_run"], calls["evaluate"]) == ((Path("w"),), ("validation", plain))
    assert json.loads(capsys.readouterr().out) == {"split": "test", "accuracy": {"spam": 0.5}}
    cli.main(["evaluate", "--workdir=w", "--perturb=typos,case", "--perturb-rate=0.3"])
    changed = {"perturbations": ["typos", "case"], "perturbation_rate": 0.3}
    assert calls["evaluate"] == ("test", changed)


@pytest.mark.parametrize(("bad_lines", "status"), [(0, 0), (3, 1)])
def test_predict_fails_when_a_line_was_bad(calls, capsys, tmp_path, monkeypatch, bad_lines, status):
    calls["replace"]("predict_file", Answered(bad_lines))
    monkeypatch.chdir(tmp_path)
    Path("i.jsonl").touch()
    argv = ["predict", "--workdir=w", "--task=spam", "--input=i.jsonl", "--output=o.jsonl"]
    assert cli.main(argv) == status
    assert calls["open_run"] == (Path("w"),)
    files = Files(Path("i.jsonl"), Path("o.jsonl"))
    assert calls["predict_file"] == (calls["session"], "spam", files)
    assert capsys.readouterr().out == f"Predictions: o.jsonl; bad lines: {bad_lines}\n"


def test_convert_names_the_command_that_goes_on(calls, capsys):
    places = ["--base=b", "--adapter=p", "--workdir=w"]
    argv = ["convert", "official", *places, "--tasks=spam, irony", "--continue=irony"]
    assert cli.main(argv) == 0
    options = {"tasks": ["spam", "irony"], "continue_task": "irony"}
    assert calls["convert_official"] == (Path("b"), Path("p"), Path("w"), options)
    assert capsys.readouterr().out == (
        "Converted into w, tasks spam, irony\n"
        "Train irony: moecl train --config=w/config.json --workdir=w\n"
    )


def test_export_lists_its_files(calls, capsys):
    assert cli.main(["export", "--workdir=w", "--format=official", "--output=p"]) == 0
    assert calls["export_official"] == (Path("w"), "official", Path("p"))
    assert capsys.readouterr().out == "Written: p.bin, p.json\n"


def test_the_formats_of_export_are_those_that_there_are(capsys):
    from moecl_jax.interchange.official import FORMATS

    with pytest.raises(SystemExit, match="2"):
        cli.main(["export", "--workdir=w", "--format=none", "--output=p"])
    message = capsys.readouterr().err
    assert all(name in message.rpartition("choose from")[2] for name in FORMATS)


def test_how_a_training_goes_on_is_chosen_on_the_command_line(calls, config_file):
    argv = ["train", "--workdir=w", f"--config={config_file}", "--resume=last-good"]
    assert cli.main([*argv, "--accept-changes"]) == 0
    assert calls["train"][2] == {"resume": "last-good", "accept_changes": True}


def test_a_process_does_not_wait_for_threads_of_a_checkpoint_that_failed(tmp_path):
    program = (
        "import sys, threading\n"
        "from moecl_jax.cli.main import program\n"
        "Waiting = type('Waiting', (threading.Thread,), {'__module__': 'orbax.checkpoint.any'})\n"
        "Waiting(target=threading.Event().wait).start()\n"
        "sys.argv = ['moecl', 'status', '--workdir=absent']\n"
        "program()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("moecl: error: ") and "absent" in done.stderr
