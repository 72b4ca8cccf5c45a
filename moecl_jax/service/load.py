"""Measures a service under load: `python -m moecl_jax.service.load URL --texts=FILE.jsonl`.

Clients ask one text at a time, each over a connection of its own that it keeps, as fast as they are
answered. A summary of what was measured is written to standard output as one JSON object.
"""

import argparse
import collections
import dataclasses
import http.client
import itertools
import json
import sys
import threading
import time
import urllib.parse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np


@dataclasses.dataclass
class Measured:
    """What clients saw.

    Attributes:
      seconds: time from a request to its answer [s], of those answered by 200.
      statuses: number of answers by status; 0 counts connections that were closed or refused.
      wall_seconds: time of all requests [s].
    """

    seconds: list[float]
    statuses: dict[int, int]
    wall_seconds: float

    def summary(self) -> dict[str, Any]:
        """Rates and percentiles, in requests a second and milliseconds; None if none answered."""
        milliseconds = np.array(self.seconds or [0.0]) * 1e3
        found = np.percentile(milliseconds, (50, 95, 99)).round(1).tolist()
        p50, p95, p99 = found if self.seconds else (None, None, None)
        return {
            "answered": len(self.seconds),
            "statuses": self.statuses,
            "requests_per_second": round(len(self.seconds) / self.wall_seconds, 2),
            "p50_ms": p50,
            "p95_ms": p95,
            "p99_ms": p99,
            "wall_seconds": round(self.wall_seconds, 1),
        }


def load(
    url: str,
    texts: Sequence[tuple[str, str | None]],
    *,
    clients: int,
    requests: int,
    key: str | None = None,
) -> Measured:
    """Asks a service from many clients at once.

    Args:
      url: address of the service.
      texts: texts, each with the name of its task or None, which are asked in turn.
      clients: number of clients.
      requests: number of requests of all clients together.
      key: API key.
    """
    address = urllib.parse.urlsplit(url)
    headers = {"Content-Type": "application/json"}
    if key is not None:
        headers["Authorization"] = f"Bearer {key}"
    turn, lock = itertools.islice(itertools.cycle(texts), requests), threading.Lock()
    measured = Measured([], collections.Counter(), 0.0)

    def ask_on() -> None:
        connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=120)
        while True:
            with lock:
                given = next(turn, None)
            if given is None:
                break
            body = json.dumps({"texts": given[0], "task": given[1]})
            begun, status = time.monotonic(), 0
            try:
                connection.request("POST", "/v1/classify", body, headers)
                with connection.getresponse() as response:
                    response.read()
                    status = response.status
            except (http.client.HTTPException, OSError):
                connection.close()
            with lock:
                measured.statuses[status] += 1
                if status == 200:
                    measured.seconds.append(time.monotonic() - begun)
        connection.close()

    threads = [threading.Thread(target=ask_on) for _ in range(clients)]
    started = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    measured.wall_seconds = time.monotonic() - started
    return measured


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command."""
    parser = argparse.ArgumentParser(prog="python -m moecl_jax.service.load", description=__doc__)
    parser.add_argument("url", help="address of the service, such as http://127.0.0.1:8000")
    parser.add_argument(
        "--texts",
        type=Path,
        required=True,
        metavar="FILE.jsonl",
        help='a JSON object a line, with "text", and "task" if it is known',
    )
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--key", help="API key")
    arguments = parser.parse_args(argv)
    if not arguments.url.startswith("http://"):
        parser.error(f"{arguments.url}: expected http://HOST:PORT, without TLS")
    with arguments.texts.open(encoding="utf-8") as stream:
        lines = [json.loads(line) for line in stream if line.strip()]
    measured = load(
        arguments.url,
        [(line["text"], line.get("task")) for line in lines],
        clients=arguments.clients,
        requests=arguments.requests,
        key=arguments.key,
    )
    sys.stdout.write(f"{json.dumps(measured.summary())}\n")
    return 0 if set(measured.statuses) == {200} else 1


if __name__ == "__main__":
    sys.exit(main())
