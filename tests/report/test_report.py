"""`moecl report`: numbers worked out by hand, the CSV file, and broken or missing files."""

import csv
import html.parser
import json
import math
import re

import pytest
from report_runs import CONFIG, realistic_sweep, sizes, write_run, write_sweep

from moecl_jax.cli import main as cli
from moecl_jax.report import report
from moecl_jax.report.comparison import Comparison
from moecl_jax.report.runs import by_tasks, read_runs
from moecl_jax.report.summary import Spread, differences, marks, percent, summarize

# Matrices of two orders of the same two tasks. acc is 0.8 and 0.9 in GOOD_1 and GOOD_2, and 0.6 in
# BAD, which stands for both orders.
GOOD_1 = [[0.9, 0.2], [0.8, 0.8]]
GOOD_2 = [[0.9, 0.3], [0.9, 0.9]]
BAD = [[0.9, 0.1], [0.4, 0.8]]


@pytest.fixture
def sweep(tmp_path):
    folder = tmp_path / "sweep"
    write_run(folder / "g1", "moe_cl", ["a", "b"], GOOD_1, sizes=sizes(2, 100))
    write_run(folder / "g2", "moe_cl", ["b", "a"], GOOD_2, sizes=sizes(2, 100))
    write_run(folder / "b1", "ewc", ["a", "b"], BAD, sizes=sizes(2, 100))
    write_run(folder / "b2", "ewc", ["b", "a"], BAD, sizes=sizes(2, 100))
    return write_sweep(
        folder,
        [
            ("ewc", "1", 0, "b1"),
            ("moe_cl:gate=task", "1", 0, "g1"),
            ("ewc", "2", 0, "b2"),
            ("moe_cl:gate=task", "2", 0, "g2"),
        ],
    )


def make(tmp_path, *folders):
    output = tmp_path / "out" / "report.html"
    paths = report(list(folders), output)
    return [path.read_text(encoding="utf-8") for path in paths]


def error_of(capsys, *folders, output="out/report.html"):
    arguments = [f"--workdir={folder}" for folder in folders]
    assert cli.main(["report", *arguments, f"--output={output}"]) == 1
    message = capsys.readouterr().err
    assert "Traceback" not in message
    return message.strip().splitlines()[-1].removeprefix("moecl: error: ")


def test_means_and_spreads(sweep):
    runs, missing = read_runs([sweep])
    good, bad = summarize(runs)
    assert not missing and (good.name, bad.name) == ("moe_cl:gate=task", "ewc")
    assert good.by_order == pytest.approx({"1": 0.8, "2": 0.9})
    assert good.metrics["acc"].mean == pytest.approx(0.85)
    # |0.9 - 0.8| / sqrt(2)
    assert good.metrics["acc"].deviation == pytest.approx(0.0707106781)
    # bwt: 0.8 - 0.9 and 0.9 - 0.9
    assert good.metrics["bwt"].mean == pytest.approx(-0.05)
    (pair,) = differences([good, bad])
    assert pair.difference == pytest.approx(0.25)
    assert not pair.interval.known  # these results do not tell which texts are right


def test_one_run_has_no_spread(tmp_path):
    page, markdown, _ = make(tmp_path, write_run(tmp_path / "x", "ewc", ["a", "b"], BAD))
    assert "±" not in markdown.partition("## How to read")[0]
    assert "Differences" not in page
    assert "points above" not in page and "95% interval" not in markdown.partition("## How")[0]
    assert math.isnan(Spread.of([0.5]).deviation) and math.isnan(Spread.of([None]).mean)


