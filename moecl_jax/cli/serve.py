"""`moecl serve`: answers over HTTP."""

import argparse

from moecl_jax.cli.command import Command, add_workdir, path
from moecl_jax.errors import UserError

_PACKAGES = ("fastapi", "prometheus_client", "pydantic", "starlette", "uvicorn")


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_workdir(parser, "the trained run")
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="the address to serve (default: 127.0.0.1, this machine alone; others need keys)",
    )
    parser.add_argument(
        "--port", type=_port, default=8000, help="the port (default: 8000; 0: any that is free)"
    )
    parser.add_argument(
        "--keys",
        type=path,
        metavar="FILE",
        help="lines ROLE NAME KEY, ROLE being caller, reviewer or admin (default: the same lines, "
        "with commas between them, in MOECL_KEYS)",
    )
    parser.add_argument(
        "--thresholds",
        action="append",
        default=[],
        metavar="[TASK=]FILE",
        help="thresholds of a task, as 'moecl strip' writes them; may be given several times "
        "(default: a person reviews every text)",
    )
    parser.add_argument(
        "--block",
        action="append",
        default=[],
        metavar="LABEL",
        help="a label whose texts are blocked where thresholds decide for it; those of other "
        "labels pass; may be given several times",
    )
    parser.add_argument(
        "--reviews",
        type=path,
        metavar="FILE",
        help="keeps texts to review and decisions (default: reviews.db in the workdir)",
    )


def _port(text: str) -> int:
    number = int(text)
    if not 0 <= number < 2**16:
        raise argparse.ArgumentTypeError(f"{number} is not between 0 and {2**16 - 1}")
    return number


def _run(arguments: argparse.Namespace) -> int:
    try:
        from moecl_jax.service.keys import Keys
        from moecl_jax.service.server import bound_socket, serve, url_of
        from moecl_jax.service.start import open_service
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _PACKAGES:
            raise
        raise UserError(
            f"'moecl serve' needs the package {error.name}; pip install 'moecl_jax[serve]'"
        ) from error
    keys = Keys.load(arguments.keys)
    with bound_socket(arguments.host, arguments.port, keys) as bound:
        app, engine = open_service(
            arguments.workdir,
            keys,
            thresholds=arguments.thresholds,
            block=arguments.block,
            reviews=arguments.reviews,
        )
        url = url_of(bound)
        ended = serve(
            app, engine, bound, lambda: print(f"serving {arguments.workdir} on {url}", flush=True)
        )
    print("stopped; every accepted request was answered" if ended else "stopped at once")
    return 0


COMMAND = Command(
    name="serve",
    summary="label texts over HTTP until it is stopped, and say which of them a person reviews",
    example="moecl serve --workdir=runs/first --port=8000",
    add_arguments=_add_arguments,
    run=_run,
)
