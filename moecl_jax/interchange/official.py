"""The original implementation's checkpoints, into workdirs and out of them.

`official_format` knows the names of their tensors and checks them.
"""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from moecl_jax.data.catalog import CATALOG
from moecl_jax.data.rows import ROW_LENGTHS
from moecl_jax.data.task import Task
from moecl_jax.errors import UserError
from moecl_jax.interchange import official_format, torch_file
from moecl_jax.methods.parameters import TaskParameters, Tree
from moecl_jax.methods.stream import StreamState
from moecl_jax.models.config import DecoderConfig
from moecl_jax.models.lora import ATTENTION_TARGETS
from moecl_jax.runs.history import History
from moecl_jax.runs.settings import Settings
from moecl_jax.runs.store import DiskStore
from moecl_jax.runs.workdir import (
    Origin,
    load_settings,
    new_workdir,
    note_other_base,
    save_settings,
    write_json,
)
from moecl_jax.serving.evaluator import Evaluator
from moecl_jax.serving.session import model_of, open_stream
from moecl_jax.training.steps import init_train_state
from moecl_jax.training.task_training import NO_SCORE, in_progress_tree
from moecl_jax.training.trainer import optimizer_of
from moecl_jax.weights import huggingface
from moecl_jax.weights.safetensors_file import open_safetensors, write_safetensors


def convert_official(
    base: Path,
    adapter: Path,
    workdir: Path,
    *,
    tasks: Sequence[str] = (),
    continue_task: str | None = None,
) -> list[str]:
    """Makes a workdir of a checkpoint of the original implementation.

    Every task becomes a finished one, in the order of the tasks' experts. A task to continue
    becomes the last one and is not finished: training starts from its values.

    Args:
      base: Hugging Face folder of the model that the checkpoint was trained on.
      adapter: PREFIX of the checkpoint's files PREFIX.safetensors, or else PREFIX.bin, and
        PREFIX.json.
      workdir: folder to make. It must not exist, or be empty; it is written whole or not at all.
      tasks: names of the tasks where the checkpoint has one head for all of them, and so no names.
        As a default they are task1, task2 and so on.
      continue_task: name of a task that is to be trained further, or None.

    Returns:
      The names of the tasks in the order of the workdir.

    Raises:
      UserError: a file is missing, damaged or does not fit, or a task is unknown; names the tensor
        or the argument.
    """
    with new_workdir(workdir) as beside:
        source = _read(base, adapter, tasks)
        order = list(source.classes)
        if continue_task is not None:
            if continue_task not in order:
                raise UserError(
                    f"--continue={continue_task}: no such task; the tasks of {adapter} are "
                    f"{', '.join(order)[:300]}"
                )
            order = [*(task for task in order if task != continue_task), continue_task]
        settings = _settings(source, order, base)
        model, method = model_of(settings), settings.method_object()
        evaluator = Evaluator(model, method, settings.task_objects(), settings)
        _write(source, evaluator, beside, continue_task)
        save_settings(settings, beside)
    known_base = source.settings.content.get("base_model_name_or_path")
    if isinstance(known_base, str) and known_base and Path(known_base).name != base.name:
        note_other_base(known_base, base)
    return order


@dataclasses.dataclass(frozen=True)
class _Source:
    """A checkpoint that was read and checked.

    Attributes:
      trees: its parameters, as `official_format.to_trees` gives them.
      classes: number of classes by task, in the order of the tasks' experts.
      shared_head: whether one head is for all tasks.
      settings: what its JSON file says.
      dtypes: names of the tensors that are not float32, by dtype.
      config: sizes of the base model.
    """

    trees: Any
    classes: Mapping[str, int]
    shared_head: bool
    settings: official_format.AdapterSettings
    dtypes: Mapping[str, Sequence[str]]
    config: DecoderConfig