@pytest.mark.parametrize(
    ("values", "low_is_good", "expected"),
    [
        ({"a": 0.9, "b": 0.8, "c": 0.7}, False, {"a": "best", "b": "second"}),
        ({"a": 0.9, "b": 0.8, "c": 0.7}, True, {"c": "best", "b": "second"}),
        # 90.04 and 89.96 % are both shown as 90.0.
        ({"a": 0.9004, "b": 0.8996, "c": 0.7}, False, {"a": "best", "b": "best", "c": "second"}),
        ({"a": 0.9, "b": 0.8, "c": 0.8}, False, {"a": "best", "b": "second", "c": "second"}),
        ({"a": math.nan, "b": 0.8, "c": 0.7}, False, {"b": "best", "c": "second"}),
        ({"a": 0.9}, False, {}),
        ({"a": 0.5, "b": 0.5}, False, {"a": "best", "b": "best"}),
    ],
)
def test_marks(values, low_is_good, expected):
    assert marks(values, low_is_good=low_is_good) == expected


def test_percent_has_no_signed_zero():
    shown = [percent(value, sign=True) for value in (-0.0001, 0.0, 0.0123, -0.5, math.nan)]
    assert shown == ["0.0", "0.0", "+1.2", "-50.0", "-"]


def test_the_table(tmp_path, sweep):
    _, markdown, _ = make(tmp_path, sweep)
    rows = [line for line in markdown.splitlines() if line.startswith("| `")]
    assert rows[:2] == [
        "| `moe_cl:gate=task` | **85.0 ± 7.1** | **80.0** | **90.0** | **-5.0 ± 7.1** | "
        "**+25.0 ± 7.1** | **+5.0 ± 7.1** | 2 |",
        "| `ewc` | <ins>60.0 ± 0.0</ins> | <ins>60.0</ins> | <ins>60.0</ins> | "
        "<ins>-50.0 ± 0.0</ins> | <ins>+10.0 ± 0.0</ins> | <ins>+50.0 ± 0.0</ins> | 2 |",
    ]
    assert "| `moe_cl:gate=task` | +25.0 [-] |" in rows
    assert "the runs' answers are not known" in markdown


def test_joint_is_an_upper_bound_and_not_ranked(tmp_path):
    known = {"acc": 0.95, "bwt": None, "fwt": None, "forgetting": None}
    joint = write_run(tmp_path / "j", "joint", ["a", "b"], [[0.9] * 2] * 2, metrics=known,
                      accuracy_matrix=[[None, None], [0.95, 0.95]])  # fmt: skip
    folders = [joint, write_run(tmp_path / "e", "ewc", ["a", "b"], BAD)]
    folders.append(write_run(tmp_path / "m", "moe_cl", ["a", "b"], GOOD_1))
    page, markdown, _ = make(tmp_path, *folders)
    rows = [line for line in markdown.splitlines() if line.startswith("| `")]
    assert rows[2] == "| `joint` | 95.0 | - | - | - | 1 |"
    assert "**80.0**" in rows[0] and "not ranked" in page
    # The heat map shows a dash for what was not measured.
    assert re.search(r"<text[^>]*>-</text>", page)


def test_csv_holds_what_the_table_is_computed_from(tmp_path, sweep):
    _, _, text = make(tmp_path, sweep)
    lines = list(csv.DictReader(text.splitlines()))
    assert [line["variant"] for line in lines] == ["ewc", "moe_cl:gate=task"] * 2
    for line in lines:
        results = json.loads((tmp_path / "out" / line["workdir"] / "results.json").read_text())
        assert {name: float(line[name]) for name in results["metrics"]} == results["metrics"]
        tasks = line["tasks"].split()
        last = [float(line[f"final_accuracy.{task}"]) for task in tasks]
        assert (tasks, last) == (results["tasks"], results["accuracy_matrix"][-1])
        assert float(line["config.optimizer.learning_rate"]) == 1e-3
        assert line["task_free_acc"] == "" and int(line["sizes.test.a"]) == 100
    # A third is not shortened.
    third = write_run(tmp_path / "t", "lwf", ["a", "b"], [[1 / 3, 0.0], [1 / 3, 1 / 3]])
    line = next(csv.DictReader(make(tmp_path, third)[2].splitlines()))
    assert float(line["acc"]) == 1 / 3


