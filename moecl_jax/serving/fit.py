"""Whether a model, a method, tasks and settings fit together, and what the labels' texts are."""

from collections.abc import Sequence

import numpy as np

from moecl_jax.data.task import Task
from moecl_jax.data.tokenize import tokenize_answers
from moecl_jax.errors import UserError
from moecl_jax.methods.base import Method
from moecl_jax.models.lora import ATTENTION_TARGETS
from moecl_jax.models.model import Model
from moecl_jax.runs.settings import Settings


def check_fit(model: Model, method: Method, tasks: Sequence[Task], settings: Settings) -> None:
    """Refuses settings that do not fit the model, the method or the tasks.

    Raises:
      UserError: says which setting, and what would fit.
    """
    data = settings.data
    sizes = model.sizes
    if method.lora.rank > min(sizes.width, sizes.ffn_width):
        raise UserError(
            f"config: lora.rank = {method.lora.rank} exceeds the model's width of "
            f"{min(sizes.width, sizes.ffn_width)}, above which a rank adds nothing; lower it"
        )
    if settings.shared_head:
        _check_shared_head(settings.head, tasks)
    if data.max_length > model.sizes.context_length:
        raise UserError(
            f"config: data.max_length = {data.max_length} exceeds the "
            f"{model.sizes.context_length} positions that {model.source} was trained on; lower it"
        )
    if any(task.free_form for task in tasks) and data.max_response >= data.max_length:
        raise UserError(
            f"config: data.max_response = {data.max_response} leaves no room for a prompt in "
            f"data.max_length = {data.max_length} tokens; lower the first or raise the other"
        )
    free_form = [task.name for task in tasks if task.free_form]
    if method.traits.votes and free_form:
        raise UserError(
            f"config: method = '{method.name}' votes for labels, and the task '{free_form[0]}' "
            "answers in free text; 'few_shot' shows the nearest examples to the model in its place"
        )
    _check_output(method, settings.head, settings.shared_head)
    on_attention = [name for name in method.lora.targets if name in ATTENTION_TARGETS]
    if method.traits.reads_moments and on_attention:
        raise UserError(
            f"config: method = '{method.name}' needs second moments of the projections' inputs, "
            "which are measured in the FFN alone; leave "
            f"{', '.join(on_attention)} out of lora.targets"
        )
    if model.quantization != "none" and method.traits.trains_llm:
        raise UserError(
            f"config: method = '{method.name}' trains the LLM's own weights, which cannot be "
            "quantised; set model.quantization = 'none'"
        )


def _check_shared_head(head: str, tasks: Sequence[Task]) -> None:
    if head != "classification":
        raise UserError(f"config: shared_head needs head = 'classification'; it is {head!r}")
    counts = {task.name: len(task.labels) for task in tasks}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{name} has {count}" for name, count in counts.items())
        raise UserError(
            f"config: shared_head needs equally many labels in every task, but {listed}; set "
            "shared_head = False for a head a task"
        )


def _check_output(method: Method, head: str, shared_head: bool) -> None:
    needs = {
        "any": "",
        "shared": "needs an output layer that all tasks share: set head = 'lm', or shared_head = "
        "True",
        "lm": "needs the LLM's own output layer: set head = 'lm'",
    }
    output = method.traits.output
    shares = head == "lm" or (output == "shared" and shared_head)
    if output != "any" and not shares:
        raise UserError(f"config: method = '{method.name}' {needs[output]}")


def label_answers(
    head: str, tasks: Sequence[Task], model: Model
) -> tuple[tuple[np.ndarray, ...], ...]:
    """For each task the ids of its labels' texts where the LM head writes them, else none.

    Raises:
      UserError: the LM head has no tokenizer, or a free-form task no LM head.
    """
    free_form = next((task.name for task in tasks if task.free_form), None)
    if head == "classification":
        if free_form is not None:
            raise UserError(
                f"config: head = 'classification', and task '{free_form}' has a response_field: "
                "its answer is free text, which only head = 'lm' writes"
            )
        return ((),) * len(tasks)
    tokenizer = model.tokenizer
    if tokenizer is None:
        raise UserError(
            f"{model.source} holds no tokenizer, and head = 'lm' writes texts; put its "
            "tokenizer.json there, or set head = 'classification' and give examples as input_ids"
        )
    return tuple(() if task.free_form else tokenize_answers(task, tokenizer) for task in tasks)