def _read(base: Path, adapter: Path, tasks: Sequence[str]) -> _Source:
    settings_file = _beside(adapter, ".json")
    settings = official_format.read_settings(settings_file)
    file = _beside(adapter, ".safetensors")
    if os.path.lexists(file):
        tensors = {name: t.decode() for name, t in open_safetensors(file).items()}
    else:
        file = _beside(adapter, ".bin")
        tensors = torch_file.read_state(file)
    if not base.is_dir():
        raise UserError(f"--base={base} is no folder; expected a Hugging Face folder of the base")
    config = huggingface.read_checkpoint(base).config
    if settings.task_count > len(tensors):  # before anything has their number
        raise UserError(
            f"{settings_file}: num_experts is {settings.task_count + 1}, and {file.name} holds "
            f"{len(tensors)} tensors, where each expert has several. Copy both files again, from "
            "one training."
        )
    heads = official_format.head_classes(tensors, file)
    classes = _classes(heads, tasks, settings, file)
    shared_head = None in heads
    names = official_format.tensor_names(settings.targets, list(classes), shared_head=shared_head)
    official_format.check_tensors(tensors, names, config, settings, file=file, base=str(base))
    dtypes: dict[str, list[str]] = {}
    for name, tensor in tensors.items():
        if tensor.dtype != np.float32:
            dtypes.setdefault(str(tensor.dtype), []).append(name)
    trees = official_format.to_trees(tensors, names, config.layers, file)
    return _Source(trees, classes, shared_head, settings, dtypes, config)


def _beside(prefix: Path, suffix: str) -> Path:
    """PREFIX with a suffix added; dots in PREFIX stay."""
    if not prefix.name:
        raise UserError(f"--adapter={prefix} names no file; expected PREFIX of PREFIX.bin")
    return prefix.with_name(prefix.name + suffix)


def _classes(
    heads: Mapping[str | None, int],
    tasks: Sequence[str],
    settings: official_format.AdapterSettings,
    file: Path,
) -> dict[str, int]:
    """Number of classes by task, in the order of their experts."""
    count = settings.task_count
    if None in heads:
        names = list(tasks) or [f"task{index + 1}" for index in range(count)]
        if len(set(names)) != count or len(names) != count:
            raise UserError(
                f"--tasks={','.join(names)} must name {count} different tasks: the num_experts of "
                f"{file.stem}.json is {count + 1}, and one expert is shared"
            )
        return dict.fromkeys(names, heads[None])
    own = {name: classes for name, classes in heads.items() if name is not None}
    if tasks:
        raise UserError(
            f"--tasks names tasks that have names in {file}: {', '.join(own)[:300]}. Leave it out."
        )
    if len(own) != count:
        raise UserError(
            f"{file}: holds heads of {len(own)} tasks ({', '.join(own)[:300]}), but the "
            f"num_experts of {file.stem}.json is {count + 1}: {count} tasks and the shared expert. "
            "Tensors are missing or surplus; copy both files again, from one training."
        )
    return {task: own[task] for task in official_format.expert_order(list(own))}


def _settings(source: _Source, order: Sequence[str], base: Path) -> Settings:
    """The default settings, with all that the checkpoint says."""
    known = source.settings
    return Settings().changed(
        {
            "method": "moe_cl",
            "head": "classification",
            "shared_head": source.shared_head,
            "tasks": tuple(order),
            "definitions": {
                task: _definition(task, source.classes[task]).to_fields() for task in order
            },
            "model": {"path": str(base.absolute()), "dtype": "float32"},
            "lora": {
                "rank": known.rank,
                "alpha": known.lora_alpha,
                "dropout": known.dropout,
                "targets": known.targets,
                "task_attention": not set(known.targets) & set(ATTENTION_TARGETS),
            },
            "adversarial": {"objective": "original"},
            "moe_cl": {"shared": "moving"},
            "data": {"max_length": min(source.config.context_length, ROW_LENGTHS[-1])},
        }
    )


def _definition(task: str, classes: int) -> Task:
    """A task without data, which no adapter holds; with the catalog's labels where they fit."""
    known = CATALOG.get(task)
    numbers = tuple(range(classes))
    if known is None or len(known.labels) != classes:
        return Task(task, source="none", labels=tuple(map(str, numbers)))
    return Task(
        task,
        source="none",
        labels=known.labels,
        raw_labels=numbers,
        template=known.template,
    )


