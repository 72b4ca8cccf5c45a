"""`Results`: reading results.json, writing it back, showing it as text and as a plot."""

import dataclasses
import json
import math
import subprocess
import sys

import numpy as np
import pytest

from moecl_jax.errors import UserError
from moecl_jax.runs.results import Results

CONTENT = {
    "method": "moe_cl",
    "tasks": ["spam", "irony"],
    "accuracy_matrix": [[0.975, None], [0.95, 0.88]],
    "random_init": [0.5, 0.48],
    "metrics": {"acc": 0.915, "bwt": -0.025, "fwt": None, "forgetting": 0.025},
    "seed": 3,
    "wall_seconds": 123.4,
    "sizes": {"train": [9, 8], "validation": [4, 4], "test": [40, 40]},
}
TASK_FREE = {"acc": 0.8, "accuracy": [0.85, 0.75], "choices": [[39, 1], [2, 38]]}
CLASSIFICATION = [
    {
        "majority": 0.6,
        "labels": ["ham", "spam"],
        "support": [24, 16],
        "precision": [0.96, 0.9],
        "recall": [0.9, 1.0],
        "f1": [0.93, 0.95],
        "macro_f1": 0.94,
    },
    None,
]
MATRIX_TEXT = (
    "accuracy in %; in parentheses: before the task's own training\n"
    "\n"
    "              spam   irony\n"
    "untrained    (50.0)  (48.0)\n"
    "after spam    97.5      (-)\n"
    "after irony   95.0    88.0\n"
    "\n"
    "acc 91.5  bwt -2.5  fwt -  forgetting +2.5"
)


def write(workdir, text):
    workdir.mkdir()
    (workdir / "results.json").write_text(text, encoding="utf-8")
    return workdir


@pytest.fixture
def agg(monkeypatch, tmp_path):
    """Draws without a window, whatever the machine has."""
    monkeypatch.setenv("MPLCONFIGDIR", str(tmp_path / "matplotlib"))
    import matplotlib

    matplotlib.use("agg")


def test_fields_are_those_of_the_file(tmp_path):
    results = Results.load(write(tmp_path / "run", json.dumps(CONTENT)))
    assert (results.method, results.tasks, results.seed) == ("moe_cl", ("spam", "irony"), 3)
    assert results.matrix.dtype == np.float64 and results.matrix.shape == (2, 2)
    assert math.isnan(results.matrix[0, 1]) and results.matrix[1, 0] == 0.95
    np.testing.assert_array_equal(results.random_init, [0.5, 0.48])
    assert results.metrics == CONTENT["metrics"]
    assert results.wall_seconds == 123.4
    assert results.task_free == {}
    assert results.content == CONTENT


def test_a_path_may_be_a_string(tmp_path):
    write(tmp_path / "run", json.dumps(CONTENT))
    assert Results.load(str(tmp_path / "run")) == Results.load(tmp_path / "run")


def test_content_survives_a_round_trip():
    content = CONTENT | {"task_free": TASK_FREE, "versions": {"jax": "0.10.2"}}
    assert Results.from_content(content).to_content() == content


def test_numpy_numbers_and_nan_become_json():
    measured = {
        "accuracy_matrix": np.array([[0.5, np.nan], [0.5, 0.5]]).tolist(),
        "seed": np.int64(3),
        "metrics": {"acc": np.float64(0.5), "bwt": math.nan, "fwt": None, "forgetting": 0.0},
    }
    results = Results.from_content(CONTENT | measured)
    assert json.loads(json.dumps(results.to_content(), allow_nan=False)) == CONTENT | {
        "accuracy_matrix": [[0.5, None], [0.5, 0.5]],
        "seed": 3,
        "metrics": {"acc": 0.5, "bwt": None, "fwt": None, "forgetting": 0.0},
    }
    assert results.metrics == {"acc": 0.5, "bwt": None, "fwt": None, "forgetting": 0.0}


def test_results_are_compared_by_their_content():
    assert Results.from_content(CONTENT) == Results.from_content(dict(CONTENT))
    assert Results.from_content(CONTENT) != Results.from_content(CONTENT | {"steps": 7})


def test_results_cannot_be_changed():
    results = Results.from_content(CONTENT)
    with pytest.raises(dataclasses.FrozenInstanceError):
        results.seed = 1
    with pytest.raises(ValueError, match="read-only"):
        results.matrix[0, 0] = 1.0


def test_text_is_the_matrix_with_its_metrics():
    assert str(Results.from_content(CONTENT)) == MATRIX_TEXT


def test_text_has_the_chosen_tasks_where_they_were_measured():
    assert str(Results.from_content(CONTENT | {"task_free": TASK_FREE})) == (
        f"{MATRIX_TEXT}\n"
        "\n"
        "task chosen from the text: acc 80.0 (known task: 91.5)\n"
        "\n"
        "texts  as spam  as irony\n"
        "spam        39         1\n"
        "irony        2        38"
    )


