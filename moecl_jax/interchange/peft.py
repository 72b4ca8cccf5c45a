"""PEFT's LoRA adapters, into workdirs and out of them.

An adapter is a folder with adapter_config.json and adapter_model.safetensors.

Axes: L layers, I and O input and output widths of a projection, r rank. PEFT stores `lora_A.weight`
`[r, I]` and `lora_B.weight` `[O, r]` of each layer; an expert here has their transposes, stacked to
`[L, I, r]` and `[L, r, O]`.

Specification: https://huggingface.co/docs/peft/developer_guides/checkpoint
"""

import dataclasses
import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from moecl_jax import reporting
from moecl_jax.data.task import Task
from moecl_jax.errors import UserError, one_line
from moecl_jax.methods.parameters import TaskParameters
from moecl_jax.methods.stream import FinishedTask, StreamState
from moecl_jax.models.config import DecoderConfig
from moecl_jax.models.lora import ATTENTION_TARGETS, TARGETS, Expert, projection_sizes
from moecl_jax.outside import shortened
from moecl_jax.runs.history import History
from moecl_jax.runs.settings import Settings
from moecl_jax.runs.store import DiskStore
from moecl_jax.runs.workdir import Origin, new_workdir, note_other_base, save_settings
from moecl_jax.serving.evaluator import Evaluator
from moecl_jax.serving.session import model_of, open_stream
from moecl_jax.weights import Checkpoint, StoredTensor, huggingface
from moecl_jax.weights.files import read_object
from moecl_jax.weights.safetensors_file import open_safetensors
from moecl_jax.writing import whole_file

CONFIG_NAME = "adapter_config.json"
TENSORS_NAME = "adapter_model.safetensors"
PICKLED_NAME = "adapter_model.bin"
SHARED = "shared"
"""Names the shared expert where others are named by their task."""

_MERGE = (
    "Merge the adapter into its base with PEFT (merge_and_unload, then save_pretrained) and use "
    "the merged model as a base"
)
# What the function of the adapter depends on, and how it is said in adapter_config.json.
_READ = {"peft_type", "task_type", "r", "lora_alpha", "lora_dropout", "use_rslora", "bias"}
_READ |= {"base_model_name_or_path", "target_modules", "init_lora_weights"}
# The tensors tell which layers and projections are adapted; the rest says nothing of the function.
_WITHOUT_EFFECT = {"exclude_modules", "layers_to_transform", "layers_pattern", "auto_mapping"}
_WITHOUT_EFFECT |= {"revision", "inference_mode", "peft_version", "merge_weights", "eva_config"}
_WITHOUT_EFFECT |= {"megatron_core", "qalora_group_size"}
# Others, such as PiSSA and OLoRA, change the base's weights before training.
_PLAIN_BEGINNINGS = (True, False, None, "gaussian", "eva", "orthogonal")

