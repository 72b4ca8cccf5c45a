"""The 15-task stream: every order and task resolves; the local one has its data."""

from pathlib import Path

import pytest
from ml_collections import ConfigDict
from streams import ROOT

from moecl_jax.config.file import load_config
from moecl_jax.data.catalog import CATALOG, LONG_ORDERS
from moecl_jax.data.examples import load_examples
from moecl_jax.data.task import Task
from moecl_jax.errors import UserError

FILE = str(ROOT / "configs" / "long_sequence.py")


def definitions(config: ConfigDict) -> list[Task]:
    own = config.definitions.to_dict()
    return [
        Task.from_fields(name, own[name]) if name in own else CATALOG[name] for name in config.tasks
    ]


def test_the_orders_are_three_orders_of_the_same_15_tasks() -> None:
    assert [len(set(order)) for order in LONG_ORDERS.values()] == [15, 15, 15]
    assert len({frozenset(order) for order in LONG_ORDERS.values()}) == 1
    assert len(set(LONG_ORDERS.values())) == 3


@pytest.mark.parametrize("order", LONG_ORDERS)
def test_every_hub_task_resolves(order: int) -> None:
    config = load_config(f"{FILE}:order={order},base=llama-2-7b")
    assert config.model.path == "llama-2-7b"
    assert config.tasks == LONG_ORDERS[order]
    assert set(config) == set(load_config(str(ROOT / "configs" / "default.py")))
    tasks = definitions(config)
    assert {task.source for task in tasks} == {"huggingface"}
    assert len({(task.path, task.subset) for task in tasks}) == 15


@pytest.mark.parametrize("argument", ["order=1", "data=web", "orders=4", "4"])
def test_a_wrong_argument_is_named(argument: str) -> None:
    with pytest.raises(UserError, match=f"{argument}'? is not one of"):
        load_config(f"{FILE}:{argument}")


def test_without_local_files_the_wheel_s_tasks_remain(tmp_path: Path) -> None:
    config = load_config(f"{FILE}:data=local,folder={tmp_path}")
    assert len(config.tasks) == 7
    assert {task.source for task in definitions(config)} == {"quickstart"}


@pytest.mark.shared
def test_the_local_stream_has_15_tasks_with_data(shared: Path) -> None:
    orders = [
        load_config(f"{FILE}:data=local,order={order},folder={shared / 'data'}").tasks
        for order in LONG_ORDERS
    ]
    assert [len(set(order)) for order in orders] == [15, 15, 15]
    assert orders[1] == orders[0][5:] + orders[0][:5]
    config = load_config(f"{FILE}:data=local,folder={shared / 'data'}")
    data = config.data
    for definition in definitions(config):
        task = load_examples(
            definition,
            seed=config.seed,
            vocabulary_size=49152,
            validation_from=data.validation_from,
            validation_fraction=data.validation_fraction,
            train_examples=data.train_examples,
            validation_examples=data.validation_examples,
            test_examples=data.test_examples,
            on_bad_example=data.on_bad_example,
        )
        sizes = (len(task.train), len(task.validation), len(task.test))
        assert sizes == (120, 40, 60), definition.name