def test_text_has_the_baseline_and_macro_f1_where_they_were_measured():
    results = Results.from_content(CONTENT | {"classification": CLASSIFICATION})
    np.testing.assert_array_equal(results.majority, [0.6, math.nan])
    np.testing.assert_array_equal(results.macro_f1, [0.94, math.nan])
    assert results.classification[0]["recall"] == [0.9, 1.0]
    lines = str(results).splitlines()
    assert lines[3].split() == ["majority", "label", "60.0", "-"]
    assert lines[-3].split() == ["macro", "F1", "94.0", "-"]


def test_what_an_untrained_model_knows_is_shown_by_score():
    content = CONTENT | {
        "accuracy_matrix": [[0.975, 0.0], [0.95, 0.88]],
        "random_init": [0.0, 0.0],
        "scored_accuracy_matrix": [[0.98, 0.55], [0.96, 0.9]],
        "scored_random_init": [0.5, 0.48],
    }
    results = Results.from_content(content)
    assert results.metrics["fwt"] == pytest.approx(0.55 - 0.48)
    lines = str(results).splitlines()
    assert lines[0].endswith("before the task's own training, by the label that scores best")
    assert [line.split()[1:] for line in lines[3:5]] == [
        ["(50.0)", "(48.0)"],
        ["spam", "97.5", "(55.0)"],
    ]


def test_an_earlier_file_that_lacks_the_untrained_scores_has_no_fwt():
    earlier = {
        "accuracy_matrix": [[0.975, 0.0], [0.95, 0.88]],
        "random_init": [0.0, 0.0],
        "scored_accuracy_matrix": [[0.98, 0.55], [0.96, 0.9]],
        "metrics": CONTENT["metrics"] | {"fwt": 0.0},
    }
    results = Results.from_content(CONTENT | earlier)
    assert results.metrics == CONTENT["metrics"] | {"fwt": None}
    assert str(results).splitlines()[3].split() == ["untrained", "(-)", "(-)"]


def test_a_folder_without_results_is_named(tmp_path):
    with pytest.raises(UserError) as error:
        Results.load(tmp_path)
    assert str(error.value).startswith(f"{tmp_path / 'results.json'} does not exist: ")
    assert "Finish the training, or name another workdir" in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot read {path}: "),
        ("[]", "{path} is broken: expected a JSON object"),
        ('{"method": "ewc", "tasks": []}', "{path} is broken: it lacks accuracy_matrix, random"),
    ],
)
def test_a_broken_file_is_named(tmp_path, text, message):
    workdir = write(tmp_path / "run", text)
    with pytest.raises(UserError) as error:
        Results.load(workdir)
    assert str(error.value).startswith(message.format(path=workdir / "results.json"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"accuracy_matrix": [[0.5]]}, "accuracy_matrix has the shape 1 x 1, but 2 x 2 was"),
        ({"accuracy_matrix": [["a", 1], [1, 1]]}, "could not convert"),
        ({"random_init": [0.5]}, "random_init has the shape 1, but 2 was"),
        ({"sizes": {"train": [1, 1], "test": [1, 1]}}, "validation"),
        ({"gate_weights": [[0.5]]}, "gate_weights has the shape 1 x 1, but 2 x any was"),
        ({"task_free": {"accuracy": [1, 1], "choices": [[1]]}}, "task_free.choices has the shape"),
        ({"metrics": {"acc": 0.5}}, "metrics lacks bwt"),
        ({"metrics": [0.5]}, "metrics lacks acc"),
        ({"metrics": dict.fromkeys(CONTENT["metrics"], "high")}, "must be real number"),
        ({"seed": math.inf}, "cannot convert float infinity"),
        ({"tasks": 2}, "object of type 'int' has no len()"),
        ({"wall_seconds": None}, "float() argument must be"),
        ({"steps": "many"}, "steps is 'many'; expected a number"),
        ({"stored_examples": {}}, "stored_examples is {}; expected a number"),
        ({"parameters": "few"}, "parameters is 'few'; expected an object"),
        ({"parameters": {"frozen": [1]}}, "parameters.frozen is [1]; expected a number"),
        ({"versions": 1}, "versions is 1; expected an object"),
        ({"right": ["01"]}, "right is ['01']; expected a list of 2 texts"),
        ({"scored_random_init": [0.5]}, "scored_random_init has the shape 1, but 2 was"),
        ({"classification": [None]}, "classification is [None]; expected a list of 2"),
        (
            {"classification": [CLASSIFICATION[0] | {"f1": [1.0]}, None]},
            "classification[0].f1 has the shape 1, but 2 was",
        ),
        ({"right": ["01", 1]}, "right has 1; expected a text of 0 and 1"),
        ({"right": ["01", "02"]}, "right has '02'; expected a text of 0 and 1"),
    ],
)
def test_broken_content_is_explained(changes, message):
    with pytest.raises(UserError) as error:
        Results.from_content(CONTENT | changes)
    assert str(error.value).startswith(f"the content of results.json is broken: {message}")
    assert str(error.value).endswith("Train that run again, or leave it out.")


