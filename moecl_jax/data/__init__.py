"""Tasks: where they are defined, read, split, tokenised and batched.

What belongs here: all that happens to examples before a model sees them. A `Task` says what is
asked and where the examples lie; `guess_task` guesses one from files. `sources` read the examples,
`load_examples` cleans them and keeps the splits apart, and `survey` says all that is wrong with
them. `tokenize_task` makes token ids of them; `make_batch` lays them out in rows. Which examples of
other tasks join a batch is an `ExamplePolicy`. All of it is plain Python and NumPy.

What does not: parameters, losses and compiled steps, which see batches only; the config, out of
which this room gets arguments; and the metrics, which see answers.
"""

from moecl_jax.data.batching import (
    Batch,
    BatchLayout,
    chunks,
    epoch_order,
    make_batch,
    make_mixed_batch,
)
from moecl_jax.data.catalog import CATALOG
from moecl_jax.data.examples import Example, TaskExamples, load_examples
from moecl_jax.data.rehearsal import (
    AllTasks,
    ClassBalanced,
    ExamplePolicy,
    PastTask,
    Reservoir,
    with_response,
)
from moecl_jax.data.sources import SOURCES, BadExample, NoOptions, Record, Source
from moecl_jax.data.task import SPLITS, Task
from moecl_jax.data.tokenize import (
    TokenizedExample,
    TokenizedTask,
    prompt_format,
    tokenize_answers,
    tokenize_task,
)

__all__ = [
    "CATALOG",
    "SOURCES",
    "SPLITS",
    "AllTasks",
    "BadExample",
    "Batch",
    "BatchLayout",
    "ClassBalanced",
    "Example",
    "ExamplePolicy",
    "NoOptions",
    "PastTask",
    "Record",
    "Reservoir",
    "Source",
    "Task",
    "TaskExamples",
    "TokenizedExample",
    "TokenizedTask",
    "chunks",
    "epoch_order",
    "load_examples",
    "make_batch",
    "make_mixed_batch",
    "prompt_format",
    "tokenize_answers",
    "tokenize_task",
    "with_response",
]
