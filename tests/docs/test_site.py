"""The site builds without a warning, and its generated parts hold what the code says."""

import dataclasses
import importlib.util
import subprocess
import sys

import pytest
from streams import ROOT

from moecl_jax.methods import METHODS
from moecl_jax.runs.settings import SECTIONS, Settings


def load(name):
    """A module of docs/, which is no package."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", ROOT / "docs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def generate():
    return load("generate")


@dataclasses.dataclass(frozen=True)
class Toy:
    """Settings of a toy.

    Attributes:
      size: number of parts,
        see also: the box.
      first, second: a name | a number.

    Raises:
      UserError: never.
    """

    size: int = dataclasses.field(default=3, metadata={"limits": {"least": 1, "below": 9}})
    first: str = "a"
    second: tuple[str, ...] = dataclasses.field(default_factory=tuple)


def test_attributes_are_read_from_the_docstring(generate):
    assert generate.attribute_docs(Toy) == {
        "size": "number of parts, see also: the box.",
        "first": "a name | a number.",
        "second": "a name | a number.",
    }


def test_a_table_has_defaults_limits_and_meanings(generate):
    assert generate.options_table(Toy, "toy.").splitlines()[2:] == [
        "| `toy.size` | `3` | ≥ 1, < 9 | number of parts, see also: the box. |",
        "| `toy.first` | `'a'` |  | a name \\| a number. |",
        "| `toy.second` | `()` |  | a name \\| a number. |",
    ]


def test_every_setting_and_option_is_described(generate):
    options = [method.Options for method in METHODS.values()]
    nested = [type(f.default) for o in options for f in dataclasses.fields(o)]
    nested = [described for described in nested if dataclasses.is_dataclass(described)]
    for described in (Settings, *SECTIONS.values(), *options, *nested):
        documented = generate.attribute_docs(described)
        missing = {field.name for field in dataclasses.fields(described)} - documented.keys()
        assert missing == set(), described


def test_every_method_has_a_row_and_a_section(generate):
    rows, sections = generate.methods_table(METHODS), generate.method_sections(METHODS)
    for name in METHODS:
        assert f"[`{name}`]" in rows
        assert f"### `{name}`" in sections


@pytest.mark.parametrize(
    ("docstring", "expected"),
    [
        ("What `a_b_` is: 2 * x_ | y.", "What ``a_b_`` is: 2 \\* x\\_ \\| y."),
        ("A law:\n\n    y = a*x\n    b = 1", "A law:\n\n::\n\n       y = a*x\n       b = 1"),
        ("- one\n  more\n- two", "- one\n  more\n- two"),
        ("Args:\n  x: `[N]`\n    units.", "Args:\n  x: ``[N]``\n    units."),
        ("`Task`s of\n`a\nb`.", "``Task``\\ s of\n``a\nb``."),
        ("Example:\n  1  2\n 3", "For example:\n\n::\n\n     1  2\n    3"),
    ],
)
def test_a_docstring_becomes_valid_restructured_text(generate, docstring, expected):
    lines = docstring.splitlines()
    generate.escape(lines)
    assert "\n".join(lines).rstrip() == expected


def test_the_picture_shows_the_table():
    pytest.importorskip("matplotlib")
    pictures = load("pictures")
    row = "| `moe_cl` | 85.0 ± 1.0 | -2.0 ± 1.0 | 84.0, 86.0 | -4.0, 0.0 |"
    assert pictures.accuracies(row, "moe_cl") == [(87.0, 84.0), (86.0, 86.0)]


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("sphinx")
    pytest.importorskip("myst_nb")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q"),
            *(str(ROOT / "docs"), str(tmp_path / "html")),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    methods = (tmp_path / "html" / "reference" / "methods.html").read_text()
    assert all(f'id="method-{name.replace("_", "-")}"' in methods for name in METHODS)