def test_a_sweep_that_is_not_finished(tmp_path, sweep, capsys):
    content = json.loads((sweep / "sweep.json").read_text())
    content["runs"].append({"variant": "lwf", "order": "1", "seed": 0, "workdir": "l1"})
    content["runs"].append({"variant": "lwf", "order": "2", "seed": 0, "workdir": "l2"})
    (sweep / "sweep.json").write_text(json.dumps(content))
    write_run(sweep / "l1", "lwf", ["a", "b"], BAD)
    page, markdown, _ = make(tmp_path, sweep)
    missing = "lwf, order 2, seed 0"
    assert missing in capsys.readouterr().err and missing in page and missing in markdown
    assert "these methods lack some that others have: lwf" in page


def test_plain_workdirs_are_told_apart_and_orders_found(tmp_path):
    first = write_run(tmp_path / "on", "moe_cl", ["a", "b"], GOOD_1)
    second = write_run(tmp_path / "off", "moe_cl", ["a", "b"], BAD)
    other = write_run(tmp_path / "x", "ewc", ["b", "a"], BAD)
    seed = write_run(tmp_path / "y", "ewc", ["b", "a"], BAD, seed=1)
    runs, _ = read_runs([first, second, other, seed])
    assert [run.variant for run in runs] == ["moe_cl (on)", "moe_cl (off)", "ewc", "ewc"]
    assert [run.order for run in runs] == ["1", "1", "2", "2"]


def test_folders_of_the_same_name_are_told_apart_by_their_paths(tmp_path):
    folders = [tmp_path / parent / "run" for parent in ("p", "q")]
    for folder in folders:
        write_run(folder, "ewc", ["a", "b"], BAD)
    runs, _ = read_runs(folders)
    assert [run.variant for run in runs] == [f"ewc ({folder})" for folder in folders]


def test_a_sweeps_order_keeps_its_name_beside_plain_workdirs(tmp_path, sweep):
    plain = write_run(tmp_path / "p", "lwf", ["b", "a"], BAD)
    third = write_run(tmp_path / "q", "lwf", ["b", "c"], BAD)
    runs, _ = read_runs([plain, third, sweep])
    assert [run.order for run in runs] == [
        "2",
        "1",
        "1",
        "1",
        "2",
        "2",
    ]  # `third` is on other tasks


def test_different_budgets_are_warned_of(tmp_path):
    config = CONFIG | {"optimizer": {"learning_rate": 0.01, "schedule": "constant"}}
    first = write_run(tmp_path / "x", "ewc", ["a", "b"], BAD, steps=10, sizes=sizes(2, 100))
    second = write_run(
        tmp_path / "y", "lwf", ["a", "b"], BAD, config=config, steps=12, sizes=sizes(2, 60)
    )
    for text in make(tmp_path, first, second)[:2]:
        text = text.replace("\\_", "_")
        assert "The runs differ in learning rate: 0.001 (ewc); 0.01 (lwf)" in text
        assert "The runs differ in steps: 10 (ewc); 12 (lwf)" in text
        assert "The runs differ in test texts: 100 a task (ewc); 60 a task (lwf)" in text
    page = make(tmp_path, first)[0]
    assert 'class="warnings"' not in page


def test_results_of_the_first_version_alone(tmp_path):
    first = write_run(tmp_path / "x", "moe_cl", ["a", "b"], GOOD_1)
    second = write_run(tmp_path / "y", "ewc", ["a", "b"], BAD)
    (second / "config.json").unlink()
    page, markdown, _ = make(tmp_path, first, second)
    assert page.count("/config.json") == 1 and "metrics.jsonl</a>" not in page
    assert "does not tell which texts were answered rightly" in page
    assert "Whether that is chance cannot be told" in markdown
    for absent in ("Gate weights", "Discriminator accuracy", "Loss curves", "choice of the task"):
        assert f"{absent}</summary>" not in page
    assert "Precision, recall" not in page and "Macro F1</h4>" not in page
    assert "parameters trained" not in markdown.partition("## Cost")[2].partition("Source")[0]


