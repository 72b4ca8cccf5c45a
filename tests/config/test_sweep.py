"""Sweeps on the tiny model: the grid, its order, resuming, extending, refusing, failing."""

import json
import os
import re
import runpy
from pathlib import Path
from typing import Any

import jax
import pytest
from streams import ROOT

from moecl_jax.cli import main as cli
from moecl_jax.config import sweep
from moecl_jax.config.sweep import Grid, plan, run_folder, time_left
from moecl_jax.errors import UserError
from moecl_jax.methods import METHODS
from moecl_jax.runs.lock import claimed
from moecl_jax.runs.settings import Settings
from moecl_jax.testing import write_model, write_task
from moecl_jax.training.trainer import train as real_train

CONFIG = """
import sys
sys.path.insert(0, {configs!r})
from default import get_config as default_config
from ml_collections import ConfigDict

def get_config(argument=""):
    values = dict(part.split("=") for part in argument.split(",") if part)
    order = values.pop("order", "1")
    if order not in ("1", "2") or values.keys() - {{"epochs"}}:
        raise ValueError(f"{{argument!r}} is not order=1 or order=2")
    config = default_config()
    config.model.path = {model!r}
    config.model.dtype = "float32"
    for name, fields in {tasks!r}.items():
        config.definitions[name] = ConfigDict(fields)
    config.tasks = {{"1": ("two", "five"), "2": ("five", "two")}}[order]
    config.batch.row_length = 64
    config.head = "classification"
    config.epochs = int(values.get("epochs", 1))
    config.log_every = 1
    config.optimizer.learning_rate = 1e-2
    return config
"""
BOTH = "sequential_lora,moe_cl"


