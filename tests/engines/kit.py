"""A second process that a test leads by the hand, and a few looks into a queue file."""

from __future__ import annotations

import os
import select
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.runtime.cli_kit import PATIENCE_S, environment

#: How every program of these tests begins: ``say`` tells the test, ``hear`` waits for it.
HEAD = """
import os, sqlite3, sys
from pathlib import Path

path = Path(sys.argv[1])

def say(word):
    os.write(1, f"{word}\\n".encode())

def hear():
    return sys.stdin.readline().strip()
"""


class Other:
    """Another process. It ends with the test, if not before."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.pid = process.pid
        self._heard = b""  # what it has said, and nobody has heard yet

    def hear(self) -> str:
        """The next line that it says."""
        assert self.process.stdout is not None
        while b"\n" not in self._heard:
            readable, _, _ = select.select([self.process.stdout], [], [], PATIENCE_S)
            assert readable, "the other process says nothing"
            said = os.read(self.process.stdout.fileno(), 4096)
            if not said:
                break  # it has ended
            self._heard += said
        line, _, self._heard = self._heard.partition(b"\n")
        return line.decode().strip()

    def say(self, word: str) -> None:
        """Lets it go on."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()

    def kill(self) -> None:
        """``kill -9``, and waits for the end."""
        self.process.kill()
        self.process.wait(PATIENCE_S)

    def end(self) -> None:
        """Waits for its end, which has to be a good one."""
        assert self.process.wait(PATIENCE_S) == 0


@contextmanager
def other_process(program: str, path: Path, *arguments: str) -> Iterator[Other]:
    """Starts ``program``, which finds ``path``, ``say`` and ``hear``, and ``arguments`` from ``sys.argv[2]`` on."""
    process = subprocess.Popen(
        [sys.executable, "-c", HEAD + program, str(path), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
        env=environment({}),
    )
    with process:  # closes the pipes
        try:
            yield Other(process)
        finally:
            process.kill()
            process.wait(PATIENCE_S)


def query(path: Path, statement: str, *parameters: Any) -> list[Any]:
    """What a connection of its own reads from a queue file."""
    connection = sqlite3.connect(path)
    try:
        return connection.execute(statement, parameters).fetchall()
    finally:
        connection.close()