def test_the_page_asks_nothing_of_a_network(tmp_path):
    page, *_ = make(tmp_path, realistic_sweep(tmp_path / "s", layers=3, logged=5))
    assert "http" not in page and "//" not in re.sub(r"<style>.*</style>", "", page, flags=re.S)
    assert "@import" not in page and "url(" not in page and "<script" not in page
    references = re.findall(r'(?:src|href|data|srcset)="([^"]*)"', page)
    ids = re.findall(r'\bid="([^"]*)"', page)
    assert len(set(ids)) == len(ids)
    assert {r[1:] for r in references if r.startswith("#")} <= set(ids)
    references = [r for r in references if not r.startswith("#")]
    assert references[0] == "data:," and len(references) > 1
    for reference in references[1:]:
        assert reference.startswith("../s/")
        assert (tmp_path / "out" / reference).resolve().exists(), reference


def test_all_text_is_escaped(tmp_path):
    evil = "<script>alert('x')</script>&|`*"
    log = [{"step": i, "task": evil, "loss": 1.0 / i, "loss_instruction": 1.0} for i in (1, 2)]
    folder = tmp_path / "s"
    write_run(
        folder / 'r"<b>', evil, [evil, "b"], GOOD_1, log=log, versions={evil: evil},
        gate_weights=[[0.5], [0.25]], config=CONFIG | {"head": evil},
        classification=[figures_of((evil, "y")), None],
    )  # fmt: skip
    write_sweep(folder, [(evil, evil, 0, 'r"<b>'), ("b" + evil, evil, 0, "absent")])
    page, markdown, text = make(tmp_path, folder)
    tags = []
    parser = html.parser.HTMLParser()
    parser.handle_starttag = lambda tag, _: tags.append(tag)
    parser.feed(page)
    assert "script" not in tags and "b" not in tags and "svg" in tags
    assert "&lt;script&gt;" in page
    assert "<script>" not in re.sub(r"`[^`]*`", "", re.sub(r"\\.", "", markdown))
    assert next(csv.DictReader(text.splitlines()))["variant"] == evil


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("results.json", "{", "cannot read {path}: "),
        ("results.json", "[]", "{path} is broken: expected a JSON object"),
        ("results.json", '{"method": "ewc"}', "{path} is broken: it lacks tasks"),
        ("config.json", "{", "cannot read {path}: "),
        ("metrics.jsonl", '{"task": "a"}\n', "{path}, line 1: expected a JSON object with 'step'"),
        (
            "metrics.jsonl",
            '{"step": 1, "task": "a", "loss": "low"}\n',
            "{path}, line 1: expected a JSON object with 'step', 'task' and numbers, as a run "
            "writes them (loss is 'low'; expected a number)",
        ),
        ("sweep.json", "{}", "{path} is broken: expected a list 'runs'"),
        ("sweep.json", '{"runs": [1]}', "{path} is broken: expected a list 'runs'"),
    ],
)
def test_broken_files(tmp_path, capsys, name, content, message):
    folder = write_run(tmp_path / "x", "ewc", ["a", "b"], BAD)
    (folder / name).write_text(content)
    output = tmp_path / "new" / "report.html"
    assert error_of(capsys, folder, output=output).startswith(message.format(path=folder / name))
    assert not output.parent.exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"accuracy_matrix": [[0.5]]}, "accuracy_matrix has the shape 1 x 1, but 2 x 2"),
        ({"random_init": [0.5]}, "random_init has the shape 1, but 2 was"),
        ({"sizes": {"train": [1, 1], "test": [1, 1]}}, "validation"),
        ({"sizes": sizes(3)}, "sizes.train has the shape 3, but 2"),
        ({"gate_weights": [[0.5]]}, "gate_weights has the shape 1 x 1, but 2 x any"),
        ({"metrics": {"acc": 0.5}}, "metrics lacks bwt"),
        ({"wall_seconds": "long"}, "could not convert"),
        ({"task_free": {"accuracy": [1, 1], "choices": [[1]]}}, "task_free.choices has"),
    ],
)
def test_results_of_a_wrong_shape(tmp_path, capsys, changes, message):
    folder = write_run(tmp_path / "x", "ewc", ["a", "b"], BAD, **changes)
    error = error_of(capsys, folder, output=tmp_path / "r.html")
    assert error.startswith(f"{folder / 'results.json'} is broken: {message}")
    assert "Train that run again" in error


