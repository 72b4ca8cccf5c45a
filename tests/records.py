"""JSON-lines files of records, and a free-form task in them."""

import json

import numpy as np
from ml_collections import ConfigDict


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def repeat_task(folder, **changes):
    """A free-form task: of a text of four words, write the two words that its first word names."""
    generator = np.random.default_rng(3)
    for split, count in (("train", 48), ("validation", 12), ("test", 12)):
        first = generator.integers(0, 3, count)
        rest = generator.integers(10, 60, (count, 3))
        records = [
            {
                "text": f"w{10 + kind} " + " ".join(f"w{word}" for word in words),
                "response": f"w{20 + kind} w{30 + kind}",
            }
            for kind, words in zip(first, rest, strict=True)
        ]
        write(folder / f"repeat_{split}.jsonl", records)
    fields = {
        "source": "jsonl",
        "path": str(folder),
        **{split: f"repeat_{split}.jsonl" for split in ("train", "validation", "test")},
        "response_field": "response",
        "template": "{text} answer",
    }
    return ConfigDict(fields | changes)


def answers(path):
    """What `moecl predict` or `moecl generate` has added to each line."""
    return [line["prediction"] for line in read(path)]
