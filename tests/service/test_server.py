"""`moecl serve` as a process: load, a stop under load, slow and hostile clients."""

import collections
import contextlib
import http.client
import json
import os
import signal
import socket
import threading
import time
import urllib.parse

import pytest
from processes import begin, finish
from processes import run as run_command

from moecl_jax.service.load import load

pytestmark = pytest.mark.slow


@contextlib.contextmanager
def served(folder, *arguments):
    """A process that serves a run, and its address; it is killed if it still runs at the end."""
    process = begin("serve", f"--workdir={folder / 'run'}", "--port=0", *arguments)
    line = process.stdout.readline()
    assert line.startswith("serving"), line + process.communicate()[1]
    try:
        yield process, line.split()[-1]
    finally:
        process.kill()
        process.communicate()


def stop(process, number=signal.SIGTERM):
    process.send_signal(number)
    return finish(process)


def mixed(texts):
    """Texts of both tasks; of every other one the task is not named."""
    return [
        (text, task if place % 2 else None)
        for place in range(len(texts["two"]))
        for task in ("two", "five")
        for text in [texts[task][place]]
    ]


def raw(url, head, body=b"", *, timeout=20):
    """The status of a request that is written as it is, and its body."""
    address = urllib.parse.urlsplit(url)
    with socket.create_connection((address.hostname, address.port), timeout=timeout) as client:
        client.sendall(head.replace("\n", "\r\n").encode() + b"\r\n" + body)
        with http.client.HTTPResponse(client) as response:
            response.begin()
            return response.status, response.read()


def post(url, body, **headers):
    lines = "".join(f"{name.replace('_', '-')}: {value}\n" for name, value in headers.items())
    head = (
        "POST /v1/classify HTTP/1.1\nhost: localhost\ncontent-type: application/json\n"
        f"content-length: {len(body)}\n{lines}"
    )
    return raw(url, head, body)


def test_32_clients_and_a_stop_without_load(trained, texts):
    with served(trained) as (process, url):
        measured = load(url, mixed(texts), clients=32, requests=600)
        assert measured.statuses == {200: 600}
        status, out, err = stop(process)
    assert (status, out, err) == (0, "stopped; every accepted request was answered\n", "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_under_load_leaves_no_request_without_an_answer(trained, texts, number, tried):
    """Clients see answers, then 503 or a port that is closed; never a cut connection."""
    with served(trained) as (process, url):
        seen, lock = collections.Counter(), threading.Lock()
        address, given = urllib.parse.urlsplit(url), mixed(texts)

        def ask_on(client):
            outcome = "200"
            while outcome == "200":  # a client that is told to come back later does so
                connection = http.client.HTTPConnection(address.hostname, address.port, timeout=60)
                try:
                    connection.connect()
                except OSError:
                    outcome = "refused"  # nothing was accepted
                while outcome == "200" and connection.sock is not None:  # else the answer closed it
                    outcome = answer(connection, *given[client])
                    with lock:
                        seen[outcome] += 1
                connection.close()

        def answer(connection, text, task):
            body = json.dumps({"texts": text, "task": task})
            try:
                connection.request(
                    "POST", "/v1/classify", body, {"Content-Type": "application/json"}
                )
                response = connection.getresponse()
                found = json.loads(response.read())
            except (OSError, http.client.HTTPException) as error:
                return f"cut: {error!r}"
            complete = (
                "label" in found["answers"][0]
                if response.status == 200
                else (response.headers["Retry-After"])
            )
            return str(response.status) if complete else "no label or no Retry-After"

        clients = [threading.Thread(target=ask_on, args=(n,)) for n in range(32)]
        for client in clients:
            client.start()
        time.sleep(2)
        status, out, err = stop(process, number)
        for client in clients:
            client.join()
    assert (status, out, err) == (0, "stopped; every accepted request was answered\n", "")
    assert set(seen) <= {"200", "503"}
    assert seen["200"] > 50
    tried(f"{number.name} of a service under load", 1, "survived")


def test_hostile_clients_get_their_status_and_others_their_answers(trained, texts):
    with served(trained) as (process, url), contextlib.ExitStack() as slow:
        address = urllib.parse.urlsplit(url)

        def begun(data):
            client = socket.create_connection((address.hostname, address.port), timeout=30)
            client.sendall(data)
            return slow.enter_context(client)

        begun(b"POST /v1/cl")
        begun(b"POST /v1/classify HTTP/1.1\r\nhost: localhost\r\n")
        late = begun(
            b"POST /v1/classify HTTP/1.1\r\nhost: localhost\r\ncontent-length: 20\r\n\r\n{"
        )
        result = []
        other = threading.Thread(
            target=lambda: result.append(load(url, mixed(texts), clients=4, requests=200))
        )
        other.start()
        many = json.dumps({"texts": ["w1"] * 10_000}).encode()
        found = [
            post(url, many)[0],
            post(url, b"x" * 5_000_000)[0],
            post(url, b'{"texts": "\xff"}')[0],
            raw(
                url,
                "POST /v1/classify HTTP/1.1\nhost: localhost\ncontent-length: 5000000\n"
                "expect: 100-continue\n",
            )[0],
            raw(url, "GET / HTTP/1.1\nhost: evil.example\n")[0],
            raw(url, "nonsense\n")[0],
            post(url, b'{"texts": "w1"}')[0],
        ]
        assert found == [422, 413, 400, 413, 421, 400, 200]
        other.join()
        assert result[0].statuses == {200: 200}
        with http.client.HTTPResponse(late) as response:
            response.begin()
            assert response.status == 408
        status, _, err = stop(process)
    assert status == 0
    assert "Traceback" not in err


def test_keys_are_needed_elsewhere_than_on_loopback(trained, tmp_path, monkeypatch):
    serve = ["serve", f"--workdir={trained / 'run'}", "--port=0"]
    status, out, err = run_command(*serve, "--host=0.0.0.0")
    assert (status, out) == (1, "")
    assert "is reached from other machines, and there are no keys" in err
    keys = tmp_path / "keys"
    keys.write_text(f"caller batch {'c' * 16}\n")
    with served(trained, "--host=0.0.0.0", f"--keys={keys}") as (_, url):
        url = url.replace("0.0.0.0", "127.0.0.1")
        body = b'{"texts": "w1 w2"}'
        assert post(url, body)[0] == 401
        assert post(url, body, authorization="Bearer wrong")[0] == 401
        assert post(url, body, authorization=f"Bearer {'c' * 16}")[0] == 200
    monkeypatch.setitem(os.environ, "MOECL_KEYS", f"caller batch {'d' * 16}")
    with served(trained) as (_, url):
        assert post(url, body)[0] == 401
        assert post(url, body, authorization=f"Bearer {'d' * 16}")[0] == 200


def test_a_port_that_is_taken_is_one_line_and_nothing_is_compiled(trained):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        begun = time.monotonic()
        status, out, err = run_command(
            "serve", f"--workdir={trained / 'run'}", f"--port={port}"
        )  # fmt: skip
    assert (status, out) == (1, "")
    assert err.splitlines() == [
        f"moecl: error: port {port} of 127.0.0.1 cannot be had: Address already in use; choose "
        "another by --port"
    ]
    assert time.monotonic() - begun < 60
