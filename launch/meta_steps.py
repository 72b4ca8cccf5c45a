"""How many steps a new task needs to 90% of its final accuracy, by how its expert starts.

    python launch/meta_steps.py FOLDER [--model=SmolLM2-135M | --tiny] [--kinds=none,reptile,fomaml]

Trains `per_task` on the demo's tasks product_reviews and tweets, on which the starting value of
experts is learned, and then online on movie_reviews, whose test texts are scored every 4 steps.
With --tiny a random LLM of 2 layers learns made-up tasks of five labels, where a word tells the
label, and in each task another one; this takes minutes. Final is the mean accuracy of the last
three scores. Prints a table.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np

from moecl_jax.config.default import from_config, get_config
from moecl_jax.errors import UserError
from moecl_jax.runs.settings import Settings
from moecl_jax.runs.workdir import save_settings
from moecl_jax.testing import write_model, write_task
from moecl_jax.training.online import Online, OnlineSettings
from moecl_jax.training.trainer import train

FIRST, NEW = ("product_reviews", "tweets"), "movie_reviews"
STEPS, EVERY = 48, 4


def settings_of(
    kind: str, model: str, rates: tuple[float, float], definitions: dict[str, dict[str, object]]
) -> Settings:
    """The settings of a kind."""
    config = get_config()
    with config.unlocked():
        config.model.path = model or config.model.path
        config.definitions = definitions or config.definitions
        config.method, config.tasks = "per_task", FIRST
        config.data.max_length = config.batch.row_length = 96
        config.data.train_examples, config.data.test_examples = STEPS * 8, 120
        config.data.validation_examples = 40
        config.evaluation.early_examples = 8
        config.optimizer.learning_rate = 1e-2 if definitions else 1e-3
        config.optimizer.clip_norm = 1.0
        config.epochs = 1
        config.meta.kind, config.meta.support = kind, 128
        config.meta.inner_rate, config.meta.learning_rate = rates
        config.meta.outer_steps = 40
    return from_config(config)


def curve_of(workdir: Path, settings: Settings) -> list[float]:
    """Test accuracy of the new task before it is trained and after every `EVERY` steps."""
    save_settings(settings.changed({"tasks": (*FIRST, NEW)}), workdir)
    online = Online(workdir, OnlineSettings(task=NEW))
    place, size = len(FIRST), online.settings.batch.size
    task = online.evaluator.load([online.evaluator.tasks[place]])[0]
    order = np.random.default_rng(0).permutation(len(task.splits["train"]))
    texts = [task.splits["train"][index] for index in order[: STEPS * size]]
    labels, curve = task.definition.labels, []
    for start in range(0, len(texts) + 1, EVERY * size):
        found = online.evaluator.evaluate(online.parameters(place), place, task.splits["test"])
        curve.append(found.scored_accuracy)
        chosen = texts[start : start + EVERY * size]
        online.learn([{"text": each.text, "label": labels[each.label]} for each in chosen])
    return curve


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--model", default="", help="the frozen LLM (default: the config's)")
    parser.add_argument("--tiny", action="store_true", help="a random LLM and made-up tasks")
    parser.add_argument("--kinds", default="none,reptile,fomaml,maml")
    parser.add_argument("--inner-rate", type=float, default=0.1)
    parser.add_argument("--learning-rate", type=float, default=0.1)
    arguments = parser.parse_args()
    print("| start | before | steps to 90% of final | final | first tasks, s | curve |", flush=True)
    print("| --- | --- | --- | --- | --- | --- |", flush=True)
    definitions = {}
    if arguments.tiny:
        arguments.model = str(write_model(arguments.folder / "model"))
        for shift, name in enumerate((*FIRST, NEW)):
            made = write_task(arguments.folder / "data", name, 5, examples=STEPS * 8, shift=shift)
            definitions[name] = made
    try:
        for kind in arguments.kinds.split(","):
            rates = arguments.inner_rate, arguments.learning_rate
            settings = settings_of(kind, arguments.model, rates, definitions)
            workdir, begun = arguments.folder / kind, time.perf_counter()
            train(settings, workdir)
            seconds = time.perf_counter() - begun
            curve = curve_of(workdir, settings)
            (workdir / "curve.json").write_text(json.dumps(curve), encoding="utf-8")
            final = float(np.mean(curve[-3:]))
            steps = EVERY * int(np.argmax(np.array(curve) >= 0.9 * final))
            shown = " ".join(f"{100 * accuracy:.0f}" for accuracy in curve)
            row = f"{100 * curve[0]:.1f} | {steps} | {100 * final:.1f} | {seconds:.0f}"
            print(f"| {kind} | {row} | {shown} |", flush=True)
    except UserError as error:
        raise SystemExit(f"meta_steps: error: {error}") from error


if __name__ == "__main__":
    main()
