"""Writes trained workdirs in the formats of other programs."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from moecl_jax.errors import UserError
from moecl_jax.interchange import official, torch_file
from moecl_jax.methods.stream import StreamState
from moecl_jax.models.lora import ATTENTION_TARGETS
from moecl_jax.runs.settings import Settings
from moecl_jax.runs.store import DiskStore
from moecl_jax.runs.workdir import Origin, load_settings, write_json
from moecl_jax.serving.evaluator import Evaluator
from moecl_jax.serving.session import open_stream
from moecl_jax.training.steps import init_train_state
from moecl_jax.training.task_training import in_progress_tree
from moecl_jax.training.trainer import optimizer_of
from moecl_jax.weights.safetensors_file import write_safetensors


def export(workdir: Path, form: str, output: Path) -> list[Path]:
    """Writes the state of a workdir after its last task.

    Args:
      workdir: of a training or a conversion.
      form: a key of `FORMATS`.
      output: where to; what it names depends on the format.

    Returns:
      The files written.

    Raises:
      UserError: the workdir holds something that the format cannot express.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    return FORMATS[form](workdir, output)


def _export_official(workdir: Path, output: Path) -> list[Path]:
    """PREFIX.bin and PREFIX.json."""
    tensors, content = _official_checkpoint(workdir)
    file = output.with_name(output.name + ".bin")
    torch_file.write_state(file, tensors)
    return [file, _write_settings(output, content)]


def _export_safetensors(workdir: Path, output: Path) -> list[Path]:
    """PREFIX.safetensors, with the names of the original's format, and PREFIX.json."""
    tensors, content = _official_checkpoint(workdir)
    file = output.with_name(output.name + ".safetensors")
    write_safetensors(file, tensors)
    return [file, _write_settings(output, content)]


FORMATS: dict[str, Callable[[Path, Path], list[Path]]] = {
    "official": _export_official,
    "safetensors": _export_safetensors,
}


def _write_settings(output: Path, content: Mapping[str, Any]) -> Path:
    file = output.with_name(output.name + ".json")
    write_json(file, content)
    return file


def _official_checkpoint(workdir: Path) -> tuple[official.Tensors, dict[str, Any]]:
    """Tensors and settings in the original's format."""
    config = load_settings(workdir)
    _refuse_what_has_no_place(config, workdir)
    evaluator, store = open_stream(workdir)
    stream, origin = _whole_stream(evaluator, store, workdir), Origin.load(workdir)
    names = evaluator.names
    order = list(origin.tasks) if origin is not None else []
    order += [name for name in names if name not in order]
    if not config.shared_head:
        order = official.expert_order(order)
    rows = np.array([names.index(name) for name in order])
    trees: dict[str, Any] = {
        "shared": {
            **stream.shared,
            "discriminator": np.asarray(stream.shared["discriminator"])[:, rows],
        },
        "experts": {name: stream.finished[name].expert for name in order},
    }
    if config.shared_head:
        trees["head"] = stream.last_head
    else:
        trees["heads"] = {name: stream.finished[name].head for name in order}
    targets = config.lora.targets
    layers = evaluator.model.sizes.layers
    tensors = official.to_tensors(
        trees, official.tensor_names(targets, order, shared_head=config.shared_head), layers
    )
    settings = official.Settings(
        rank=config.lora.rank,
        lora_alpha=config.lora.alpha,
        dropout=config.lora.dropout,
        targets=targets,
        task_count=len(order),
        content=origin.settings if origin is not None else {},
    )
    content = official.settings_content(settings, base=config.model.path)
    return _narrowed(tensors, origin), content


def _refuse_what_has_no_place(config: Settings, workdir: Path) -> None:
    """Raises unless the original's format has a name for all that this run trained."""
    needed = {
        "method": (config.method, "moe_cl"),
        "head": (config.head, "classification"),
    }
    for key, (value, expected) in needed.items():
        if value != expected:
            raise UserError(
                f"{workdir} was trained with {key} = {value!r}; the original's format has a place "
                f"for {key} = {expected!r} alone"
            )
    if config.options["adversarial"]["objective"] == "off":
        raise UserError(
            f"{workdir} was trained with adversarial.objective = 'off' and has no discriminator, "
            "which the original's format asks for"
        )
    if config.options["moe_cl"]["snapshot"]:
        raise UserError(
            f"{workdir} was trained with moe_cl.snapshot = True and has a shared expert and gate "
            "for each finished task; the original's format has a place for those of the moment "
            "alone. One expert alone can be exported by --format=peft --expert=NAME"
        )
    attention = [name for name in config.lora.targets if name in ATTENTION_TARGETS]
    if attention and config.lora.task_attention:
        raise UserError(
            f"{workdir} was trained with experts of each task on {', '.join(attention)}; the "
            "original's format has one LoRA for all tasks there (lora.task_attention = False)"
        )


def _whole_stream(evaluator: Evaluator, store: DiskStore, workdir: Path) -> StreamState:
    """The stream after its last task; one that was converted to be continued counts as it is."""
    stream, _ = store.restore()
    left = evaluator.names[len(stream.finished) :]
    record = store.in_progress()
    if left and record is not None and record["task"] == left[0] and record["step"] == 0:
        index, starting = len(stream.finished), evaluator.starting
        start = starting.begin(stream.shared, index)
        optimizer = optimizer_of(evaluator.settings)
        key = starting.training_key(index)
        state = init_train_state(evaluator.method, optimizer, start, key)
        active = store.restore_in_progress(in_progress_tree(state, start))["active"]
        stream = stream.after(left.pop(0), active, len(evaluator.tasks[index].labels))
    if left:
        raise UserError(
            f"task '{left[0]}' has not been trained to its end in {workdir}; finish it with "
            "'moecl train' before the export"
        )
    return stream


def _narrowed(tensors: official.Tensors, origin: Origin | None) -> official.Tensors:
    """In the dtypes that were converted, where no bit is lost: where training changed nothing."""
    dtypes = {"float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
    narrowed = dict(tensors)
    for dtype, names in (origin.dtypes if origin is not None else {}).items():
        for name in names:
            narrow = tensors[name].astype(dtypes[dtype])
            if np.array_equal(narrow.astype(np.float32), tensors[name]):
                narrowed[name] = narrow
    return narrowed
