"""`moecl export`: writes a workdir in another program's format."""

import argparse

from moecl_jax.cli.command import Command, add_workdir, path
from moecl_jax.errors import UserError


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_workdir(parser, "a workdir whose tasks are all trained")
    parser.add_argument(
        "--format",
        required=True,
        choices=("official", "safetensors", "peft", "huggingface"),
        help="official: PREFIX.bin and PREFIX.json of the original implementation (needs torch); "
        "safetensors: the same tensors in PREFIX.safetensors; peft: a folder for PEFT, which takes "
        "a single LoRA; huggingface: a folder with that LoRA merged into the LLM's weights",
    )
    parser.add_argument(
        "--output", required=True, type=path, metavar="PATH", help="the PREFIX or folder to write"
    )
    parser.add_argument(
        "--expert",
        metavar="NAME",
        help="peft, huggingface: which one of several experts to write: a task's name or, for "
        "moe_cl, 'shared'",
    )


def _run(arguments: argparse.Namespace) -> int:
    if arguments.format == "peft":
        from moecl_jax.interchange.peft import export_peft

        files = export_peft(arguments.workdir, arguments.output, expert=arguments.expert)
    elif arguments.format == "huggingface":
        from moecl_jax.interchange.merged import export_merged

        files = export_merged(arguments.workdir, arguments.output, expert=arguments.expert)
    elif arguments.expert is not None:
        raise UserError(
            f"--expert is of --format=peft and huggingface; {arguments.format} has all experts"
        )
    else:
        from moecl_jax.interchange.official import export_official

        files = export_official(arguments.workdir, arguments.format, arguments.output)
    print(f"Written: {', '.join(map(str, files))}")
    return 0


COMMAND = Command(
    name="export",
    summary="write a workdir in another program's format",
    example="moecl export --workdir=runs/amazon --format=official "
    "--output=exported/amazon_finetuned",
    add_arguments=_add_arguments,
    run=_run,
)