def test_folders_that_hold_nothing(tmp_path, capsys, sweep):
    error = error_of(capsys, tmp_path)
    assert error.startswith(f"{tmp_path} holds neither results.json nor sweep.json")
    assert "finish 'moecl train'" in error
    empty = write_sweep(tmp_path / "e", [("ewc", None, 0, "r")])
    assert "none of the 1 runs is finished" in error_of(capsys, empty)
    assert "is given twice" in error_of(capsys, sweep, sweep / "g1")
    assert "ends in .html" in error_of(capsys, sweep, output="report.pdf")


def test_a_half_written_last_line_of_the_log_is_left_out(tmp_path):
    log = [{"step": step, "task": "a", "loss": 1.0} for step in (1, 2)]
    folder = write_run(tmp_path / "x", "ewc", ["a", "b"], BAD, log=log)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "ta')
    assert len(read_runs([folder])[0][0].log) == 2


def test_long_curves_are_thinned_within_tasks(tmp_path):
    log = [
        {"step": step, "task": "ab"[step > 3000], "loss": float(step > 3000)}
        for step in range(1, 6001)
    ]
    log[10]["loss"] = None
    page, *_ = make(tmp_path, write_run(tmp_path / "x", "ewc", ["a", "b"], BAD, log=log))
    section = page.partition("Loss curves</summary>")[2].partition("</figure>")[0]
    curve = max(re.findall(r'<path d="([^"]*)"', section), key=len)
    points = re.findall(r"[ML] ([\d.]+) ([\d.]+)", curve)
    # A straight stretch is drawn by its ends; no bin mixes the tasks, whose losses are 0 and 1.
    assert len({y for _, y in points}) == 2 and len(points) <= 130


def figures_of(labels):
    """Figures of a task's two labels, as results.json has them."""
    return {
        "majority": 0.7,
        "labels": list(labels),
        "support": [70, 30],
        "precision": [0.9, None],
        "recall": [0.8, 0.0],
        "f1": [0.85, 0.0],
        "macro_f1": 0.425,
    }


def enriched(folder, method, seed):
    """A run with a language model, whose untrained model was scored, and its labels' figures."""
    return write_run(
        folder / f"{method}{seed}", method, ["a", "b"], [[0.9, 0.0], [0.8, 0.75]], seed=seed,
        metrics={"acc": 0.775, "bwt": -0.1, "fwt": 0.1, "forgetting": 0.1},
        scored_accuracy_matrix=[[0.9, 0.6], [0.85, 0.8]], scored_random_init=[0.4, 0.5],
        classification=[figures_of("xy"), None],
    )  # fmt: skip


def test_baselines_and_figures_of_labels_are_shown(tmp_path):
    folders = [enriched(tmp_path, "ewc", seed) for seed in (0, 1)]
    page, markdown, text = make(tmp_path, *folders)
    lines = markdown.splitlines()
    main = [line for line in lines if line.startswith("| `ewc` | 77.5")]
    assert main == [
        "| `ewc` | 77.5 ± 0.0 | 42.5 ± 0.0 | -10.0 ± 0.0 | +10.0 ± 0.0 | +10.0 ± 0.0 | 2 |"
    ]
    assert "| `untrained` | 45.0 |  |  |  |  |  |" in lines  # by score; by exact match it is 0
    assert "| `untrained` | 40.0 | 50.0 |" in lines
    # The majority label is known of one task alone, so it has a column there and no mean.
    assert "| `majority label` | 70.0 | - |" in lines
    assert not any(line.startswith("| `majority label` | 70.0 |  |") for line in lines)
    assert "| `x` | `ewc` | 90.0 | 80.0 | 85.0 | 70 |" in lines
    assert "| `y` | `ewc` | - | 0.0 | 0.0 | 30 |" in lines
    assert "Precision, recall and F1 of each label" in page
    line = next(csv.DictReader(text.splitlines()))
    assert (line["macro_f1.a"], line["majority.a"], line["untrained.b"]) == ("0.425", "0.7", "0.5")
    assert line["macro_f1.b"] == ""


