"""Sphinx configuration: the site is Markdown (MyST) with notebooks (myst-nb) in the furo theme.

    bash launch/docs.sh --build

Parts of the reference are written by `generate.py` from the code before each build.
"""

import os
import sys
import warnings
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent
sys.path[:0] = [str(DOCS), str(DOCS.parent)]

# transformers would advise to install torch, which only its models need.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

import generate  # noqa: E402
from sphinx.application import Sphinx  # noqa: E402

import moecl_jax  # noqa: E402

# sphinx_autodoc_typehints calls what Sphinx 10 will not have; pyproject.toml stays below 10.
warnings.filterwarnings("ignore", message=".*set_application")

project = "moecl_jax"
author = "The moecl_jax authors"
copyright = author
release = version = moecl_jax.__version__

# Napoleon before the type hints, which read what it has written.
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_autodoc_typehints",
]
exclude_patterns = ["_build", "_generated", "**/.ipynb_checkpoints"]

# Notebooks are shown without outputs; the slow tests execute them.
nb_execution_mode = "off"
myst_enable_extensions = ["colon_fence", "deflist", "substitution"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # sphinx_autodoc_typehints adds them
autodoc_default_options = {"show-inheritance": True}
napoleon_numpy_docstring = False
napoleon_use_ivar = True
typehints_use_signature = False
# Types that are imported for checkers only, and short names of which there are several, such as the
# `Options` of each method. Neither is a mistake on a page.
suppress_warnings = [
    "sphinx_autodoc_typehints.forward_reference",
    "sphinx_autodoc_typehints.guarded_import",
    "ref.python",
]

html_theme = "furo"
html_title = f"moecl_jax {release}"
html_static_path = ["_static"]


def setup(app: Sphinx) -> None:
    """Writes the generated parts, and makes docstrings valid reStructuredText."""
    generate.write(DOCS)
    # Before napoleon (priority 500), which takes the sections of a docstring apart.
    app.connect("autodoc-process-docstring", _escape_docstring, priority=100)


def _escape_docstring(*arguments: Any) -> None:
    """Takes what Sphinx passes: of all arguments the last is the docstring's lines."""
    generate.escape(arguments[-1])
