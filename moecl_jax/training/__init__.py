"""Everything that changes parameters: the train step, a task's training, a stream's training.

`steps` are pure functions, compiled once a batch shape; `task_training` runs the epochs of one
task; the `Trainer` runs a stream and gives a session with its results. How examples are scored or
answers written belongs to `serving`, what a method adds to the loss to `methods`.
"""
