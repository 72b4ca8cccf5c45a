"""A run and its workdir: settings, checkpoints, what was measured, logs and locks.

Here belong all settings of a run (`settings`), where a stream's state and history are kept (`store`
on `checkpoint`, or in memory), what a workdir holds beside that (`workdir`, `log`), and the results
with their metrics as numbers, text and pictures (`results`, `metrics`, `classification`, `tables`).
How parameters are trained or answer does not belong here. `names`, `results`, `metrics`,
`classification` and `tables` import no JAX, so that finished runs are read at once.
"""
