"""Data sets of the Hugging Face hub, and folders that the `datasets` library reads."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from moecl_jax import quiet
from moecl_jax.data.sources.base import (
    INPUT_IDS,
    Definition,
    Record,
    Source,
    path_of,
    require_columns,
)
from moecl_jax.errors import UserError


class HuggingFace(Source):
    """A split of a data set: saved with save_to_disk, a folder of files, or on the hub."""

    name: ClassVar[str] = "huggingface"

    def check(self, task: Definition) -> None:
        """The data set must be named; it alone may have a subset."""
        if not task.path:
            raise task.error("path", f"must name the data set of source '{self.name}'")

    def location(self, task: Definition, split: str) -> str:
        """The data set's name, that of its subset if there is one, and the split's."""
        return f"{_data_set(task)} {getattr(task, split)}"

    def read(self, task: Definition, split: str) -> Iterator[Record]:
        """The rows, of each the fields that the task uses.

        A class label is read as its number when every label of the task's data is a number, else
        as its name.
        """
        data = _open(task, getattr(task, split))
        columns = set(data.column_names)
        as_ids = INPUT_IDS in columns and columns.isdisjoint(task.text_fields)
        texts = (INPUT_IDS,) if as_ids else task.text_fields
        needed = (*texts, task.answer_field)
        where = self.location(task, split)
        require_columns(data.column_names, needed, where)
        names = class_names(data, task.answer_field)
        if labels_are_numbers(task):
            names = ()
        for index, fields in enumerate(data.select_columns(list(dict.fromkeys(needed)))):
            yield Record(with_class_name(fields, task.answer_field, names), f"{where} row {index}")


def class_names(data: Any, field: str) -> Sequence[str]:
    """The names of the classes of a column of class labels, else ().

    Args:
        data: a `datasets.Dataset`; anything else has no such columns.
        field: the name of the column.
    """
    feature = (getattr(data, "features", None) or {}).get(field)
    if feature is None:
        return ()
    import datasets

    return tuple(feature.names) if isinstance(feature, datasets.ClassLabel) else ()


def labels_are_numbers(task: Definition) -> bool:
    """Whether what stands in the data for each label of the task is known to be a number."""
    raw_labels = task.raw_labels or task.labels
    return bool(raw_labels) and all(str(label).isdecimal() for label in raw_labels)


def with_class_name(
    fields: Mapping[str, object], field: str, names: Sequence[str]
) -> Mapping[str, object]:
    """The fields of a row with the name of its class in place of the number.

    Args:
        fields: the values by their names.
        field: which of them is the class.
        names: names of the classes; () leaves the row as it is, and so does a number without a
            name.
    """
    label = fields.get(field)
    if isinstance(label, int) and 0 <= label < len(names):
        return {**fields, field: names[label]}
    return fields


def _data_set(task: Definition) -> str:
    """The data set's name, with that of its subset if there is one."""
    return f"{task.path} {task.subset}".rstrip()


def _open(task: Definition, split: str) -> Any:
    """The `datasets.Dataset` of a split."""
    import datasets

    path, subset = task.path, task.subset or None
    folder = path_of(task, "path", Path(path))
    if folder.is_dir():
        folder, subset = folder / task.subset, None
        path = str(folder)
    try:
        if (folder / "dataset_dict.json").is_file():
            return datasets.load_from_disk(str(folder))[split]
        if (folder / split / "dataset_info.json").is_file():
            return datasets.load_from_disk(str(folder / split))
        # A long download is to be seen, the conversion of local files is not.
        with quiet.datasets() if folder.is_dir() else contextlib.nullcontext():
            return datasets.load_dataset(path, subset, split=split)
    # The libraries below raise dozens of types, from httpx to pyarrow, for what is one mistake
    # here: the data set cannot be had.
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0][:300]
        raise UserError(
            f"task '{task.name}': cannot load split '{split}' of the data set "
            f"'{_data_set(task)}' ({type(error).__name__}: {reason}). Check the name and the "
            "split. Without a network, load it once on a machine that has one and copy the folder "
            "that Dataset.save_to_disk writes, or a folder of parquet, JSON or CSV files, and set "
            "`path` to it; a data set that needs its own code (trust_remote_code) is not loaded."
        ) from error
