"""`moecl report`: finished runs compared in one page, with the same table as Markdown and CSV.

runs.py      reads workdirs and sweep folders
summary.py   means, spreads, standard errors, differences
tables.py    tables, as cells, Markdown and CSV
svg.py       heat maps and line charts
pictures.py  which pictures there are, and where their figures come from
page.py      the page and the Markdown file
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from moecl_jax.errors import UserError
from moecl_jax.report.page import Report
from moecl_jax.report.runs import read_runs


def report(folders: Sequence[Path], output: Path) -> list[Path]:
    """Writes the page, and beside it the Markdown and CSV files of the same stem.

    What a sweep has not finished yet is named on standard error and on the page.

    Args:
      folders: workdirs of finished runs, or sweeps' folders.
      output: the page, `.html`; its folder is created if needed.

    Returns:
      The files: HTML, Markdown, CSV.

    Raises:
      UserError: the output is no `.html`, a folder holds no results, or a file is broken.
    """
    if output.suffix != ".html":
        raise UserError(f"--output={output}: expected a name that ends in .html")
    runs, missing = read_runs(folders)
    for run in missing:
        print(f"not finished, left out: {run} ({run.workdir})", file=sys.stderr)
    output.parent.mkdir(parents=True, exist_ok=True)
    made = Report(runs, missing, output.parent)
    texts = {".html": made.html(), ".md": made.markdown(), ".csv": made.csv()}
    paths = []
    for suffix, text in texts.items():
        path = output.with_suffix(suffix)
        beside = path.with_name(path.name + ".part")
        beside.write_text(text, encoding="utf-8", errors="replace")
        os.replace(beside, path)
        paths.append(path)
    return paths
