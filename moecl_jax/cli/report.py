"""`moecl report`: writes a page that compares finished runs."""

import argparse

from moecl_jax.cli.command import Command, add_workdirs, path


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_workdirs(parser, "a finished run, or the folder of a sweep; give it once for each")
    parser.add_argument(
        "--output",
        required=True,
        type=path,
        metavar="FILE.html",
        help="the page; FILE.md and FILE.csv are written beside it",
    )
    parser.add_argument(
        "--figures",
        type=path,
        metavar="FOLDER",
        help="gets each picture of the page as PNG and as PDF",
    )


def _run(arguments: argparse.Namespace) -> int:
    from moecl_jax.report import report

    files = report(arguments.workdir, arguments.output, arguments.figures)
    print(f"Written: {', '.join(map(str, files[:3]))}")
    if arguments.figures is not None:
        print(f"Pictures: {len(files) - 3} files in {arguments.figures}")
    return 0


COMMAND = Command(
    name="report",
    summary="write a page that compares finished runs, and its table as Markdown and CSV",
    example="moecl report --workdir=runs/sweep --output=runs/sweep/report.html",
    add_arguments=_add_arguments,
    run=_run,
)
