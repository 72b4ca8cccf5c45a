"""`moecl convert`: makes a workdir of a foreign checkpoint."""

import argparse

from moecl_jax.cli.command import Command, add_workdir, path
from moecl_jax.errors import UserError


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("format", choices=("official", "peft"), help="the format of the adapter")
    parser.add_argument(
        "--base",
        required=True,
        type=path,
        metavar="DIR",
        help="the Hugging Face folder of the model that the checkpoint was trained on",
    )
    parser.add_argument(
        "--adapter",
        required=True,
        type=path,
        metavar="PATH",
        help="official: PREFIX of PREFIX.bin, or else PREFIX.safetensors, with PREFIX.json beside "
        "it; peft: the folder of adapter_config.json and adapter_model.safetensors",
    )
    add_workdir(parser, "the workdir to make")
    parser.add_argument(
        "--tasks",
        default="",
        metavar="NAME,NAME,...",
        help="official: names of the tasks, in the order of their experts, where the checkpoint "
        "has one head for all of them (default: task1,task2,...)",
    )
    parser.add_argument(
        "--continue",
        dest="continue_task",
        metavar="NAME",
        help="official: make this task the last one, to be trained further by 'moecl train'",
    )
    parser.add_argument(
        "--task",
        metavar="NAME",
        help="peft: name of the task that the adapter has learned (default: adapter)",
    )


def _run(arguments: argparse.Namespace) -> int:
    return _of_peft(arguments) if arguments.format == "peft" else _of_official(arguments)


def _of_official(arguments: argparse.Namespace) -> int:
    if arguments.task is not None:
        raise UserError("--task is of 'moecl convert peft'; official has --tasks and --continue")
    from moecl_jax.interchange.official import convert_official

    tasks = convert_official(
        arguments.base,
        arguments.adapter,
        arguments.workdir,
        tasks=[name.strip() for name in arguments.tasks.split(",") if name.strip()],
        continue_task=arguments.continue_task,
    )
    print(f"Converted into {arguments.workdir}, tasks {', '.join(tasks)}")
    if arguments.continue_task:
        config = arguments.workdir / "config.json"
        print(f"Train {tasks[-1]}: moecl train --config={config} --workdir={arguments.workdir}")
    return 0


def _of_peft(arguments: argparse.Namespace) -> int:
    if arguments.tasks or arguments.continue_task:
        raise UserError(
            "--tasks and --continue are of 'moecl convert official'; for peft see --task"
        )
    from moecl_jax.interchange.peft import convert_peft

    task = "adapter" if arguments.task is None else arguments.task
    convert_peft(arguments.base, arguments.adapter, arguments.workdir, task=task)
    print(f"Converted into {arguments.workdir}, task {task}")
    return 0


COMMAND = Command(
    name="convert",
    summary="make a workdir of a checkpoint of the original implementation, or of a PEFT adapter",
    example="moecl convert official --base=llama --adapter=run/amazon_finetuned "
    "--workdir=runs/amazon\n"
    "  moecl convert peft --base=llama --adapter=adapter --workdir=runs/adapter --task=chat",
    add_arguments=_add_arguments,
    run=_run,
)
