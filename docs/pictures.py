"""Draws docs/_static/forgetting.svg: what later tasks do to earlier ones, for three methods.

    python docs/pictures.py

Reads the table of docs/notes/demo.md. With T tasks the mean accuracy of the tasks, each just after
its own training, is acc - (T - 1) / T bwt: bwt is the mean over the first T - 1 tasks of how far
each has moved since.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot

DOCS = Path(__file__).resolve().parent
TASKS = 4
COLOURS = {"moe_cl": "#1b6ca8", "per_task": "#7f8a93", "sequential_lora": "#c8553d"}
TITLES = {"moe_cl": "MoE-CL", "per_task": "a LoRA a task", "sequential_lora": "sequential LoRA"}
SHIFTS = {"moe_cl": 6, "per_task": -6, "sequential_lora": 0}  # points up, so that words do not meet


def accuracies(table: str, method: str) -> list[tuple[float, float]]:
    """Of each seed, the mean accuracy just after each task's training, and at the end.

    Args:
      table: text with a row `| METHOD | ... | acc of each seed | bwt of each seed |`.
      method: name of the row.
    """
    row = re.search(rf"^\| `{method}` \|(.*)\|$", table, re.MULTILINE)
    if row is None:
        raise ValueError(f"no row of {method}")
    acc, bwt = (_numbers(cell) for cell in row[1].split("|")[-2:])
    return [(a - (TASKS - 1) / TASKS * b, a) for a, b in zip(acc, bwt, strict=True)]


def _numbers(cell: str) -> Sequence[float]:
    return [float(number) for number in cell.split(",")]


def main() -> None:
    """Writes the picture."""
    table = (DOCS / "notes" / "demo.md").read_text(encoding="utf-8")
    # Text stays text, and nothing of the file depends on when it was made.
    pyplot.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "moecl", "font.size": 11}
    figure, axes = pyplot.subplots(figsize=(6.2, 3.4), layout="constrained")
    for method, colour in COLOURS.items():
        seeds = accuracies(table, method)
        for pair in seeds:
            axes.plot((0, 1), pair, color=colour, marker="o", markersize=5, linewidth=1.8)
        end = sum(pair[1] for pair in seeds) / len(seeds)
        axes.annotate(
            TITLES[method],
            (1, end),
            xytext=(14, SHIFTS[method]),
            textcoords="offset points",
            color=colour,
            va="center",
        )
    axes.set_xticks((0, 1), ("just after each\ntask's training", "after the\nwhole stream"))
    axes.set(xlim=(-0.2, 1.75), ylim=(65, 92), ylabel="mean test accuracy, %")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.3)
    target = DOCS / "_static" / "forgetting.svg"
    target.parent.mkdir(exist_ok=True)
    figure.savefig(target, metadata={"Date": None})


if __name__ == "__main__":
    main()
