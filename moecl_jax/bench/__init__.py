"""Benchmarks that anyone can run, with random weights or a real model.

Here belong measurements of speed and memory, the count of the useful arithmetic (FLOPs) that they
are compared with, and a plan of what a training needs on many chips. The benchmarks call the same
steps, batching and generation as a training does; no code that a training needs is here, and
accuracy is not measured here (training/, report/).

    python -m moecl_jax.bench        speed of training, evaluation, generation and data
    python -m moecl_jax.bench.tasks  cost of a step after 1, 10 and 100 finished tasks
    python -m moecl_jax.bench.plan   memory and time of a training on many chips
    python -m moecl_jax.bench.accelerator   all that a fresh accelerator should be asked, in minutes
    python -m moecl_jax.bench.kernel_check  kernels beside their references on the device

docs/howto/scaling.md explains `plan`, docs/howto/benchmark.md the others.

flops.py    counts useful FLOPs by a formula
gauges.py   measures time, memory and the machine's speed of matrix products
inputs.py   prepares the model, the texts and the batches
parts.py    measures each part: training, evaluation, generation, data
"""
