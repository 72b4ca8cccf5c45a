"""Continual instruction tuning with a mixture of LoRA experts (MoE-CL) on JAX and Flax.

    import moecl_jax as mj

    model = mj.load_model("smollm2-135m")
    session = mj.Trainer(model, "moe_cl", epochs=2).fit([mj.Task("spam", train=[...], test=[...])])
    session.predict(["Win a prize now"])

Nothing is imported before it is used: `import moecl_jax` does not start JAX.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moecl_jax.data.rehearsal import AllTasks, ClassBalanced, ExamplePolicy, Reservoir
    from moecl_jax.data.sources import Source
    from moecl_jax.data.task import Task
    from moecl_jax.errors import UserError
    from moecl_jax.methods import (
        METHODS,
        Asked,
        Method,
        Penalty,
        Preceding,
        TaskEnd,
        TaskStart,
        Traits,
        register,
    )
    from moecl_jax.methods.ewc import Ewc
    from moecl_jax.methods.few_shot import FewShot
    from moecl_jax.methods.gain_lora import GainLora
    from moecl_jax.methods.inf_lora import InfLora
    from moecl_jax.methods.joint import Joint
    from moecl_jax.methods.knn import Knn
    from moecl_jax.methods.lwf import Lwf
    from moecl_jax.methods.mocl import Mocl
    from moecl_jax.methods.moe_cl import MoeCl
    from moecl_jax.methods.n_lora import NLora
    from moecl_jax.methods.o_lora import OLora
    from moecl_jax.methods.parameters import TaskParameters
    from moecl_jax.methods.per_task import PerTask
    from moecl_jax.methods.replay import Replay
    from moecl_jax.methods.retrieval import Retrieval
    from moecl_jax.methods.sequential_full import SequentialFull
    from moecl_jax.methods.sequential_lora import SequentialLora
    from moecl_jax.methods.slao import Slao
    from moecl_jax.methods.zero_shot import ZeroShot
    from moecl_jax.models.model import Model
    from moecl_jax.models.settings import Lora
    from moecl_jax.runs.results import Results
    from moecl_jax.runs.settings import Settings
    from moecl_jax.runs.undo import remove, rollback
    from moecl_jax.serving.generation import Sampling
    from moecl_jax.serving.rag import Answer, Rag, rag_query
    from moecl_jax.serving.session import Prediction, Session, open_run
    from moecl_jax.training.distilling import distil
    from moecl_jax.training.trainer import Trainer
    from moecl_jax.weights.families import Family
    from moecl_jax.weights.load import load_model

__version__ = "0.2.0"

_HOMES = {
    "data.rehearsal": ("AllTasks", "ClassBalanced", "ExamplePolicy", "Reservoir"),
    "data.sources": ("Source",),
    "data.task": ("Task",),
    "errors": ("UserError",),
    "methods": (
        "METHODS",
        "Asked",
        "Method",
        "Penalty",
        "Preceding",
        "TaskEnd",
        "TaskStart",
        "Traits",
        "register",
    ),
    "methods.ewc": ("Ewc",),
    "methods.few_shot": ("FewShot",),
    "methods.gain_lora": ("GainLora",),
    "methods.inf_lora": ("InfLora",),
    "methods.joint": ("Joint",),
    "methods.knn": ("Knn",),
    "methods.lwf": ("Lwf",),
    "methods.mocl": ("Mocl",),
    "methods.moe_cl": ("MoeCl",),
    "methods.n_lora": ("NLora",),
    "methods.o_lora": ("OLora",),
    "methods.parameters": ("TaskParameters",),
    "methods.per_task": ("PerTask",),
    "methods.replay": ("Replay",),
    "methods.retrieval": ("Retrieval",),
    "methods.sequential_full": ("SequentialFull",),
    "methods.sequential_lora": ("SequentialLora",),
    "methods.slao": ("Slao",),
    "methods.zero_shot": ("ZeroShot",),
    "models.model": ("Model",),
    "models.settings": ("Lora",),
    "runs.results": ("Results",),
    "runs.settings": ("Settings",),
    "runs.undo": ("remove", "rollback"),
    "serving.generation": ("Sampling",),
    "serving.rag": ("Answer", "Rag", "rag_query"),
    "serving.session": ("Prediction", "Session", "open_run"),
    "training.distilling": ("distil",),
    "training.trainer": ("Trainer",),
    "weights.families": ("Family",),
    "weights.load": ("load_model",),
}
_MODULE_OF = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """A public name, imported when it is first used."""
    import importlib

    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULE_OF})


__all__ = [
    "METHODS",
    "AllTasks",
    "Answer",
    "Asked",
    "ClassBalanced",
    "Ewc",
    "ExamplePolicy",
    "Family",
    "FewShot",
    "GainLora",
    "InfLora",
    "Joint",
    "Knn",
    "Lora",
    "Lwf",
    "Method",
    "Mocl",
    "Model",
    "MoeCl",
    "NLora",
    "OLora",
    "Penalty",
    "PerTask",
    "Preceding",
    "Prediction",
    "Rag",
    "Replay",
    "Reservoir",
    "Results",
    "Retrieval",
    "Sampling",
    "SequentialFull",
    "SequentialLora",
    "Session",
    "Settings",
    "Slao",
    "Source",
    "Task",
    "TaskEnd",
    "TaskParameters",
    "TaskStart",
    "Trainer",
    "Traits",
    "UserError",
    "ZeroShot",
    "__version__",
    "distil",
    "load_model",
    "open_run",
    "rag_query",
    "register",
    "remove",
    "rollback",
]
