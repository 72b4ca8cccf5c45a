"""The fenced blocks of a Markdown page, and how they are run."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

SHELLS = ("bash", "console")
_OPENING = re.compile(r"(`{3,})(\S+)?")

# Runs a page's steps in one process: Python in one namespace, commands by bash.
_RUNNER = """
import json, subprocess, sys

namespace = {"__name__": "__main__"}
for language, page, line, text in json.loads(sys.stdin.read()):
    sys.stdout.flush()
    if language == "python":
        exec(compile("\\n" * line + text, page, "exec"), namespace)
    elif subprocess.run(["bash", "-euo", "pipefail", "-c", text]).returncode:
        sys.exit(f"{page}, block after line {line}: a command failed:\\n{text}")
"""


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
      language: what follows the opening fence, "" if nothing does.
      text: the lines between the fences.
      line: number of the opening fence's line, from 1.
    """

    language: str
    text: str
    line: int


def blocks(page: str) -> list[Block]:
    """All fenced blocks of a page that begin in its first column, in their order."""
    found, lines = [], page.splitlines()
    opening, ticks, language = 0, "", ""
    for number, line in enumerate(lines, start=1):
        if ticks and line.rstrip() == ticks:
            found.append(Block(language, "\n".join(lines[opening : number - 1]), opening))
            ticks = ""
        elif not ticks and (match := _OPENING.match(line)):
            opening, ticks, language = number, match[1], match[2] or ""
    return found


def commands(block: Block) -> list[str]:
    """The commands of a block, one line each, without comments.

    A `console` block shows what a command prints; there a command begins with `$ `.
    """
    text = block.text.replace("\\\n", " ")
    lines = [re.sub(r"(^|\s)#\s.*", "", line).strip() for line in text.splitlines()]
    if block.language == "console":
        lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    return [re.sub(r"\s+", " ", line) for line in lines if line]


def run(
    path: Path,
    folder: Path,
    *,
    shrink_python: Callable[[str], str] = str,
    shrink_command: Callable[[str], str | None] = str,
    search_path: Sequence[Path] = (),
) -> subprocess.CompletedProcess[str]:
    """Runs a page's Python blocks and commands in their order, in a process of its own.

    Args:
      path: the page. A traceback names it, with the line in it.
      folder: the working directory.
      shrink_python: makes a block small.
      shrink_command: makes a command small, or gives None for one that is not run.
      search_path: where Python finds modules.
    """
    steps = []
    for block in blocks(path.read_text(encoding="utf-8")):
        if block.language == "python":
            steps.append(("python", str(path), block.line, shrink_python(block.text)))
        elif block.language in SHELLS:
            small = [shrink_command(command) for command in commands(block)]
            text = "\n".join(command for command in small if command is not None)
            steps.append(("bash", str(path), block.line, text))
    binaries = folder / "bin"
    binaries.mkdir(parents=True, exist_ok=True)
    program = binaries / "moecl"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m moecl_jax "$@"\n')
    program.chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{binaries}:{os.environ['PATH']}",
        "PYTHONPATH": ":".join(map(str, search_path)),
    }
    return subprocess.run(
        [sys.executable, "-c", _RUNNER],
        input=json.dumps(steps),
        capture_output=True,
        text=True,
        cwd=folder,
        env=environment,
        check=False,
    )
