"""The comparison of finished runs: one HTML page, and its tables as Markdown and CSV.

Here belong the statistics over several runs (means, spreads, standard errors, differences), the
tables and pictures that show them, and the page they stand on. The results of a single run belong
to runs/, which reads them; nothing here trains, evaluates or imports JAX, so that a report is made
in seconds from the files of workdirs and sweeps alone.

runs.py        reads workdirs and the folders of sweeps
summary.py     computes means, spreads and differences
intervals.py   computes intervals by a bootstrap
tables.py      makes tables, as cells, Markdown and CSV
drawing.py     draws curves and heat maps
pictures.py    chooses the pictures and what they show
comparison.py  puts the runs on one set of tasks into words, tables and pictures
page.py        makes the page and the Markdown file
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from moecl_jax.errors import UserError
from moecl_jax.report.drawing import save
from moecl_jax.report.page import Report
from moecl_jax.report.runs import read_runs
from moecl_jax.writing import whole_file

_FILE_WIDTH = 560  # of a picture with curves, in points


def report(folders: Sequence[Path], output: Path, figures: Path | None = None) -> list[Path]:
    """Writes the page, and beside it a Markdown and a CSV file with the same stem.

    Runs of a sweep that are not finished are left out, and named on standard error and on the page.

    Args:
      folders: workdirs of finished runs, and folders of sweeps.
      output: path of the page, which must end in `.html`; its folder is created if needed.
      figures: folder that gets each picture as PNG and as PDF; None for none.

    Returns:
      The paths of the HTML, Markdown and CSV files, and of the pictures' files.

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
    return paths if figures is None else paths + _save_pictures(made, figures)


def _save_pictures(made: Report, folder: Path) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for picture in made.pictures():
        figure = picture.draw(_FILE_WIDTH, True)
        for suffix in (".png", ".pdf"):
            paths.append(folder / f"{picture.name}{suffix}")
            save(figure, paths[-1])
    return paths
