"""The real files in ../shared load, with their sizes, and their splits are disjoint."""

from pathlib import Path

import pytest

from moecl_jax.data.catalog import shared_mtl5
from moecl_jax.data.compliance import cold
from moecl_jax.data.examples import TaskExamples, load_examples, normalise
from moecl_jax.data.task import Task


def load(definition: Task, on_bad_example: str = "error") -> TaskExamples:
    return load_examples(
        definition,
        seed=0,
        vocabulary_size=100,
        validation_from="train",
        validation_fraction=0.0,
        train_examples=0,
        validation_examples=0,
        test_examples=0,
        on_bad_example=on_bad_example,
    )


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("agnews", (4000, 500, 2000)),
        ("amazon", (4000, 500, 2000)),
        ("dbpedia", (4200, 500, 2000)),
        ("yahoo", (2000, 300, 1200)),
        ("yelp", (3000, 500, 1400)),
    ],
)
def test_mtl5_files(shared: Path, name: str, sizes: tuple[int, int, int]) -> None:
    task = load(shared_mtl5(shared / "data/mtl5", name))
    splits = (task.train, task.validation, task.test)
    assert tuple(len(examples) for examples in splits) == sizes
    assert {example.label for example in task.test} == set(range(len(task.definition.labels)))
    # In these files an object takes four lines, after a line with "[".
    assert [int(example.where.rsplit(":", 1)[1]) for example in task.test[:3]] == [2, 6, 10]


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "sizes", "skipped"),
    [
        ("race", (3000, 500, 1500), {}),
        ("gender", (2998, 500, 1500), {"train text also in test": 2}),
        (
            "region",
            (2997, 497, 1500),
            {"validation text also in test": 3, "train text also in test": 3},
        ),
    ],
)
def test_cold_files(
    shared: Path, name: str, sizes: tuple[int, int, int], skipped: dict[str, int]
) -> None:
    task = load(cold(shared / "data/cold", name), on_bad_example="skip")
    splits = (task.train, task.validation, task.test)
    assert tuple(len(examples) for examples in splits) == sizes
    assert task.skipped == skipped
    unique = [{normalise(example.text) for example in examples} for examples in splits]
    assert not (unique[0] & unique[1] or unique[0] & unique[2] or unique[1] & unique[2])