@pytest.fixture(scope="module")
def config_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("config")
    tasks = {
        name: write_task(folder / "data", name, classes, examples=16)
        for name, classes in {"two": 2, "five": 5}.items()
    }
    content = CONFIG.format(
        configs=str(ROOT / "configs"), model=str(write_model(folder / "model")), tasks=tasks
    )
    (folder / "tiny.py").write_text(content, encoding="utf-8")
    return folder / "tiny.py"


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replaces training by a stand-in that writes results at once; lists the workdirs."""
    from moecl_jax.runs.names import RESULTS_NAME
    from moecl_jax.runs.workdir import save_settings, write_json

    begun: list[str] = []

    def train(settings: Settings, workdir: Path) -> dict[str, Any]:
        begun.append("/".join(workdir.parts[-2:]))
        workdir.mkdir(parents=True, exist_ok=True)
        save_settings(settings, workdir)
        results = {
            "method": settings.method,
            "tasks": list(settings.tasks),
            "accuracy_matrix": [[0.5] * len(settings.tasks)] * len(settings.tasks),
            "random_init": [0.5] * len(settings.tasks),
            "metrics": {"acc": 0.5, "bwt": 0.0, "fwt": 0.0, "forgetting": 0.0},
            "seed": settings.seed,
            "wall_seconds": 60.0,
        }
        write_json(workdir / RESULTS_NAME, results)
        return results

    monkeypatch.setattr(sweep, "train", train)
    return begun


def command(config: Path | str, workdir: Path, *arguments: str) -> int:
    return cli.main(["sweep", f"--config={config}", f"--workdir={workdir}", *arguments])


def error_of(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    """The one line of a sweep that is refused."""
    assert command(*arguments) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    return captured.err


def record_of(workdir: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((workdir / "sweep.json").read_text(encoding="utf-8"))
    return content


@pytest.mark.slow
def test_a_grid_is_trained_interrupted_and_resumed(
    config_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    workdir = tmp_path / "grid"
    variant = "sequential_lora:epochs=2"  # needs no compilation of its own
    arguments = (config_file, workdir, f"--methods=sequential_lora,{variant}", "--orders=1,2")
    count = [0]

    def interrupted(settings: Settings, folder: Path) -> dict[str, Any]:
        count[0] += 1
        if count[0] == 2:
            raise KeyboardInterrupt
        return real_train(settings, folder)

    with monkeypatch.context() as patch:
        patch.setattr(sweep, "train", interrupted)
        assert command(*arguments) == 130
    assert "run the same command again to resume" in capsys.readouterr().err
    assert len(record_of(workdir)["runs"]) == 4
    first = workdir / "sequential_lora/order1_seed0/results.json"
    assert list(workdir.rglob("results.json")) == [first]
    before = first.read_bytes(), os.stat(first).st_mtime_ns

    held: list[int] = []

    def watched(settings: Settings, folder: Path) -> dict[str, Any]:
        held.append(sum(array.nbytes for array in jax.live_arrays()))
        return real_train(settings, folder)

    monkeypatch.setattr(sweep, "train", watched)
    assert command(*arguments) == 0
    captured = capsys.readouterr()
    assert len(held) == 3 and max(held) <= held[0]  # no run leaves its arrays to the next
    assert (first.read_bytes(), os.stat(first).st_mtime_ns) == before
    assert "[1/4] sequential_lora order 1 seed 0: finished, skipped" in captured.err
    assert f"[2/4] {variant} order 1 seed 0 (0:00:00 spent, about 0:00:" in captured.err
    rows = [line.split()[:3] for line in captured.out.splitlines()[:5]]
    assert rows == [
        ["method", "order", "seed"],
        ["sequential_lora", "1", "0"],
        ["sequential_lora", "2", "0"],
        [variant, "1", "0"],
        [variant, "2", "0"],
    ]
    assert f"moecl report --workdir={workdir} --output={workdir / 'report.html'}" in captured.out
    for folder, tasks in (("order1_seed0", ["two", "five"]), ("order2_seed0", ["five", "two"])):
        run = workdir / variant.replace(":", "+") / folder
        assert json.loads((run / "results.json").read_text())["tasks"] == tasks
        assert json.loads((run / "config.json").read_text())["epochs"] == 2


def test_a_variant_s_settings_win_over_the_overrides(config_file: Path) -> None:
    variants = ("moe_cl", "moe_cl:lora.rank=4:adversarial.objective=off", "sequential_lora")
    overrides = ("--config.lora.rank=2", "--config.epochs=3")
    grid = Grid(f"{config_file}:epochs=2", overrides, variants, ("2",), (7,))
    plain, changed, other = plan(grid)
    assert changed.folder == "moe_cl+lora.rank=4+adversarial.objective=off/order2_seed7"
    assert [run.settings.lora.rank for run in (plain, changed, other)] == [2, 4, 2]
    assert changed.settings.options["adversarial"]["objective"] == "off"
    assert plain.settings.options["adversarial"]["objective"] == "original"
    assert other.settings.method == "sequential_lora"
    assert {(run.settings.seed, run.settings.epochs) for run in (plain, changed, other)} == {(7, 3)}
    assert changed.settings.tasks == ("five", "two")


def test_the_argument_of_the_config_file_is_kept(config_file: Path) -> None:
    (run,) = plan(Grid(f"{config_file}:epochs=2", (), ("moe_cl",), ("2",), (0,)))
    assert (run.settings.epochs, run.settings.tasks) == (2, ("five", "two"))
    (run,) = plan(Grid(f"{config_file}:epochs=2", (), ("moe_cl",), None, (0,)))
    assert (run.settings.epochs, run.folder) == (2, "moe_cl/seed0")


def test_runs_go_by_seed_then_order_then_method(
    config_file: Path, tmp_path: Path, trained: list[str]
) -> None:
    arguments = (f"--methods={BOTH}", "--orders=2,1", "--seeds=3,0")
    assert command(config_file, tmp_path / "grid", *arguments) == 0
    assert trained == [
        run_folder(method, order, seed)
        for seed in (3, 0)
        for order in ("2", "1")
        for method in ("sequential_lora", "moe_cl")
    ]


def test_sweep_json_is_the_contract_s_and_holds_the_union(
    config_file: Path, tmp_path: Path, trained: list[str]
) -> None:
    workdir = tmp_path / "grid"
    override = "--config.epochs=2"
    command(config_file, workdir, "--methods=moe_cl:lora.rank=4", "--orders=1", override)
    begun = record_of(workdir)
    assert begun == {
        "config": str(config_file),
        "overrides": [override],
        "methods": ["moe_cl:lora.rank=4"],
        "orders": ["1"],
        "seeds": [0],
        "runs": [
            {
                "variant": "moe_cl:lora.rank=4",
                "order": "1",
                "seed": 0,
                "workdir": "moe_cl+lora.rank=4/order1_seed0",
            }
        ],
    }
    command(config_file, workdir, "--methods=sequential_lora", "--orders=2", "--seeds=1", override)
    extended = record_of(workdir)
    assert extended["methods"] == ["moe_cl:lora.rank=4", "sequential_lora"]
    assert (extended["orders"], extended["seeds"]) == (["1", "2"], [0, 1])
    places = [run["workdir"] for run in extended["runs"]]
    assert places == ["moe_cl+lora.rank=4/order1_seed0", "sequential_lora/order2_seed1"]
    command(config_file, workdir, "--methods=moe_cl:lora.rank=4", "--orders=1", override)
    assert record_of(workdir) == extended
    assert trained == places


def test_a_run_whose_tasks_were_extended_goes_on(
    config_file: Path, tmp_path: Path, trained: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    workdir = tmp_path / "grid"
    shorter = tmp_path / "stream.py"
    source = config_file.read_text(encoding="utf-8")
    shorter.write_text(source.replace('("two", "five")', '("two",)'), encoding="utf-8")
    assert command(shorter, workdir, "--methods=moe_cl") == 0
    shorter.write_text(source, encoding="utf-8")
    assert command(shorter, workdir, "--methods=moe_cl") == 0
    assert trained == ["moe_cl/seed0"] * 2
    shorter.write_text(source.replace("1e-2", "1e-3"), encoding="utf-8")
    capsys.readouterr()
    error = error_of(capsys, shorter, workdir, "--methods=sequential_lora,moe_cl")
    assert "moe_cl/seed0 was begun with optimizer.learning_rate = 0.01, and now it is" in error
    assert trained == ["moe_cl/seed0"] * 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods=moe_cl,magic"], "--methods: 'magic' is not one of ewc, few_shot, gain_lora"),
        (["--methods=moe_cl,moe_cl"], "--methods names moe_cl twice"),
        (["--methods=,"], "--methods is empty"),
        (["--methods=moe_cl:lora.rank"], "'moe_cl:lora.rank' is not METHOD or METHOD:KEY=VALUE"),
        (["--methods=moe_cl:model.path=../x"], "It names a folder: letters, digits"),
        (["--methods=moe_cl:lora.rnk=4"], "moe_cl:lora.rnk=4: unknown config key 'lora.rnk'"),
        (["--methods=moe_cl:lora.rank=a"], "moe_cl:lora.rank=a: "),
        (["--methods=moe_cl:seed=1"], "moe_cl:seed=1: a sweep's --seeds say that"),
        (["--methods=moe_cl", "--seeds=0,0"], "--seeds names 0 twice"),
        (["--methods=moe_cl", "--seeds=a"], "--seeds=a: expected whole numbers"),
        (["--methods=moe_cl", "--orders=1,1"], "--orders names 1 twice"),
        (["--methods=moe_cl", "--orders=1,3"], "'order=3' is not order=1 or order=2"),
        (["--methods=moe_cl", "--orders=1/2"], "--orders: '1/2' becomes part of a folder's name"),
        (["--methods=moe_cl", "--config.sed=1"], "unknown config key 'sed'"),
        (["--methods=moe_cl", "--config.seed=1"], "--config.seed=1: a sweep's --seeds say that"),
        (["--methods=moe_cl", "--config.method=x"], "a sweep's --methods say that"),
    ],
)
def test_mistakes_are_named_before_anything_is_trained(
    config_file: Path,
    tmp_path: Path,
    trained: list[str],
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    assert message in error_of(capsys, config_file, tmp_path / "grid", *arguments)
    assert not trained and not (tmp_path / "grid").exists()


def test_orders_need_a_config_that_takes_them(
    tmp_path: Path, trained: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    quickstart = ROOT / "configs" / "quickstart.py"
    error = error_of(capsys, quickstart, tmp_path, "--methods=moe_cl", "--orders=1")
    assert "its get_config() takes no argument. Leave out what follows the file's name, or" in error
    assert f"(--orders makes the config {quickstart}:order=1)" in error
    error = error_of(capsys, "w/config.json", tmp_path, "--methods=moe_cl", "--orders=1")
    assert "--orders needs a config FILE.py that takes order=N, and not w/config.json" in error
    assert not trained


def test_a_workdir_refuses_another_sweep(
    config_file: Path, tmp_path: Path, trained: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    grid = ("--methods=moe_cl", "--orders=1")
    assert command(config_file, tmp_path, *grid) == 0
    capsys.readouterr()
    error = error_of(capsys, f"{config_file}:epochs=1", tmp_path, *grid)
    assert f"a sweep with --config {config_file}, and now it is {config_file}:epochs=1" in error
    error = error_of(capsys, config_file, tmp_path, *grid, "--config.epochs=1")
    assert "a sweep with the overrides none, and now it is --config.epochs=1" in error
    error = error_of(capsys, config_file, tmp_path, "--methods=moe_cl")
    assert "a sweep with --orders, and now it is without" in error
    (tmp_path / "sweep.json").write_text("{}", encoding="utf-8")
    assert "sweep.json is broken: it lacks" in error_of(capsys, config_file, tmp_path, *grid)
    record = {"config": "c", "overrides": [], "methods": [], "orders": 1, "seeds": [], "runs": []}
    (tmp_path / "sweep.json").write_text(json.dumps(record), encoding="utf-8")
    error = error_of(capsys, config_file, tmp_path, *grid)
    assert "sweep.json is broken: expected a list of orders, or null" in error
    assert trained == ["moe_cl/order1_seed0"]


def test_a_failed_run_stops_nothing_and_is_listed(
    config_file: Path,
    tmp_path: Path,
    trained: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stand_in = sweep.train

    def fails_at_moe_cl(settings: Settings, workdir: Path) -> dict[str, Any]:
        if settings.method == "moe_cl":
            raise UserError("the disk has a hole")
        return stand_in(settings, workdir)

    monkeypatch.setattr(sweep, "train", fails_at_moe_cl)
    arguments = (config_file, tmp_path, "--methods=moe_cl,sequential_lora", "--orders=1,2")
    assert command(*arguments) == 1
    captured = capsys.readouterr()
    assert trained == ["sequential_lora/order1_seed0", "sequential_lora/order2_seed0"]
    assert captured.err.splitlines()[-3:] == [
        "2 of 4 runs are finished",
        "moecl: error: moe_cl order 1 seed 0: the disk has a hole",
        "moecl: error: moe_cl order 2 seed 0: the disk has a hole",
    ]
    assert len(captured.out.split("\n\n")[0].splitlines()) == 3
    monkeypatch.setattr(sweep, "train", stand_in)
    assert command(*arguments) == 0
    assert len(trained) == 4


def test_runs_of_another_process_are_left_to_it(
    config_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    trained: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = (config_file, tmp_path / "grid", "--methods=sequential_lora,moe_cl", "--orders=1")
    stand_in = sweep.train

    def train(settings: Settings, workdir: Path) -> dict[str, Any]:
        with claimed(workdir):
            return stand_in(settings, workdir)

    monkeypatch.setattr(sweep, "train", train)
    with claimed(tmp_path / "grid/sequential_lora/order1_seed0"):
        assert command(*arguments) == 0
    assert trained == ["moe_cl/order1_seed0"]
    shown = capsys.readouterr().err
    assert "[1/2] sequential_lora order 1 seed 0: another process trains it, skipped" in shown
    assert "1 of 2 runs are finished, 1 are left to other processes" in shown
    assert command(*arguments) == 0
    assert trained == ["moe_cl/order1_seed0", "sequential_lora/order1_seed0"]


def test_a_run_that_is_being_changed_is_not_called_broken(tmp_path: Path) -> None:
    run = sweep.PlannedRun("moe_cl", None, 0, Settings())
    for name in ("results.json", "change.json"):
        (tmp_path / name).write_text("{}", encoding="utf-8")
    with claimed(tmp_path):
        assert sweep._finished_seconds(run, tmp_path) is None


def test_broken_results_are_named(
    config_file: Path, tmp_path: Path, trained: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "moe_cl" / "seed0" / "results.json"
    results.parent.mkdir(parents=True)
    results.write_text("{", encoding="utf-8")
    error = error_of(capsys, config_file, tmp_path, "--methods=moe_cl")
    assert str(results) in error and "Delete it and run again" in error
    assert not trained


def test_time_left_is_by_variant_and_else_the_mean(config_file: Path) -> None:
    runs = plan(Grid(str(config_file), (), ("moe_cl", "sequential_lora"), ("1", "2"), (0,)))
    assert time_left({}, runs) is None
    assert time_left({"moe_cl": [10.0, 20.0]}, runs) == 4 * 15.0
    times = {"moe_cl": [10.0, 20.0], "sequential_lora": [6.0]}
    assert time_left(times, runs[1:]) == 6.0 + 15.0 + 6.0
    assert time_left(times, []) == 0.0


def test_the_comparison_s_methods_and_orders_are_known() -> None:
    script = (ROOT / "launch" / "comparison.sh").read_text(encoding="utf-8")
    listed = re.findall(r"^(?:methods|forms)=\((.*?)^\)", script, flags=re.MULTILINE | re.DOTALL)
    rows = [re.sub(r"#.*", "", rows).split() for rows in listed]
    every = ",".join(row for part in rows for row in part)
    grid = Grid.parse("configs/mtl5_comparison.py", [], every, "1,2,3", "0,1,2")
    trained = {name for name, method in METHODS.items() if method.traits.trains}
    assert {variant.partition(":")[0] for variant in rows[0]} == trained - {"sequential_full"}
    assert {variant.partition(":")[0] for variant in rows[1]} == {"moe_cl"}
    assert len(plan(grid)) == 9 * len(grid.variants)


def test_the_toolbox_s_rows_are_known() -> None:
    script = (ROOT / "launch" / "toolbox.sh").read_text(encoding="utf-8")
    [rows] = re.findall(r"^rows=\((.*?)^\)", script, flags=re.MULTILINE | re.DOTALL)
    grid = Grid.parse("configs/mtl5_comparison.py", [], ",".join(rows.split()), "1", "0")
    methods = {variant.partition(":")[0] for variant in rows.split()}
    assert methods >= {name for name, method in METHODS.items() if not method.traits.trains}
    assert len(plan(grid)) == len(rows.split()) == 11


def test_the_rate_that_validates_best_is_chosen_and_its_run_carried_over(tmp_path: Path) -> None:
    script = runpy.run_path(str(ROOT / "launch" / "choose_rates.py"))
    accuracies = {
        "ewc": {"1e-3": 0.5, "1e-2": 0.75},
        "moe_cl:lora.rank=4": {"1e-3": 0.5, "1e-2": 0.5},
    }
    runs = []
    for row, of_rates in accuracies.items():
        for rate, accuracy in of_rates.items():
            variant = f"{row}:optimizer.learning_rate={rate}"
            folder = run_folder(variant, "1", 0)
            (tmp_path / "rates" / folder).mkdir(parents=True)
            kept = json.dumps({"accuracy": accuracy})
            (tmp_path / "rates" / folder / "validation.json").write_text(kept)
            (tmp_path / "rates" / folder / "results.json").write_text("{}")
            runs.append({"variant": variant, "order": "1", "seed": 0, "workdir": folder})
    (tmp_path / "rates" / "sweep.json").write_text(json.dumps({"runs": runs}))
    chosen = script["choose"](tmp_path / "rates", tmp_path / "grid")
    assert chosen == [
        "ewc:optimizer.learning_rate=1e-2",
        "moe_cl:lora.rank=4:optimizer.learning_rate=1e-3",  # the smaller of two equal ones
    ]
    carried = {path.parent for path in (tmp_path / "grid").rglob("validation.json")}
    assert carried == {tmp_path / "grid" / run_folder(variant, "1", 0) for variant in chosen}
    unfinished = tmp_path / "rates" / run_folder("ewc:optimizer.learning_rate=1e-3", "1", 0)
    (unfinished / "results.json").unlink()
    with pytest.raises(UserError, match="is not finished; run the sweep of the rates to its end"):
        script["choose"](tmp_path / "rates", tmp_path / "grid")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("no memory\nis left"), "RuntimeError: no memory is left (the trace is in "),
        (OSError(28, "No space left"), "OSError: [Errno 28] No space left"),
    ],
)
def test_a_run_that_fails_in_any_way_stops_no_other(
    config_file: Path,
    tmp_path: Path,
    trained: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    reason: str,
) -> None:
    stand_in = sweep.train

    def fails_at_moe_cl(settings: Settings, workdir: Path) -> dict[str, Any]:
        if settings.method == "moe_cl":
            workdir.mkdir(parents=True)
            raise error
        return stand_in(settings, workdir)

    monkeypatch.setattr(sweep, "train", fails_at_moe_cl)
    assert command(config_file, tmp_path, "--methods=moe_cl,sequential_lora") == 1
    captured = capsys.readouterr()
    assert trained == ["sequential_lora/seed0"]
    last = captured.err.splitlines()[-1]
    assert last.startswith(f"moecl: error: moe_cl seed 0: {reason}")
    assert "Traceback" not in captured.err
    trace = tmp_path / "moe_cl" / "seed0" / "trace.txt"
    assert trace.exists() == ("trace" in reason)
    if trace.exists():
        assert "raise error" in trace.read_text(encoding="utf-8")