# "base_model." and "model." depend on what the adapter was put on, ".default" on PEFT's version.
_TENSOR_NAME = re.compile(
    r"(?:base_model\.model\.)?(?:model\.)?layers\.(?P<layer>[0-9]{1,6})\.(?P<module>self_attn|mlp)"
    rf"\.(?P<target>{'|'.join(TARGETS)})\.lora_(?P<factor>[AB])(?:\.default)?\.weight"
)
_HUGE = 1e9  # no setting reaches it
_Place = tuple[str, int, str]  # projection, layer, "A" or "B"
Factors = Mapping[str, Mapping[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class PeftAdapter:
    """A LoRA on all layers of a decoder.

    Attributes:
      base: name of the decoder where the adapter was trained.
      rank: rank r.
      lora_alpha: numerator of the scale lora_alpha / r.
      dropout: dropout rate on the inputs of A in training.
      expert: `{projection: {"a": [L, I, r], "b": [L, r, O]}}` in float32.
    """

    base: str
    rank: int
    lora_alpha: float
    dropout: float
    expert: Factors


def export_peft(workdir: Path, output: Path, *, expert: str | None = None) -> list[Path]:
    """Writes one expert of a trained workdir as a PEFT adapter.

    Classification heads are no part of an adapter; what is left out is reported.

    Args:
      workdir: workdir of a training.
      output: folder for the adapter.
      expert: which expert, where the method has an expert a task: a finished task's name, or
        "shared" for the expert that MoE-CL mixes with the task's. None where there is one expert.

    Returns:
      The files written.

    Raises:
      UserError: nothing is finished, what was trained is no single LoRA, or `expert` names none of
        the experts.
    """
    evaluator, store = open_stream(workdir)
    stream, history = store.restore()
    if history is None:
        raise UserError(f"{workdir} holds no finished task yet; train it with 'moecl train'")
    factors = trained_lora(workdir, evaluator, stream, expert)
    if evaluator.settings.head == "classification":
        reporting.current().message(
            "note: the classification heads are left out, as a PEFT LoRA has no place for them; "
            "the adapter gives the hidden states that they read"
        )
    lora = evaluator.method.lora
    rank = next(iter(factors.values()))["a"].shape[2]
    alpha = lora.alpha * rank / lora.rank  # the scale alpha / rank is the run's
    base = evaluator.settings.model.path
    adapter = PeftAdapter(base, rank, alpha, lora.dropout, factors)
    return write_adapter(adapter, output)


def convert_peft(base: Path, adapter: Path, workdir: Path, *, task: str = "adapter") -> None:
    """Makes a workdir of a PEFT adapter: that of a sequential LoRA after one task.

    Args:
      base: Hugging Face folder of the model that the adapter was trained in.
      adapter: folder of the adapter.
      workdir: folder to make. It must not exist, or be empty; it is written whole or not at all.
      task: name for the task that the adapter has learned; nothing is known of its data.

    Raises:
      UserError: a file is missing or damaged, or the adapter is not a plain LoRA for this base.
    """
    with new_workdir(workdir) as beside:
        checkpoint = huggingface.read_checkpoint(base)
        lora = read_adapter(adapter, checkpoint.config, str(base))
        settings = _settings(lora, base, task, checkpoint)
        model, tasks = model_of(settings), settings.task_objects()
        evaluator = Evaluator(model, settings.method_object(), tasks, settings)
        shared = {"expert": jax.tree.map(jnp.asarray, lora.expert)}
        stream = StreamState(shared, {task: FinishedTask({}, {})})
        history = History([math.nan], validation=[None], converted=1)
        history.append_unknown_row()
        DiskStore(beside, tasks, evaluator.starting, model).save_finished(stream, history)
        Origin(settings={}, tasks=[task], finished=1, dtypes={}).save(beside)
        save_settings(settings, beside)
    if lora.base and Path(lora.base).name != base.name:
        note_other_base(lora.base, base)


def write_adapter(adapter: PeftAdapter, folder: Path) -> list[Path]:
    """Writes an adapter that `PeftModel.from_pretrained(model, folder)` reads.

    Returns:
      The files written.

    Raises:
      UserError: the folder cannot be written.
    """
    alpha = adapter.lora_alpha
    content = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": adapter.base,
        "r": adapter.rank,
        "lora_alpha": int(alpha) if float(alpha).is_integer() else alpha,
        "lora_dropout": adapter.dropout,
        "target_modules": [target for target in TARGETS if target in adapter.expert],
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "inference_mode": True,
        "modules_to_save": None,
        "layers_to_transform": None,
        "layers_pattern": None,
        "rank_pattern": {},
        "alpha_pattern": {},
        "auto_mapping": None,
        "revision": None,
    }
    tensors = {
        f"base_model.model.{_module(target, layer)}.lora_{factor}.weight": np.ascontiguousarray(
            stacked[layer].T, np.float32
        )
        for target, factors in adapter.expert.items()
        for factor, stacked in (("A", factors["a"]), ("B", factors["b"]))
        for layer in range(len(stacked))
    }
    files = [folder / CONFIG_NAME, folder / TENSORS_NAME]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with whole_file(files[1]) as stream:
            stream.write(safetensors.numpy.save(tensors, metadata={"format": "pt"}))
        with whole_file(files[0]) as stream:
            stream.write((json.dumps(content, indent=2, sort_keys=True) + "\n").encode())
    except OSError as error:
        raise UserError(f"cannot write the adapter to {folder}: {one_line(error)}") from error
    return files


def read_adapter(folder: Path, config: DecoderConfig, base: str) -> PeftAdapter:
    """Reads an adapter and checks it against the decoder that it is meant for.

    Args:
      folder: holds adapter_config.json and adapter_model.safetensors (F32, F16 or BF16).
      config: sizes of the decoder.
      base: the decoder's name, for messages.

    Raises:
      UserError: a file is missing or damaged; the adapter is not a plain LoRA with one rank on all
        layers; a tensor is missing, surplus or misshapen.
    """
    file = folder / CONFIG_NAME
    content = read_object(
        file,
        f"Name the folder that PEFT's save_pretrained wrote, with {CONFIG_NAME} and "
        f"{TENSORS_NAME}.",
    )
    _refuse_what_is_not_plain(content, file)
    rank = content.get("r")
    if type(rank) is not int or rank < 1:
        raise UserError(f"{file}: r is {shortened(rank)}; expected an integer of at least 1")
    alpha = _number(content, "lora_alpha", file)
    if content.get("use_rslora"):
        alpha *= math.sqrt(rank)  # its scale is lora_alpha / sqrt(r)
    dropout = _number(content, "lora_dropout", file, default=0.0)
    if not 0.0 <= dropout < 1.0:
        raise UserError(f"{file}: lora_dropout is {dropout}; expected at least 0 and below 1")
    trained_in = content.get("base_model_name_or_path") or ""
    if not isinstance(trained_in, str):
        raise UserError(
            f"{file}: base_model_name_or_path is {shortened(trained_in)}; expected a name"
        )
    tensors = _places(_open_tensors(folder), config, base)
    targets = _targets(content.get("target_modules"), tensors)
    if not targets:
        raise UserError(
            f"{folder / TENSORS_NAME}: holds no LoRA factors of {', '.join(TARGETS)}, the "
            "projections that can be adapted here"
        )
    _refuse_missing(tensors, targets, config, base, folder / TENSORS_NAME)
    sizes = projection_sizes(config)
    expert = {}
    for target in targets:
        inputs, outputs = sizes[target]
        shapes = {"A": (rank, inputs), "B": (outputs, rank)}
        stacked = {}
        for factor, shape in shapes.items():
            layers = [tensors[target, layer, factor] for layer in range(config.layers)]
            for tensor in layers:
                _check_shape(tensor, shape, "AB".index(factor), base, trained_in)
            decoded = [tensor.read().astype(np.float32).T for tensor in layers]
            stacked[factor.lower()] = np.stack(decoded)
        expert[target] = stacked
    return PeftAdapter(trained_in, rank, alpha, dropout, expert)


def trained_lora(
    workdir: Path, evaluator: Evaluator, stream: StreamState, expert: str | None
) -> Factors:
    """The one LoRA that answers in a workdir, of the scale lora_alpha / r of the run.

    Args:
      workdir: names the run in messages.
      evaluator: model, method and tasks of the workdir.
      stream: its finished tasks.
      expert: which expert, named as for `export_peft`; or None.

    Returns:
      `{projection: {"a": [L, I, r], "b": [L, r, O]}}` in float32, r of all LoRAs together.

    Raises:
      UserError: as `export_peft`.
    """
    method, finished = evaluator.method, stream.answering
    traits = method.traits
    trained, mixed = f"{workdir} was trained with {method.name}", len(traits.experts) > 1
    of_tasks = finished if traits.expert_per_task and traits.trains else []
    names = [*([SHARED] if mixed else []), *of_tasks]
    if traits.no_single_lora and (expert is None or not names):
        alone = (
            f", or export one expert alone by --expert, one of {', '.join(names)}; alone it is not "
            "the model that was trained"
        )
        raise UserError(
            f"{trained} and cannot be merged or exported as one LoRA: {traits.no_single_lora}. "
            f"Use it with 'moecl generate' or 'moecl predict'{alone if names else ''}"
        )
    if expert is None and len(names) > 1:
        raise UserError(
            f"{trained}, which has an expert a task; name one by --expert, one of "
            f"{', '.join(names)}"
        )
    if expert is not None and not names:
        raise UserError(f"--expert={expert}: {trained}, which has one expert; leave --expert out")
    if expert is not None and expert not in names:
        raise UserError(f"--expert={expert} is not one of {', '.join(names)} (finished tasks)")
    if mixed:
        reporting.current().message(
            f"note: the expert {expert!r} alone is not the model that was trained, in which a gate "
            "mixes it with another for each token"
        )
    named = finished[-1] if expert in (None, SHARED) else expert
    own = evaluator.starting.answering(stream, named)
    assert own is not None  # it is one of those that answer
    layers = method.adapter(TaskParameters(stream.shared, own.expert, own.head, stream.memory))
    chosen: Expert = layers[SHARED if expert == SHARED else traits.experts[-1]]
    return _without_unused_rank(jax.tree.map(np.asarray, dict(chosen)), method.lora.rank)


def _without_unused_rank(expert: Factors, rank: int) -> Factors:
    """A LoRA wider than `rank` less the columns whose B is zero, as those of tasks to come."""
    width = next(iter(expert.values()))["b"].shape[1]
    used = np.any([np.any(factors["b"], axis=(0, 2)) for factors in expert.values()], axis=0)
    if width == rank or not used.any():
        return expert
    return {
        target: {"a": factors["a"][:, :, used], "b": factors["b"][:, used]}
        for target, factors in expert.items()
    }


def _settings(adapter: PeftAdapter, base: Path, task: str, checkpoint: Checkpoint) -> Settings:
    """The default settings with what adapter and base say."""
    defaults = Settings()
    definition = Task(task, source="none", response_field="response")
    stored = {tensor.encoding for tensor in checkpoint.tensors.values()}
    max_length = min(defaults.data.max_length, checkpoint.config.context_length)
    return defaults.changed(
        {
            "method": "sequential_lora",
            "head": "lm",
            "tasks": (task,),
            "definitions": {task: definition.to_fields()},
            "model": {
                "path": str(base.absolute()),
                "dtype": "bfloat16" if stored == {"BF16"} else "float32",
            },
            "lora": {
                "rank": adapter.rank,
                "alpha": adapter.lora_alpha,
                "dropout": adapter.dropout,
                "targets": tuple(adapter.expert),
            },
            "data": {
                "max_length": max_length,
                "max_response": min(defaults.data.max_response, max_length // 2),
            },
        }
    )


def _module(target: str, layer: int) -> str:
    """Path of a projection in a Hugging Face decoder."""
    return f"model.layers.{layer}.{_block(target)}.{target}"


def _block(target: str) -> str:
    return "self_attn" if target in ATTENTION_TARGETS else "mlp"


def _refuse_what_is_not_plain(content: Mapping[str, Any], file: Path) -> None:
    """Raises a UserError at the first setting that makes the adapter more than B A x."""
    kind, purpose = content.get("peft_type"), content.get("task_type")
    if kind != "LORA":
        raise UserError(
            f"{file}: peft_type is {shortened(kind)}; only LORA can be converted. {_MERGE}."
        )
    if purpose not in (None, "CAUSAL_LM"):
        raise UserError(
            f"{file}: task_type is {shortened(purpose)}; expected CAUSAL_LM: other adapters bring "
            "a head of their own or belong to another kind of model"
        )
    for key, value in content.items():
        if key in _WITHOUT_EFFECT or (key in _READ and key not in ("bias", "init_lora_weights")):
            continue
        plain = not value or (key == "bias" and value == "none")
        if key == "init_lora_weights":
            plain = value in _PLAIN_BEGINNINGS
        if not plain:
            named = repr(key[:80])[1:-1]
            raise UserError(
                f"{file}: {named} is {json.dumps(value)[:80]}, and only a plain LoRA, B A x beside "
                f"unchanged weights, can be converted. {_MERGE}, or train a LoRA without {named}."
            )


def _number(
    content: Mapping[str, Any], key: str, file: Path, default: float | None = None
) -> float:
    value = content.get(key, default)
    if type(value) not in (int, float) or not abs(value) < _HUGE:
        raise UserError(f"{file}: {key} is {shortened(value)}; expected a number below {_HUGE:g}")
    return float(value)


def _open_tensors(folder: Path) -> dict[str, StoredTensor]:
    file = folder / TENSORS_NAME
    if os.path.lexists(file):
        return open_safetensors(file)
    if (folder / PICKLED_NAME).exists():
        raise UserError(
            f"{folder / PICKLED_NAME} is a pickle, which can run code and is never read; write it "
            "as safetensors where you trust it: PeftModel.from_pretrained(model, folder)"
            ".save_pretrained(new_folder, safe_serialization=True)"
        )
    raise UserError(f"{file} does not exist; copy it to where {CONFIG_NAME} is")


def _places(
    tensors: Mapping[str, StoredTensor], config: DecoderConfig, base: str
) -> dict[_Place, StoredTensor]:
    """Each tensor at its projection, layer and factor; none may be left over."""
    placed: dict[_Place, StoredTensor] = {}
    for name, tensor in tensors.items():
        match = _TENSOR_NAME.fullmatch(name)
        if match is None or match["module"] != _block(match["target"]):
            raise UserError(
                f"{tensor.file}: tensor {shortened(name, 200)} has no place here; expected LoRA "
                f"factors of {', '.join(TARGETS)} only, as base_model.model.{_module('q_proj', 0)}"
                f".lora_A.weight. {_MERGE}, or train a LoRA on these projections alone."
            )
        place = (match["target"], int(match["layer"]), match["factor"])
        if place[1] >= config.layers:
            raise UserError(
                f"{tensor.file}: tensor {name!r} belongs to layer {place[1]}, and {base} has "
                f"{config.layers} layers, counted from 0. Name the base that the adapter was "
                "trained in."
            )
        if place in placed:
            raise UserError(f"{tensor.file}: {placed[place].name!r} and {name!r} are the same one")
        placed[place] = tensor
    return placed


def _targets(declared: Any, tensors: Iterable[_Place]) -> list[str]:
    """Adapted projections: those that have tensors, and those of a list of names.

    A regular expression or "all-linear" is resolved by the tensors alone.
    """
    found = {target for target, _, _ in tensors}
    if isinstance(declared, list):
        found |= {name.rpartition(".")[2] for name in declared if isinstance(name, str)}
    return [target for target in TARGETS if target in found]


def _refuse_missing(
    tensors: Mapping[_Place, StoredTensor],
    targets: Iterable[str],
    config: DecoderConfig,
    base: str,
    file: Path,
) -> None:
    for target in targets:
        missing = [
            (layer, factor)
            for layer in range(config.layers)
            for factor in "AB"
            if (target, layer, factor) not in tensors
        ]
        if missing:
            layer, factor = missing[0]
            more = f" (and {len(missing) - 1} more of {target})" if len(missing) > 1 else ""
            raise UserError(
                f"{file}: tensor 'base_model.model.{_module(target, layer)}"
                f".lora_{factor}.weight'{more} is missing. Each adapted projection needs both "
                f"factors in all {config.layers} layers of {base}. Name the base that the adapter "
                "was trained in; one on some layers only (layers_to_transform) cannot be "
                f"converted. {_MERGE}."
            )


def _check_shape(
    tensor: StoredTensor, shape: tuple[int, int], rank_axis: int, base: str, trained_in: str
) -> None:
    if tensor.shape == shape:
        return
    problem = (
        f"{tensor.file}: tensor {tensor.name!r} has shape {shortened(list(tensor.shape))}, "
        f"expected {list(shape)}"
    )
    if len(tensor.shape) == 2 and tensor.shape[1 - rank_axis] == shape[1 - rank_axis]:
        raise UserError(
            f"{problem} for r = {shape[rank_axis]} of {CONFIG_NAME}. All projections must have "
            f"this rank. {_MERGE}."
        )
    said = f" (it says {shortened(trained_in)})" if trained_in else ""
    raise UserError(
        f"{problem} for {base}: the adapter was trained in another base{said}. Name that one."
    )
