"""Hand-written workdirs for the tests of the report."""

import json

import numpy as np

TASKS = ["dbpedia", "amazon", "yahoo", "agnews"]
CONFIG = {
    "method": "moe_cl",
    "head": "lm",
    "epochs": 2,
    "selection": "best",
    "model": {"path": "smollm2-135m"},
    "batch": {"size": 8},
    "lora": {"rank": 8},
    "data": {"max_length": 128},
    "optimizer": {"learning_rate": 1e-3, "schedule": "constant"},
}


def write_run(folder, method, tasks, matrix, *, config=None, log=(), random_init=None, **results):
    """Writes a workdir whose results.json has the keys of version 1 and those in `results`."""
    folder.mkdir(parents=True)
    values = np.array(matrix, float)
    count = len(tasks)
    last = values[-1]
    earlier = [values[j:-1, j] for j in range(count - 1)]
    before = [values[j - 1, j] for j in range(1, count)]
    content = {
        "method": method,
        "tasks": list(tasks),
        "accuracy_matrix": matrix if isinstance(matrix, list) else matrix.tolist(),
        "random_init": [0.0] * count if random_init is None else random_init,
        "metrics": {
            "acc": float(last.mean()),
            "bwt": float(np.mean(last[:-1] - values.diagonal()[:-1])),
            "fwt": float(np.mean(before)),
            "forgetting": float(
                np.mean([e.max() - x for e, x in zip(earlier, last, strict=False)])
            ),
        },
        "seed": 0,
        "wall_seconds": 303.4,
        "versions": {"python": "3.11.7", "moecl_jax": "0.1.0", "jax": "0.10.2"},
    }
    (folder / "results.json").write_text(json.dumps(content | results))
    (folder / "config.json").write_text(json.dumps(CONFIG if config is None else config))
    if log:
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
    return folder


def sizes(count, test=150):
    return {"train": [150] * count, "validation": [50] * count, "test": [test] * count}


def write_sweep(folder, runs):
    """Writes a sweep.json with runs given as (variant, order, seed, relative folder)."""
    folder.mkdir(parents=True, exist_ok=True)
    keys = ("variant", "order", "seed", "workdir")
    content = {
        "config": "configs/mtl5_shared_smollm2.py",
        "methods": list(dict.fromkeys(run[0] for run in runs)),
        "orders": list(dict.fromkeys(run[1] for run in runs)),
        "seeds": list(dict.fromkeys(run[2] for run in runs)),
        "overrides": [],
        "runs": [dict(zip(keys, run, strict=True)) for run in runs],
    }
    (folder / "sweep.json").write_text(json.dumps(content))
    return folder


def realistic_sweep(folder, layers=30, logged=60):
    """Writes ten variants on three orders of four tasks; one of the runs is not finished."""
    random = np.random.default_rng(0)
    orders = {
        "1": TASKS,
        "2": ["dbpedia", "amazon", "agnews", "yahoo"],
        "3": ["yahoo", "amazon", "agnews", "dbpedia"],
    }
    ceiling = {"dbpedia": 0.97, "amazon": 0.52, "yahoo": 0.66, "agnews": 0.88}
    falls = {
        "joint": 0.0,
        "moe_cl": 0.02,
        "moe_cl:adversarial.objective=off": 0.025,
        "sequential_lora": 0.16,
        "per_task": 0.0,
        "o_lora": 0.07,
        "mocl": 0.01,
        "replay": 0.05,
        "ewc": 0.12,
        "lwf": 0.09,
    }
    planned = []
    for variant, fall in falls.items():
        method = variant.partition(":")[0]
        for order, tasks in orders.items():
            name = f"{method}{'_off' if ':' in variant else ''}_{order}"
            planned.append((variant, order, 0, f"runs/{name}"))
            if (variant, order) == ("lwf", "3"):
                continue
            matrix = np.zeros((4, 4))
            for row in range(4):
                for column, task in enumerate(tasks):
                    age = row - column
                    noise = random.normal(0, 0.01) if fall else 0.0
                    trained = ceiling[task] - fall * age * random.uniform(0.7, 1.3) + noise
                    matrix[row, column] = trained if age >= 0 else random.uniform(0.0, 0.3)
            matrix = np.round(matrix * 150) / 150
            gated, extra = method == "moe_cl", {}
            if method in ("per_task", "moe_cl", "mocl", "o_lora"):
                counts = np.full((4, 4), 3) + np.eye(4, dtype=int) * 138
                extra["task_free"] = {
                    "acc": float(matrix[-1].mean() * 0.95),
                    "accuracy": (matrix[-1] * 0.95).tolist(),
                    "choices": counts.tolist(),
                }
            if gated:
                depth = np.linspace(0, 3, layers)
                gate = 0.5 + 0.3 * np.sin(depth + np.arange(4)[:, None])
                extra["gate_weights"] = gate.tolist()
            if method == "replay":
                extra["stored_examples"] = 200
            log = _log(random, tasks, layers if gated and ":" not in variant else 0, logged)
            values = matrix.tolist()
            if method == "joint":
                values = [[None] * 4] * 3 + values[3:]
                extra["metrics"] = {"acc": float(matrix[-1].mean())}
                extra["metrics"] |= dict.fromkeys(("bwt", "fwt", "forgetting"))
                for line in log:
                    line["task"] = "joint"
                extra["random_init"] = [0.0] * 4
                write_run(
                    folder / planned[-1][3], method, tasks, [[0.5] * 4] * 4, log=log,
                    **_common(method), **(extra | {"accuracy_matrix": values}),
                )  # fmt: skip
                continue
            write_run(
                folder / planned[-1][3], method, tasks, values, log=log, **_common(method), **extra
            )
    return write_sweep(folder, planned)


def _common(method):
    trained = 1_330_000 if method != "moe_cl" else 2_700_000
    return {
        "sizes": sizes(4),
        "steps": 150,
        "parameters": {"frozen": 134_515_008, "trained": trained, "stored": trained * 3},
    }


def _log(random, tasks, layers, logged):
    lines = []
    for index, task in enumerate(tasks):
        for count in range(logged):
            loss = 0.3 + 1.6 * np.exp(-count / 8) + random.normal(0, 0.08)
            line = {
                "step": 10 * (index * logged + count + 1),
                "task": task,
                "loss": loss,
                "loss_instruction": loss,
                "loss_adversarial": 0.0,
                "examples_per_second": 7.0 + random.normal(0, 0.2),
            }
            if layers:
                line["loss_adversarial"] = 0.8 * np.exp(-count / 20)
                line["loss"] = loss - 0.1 * line["loss_adversarial"]
                rates = np.linspace(0.5, 1.0, layers) - 0.3 * np.exp(-count / 10)
                line["discriminator_accuracy_by_layer"] = rates.tolist()
            lines.append(line)
    return lines
