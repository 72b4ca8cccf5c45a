"""Why MoE-CL forgets: does the shared expert move away from finished tasks, or does the gate?

    python launch/drift.py RUN ... [--split=validation]

Each RUN is a finished workdir of `moe_cl` with `moe_cl.shared=moving` and `keep_shared=0`. All its
tasks but the last are answered for with shared expert and gate as they were when the task was
finished ("kept") or as they are after the last task ("moved"). Prints the mean accuracy over tasks
and runs of all four combinations.
"""

import argparse
from pathlib import Path

import numpy as np

from moecl_jax.errors import UserError
from moecl_jax.serving.session import open_stream

COMBINATIONS = [(expert, gate) for expert in ("kept", "moved") for gate in ("kept", "moved")]


def accuracies(workdir: Path, split: str) -> np.ndarray:
    """Accuracy of each combination on each task but the last, `[4, T - 1]`."""
    evaluator, store = open_stream(workdir)
    method = evaluator.method
    if method.name != "moe_cl" or method.options.shared != "moving":
        raise SystemExit(f"{workdir} is no run of moe_cl with moe_cl.shared = moving")
    tasks, names = evaluator.load(), evaluator.names
    ends = [store.restore_moment(index) for index in range(len(names))]
    rows = []
    for expert, gate in COMBINATIONS:
        row = []
        for index, name in enumerate(names[:-1]):
            parameters = evaluator.starting.task(ends[index], name, index)
            kept, moved = parameters.shared, ends[-1].shared
            shared = {
                **kept,
                "expert": (kept if expert == "kept" else moved)["expert"],
                "gate": (kept if gate == "kept" else moved)["gate"],
            }
            mixed = parameters.replace(shared=shared)
            examples = tasks[index].splits[split]
            row.append(evaluator.evaluate(mixed, index, examples).accuracy)
        rows.append(row)
    return np.array(rows)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--split", default="validation")
    arguments = parser.parse_args()
    try:
        by_run = np.stack([accuracies(run, arguments.split) for run in arguments.runs])
    except UserError as error:
        raise SystemExit(f"drift: error: {error}") from error
    print("| shared expert | gate | accuracy |", "| --- | --- | --- |", sep="\n")
    for (expert, gate), values in zip(COMBINATIONS, by_run.swapaxes(0, 1), strict=True):
        print(f"| {expert} | {gate} | {100 * values.mean():.1f} |")


if __name__ == "__main__":
    main()