@pytest.mark.usefixtures("agg")
def test_plot_shows_every_number():
    figure = Results.from_content(CONTENT).plot()
    matrix, stream = figure.axes
    assert figure.get_suptitle() == (
        "moe_cl, seed 3: acc 91.5  bwt -2.5  fwt -  forgetting +2.5 (in %)"
    )
    cells = {text.get_position(): text.get_text() for text in matrix.texts}
    assert cells == {
        **{(0, 0): "50.0", (1, 0): "48.0"},
        **{(0, 1): "97.5", (1, 1): "-"},
        **{(0, 2): "95.0", (1, 2): "88.0"},
    }
    assert [label.get_text() for label in matrix.get_xticklabels()] == ["spam", "irony"]
    assert [label.get_text() for label in matrix.get_yticklabels()] == [
        *("untrained", "after spam", "after irony")
    ]
    curves = {line.get_label(): line.get_xydata().tolist() for line in stream.lines}
    assert curves == {
        "spam": [[1, 97.5], [2, 95.0]],
        "irony": [[2, 88.0]],
        "mean so far": [[1, 97.5], [2, 91.5]],
    }


@pytest.mark.usefixtures("agg")
def test_frames_mark_the_accuracy_after_own_training():
    matrix, _ = Results.from_content(CONTENT).plot().axes
    # A frame begins half a cell before its centre: column 0 in row 1, column 1 in row 2.
    assert [frame.get_xy() for frame in matrix.patches] == [(-0.5, 0.5), (0.5, 1.5)]


def contrast(first, second):
    """The contrast ratio of two colours, as WCAG 2 defines it."""
    from matplotlib.colors import to_rgb

    def luminance(color):
        channels = np.array(to_rgb(color))
        linear = np.where(
            channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4
        )
        return float(linear @ [0.2126, 0.7152, 0.0722])

    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.usefixtures("agg")
@pytest.mark.parametrize("style", ["default", "dark_background"])
def test_plot_is_readable_in_light_and_dark_styles(style):
    from matplotlib import pyplot

    ramp = {
        "tasks": [f"t{index}" for index in range(11)],
        "accuracy_matrix": [[index / 10 for index in range(11)]] * 11,
        "random_init": [None] * 11,
    }
    content = {key: value for key, value in (CONTENT | ramp).items() if key != "sizes"}
    with pyplot.style.context(style):
        figure = Results.from_content(content).plot()
    matrix, stream = figure.axes
    background = figure.get_facecolor()
    assert background[3] == 1.0  # the colour of the page behind it does not matter
    image = matrix.images[0]
    for text in matrix.texts:
        column, row = text.get_position()
        value = image.get_array()[row, column]
        cell = background if np.ma.is_masked(value) else image.cmap(float(value))
        assert contrast(text.get_color(), cell) > 3.5, (style, text.get_text())
    labels = [*matrix.get_xticklabels(), *matrix.get_yticklabels(), *stream.get_xticklabels()]
    assert all(contrast(label.get_color(), background) > 7 for label in labels)
    assert contrast(stream.lines[-1].get_color(), background) > 7


@pytest.mark.usefixtures("agg")
def test_plot_of_a_joint_training_has_only_a_last_row():
    content = CONTENT | {"accuracy_matrix": [[None, None], [0.95, 0.88]]}
    _, stream = Results.from_content(content).plot().axes
    first, last = stream.lines[-1].get_ydata()
    assert math.isnan(first) and last == pytest.approx(91.5)


@pytest.mark.usefixtures("agg")
def test_plot_is_saved_and_not_kept(tmp_path):
    from matplotlib import pyplot

    results = Results.from_content(CONTENT)
    results.plot(tmp_path / "plot.png")
    results.plot(str(tmp_path / "plot.svg"))
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "plot.svg").read_text(encoding="utf-8")
    assert pyplot.get_fignums() == []


@pytest.mark.usefixtures("agg")
@pytest.mark.parametrize("name", ["missing/plot.png", "plot.unknown"])
def test_a_plot_that_cannot_be_written_is_named(tmp_path, name):
    with pytest.raises(UserError, match=f"cannot write the plot {tmp_path / name}: "):
        Results.from_content(CONTENT).plot(tmp_path / name)


@pytest.mark.parametrize("module", ["runs.names", "runs.tables", "runs.results", "report"])
def test_reading_results_starts_neither_jax_nor_matplotlib(module):
    program = (
        f"import sys, moecl_jax.{module}\n"
        "print(sorted({'jax', 'matplotlib', 'ml_collections', 'orbax'} & set(sys.modules)))"
    )
    output = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert output.stdout.strip() == "[]"
