"""The `moecl` command: parses its arguments and calls one function of the library.

Whatever a subcommand needs is imported when it runs, so that `--help` and mistakes in the arguments
do not wait for JAX.
"""

import argparse
import contextlib
import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import moecl_jax
from moecl_jax.config.file import OVERRIDE, load_config
from moecl_jax.errors import UserError, one_line

_FLAG = re.compile(r"--?[A-Za-z]")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the `moecl` command.

    Args:
      argv: the arguments after the program's name; those of the process by default.

    Returns:
      The exit status: 0 if all went well, 1 after a mistake that the user can mend, which standard
      error then names, 130 after an interrupt.

    Raises:
      SystemExit: after `--help` (status 0) and unknown or missing arguments (status 2).
    """
    parser = _build_parser()
    plain, overrides = _split_overrides(sys.argv[1:] if argv is None else argv)
    arguments = parser.parse_args(plain)
    if overrides and arguments.run not in (_train, _sweep):
        parser.error(f"{overrides[0]}: only 'moecl train' and 'sweep' have a config to override")
    arguments.overrides = overrides
    # transformers would advise each user to install torch, which only its models need.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    try:
        status: int = arguments.run(arguments)
    except UserError as error:
        print(f"moecl: error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        print(f"moecl: error: {place}{error.strerror or one_line(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; run the same command again to resume", file=sys.stderr)
        return 130
    return status


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="moecl",
        description=moecl_jax.__doc__,
        epilog="'moecl COMMAND --help' explains a command and gives an example.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"moecl {moecl_jax.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(name: str, summary: str, example: str) -> argparse.ArgumentParser:
        command = commands.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.",
            epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        command.set_defaults(run=globals()[f"_{name}"])
        return command

    train = add(
        "train",
        "train on a stream of tasks, or resume an interrupted training",
        "moecl train --config=configs/quickstart.py --workdir=runs/first --config.seed=1",
    )
    train.usage = "moecl train --config=FILE --workdir=DIR [--config.KEY=VALUE ...]"
    train.add_argument(
        "--config",
        required=True,
        metavar="FILE",
        help="FILE.py or FILE.py:ARGUMENT, whose get_config(), or get_config(ARGUMENT), returns "
        "the config, or the config.json of a workdir; --config.KEY=VALUE overrides one of its "
        "values (nested: --config.SECTION.KEY=VALUE)",
    )
    _add_workdir(train, "where the run's results, logs and checkpoints are, or will be")
    train.add_argument(
        "--coordinator",
        metavar="HOST:PORT",
        help="train in several processes: the address of the first, or 'auto' under Slurm, on a "
        "TPU pod or in Kubernetes. config.mesh says how their devices share the work",
    )
    train.add_argument("--process", metavar="I/N", help="this is the 0-based I of N processes")

    sweep = add(
        "sweep",
        "train a grid of methods, orders of the tasks and seeds, or go on with it",
        "moecl sweep --config=configs/mtl5_shared_smollm2.py --orders=1,2,3 \\\n"
        "    --methods=sequential_lora,moe_cl,moe_cl:adversarial.objective=off --workdir=runs/grid",
    )
    sweep.usage = (
        "moecl sweep --config=FILE --methods=METHOD,... [--orders=ORDER,...] [--seeds=SEED,...] "
        "--workdir=DIR [--config.KEY=VALUE ...]"
    )
    sweep.add_argument(
        "--config",
        required=True,
        metavar="FILE",
        help="as of 'moecl train'; --config.KEY=VALUE holds for all runs",
    )
    sweep.add_argument(
        "--methods",
        required=True,
        metavar="METHOD,...",
        help="METHOD or METHOD:KEY=VALUE:KEY=VALUE, which is a variant with settings of its own",
    )
    sweep.add_argument(
        "--orders",
        metavar="ORDER,...",
        help="values of order= in the argument of the config file (default: as it is)",
    )
    sweep.add_argument("--seeds", default="0", metavar="SEED,...", help="(default: 0)")
    _add_workdir(sweep, "gets sweep.json and the runs' workdirs, VARIANT/orderORDER_seedSEED")

    evaluate = add(
        "evaluate",
        "score a trained run on all its tasks and print the result as JSON",
        "moecl evaluate --workdir=runs/first --split=test",
    )
    _add_workdir(evaluate, "the trained run")
    evaluate.add_argument("--split", default="test", help="the split to score (default: test)")

    predict = add(
        "predict",
        "label the lines of a JSONL file with one of a run's tasks, or with that of each text",
        "moecl predict --workdir=runs/first --task=NAME --input=texts.jsonl --output=labels.jsonl",
    )
    _add_workdir(predict, "the trained run")
    predict.add_argument(
        "--task",
        metavar="NAME",
        help='the task to apply (default: each text\'s is chosen, and added as "task")',
    )
    predict.add_argument(
        "--input",
        required=True,
        type=Path,
        metavar="FILE.jsonl",
        help='a JSON object a line, with "text" or "input_ids"; anything else in it is copied',
    )
    predict.add_argument(
        "--output",
        required=True,
        type=Path,
        metavar="FILE.jsonl",
        help='gets each object with its "label", "probabilities" and "logits", or with an "error"; '
        "the exit status is 1 if there was an error",
    )

    generate = add(
        "generate",
        "write answers to one text, shown as it is written, or to the lines of a JSONL file",
        "moecl generate --workdir=runs/first --task=NAME --prompt='What does BRB mean?'",
    )
    _add_workdir(generate, "the trained run")
    generate.add_argument("--task", required=True, metavar="NAME", help="the task to apply")
    generate.add_argument("--prompt", metavar="TEXT", help="the text to answer")
    generate.add_argument(
        "--input",
        type=Path,
        metavar="FILE.jsonl",
        help='instead: a JSON object a line, with "text" or "input_ids"',
    )
    generate.add_argument(
        "--output",
        type=Path,
        metavar="FILE.jsonl",
        help='gets each object of --input with its "response", or with an "error"',
    )
    generate.add_argument(
        "--max-tokens", type=int, metavar="N", help="of an answer (default: data.max_response)"
    )
    generate.add_argument(
        "--temperature", type=float, default=0.0, help="0: greedy (the default); above: sampled"
    )
    generate.add_argument("--top-k", type=int, default=0, help="draw from the k likeliest tokens")
    generate.add_argument(
        "--top-p", type=float, default=1.0, help="draw from those that reach this probability"
    )
    generate.add_argument("--seed", type=int, default=0, help="of sampling (default: 0)")
    generate.add_argument(
        "--base",
        action="store_true",
        help="answer with the frozen model alone, as before any training",
    )

    convert = add(
        "convert",
        "make a workdir of a checkpoint of the original implementation, or of a PEFT adapter",
        "moecl convert official --base=llama --adapter=run/amazon_finetuned --workdir=runs/amazon\n"
        "  moecl convert peft --base=llama --adapter=adapter --workdir=runs/adapter --task=chat",
    )
    convert.add_argument("format", choices=("official", "peft"), help="the format of the adapter")
    convert.add_argument(
        "--base",
        required=True,
        type=Path,
        metavar="DIR",
        help="the Hugging Face folder of the model that the checkpoint was trained on",
    )
    convert.add_argument(
        "--adapter",
        required=True,
        type=Path,
        metavar="PATH",
        help="official: PREFIX of PREFIX.bin, or else PREFIX.safetensors, with PREFIX.json beside "
        "it; peft: the folder of adapter_config.json and adapter_model.safetensors",
    )
    _add_workdir(convert, "the workdir to make")
    convert.add_argument(
        "--tasks",
        default="",
        metavar="NAME,NAME,...",
        help="official: names of the tasks, in the order of their experts, where the checkpoint "
        "has one head for all of them (default: task1,task2,...)",
    )
    convert.add_argument(
        "--continue",
        dest="continue_task",
        metavar="NAME",
        help="official: make this task the last one, to be trained further by 'moecl train'",
    )
    convert.add_argument(
        "--task", metavar="NAME", help="peft: name of the task that the adapter has learned"
    )

    export = add(
        "export",
        "write a workdir in another program's format",
        "moecl export --workdir=runs/amazon --format=official --output=exported/amazon_finetuned",
    )
    _add_workdir(export, "a workdir whose tasks are all trained")
    export.add_argument(
        "--format",
        required=True,
        choices=("official", "safetensors", "peft"),
        help="official: PREFIX.bin and PREFIX.json of the original implementation (needs torch); "
        "safetensors: the same tensors in PREFIX.safetensors; peft: a folder for PEFT, which takes "
        "a single LoRA",
    )
    export.add_argument(
        "--output", required=True, type=Path, metavar="PATH", help="the PREFIX or folder to write"
    )
    export.add_argument(
        "--expert",
        metavar="NAME",
        help="peft: of several experts take this one alone, a task's or, of moe_cl, 'shared'",
    )

    compare = add(
        "compare",
        "print the accuracy matrices and metrics of finished runs side by side",
        "moecl compare --workdir=runs/demo/moe_cl --workdir=runs/demo/sequential_lora",
    )
    compare.add_argument(
        "--workdir",
        required=True,
        type=Path,
        action="append",
        metavar="DIR",
        help="a finished run; give it once for each",
    )

    report = add(
        "report",
        "write a page that compares finished runs, and its table as Markdown and CSV",
        "moecl report --workdir=runs/sweep --output=runs/sweep/report.html",
    )
    report.add_argument(
        "--workdir",
        required=True,
        type=Path,
        action="append",
        metavar="DIR",
        help="a finished run, or the folder of a sweep; give it once for each",
    )
    report.add_argument(
        "--output",
        required=True,
        type=Path,
        metavar="FILE.html",
        help="the page; FILE.md and FILE.csv are written beside it",
    )
    return parser


def _add_workdir(parser: argparse.ArgumentParser, help_text: str) -> None:
    parser.add_argument("--workdir", required=True, type=Path, metavar="DIR", help=help_text)


def _train(arguments: argparse.Namespace) -> int:
    config = load_config(arguments.config, arguments.overrides)
    from moecl_jax.models.sharding import first_process, join
    from moecl_jax.runs.names import RESULTS_NAME
    from moecl_jax.runs.results import Results
    from moecl_jax.training.trainer import train

    if arguments.process is not None and arguments.coordinator is None:
        raise UserError("--process needs the --coordinator of all processes")
    if arguments.coordinator is not None:
        join(arguments.coordinator, arguments.process)
    if not first_process():
        with open(os.devnull, "w") as silent, contextlib.redirect_stderr(silent):
            train(config, arguments.workdir)
        return 0
    results = train(config, arguments.workdir)
    print(Results.from_content(results))
    print(f"\nResults: {arguments.workdir / RESULTS_NAME}")
    return 0


def _sweep(arguments: argparse.Namespace) -> int:
    from moecl_jax.config.sweep import Grid, sweep
    from moecl_jax.runs.results import Results
    from moecl_jax.runs.tables import format_comparison

    grid = Grid.parse(
        arguments.config,
        arguments.overrides,
        arguments.methods,
        arguments.orders,
        arguments.seeds,
    )
    workdir = arguments.workdir
    outcome = sweep(grid, workdir)
    runs = [{**Results.load(workdir / run["workdir"]).content, **run} for run in outcome.finished]
    print(format_comparison(runs))
    for failure in outcome.failures:
        print(f"moecl: error: {failure}", file=sys.stderr)
    print(f"\nReport: moecl report --workdir={workdir} --output={workdir / 'report.html'}")
    return 1 if outcome.failures else 0


def _evaluate(arguments: argparse.Namespace) -> int:
    from moecl_jax.runs.progress import plain
    from moecl_jax.serving.session import evaluate

    print(json.dumps(plain(evaluate(arguments.workdir, arguments.split)), indent=2))
    return 0


def _predict(arguments: argparse.Namespace) -> int:
    from moecl_jax.serving.session import predict

    bad_lines = predict(arguments.workdir, arguments.task, arguments.input, arguments.output)
    print(f"Predictions: {arguments.output}; bad lines: {bad_lines}")
    return 1 if bad_lines else 0


def _generate(arguments: argparse.Namespace) -> int:
    from moecl_jax.serving.generation import Sampling
    from moecl_jax.serving.session import generate, stream

    files = (arguments.input, arguments.output)
    if (arguments.prompt is None) == (files == (None, None)) or (None in files and any(files)):
        raise UserError("give either --prompt, or both --input and --output")
    options = {
        "max_tokens": arguments.max_tokens,
        "sampling": Sampling(arguments.temperature, arguments.top_k, arguments.top_p),
        "seed": arguments.seed,
        "base": arguments.base,
    }
    workdir, task = arguments.workdir, arguments.task
    if arguments.prompt is not None:
        for piece in stream(workdir, task, arguments.prompt, **options):
            print(piece, end="", flush=True)
        print()
        return 0
    bad_lines = generate(workdir, task, arguments.input, arguments.output, **options)
    print(f"Answers: {arguments.output}; bad lines: {bad_lines}")
    return 1 if bad_lines else 0


def _convert(arguments: argparse.Namespace) -> int:
    if arguments.format == "peft":
        return _convert_peft(arguments)
    if arguments.task is not None:
        raise UserError("--task is of 'moecl convert peft'; official has --tasks and --continue")
    from moecl_jax.interchange.convert import convert_official
    from moecl_jax.runs.names import CONFIG_NAME

    tasks = convert_official(
        arguments.base,
        arguments.adapter,
        arguments.workdir,
        tasks=[name.strip() for name in arguments.tasks.split(",") if name.strip()],
        continue_task=arguments.continue_task,
    )
    print(f"Converted into {arguments.workdir}, tasks {', '.join(tasks)}")
    if arguments.continue_task:
        config = arguments.workdir / CONFIG_NAME
        print(f"Train {tasks[-1]}: moecl train --config={config} --workdir={arguments.workdir}")
    return 0


def _convert_peft(arguments: argparse.Namespace) -> int:
    if arguments.tasks or arguments.continue_task:
        raise UserError(
            "--tasks and --continue are of 'moecl convert official'; for peft see --task"
        )
    from moecl_jax.interchange.peft_workdir import convert_peft

    task = "adapter" if arguments.task is None else arguments.task
    convert_peft(arguments.base, arguments.adapter, arguments.workdir, task=task)
    print(f"Converted into {arguments.workdir}, task {task}")
    return 0


def _export(arguments: argparse.Namespace) -> int:
    if arguments.format == "peft":
        from moecl_jax.interchange.peft_workdir import export_peft

        files = export_peft(arguments.workdir, arguments.output, expert=arguments.expert)
    elif arguments.expert is not None:
        raise UserError(f"--expert is of --format=peft; {arguments.format} has all experts")
    else:
        from moecl_jax.interchange.export import export

        files = export(arguments.workdir, arguments.format, arguments.output)
    print(f"Written: {', '.join(map(str, files))}")
    return 0


def _compare(arguments: argparse.Namespace) -> int:
    from moecl_jax.runs.results import Results
    from moecl_jax.runs.tables import format_comparison

    runs = [Results.load(workdir) for workdir in arguments.workdir]
    for workdir, results in zip(arguments.workdir, runs, strict=True):
        print(f"{results.method} ({workdir})\n{results}\n")
    print(format_comparison([results.content for results in runs]))
    if any(results.tasks != runs[0].tasks for results in runs):
        print("\nThese runs have different tasks: their metrics are not comparable.")
    return 0


def _report(arguments: argparse.Namespace) -> int:
    from moecl_jax.report import report

    files = report(arguments.workdir, arguments.output)
    print(f"Written: {', '.join(map(str, files))}")
    return 0


def _split_overrides(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Separates `--config.KEY=VALUE`, and `--config.KEY VALUE`, from argparse's arguments."""
    plain: list[str] = []
    overrides: list[str] = []
    awaits_value = False
    for argument in argv:
        if awaits_value and not _FLAG.match(argument):
            overrides[-1] += f"={argument}"
            awaits_value = False
        elif OVERRIDE.match(argument):
            overrides.append(argument)
            awaits_value = "=" not in argument
        else:
            plain.append(argument)
            awaits_value = False
    return plain, overrides
