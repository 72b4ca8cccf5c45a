"""The comparison of finished runs: one HTML page, and its tables as Markdown and CSV.

Here belong the statistics over several runs (means, spreads, standard errors, differences), the
tables and pictures that show them, and the page they stand on. The results of a single run belong
to runs/, which reads them; nothing here trains, evaluates or imports JAX, so that a report is made
in seconds from the files of workdirs and sweeps alone.

runs.py      reads workdirs and the folders of sweeps
summary.py   computes means, spreads, standard errors and differences
tables.py    makes tables, as cells, Markdown and CSV
svg.py       draws heat maps and line charts
pictures.py  chooses the pictures, and names the files and keys that their numbers come from
page.py      makes the page and the Markdown file
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from moecl_jax.errors import UserError
from moecl_jax.report.page import Report
from moecl_jax.report.runs import read_runs
from moecl_jax.writing import whole_file


def report(folders: Sequence[Path], output: Path) -> list[Path]:
    """Writes the page, and beside it a Markdown and a CSV file with the same stem.

    Runs of a sweep that are not finished are left out, and named on standard error and on the page.

    Args:
      folders: workdirs of finished runs, and folders of sweeps.
      output: path of the page, which must end in `.html`; its folder is created if needed.

    Returns:
      The paths of the HTML, Markdown and CSV files.

    Raises:
      UserError: if the output does not end in `.html`, a folder holds no results, or a file is
        broken.
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
        with whole_file(path) as stream:
            stream.write(text.encode("utf-8", "replace"))
        paths.append(path)
    return paths
