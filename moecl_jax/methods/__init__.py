"""Continual-learning methods by name; to add one, write its file and list it here."""

from moecl_jax.methods.base import Method, MethodSettings
from moecl_jax.methods.moe_cl import MoeCl
from moecl_jax.methods.per_task import PerTask
from moecl_jax.methods.sequential_lora import SequentialLora

METHODS: dict[str, type[Method]] = {
    method.name: method for method in (MoeCl, PerTask, SequentialLora)
}

__all__ = ["METHODS", "Method", "MethodSettings"]
