"""Converts checkpoints of the original implementation into workdirs."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from moecl_jax.config.default import get_config
from moecl_jax.config.experiment import Experiment, build
from moecl_jax.data.batching import ROW_LENGTHS
from moecl_jax.data.catalog import CATALOG
from moecl_jax.data.task import Task
from moecl_jax.errors import UserError
from moecl_jax.interchange import official, torch_file
from moecl_jax.methods.state import Stream, finish
from moecl_jax.models.config import DecoderConfig
from moecl_jax.models.lora import ATTENTION_TARGETS
from moecl_jax.runs.checkpoint import TaskCheckpoints
from moecl_jax.runs.resume import History, save_finished, save_in_progress
from moecl_jax.runs.workdir import Origin, new_workdir, note_other_base, save_config
from moecl_jax.training.steps import Active, init_train_state
from moecl_jax.weights import huggingface


def convert_official(
    base: Path,
    adapter: Path,
    workdir: Path,
    *,
    tasks: Sequence[str] = (),
    continue_task: str | None = None,
) -> list[str]:
    """Makes a workdir of a checkpoint of the original implementation.

    Every task becomes a finished one, in the order of their experts. A task to continue becomes
    the last one, and is not finished: training starts from its values.

    Args:
      base: Hugging Face folder of the model that it was trained on.
      adapter: PREFIX of PREFIX.bin, or PREFIX.safetensors, and PREFIX.json.
      workdir: must not exist, or be empty; is written whole or not at all.
      tasks: names of the tasks where the checkpoint has none, that is, one head for all.
      continue_task: the task to be trained further.

    Returns:
      The tasks in the order of the workdir.

    Raises:
      UserError: a file is missing, damaged or does not fit; names the tensor.
    """
    with new_workdir(workdir) as beside:
        source = _read(base, adapter, tasks)
        order = list(source.classes)
        if continue_task is not None:
            if continue_task not in order:
                raise UserError(
                    f"--continue={continue_task}: no such task; the tasks of {adapter} are "
                    f"{', '.join(order)}"
                )
            order = [*(task for task in order if task != continue_task), continue_task]
        config = _config(source, order, base)
        _write(source, build(config), beside, continue_task)
        save_config(config, beside)
    known_base = source.settings.content.get("base_model_name_or_path")
    if isinstance(known_base, str) and known_base and Path(known_base).name != base.name:
        note_other_base(known_base, base)
    return order


@dataclasses.dataclass(frozen=True)
class _Source:
    """A checkpoint that was read and checked.

    Attributes:
      trees: as `official.to_trees` gives them.
      classes: number of classes by task, in the order of their experts.
      shared_head: whether one head is for all tasks.
      settings: of its JSON file.
      dtypes: names of the tensors that are not float32, by dtype.
      config: of the base.
    """

    trees: Any
    classes: Mapping[str, int]
    shared_head: bool
    settings: official.Settings
    dtypes: Mapping[str, Sequence[str]]
    config: DecoderConfig


def _read(base: Path, adapter: Path, tasks: Sequence[str]) -> _Source:
    settings = official.read_settings(_beside(adapter, ".json"))
    file = _beside(adapter, ".safetensors")
    if file.exists():
        tensors = {name: t.decode() for name, t in huggingface.open_safetensors(file).items()}
    else:
        file = _beside(adapter, ".bin")
        tensors = torch_file.read_state(file)
    if not base.is_dir():
        raise UserError(f"--base={base} is no folder; expected a Hugging Face folder of the base")
    config = huggingface.read_checkpoint(base).config
    heads = official.head_classes(tensors, file)
    classes = _classes(heads, tasks, settings, file)
    shared_head = None in heads
    names = official.tensor_names(settings.targets, list(classes), shared_head=shared_head)
    official.check_tensors(tensors, names, config, settings, file=file, base=str(base))
    dtypes: dict[str, list[str]] = {}
    for name, tensor in tensors.items():
        if tensor.dtype != np.float32:
            dtypes.setdefault(str(tensor.dtype), []).append(name)
    trees = official.to_trees(tensors, names, config.layers, file)
    return _Source(trees, classes, shared_head, settings, dtypes, config)


def _beside(prefix: Path, suffix: str) -> Path:
    """PREFIX with a suffix added; dots in PREFIX stay."""
    if not prefix.name:
        raise UserError(f"--adapter={prefix} names no file; expected PREFIX of PREFIX.bin")
    return prefix.with_name(prefix.name + suffix)


def _classes(
    heads: Mapping[str | None, int],
    tasks: Sequence[str],
    settings: official.Settings,
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
            f"--tasks names tasks that have names in {file}: {', '.join(own)}. Leave it out."
        )
    if len(own) != count:
        raise UserError(
            f"{file}: holds heads of {len(own)} tasks ({', '.join(own)}), but the num_experts of "
            f"{file.stem}.json is {count + 1}: {count} tasks and the shared expert. Tensors are "
            "missing or surplus; copy both files again, from one training."
        )
    return {task: own[task] for task in official.expert_order(list(own))}


def _config(source: _Source, order: Sequence[str], base: Path) -> ConfigDict:
    """The defaults, with all that the checkpoint says."""
    config, settings = get_config(), source.settings
    config.method, config.head, config.shared_head = "moe_cl", "classification", source.shared_head
    config.model.path, config.model.dtype = str(base.absolute()), "float32"
    config.lora.rank, config.lora.alpha = settings.rank, settings.lora_alpha
    config.lora.dropout, config.lora.targets = settings.dropout, settings.targets
    config.lora.task_attention = not set(settings.targets) & set(ATTENTION_TARGETS)
    config.adversarial.objective = "original"
    config.data.max_length = min(source.config.context_length, ROW_LENGTHS[-1])
    config.tasks = tuple(order)
    for task in order:
        definition = _definition(task, source.classes[task]).to_fields()
        config.definitions[task] = ConfigDict(definition)
    return config.lock()


def _definition(task: str, classes: int) -> Task:
    """A task without data, which no adapter holds; with the catalog's labels where they fit."""
    known = CATALOG.get(task)
    numbers = tuple(range(classes))
    if known is None or len(known.labels) != classes:
        return Task(name=task, source="none", labels=tuple(map(str, numbers)))
    return Task(
        name=task,
        source="none",
        labels=known.labels,
        raw_labels=numbers,
        template=known.template,
    )


