"""Continual-learning methods by name; to add one, write its file and list it here."""

from moecl_jax.methods.base import Method, MethodSettings
from moecl_jax.methods.ewc import Ewc
from moecl_jax.methods.joint import Joint
from moecl_jax.methods.lwf import Lwf
from moecl_jax.methods.mocl import Mocl
from moecl_jax.methods.moe_cl import MoeCl
from moecl_jax.methods.o_lora import OLora
from moecl_jax.methods.per_task import PerTask
from moecl_jax.methods.replay import Replay
from moecl_jax.methods.sequential_full import SequentialFull
from moecl_jax.methods.sequential_lora import SequentialLora

_ALL: tuple[type[Method], ...] = (
    MoeCl,
    PerTask,
    SequentialLora,
    SequentialFull,
    Joint,
    OLora,
    Mocl,
    Replay,
    Ewc,
    Lwf,
)
METHODS: dict[str, type[Method]] = {method.name: method for method in _ALL}

__all__ = ["METHODS", "Method", "MethodSettings"]
