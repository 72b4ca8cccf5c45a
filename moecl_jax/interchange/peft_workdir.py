"""PEFT adapters into and out of workdirs; `weights.peft` knows their files."""

import math
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from moecl_jax import reporting
from moecl_jax.data.task import Task
from moecl_jax.errors import UserError
from moecl_jax.interchange.peft import PeftAdapter, read_adapter, write_adapter
from moecl_jax.methods import TaskParameters
from moecl_jax.methods.stream import FinishedTask, StreamState
from moecl_jax.models.lora import Expert
from moecl_jax.runs.history import History
from moecl_jax.runs.settings import Settings
from moecl_jax.runs.store import DiskStore
from moecl_jax.runs.workdir import Origin, new_workdir, note_other_base, save_settings
from moecl_jax.serving.evaluator import Evaluator
from moecl_jax.serving.session import model_of, open_stream
from moecl_jax.weights import Checkpoint, huggingface

SHARED = "shared"
"""Names the shared expert where others are named by their task."""

_Factors = Mapping[str, Mapping[str, np.ndarray]]


def export_peft(workdir: Path, output: Path, *, expert: str | None = None) -> list[Path]:
    """Writes one expert of a trained workdir as a PEFT adapter.

    Classification heads are no part of it; what is left out is said on standard error.

    Args:
      workdir: of a training.
      output: folder for the adapter.
      expert: of a method with an expert a task, which one: a finished task's name, or "shared" for
        the one that MoE-CL mixes with it.

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
    chosen = _choose_expert(workdir, evaluator, stream, expert)
    if evaluator.settings.head == "classification":
        reporting.current().message(
            "note: the classification heads are left out, as a PEFT LoRA has no place for them; "
            "the adapter gives the hidden states that they read"
        )
    lora = evaluator.method.lora
    whole: _Factors = jax.tree.map(np.asarray, dict(chosen))
    factors = _without_unused_rank(whole, lora.rank)
    rank = next(iter(factors.values()))["a"].shape[2]
    alpha = lora.alpha * rank / lora.rank  # the scale alpha / rank is the run's
    base = evaluator.settings.model.path
    adapter = PeftAdapter(base, rank, alpha, lora.dropout, factors)
    return write_adapter(adapter, output)


def convert_peft(base: Path, adapter: Path, workdir: Path, *, task: str = "adapter") -> None:
    """Makes a workdir of a PEFT adapter: that of a sequential LoRA after one task.

    Args:
      base: Hugging Face folder of the model that it was trained in.
      adapter: folder of the adapter.
      workdir: must not exist, or be empty; is written whole or not at all.
      task: names the finished task; of its data nothing is known.

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


def _choose_expert(
    workdir: Path, evaluator: Evaluator, stream: StreamState, expert: str | None
) -> Expert:
    method, finished = evaluator.method, list(stream.finished)
    traits = method.traits
    trained, mixed = f"{workdir} was trained with {method.name}", len(traits.experts) > 1
    names = [*([SHARED] if mixed else []), *(finished if traits.expert_per_task else [])]
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
    task = finished[-1] if expert in (None, SHARED) else expert
    own = stream.finished[task]
    layers = method.adapter(TaskParameters(stream.shared, own.expert, own.head, stream.memory))
    of_task = traits.experts[-1]
    chosen: Expert = layers[SHARED if expert == SHARED else of_task]
    return chosen


def _without_unused_rank(expert: _Factors, rank: int) -> _Factors:
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