def _write(source: _Source, evaluator: Evaluator, workdir: Path, continue_task: str | None) -> None:
    """Checkpoints of all tasks, through the same functions as those of a training."""
    model, starting, names = evaluator.model, evaluator.starting, evaluator.names
    store = DiskStore(workdir, evaluator.tasks, starting, model)
    official_order = list(source.classes)
    rows = np.array([official_order.index(name) for name in names])
    shared = dict(source.trees["shared"])
    shared["discriminator"] = shared["discriminator"][:, rows]

    stream = StreamState(shared, {})
    history = History([np.nan] * len(names), converted=len(names) - (continue_task is not None))
    for index in range(history.converted):
        parameters = _parameters(source, evaluator, shared, index)
        stream = stream.after(names[index], parameters, source.classes[names[index]])
        history.append_unknown_row()
        history.validation.append(None)
        store.save_finished(stream, history)
    if continue_task is not None:
        index = history.converted
        tree = _untrained_tree(evaluator, index, _parameters(source, evaluator, shared, index))
        record = {"step": 0, "validated_epochs": 0, "best_score": list(NO_SCORE)}
        store.save_in_progress(index, tree, record)
    origin = Origin(source.settings.content, official_order, history.converted, source.dtypes)
    origin.save(workdir)


def _untrained_tree(evaluator: Evaluator, index: int, parameters: TaskParameters) -> Tree:
    """What a checkpoint inside a task holds before the task's first step."""
    optimizer, key = optimizer_of(evaluator.settings), evaluator.starting.training_key(index)
    state = init_train_state(evaluator.method, optimizer, parameters, key)
    return in_progress_tree(state, parameters)


def _parameters(source: _Source, evaluator: Evaluator, shared: Any, index: int) -> TaskParameters:
    """The parameters of one task."""
    task = evaluator.names[index]
    head = source.trees["head"] if source.shared_head else source.trees["heads"][task]
    padding = evaluator.starting.classes - head.shape[1]
    expert = source.trees.get("experts", {}).get(task, {})
    return TaskParameters(
        shared=jax.tree.map(jnp.asarray, shared),
        expert=jax.tree.map(jnp.asarray, expert),
        head=jnp.pad(head, ((0, 0), (0, padding))),
    )


def export_official(workdir: Path, form: str, output: Path) -> list[Path]:
    """Writes the state of a workdir after its last task as a checkpoint of the original.

    Args:
      workdir: workdir of a training or a conversion.
      form: a key of `FORMATS`: the kind of file that holds the tensors.
      output: PREFIX of the files PREFIX.bin or PREFIX.safetensors, and PREFIX.json.

    Returns:
      The files written.

    Raises:
      UserError: a task has not been trained to its end, the workdir holds something that the format
        has no place for, or torch is needed and not installed.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    return FORMATS[form](workdir, output)


def _write_official(workdir: Path, output: Path) -> list[Path]:
    """PREFIX.bin and PREFIX.json."""
    tensors, content = _official_checkpoint(workdir)
    file = output.with_name(output.name + ".bin")
    torch_file.write_state(file, tensors)
    return [file, _write_settings(output, content)]


def _write_safetensors(workdir: Path, output: Path) -> list[Path]:
    """PREFIX.safetensors, with the names of the original's format, and PREFIX.json."""
    tensors, content = _official_checkpoint(workdir)
    file = output.with_name(output.name + ".safetensors")
    write_safetensors(file, tensors)
    return [file, _write_settings(output, content)]


FORMATS: dict[str, Callable[[Path, Path], list[Path]]] = {
    "official": _write_official,
    "safetensors": _write_safetensors,
}
"""What writes the tensors of a workdir and the settings beside them, by kind of file."""


def _write_settings(output: Path, content: Mapping[str, Any]) -> Path:
    file = output.with_name(output.name + ".json")
    write_json(file, content)
    return file


