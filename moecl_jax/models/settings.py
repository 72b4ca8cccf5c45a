"""Settings of the frozen model and of the mesh of devices."""

import dataclasses
from typing import ClassVar

from moecl_jax.models.lora import FFN_TARGETS, TARGETS
from moecl_jax.settings import Section, setting


@dataclasses.dataclass(frozen=True)
class ModelSettings(Section):
    """How the frozen LLM is loaded and computed.

    Attributes:
      path: a Hugging Face folder, a .gguf file, a hub name that is in the local cache, or a model
        in Python packages, smollm2-135m or gemma3-270m.
      family: empty to go by the model's own files; else "package.module:Class", a model family
        from outside the package.
      dtype: type of the frozen weights and of activations, bfloat16 or float32.
      quantization: how the frozen layers' matrices are stored: none, int8 or int4, with a scale for
        each group of 32 weights. It saves memory and costs some accuracy.
      remat: what the backward pass computes again: none (nothing: most memory, and slow on a CPU),
        projections (all but the frozen projections and the experts' first products) or full (all
        but the layers' inputs). auto is projections on a CPU and full on accelerators.
      attention: what computes attention: xla; cudnn, on NVIDIA GPUs in bfloat16; or splash, on one
        TPU and in training alone. All give the same values within rounding.
    """

    KEY: ClassVar[str] = "model"
    path: str = "smollm2-135m"
    family: str = ""
    dtype: str = setting("bfloat16", choices=("bfloat16", "float32"))
    quantization: str = setting("none", choices=("none", "int8", "int4"))
    remat: str = setting("auto", choices=("auto", "none", "full", "projections"))
    attention: str = setting("xla", choices=("xla", "cudnn", "splash"))


@dataclasses.dataclass(frozen=True)
class MeshSettings(Section):
    """The mesh of devices.

    Rows of a batch are split over data and fsdp, matrices over fsdp and tensor. The product of the
    three is the number of devices, or 1 to use one of them.

    Attributes:
      data: size of the axis that splits a batch; -1 takes the devices that the others leave.
      fsdp: size of the axis that splits batches and matrices; -1 likewise.
      tensor: size of the axis that splits matrices; -1 likewise.
    """

    KEY: ClassVar[str] = "mesh"
    data: int = setting(1, least=-1, most=2**20)
    fsdp: int = setting(1, least=-1, most=2**20)
    tensor: int = setting(1, least=-1, most=2**20)


@dataclasses.dataclass(frozen=True)
class Lora(Section):
    """The low-rank experts.

    Attributes:
      rank: rank r of every expert, at most the width of the model.
      alpha: lora_alpha; an expert's output is scaled by alpha / rank.
      dropout: dropout rate on the inputs of A.
      targets: projections that experts adapt, at least one in a run. On attention's (q_proj,
        k_proj, v_proj, o_proj) the experts' terms are added without a gate.
      task_attention: whether a task's own expert adapts attention too, or the shared one alone, as
        in the original code.
    """

    KEY: ClassVar[str] = "lora"
    rank: int = setting(8, least=1, most=2**16)
    alpha: float = setting(16.0, above=0, most=1e6)
    dropout: float = setting(0.05, least=0.0, below=1, by_task=True)
    targets: tuple[str, ...] = setting(FFN_TARGETS, choices=TARGETS)
    task_attention: bool = True

    @property
    def scale(self) -> float:
        """The factor of an expert's output, alpha / rank."""
        return self.alpha / self.rank