def _write(
    source: _Source, experiment: Experiment, workdir: Path, continue_task: str | None
) -> None:
    """Checkpoints of all tasks, through the same functions as those of a training."""
    checkpoints, official_order = TaskCheckpoints(workdir), list(source.classes)
    names = experiment.names
    rows = np.array([official_order.index(name) for name in names])
    shared = dict(source.trees["shared"])
    shared["discriminator"] = shared["discriminator"][:, rows]

    stream = Stream(shared, {})
    history = History([np.nan] * len(names), converted=len(names) - (continue_task is not None))
    for index in range(history.converted):
        stream = finish(
            stream,
            names[index],
            _active(source, experiment, shared, index),
            source.classes[names[index]],
        )
        history.append_unknown_row()
        history.validation.append(None)
        save_finished(experiment, checkpoints, stream, history)
    if continue_task is not None:
        index = history.converted
        active = _active(source, experiment, shared, index)
        key = experiment.initializer.training_key(index)
        state = init_train_state(experiment.learner, active, key)
        save_in_progress(experiment, checkpoints, index, state, best=active)
    origin = Origin(source.settings.content, official_order, history.converted, source.dtypes)
    origin.save(workdir)


def _active(source: _Source, experiment: Experiment, shared: Any, index: int) -> Active:
    """The trees of one task."""
    task = experiment.names[index]
    head = source.trees["head"] if source.shared_head else source.trees["heads"][task]
    padding = experiment.initializer.classes - head.shape[1]
    expert = source.trees.get("experts", {}).get(task, {})
    return Active(
        shared=jax.tree.map(jnp.asarray, shared),
        expert=jax.tree.map(jnp.asarray, expert),
        head=jnp.pad(head, ((0, 0), (0, padding))),
    )