def test_earlier_runs_of_a_language_model_have_no_fwt_and_no_untrained_row(tmp_path):
    earlier = write_run(
        tmp_path / "x", "ewc", ["a", "b"], [[0.9, 0.0], [0.8, 0.75]],
        scored_accuracy_matrix=[[0.9, 0.6], [0.85, 0.8]],
    )  # fmt: skip
    _, markdown, text = make(tmp_path, earlier)
    header = next(line for line in markdown.splitlines() if line.startswith("| method"))
    assert "fwt" not in header and "bwt" in header
    assert "| `untrained`" not in markdown
    assert next(csv.DictReader(text.splitlines()))["fwt"] == ""


def test_runs_on_other_tasks_are_never_pooled(tmp_path):
    first = write_run(tmp_path / "x", "ewc", ["a", "b"], [[0.9, 0.1], [0.9, 0.9]])
    second = write_run(tmp_path / "y", "ewc", ["a", "c"], [[0.2, 0.1], [0.1, 0.1]], seed=1)
    third = write_run(tmp_path / "z", "ewc", ["b", "a"], [[0.9, 0.1], [0.9, 0.7]], seed=1)
    page, markdown, _ = make(tmp_path, first, second, third)
    assert "2 comparisons, each on tasks of its own" in page
    groups = by_tasks(read_runs([first, second, third])[0])
    pair, alone = (Comparison(group) for group in groups)
    assert pair.outcome.startswith("At the end of the stream ewc has a mean accuracy of 85.0 %")
    assert alone.outcome.startswith("At the end of the stream ewc has a mean accuracy of 10.0 %")
    assert [len(one.variants[0].runs) for one in (pair, alone)] == [2, 1]
    assert list(pair.orders) == ["1", "2"] and list(alone.orders) == ["1"]
    rows = [line.split(" | ")[1] for line in markdown.splitlines() if line.startswith("| `ewc` |")]
    assert "10.0" in rows and "50.0" not in rows  # the mean of 90 and 10


def test_runs_of_other_settings_are_rows_of_their_own(tmp_path):
    def run(seed, rate, epochs=2, **more):
        config = CONFIG | {"seed": seed, "log_every": seed, "epochs": epochs} | more
        config["optimizer"] = CONFIG["optimizer"] | {"learning_rate": rate}
        folder = tmp_path / f"{seed}-{rate}-{epochs}"
        return write_run(folder, "ewc", ["a", "b"], BAD, seed=seed, config=config)

    runs, _ = read_runs([run(0, 1e-3), run(1, 1e-3), run(2, 1e-2)])
    assert [one.variant for one in runs] == [
        "ewc:optimizer.learning_rate=0.001",
        "ewc:optimizer.learning_rate=0.001",
        "ewc:optimizer.learning_rate=0.01",
    ]
    assert len(summarize(runs)) == 2
    other = run(3, 0.5, 7, head="classification", lora={"rank": 4})
    runs, _ = read_runs([tmp_path / "0-0.001-2", other])
    assert [one.variant for one in runs] == ["ewc (settings 1)", "ewc (settings 2)"]


def test_figures_are_written_as_png_and_pdf(tmp_path):
    folder = enriched(tmp_path, "ewc", 0)
    output, figures = tmp_path / "r.html", tmp_path / "figures"
    arguments = [f"--workdir={folder}", f"--output={output}", f"--figures={figures}"]
    assert cli.main(["report", *arguments]) == 0
    names = {"accuracy_order1", "forgetting_order1_a", "forgetting_order1_b", "matrix_order1_ewc"}
    files = {path.name for path in figures.iterdir()}
    assert files == {f"{name}{suffix}" for name in names for suffix in (".png", ".pdf")}
    for path in figures.iterdir():
        start = {".png": b"\x89PNG", ".pdf": b"%PDF"}[path.suffix]
        assert path.read_bytes().startswith(start)