def _official_checkpoint(workdir: Path) -> tuple[official_format.Tensors, dict[str, Any]]:
    """Tensors and settings in the original's format."""
    settings = load_settings(workdir)
    _refuse_what_has_no_place(settings, workdir)
    evaluator, store = open_stream(workdir)
    stream, origin = _whole_stream(evaluator, store, workdir), Origin.load(workdir)
    names = evaluator.names
    answering = {name: evaluator.starting.answering(stream, name) for name in names}
    finished = {name: done for name, done in answering.items() if done is not None}
    order = list(origin.tasks) if origin is not None else []
    order += [name for name in names if name not in order]
    if not settings.shared_head:
        order = official_format.expert_order(order)
    rows = np.array([names.index(name) for name in order])
    trees: dict[str, Any] = {
        "shared": {
            **stream.shared,
            "discriminator": np.asarray(stream.shared["discriminator"])[:, rows],
        },
        "experts": {name: finished[name].expert for name in order},
    }
    if settings.shared_head:
        trees["head"] = stream.last_head
    else:
        trees["heads"] = {name: finished[name].head for name in order}
    targets = settings.lora.targets
    layers = evaluator.model.sizes.layers
    tensors = official_format.to_tensors(
        trees,
        official_format.tensor_names(targets, order, shared_head=settings.shared_head),
        layers,
    )
    stored = official_format.AdapterSettings(
        rank=settings.lora.rank,
        lora_alpha=settings.lora.alpha,
        dropout=settings.lora.dropout,
        targets=targets,
        task_count=len(order),
        content=origin.settings if origin is not None else {},
    )
    content = official_format.settings_content(stored, base=settings.model.path)
    return _narrowed(tensors, origin), content


def _refuse_what_has_no_place(settings: Settings, workdir: Path) -> None:
    """Raises unless the original's format has a name for all that this run trained."""
    needed = {
        "method": (settings.method, "moe_cl"),
        "head": (settings.head, "classification"),
    }
    for key, (value, expected) in needed.items():
        if value != expected:
            raise UserError(
                f"{workdir} was trained with {key} = {value!r}; the original's format has a place "
                f"for {key} = {expected!r} alone"
            )
    options = settings.method_object().options
    if options.adversarial.objective == "off":
        raise UserError(
            f"{workdir} was trained with adversarial.objective = 'off' and has no discriminator, "
            "which the original's format asks for"
        )
    if options.shared != "moving":
        raise UserError(
            f"{workdir} was trained with moe_cl.shared = {options.shared!r}, where each finished "
            "task has a gate of its own; the original's format has a place for shared expert and "
            "gate of the moment alone (moe_cl.shared = 'moving'). One expert alone can be exported "
            "by --format=peft --expert=NAME"
        )
    attention = [name for name in settings.lora.targets if name in ATTENTION_TARGETS]
    if attention and settings.lora.task_attention:
        raise UserError(
            f"{workdir} was trained with experts of each task on {', '.join(attention)}; the "
            "original's format has one LoRA for all tasks there (lora.task_attention = False)"
        )


def _whole_stream(evaluator: Evaluator, store: DiskStore, workdir: Path) -> StreamState:
    """The stream after its last task; one that was converted to be continued counts as it is."""
    stream, _ = store.restore()
    if len(stream.answering) < len(stream.finished):
        raise UserError(
            f"a task was removed from {workdir}; the original's format numbers its tasks without a "
            "gap. Export one expert alone by --format=peft --expert=NAME"
        )
    left = evaluator.names[len(stream.finished) :]
    record = store.in_progress()
    if left and record is not None and record["task"] == left[0] and record["step"] == 0:
        index = len(stream.finished)
        template = _untrained_tree(evaluator, index, evaluator.starting.begin(stream.shared, index))
        parameters = store.restore_in_progress(template)["active"]
        stream = stream.after(left.pop(0), parameters, len(evaluator.tasks[index].labels))
    if left:
        raise UserError(
            f"task '{left[0]}' has not been trained to its end in {workdir}; finish it with "
            "'moecl train' before the export"
        )
    return stream


def _narrowed(tensors: official_format.Tensors, origin: Origin | None) -> official_format.Tensors:
    """In the dtypes that were converted, where no bit is lost: where training changed nothing."""
    dtypes = {"float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
    narrowed = dict(tensors)
    for dtype, names in (origin.dtypes if origin is not None else {}).items():
        for name in names:
            narrow = tensors[name].astype(dtypes[dtype])
            if np.array_equal(narrow.astype(np.float32), tensors[name]):
                narrowed[name] = narrow
    return narrowed
