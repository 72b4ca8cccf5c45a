"""Which learning rate each row of a comparison takes, chosen on validation.

    python launch/choose_rates.py RATES GRID

RATES is the folder of a sweep that trained each row with several learning rates on one order: its
variants end in `:optimizer.learning_rate=RATE`. Of each row the rate is chosen with which the mean
accuracy over all tasks at the end is best on the validation texts; of equal ones the smaller. The
chosen runs are copied to GRID, where a sweep then finds them finished. Prints the chosen variants
as `moecl sweep --methods` takes them; the accuracies go to standard error.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

import numpy as np

from moecl_jax.errors import UserError
from moecl_jax.outside import parse_json
from moecl_jax.runs.names import RESULTS_NAME, SWEEP_NAME
from moecl_jax.serving.session import open_run
from moecl_jax.writing import whole_file

_KEY = ":optimizer.learning_rate="
_KEPT = "validation.json"  # beside a run's results, so that it is evaluated once


def validation_accuracy(workdir: Path) -> float:
    """Mean accuracy over the tasks of a finished run on their validation texts."""
    kept = workdir / _KEPT
    if not (workdir / RESULTS_NAME).exists():
        raise UserError(f"{workdir} is not finished; run the sweep of the rates to its end first")
    if not kept.exists():
        found = open_run(workdir).evaluate("validation")["tasks"]
        accuracies = [task["accuracy"] for task in found.values()]
        with whole_file(kept) as stream:
            stream.write(json.dumps({"accuracy": float(np.mean(accuracies))}).encode())
    return float(parse_json(kept.read_bytes())["accuracy"])


def choose(rates: Path, grid: Path) -> list[str]:
    """The chosen variant of each row, in the order of the sweep."""
    found: dict[str, list[tuple[float, float, str, Path]]] = {}
    for run in parse_json((rates / SWEEP_NAME).read_bytes())["runs"]:
        row, _, rate = run["variant"].partition(_KEY)
        if not rate:
            raise UserError(f"{rates}: the variant {run['variant']} does not end in {_KEY}RATE")
        accuracy = validation_accuracy(rates / run["workdir"])
        found.setdefault(row, []).append(
            (accuracy, -float(rate), run["variant"], Path(run["workdir"]))
        )
    chosen = []
    for row, runs in found.items():
        shown = ", ".join(f"{-rate:g}: {100 * accuracy:.1f}" for accuracy, rate, *_ in runs)
        *_, variant, folder = max(runs)
        print(f"{row}: {shown}; chosen: {variant.rpartition('=')[2]}", file=sys.stderr)
        if not (grid / folder).exists():
            # A copy that was cut short is no run of the grid, and is made again.
            half = grid / f"{folder}.half"
            shutil.rmtree(half, ignore_errors=True)
            shutil.copytree(rates / folder, half)
            half.rename(grid / folder)
        chosen.append(variant)
    return chosen


def main() -> None:
    """Prints the chosen variants."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rates", type=Path, metavar="RATES")
    parser.add_argument("grid", type=Path, metavar="GRID")
    arguments = parser.parse_args()
    try:
        print(",".join(choose(arguments.rates, arguments.grid)))
    except (UserError, OSError) as error:
        raise SystemExit(f"choose_rates: error: {error}") from error


if __name__ == "__main__":
    main()
