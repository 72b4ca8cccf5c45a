"""A stream of texts whose task changes three times without notice, learned online in several ways.

    python launch/online_stream.py FOLDER [--examples=500] [--model=SmolLM2-135M | --tiny]

FOLDER gets the stream, of so many training examples each of the demo's tasks trec, sms_spam,
movie_reviews and product_reviews, in this order and as one task with the labels of all. A line does
not say where it is from. With --tiny a random LLM of 2 layers learns made-up texts of five labels,
where a word tells the label, and from part to part another one, with a step an example. Each way
learns the stream in a workdir of its own; a way that is done is not done again. Prints where drift
was found, and the accuracy before and after each change: of the 100 examples before it, the first
100 after it, and the last 100 of its part.
"""

import argparse
import dataclasses
import json
from pathlib import Path

import numpy as np

from moecl_jax.config.default import from_config, get_config
from moecl_jax.data.catalog import CATALOG
from moecl_jax.data.examples import load_examples
from moecl_jax.errors import UserError
from moecl_jax.runs.workdir import save_settings
from moecl_jax.testing import write_model, write_task
from moecl_jax.training.online import OnlineSettings, learn_online

PARTS = ("trec", "sms_spam", "movie_reviews", "product_reviews")
WAYS = {
    "sequential_lora": ("sequential_lora", OnlineSettings()),
    "per_task, note": ("per_task", OnlineSettings()),
    "per_task, expert": ("per_task", OnlineSettings(on_drift="expert")),
    "moe_cl, expert": ("moe_cl", OnlineSettings(on_drift="expert")),
}
Row = tuple[str, str]
CLASSES = 5  # of made-up texts
SPAN = 100  # examples of which an accuracy is told


def demo_parts(count: int) -> list[list[Row]]:
    """Text and label of the training examples of each part."""
    parts = []
    for number, name in enumerate(PARTS):
        task = CATALOG[name]
        found = load_examples(
            task,
            seed=0,
            vocabulary_size=2**31,
            validation_from="train",
            validation_fraction=0.0,
            train_examples=0,
            validation_examples=1,
            test_examples=1,
            on_bad_example="skip",
        ).train
        if len(found) < count:
            raise SystemExit(f"{name} has {len(found)} examples; take --examples={len(found)}")
        order = np.random.default_rng((0, number)).permutation(len(found))[:count]
        parts.append([(found[place].text, task.labels[found[place].label]) for place in order])
    return parts


def tiny_parts(folder: Path, count: int) -> list[list[Row]]:
    """As `demo_parts`, of made-up texts; in each part a word tells another label."""
    parts = []
    for number, name in enumerate(PARTS):
        write_task(folder / "parts", name, CLASSES, examples=count, length=3, shift=number)
        text = (folder / "parts" / f"{name}_train.jsonl").read_text(encoding="utf-8")
        rows = [json.loads(line) for line in text.splitlines()]
        order = np.random.default_rng((0, number)).permutation(count)
        parts.append([(rows[place]["text"], rows[place]["label"]) for place in order])
    return parts


def write_stream(folder: Path, parts: list[list[Row]], template: str) -> dict[str, object]:
    """Writes the stream and gives the definition of its task."""
    rows = [row for part in parts for row in part]
    lines = [json.dumps({"text": text, "label": label}) + "\n" for text, label in rows]
    (folder / "stream.jsonl").write_text("".join(lines), encoding="utf-8")
    return {
        "source": "jsonl",
        "path": str(folder),
        "train": "stream.jsonl",
        "labels": tuple(dict.fromkeys(label for _, label in rows)),
        "template": template,
    }


def workdir_of(
    folder: Path, way: str, definition: dict[str, object], model: str, *, tiny: bool
) -> Path:
    """A workdir in which nothing was trained yet."""
    method, _ = WAYS[way]
    workdir = folder / way.replace(", ", "-")
    config = get_config()
    with config.unlocked():
        config.model.path = model or config.model.path
        config.method, config.tasks = method, ("stream",)
        config.definitions = {"stream": definition}
        config.data.max_length = config.batch.row_length = 64
        config.optimizer.learning_rate = 1e-2 if tiny else 1e-3
        config.optimizer.clip_norm = 1.0
    workdir.mkdir(parents=True, exist_ok=True)
    save_settings(from_config(config), workdir)
    return workdir


def shown(workdir: Path, count: int) -> str:
    """The row of a way: accuracies about each change, overall, and lines of drift."""
    text = (workdir / "online" / "online.jsonl").read_text(encoding="utf-8")
    lines = [json.loads(line) for line in text.splitlines()]
    right = np.array([line["right"] for line in lines], float)
    span = min(SPAN, count)
    cells = []
    for change in range(count, len(right), count):
        spans = (slice(change - span, change), slice(change, change + span))
        ends = slice(change + count - span, change + count)
        cells.append(" / ".join(f"{100 * right[each].mean():.0f}" for each in (*spans, ends)))
    drifts = ", ".join(str(line["line"]) for line in lines if line.get("drift")) or "none"
    return " | ".join([*cells, f"{100 * right.mean():.1f}", drifts])


def main() -> None:
    """Learns the stream in each way and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--examples", type=int, default=500, help="examples of each part")
    parser.add_argument("--model", default="", help="the frozen LLM (default: the config's)")
    parser.add_argument("--tiny", action="store_true", help="a random LLM and made-up texts")
    parser.add_argument("--ways", default=";".join(WAYS), help="which ways, parted by ';'")
    arguments = parser.parse_args()
    folder, count = arguments.folder.absolute(), arguments.examples
    folder.mkdir(parents=True, exist_ok=True)
    try:
        if arguments.tiny:
            arguments.model = str(write_model(folder / "model"))
            definition = write_stream(folder, tiny_parts(folder, count), "{text} answer")
        else:
            definition = write_stream(folder, demo_parts(count), "Text: {text}\nLabel:")
        changes = [count * part for part in range(1, len(PARTS))]
        heads = [f"at {change}: before / after / end" for change in changes]
        print(f"| way | {' | '.join(heads)} | all | drift found at |", flush=True)
        print(f"| --- |{' --- |' * (len(heads) + 2)}", flush=True)
        for way in arguments.ways.split(";"):
            workdir = workdir_of(folder, way, definition, arguments.model, tiny=arguments.tiny)
            options = dataclasses.replace(WAYS[way][1], budget=1.0 if arguments.tiny else 0.0)
            tally = learn_online(workdir, folder / "stream.jsonl", options)
            print(f"| {way} | {shown(workdir, count)} | {tally.seconds:.0f} s", flush=True)
    except UserError as error:
        raise SystemExit(f"online_stream: error: {error}") from error


if __name__ == "__main__":
    main()
