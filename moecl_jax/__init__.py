"""Continual instruction tuning with a mixture of LoRA experts (MoE-CL) on JAX and Flax."""

__version__ = "0.1.0"
