"""PEFT adapters into and out of workdirs; `weights.peft` knows their files."""

import math
import sys
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from moecl_jax.config.default import get_config
from moecl_jax.config.experiment import Experiment, build
from moecl_jax.data.task import Task
from moecl_jax.errors import UserError
from moecl_jax.interchange.peft import PeftAdapter, read_adapter, write_adapter
from moecl_jax.methods.state import Finished, Stream
from moecl_jax.models.lora import Expert
from moecl_jax.runs.checkpoint import TaskCheckpoints
from moecl_jax.runs.resume import History, restore_stream, save_finished
from moecl_jax.runs.workdir import Origin, load_config, new_workdir, note_other_base, save_config
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
    config = load_config(workdir)
    experiment = build(config)
    stream, history = restore_stream(experiment, TaskCheckpoints(workdir))
    if history is None:
        raise UserError(f"{workdir} holds no finished task yet; train it with 'moecl train'")
    chosen = _choose_expert(workdir, experiment, stream, expert)
    if experiment.learner.head == "classification":
        print(
            "note: the classification heads are left out, as a PEFT LoRA has no place for them; "
            "the adapter gives the hidden states that they read",
            file=sys.stderr,
        )
    settings = experiment.learner.method.settings
    whole: _Factors = jax.tree.map(np.asarray, dict(chosen))
    factors = _without_unused_rank(whole, settings.rank)
    rank = next(iter(factors.values()))["a"].shape[2]
    alpha = settings.lora_alpha * rank / settings.rank  # the scale alpha / rank is the run's
    adapter = PeftAdapter(config.model.path, rank, alpha, settings.dropout, factors)
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
        config = _config(lora, base, task, checkpoint)
        experiment = build(config)
        shared = {"expert": jax.tree.map(jnp.asarray, lora.expert)}
        stream = Stream(shared, {task: Finished({}, {})})
        history = History([math.nan], validation=[None], converted=1)
        history.append_unknown_row()
        save_finished(experiment, TaskCheckpoints(beside), stream, history)
        Origin(settings={}, tasks=[task], finished=1, dtypes={}).save(beside)
        save_config(config, beside)
    if lora.base and Path(lora.base).name != base.name:
        note_other_base(lora.base, base)


def _choose_expert(
    workdir: Path, experiment: Experiment, stream: Stream, expert: str | None
) -> Expert:
    method, finished = experiment.learner.method, list(stream.finished)
    trained, mixed = f"{workdir} was trained with {method.name}", len(method.experts) > 1
    names = [*([SHARED] if mixed else []), *(finished if method.separate else [])]
    if method.no_single_lora and (expert is None or not names):
        alone = (
            f", or export one expert alone by --expert, one of {', '.join(names)}; alone it is not "
            "the model that was trained"
        )
        raise UserError(
            f"{trained} and cannot be merged or exported as one LoRA: {method.no_single_lora}. "
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
        print(
            f"note: the expert {expert!r} alone is not the model that was trained, in which a gate "
            "mixes it with another for each token",
            file=sys.stderr,
        )
    task = finished[-1] if expert in (None, SHARED) else expert
    layers = method.adapter(stream.shared, stream.finished[task].expert, stream.memory)
    of_task: str = method.experts[-1]
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


def _config(adapter: PeftAdapter, base: Path, task: str, checkpoint: Checkpoint) -> ConfigDict:
    """The default config with what adapter and base say."""
    config = get_config()
    definition = Task(name=task, source="none", response_field="response")
    config.method, config.head, config.tasks = "sequential_lora", "lm", (task,)
    config.definitions[task] = ConfigDict(definition.to_fields())
    stored = {tensor.encoding for tensor in checkpoint.tensors.values()}
    config.model.path = str(base.absolute())
    config.model.dtype = "bfloat16" if stored == {"BF16"} else "float32"
    config.lora.rank, config.lora.alpha = adapter.rank, adapter.lora_alpha
    config.lora.dropout, config.lora.targets = adapter.dropout, tuple(adapter.expert)
    config.data.max_length = min(config.data.max_length, checkpoint.config.context_length)
    config.data.max_response = min(config.data.max_response, config.data.max_length // 2)
    return config.lock()
