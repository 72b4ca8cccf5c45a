"""A run on disk and what it says: checkpoints, resuming, logs, the workdir's files, reporting."""
