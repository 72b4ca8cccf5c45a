"""A run on disk: the folder that a training writes (its workdir), and what can be read from it.

Here belong the names of a workdir's files, its checkpoints and lock, the log of its metrics, its
results with their tables and plot, and resuming from it. What is trained and how is not known here
(methods/, training/), nor how several runs are compared (report/).

names.py, tables.py, results.py, metrics.py and progress.py import no JAX, so that a command that
only reads finished runs starts at once.
"""
