"""The command line: the first word is a subcommand if it is one, else a module for ``greenroom worker``."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from typing import Protocol, cast

from ..runtime.exit_codes import ExitCode
from . import worker
from .parsing import Parser, tell

#: The subcommands, each a module of this package that is imported when it is asked for, and what the help says.
COMMANDS: dict[str, str] = {
    "worker": "run worker processes for the actors of a program",
    "check": "check a program, its settings and its broker, and start nothing",
    "queues": "show how many messages each queue holds",
    "peek": "show the messages of a queue",
    "dead": "list, show, replay and drop dead letters",
    "pause": "keep workers from starting messages of a queue",
    "resume": "end the pause of a queue",
    "flush": "delete the messages of a queue",
    "sqlite": "back up a queue file, or salvage a damaged one",
}


class Command(Protocol):
    """What the module of a subcommand has."""

    def parser(self) -> Parser:
        """What it takes; the reference in ``docs/cli.md`` is made from it."""

    def run(self, words: Sequence[str]) -> int:
        """Runs it with the words that follow it, and returns the exit code."""


def load_command(name: str) -> Command:
    """The module of a subcommand."""
    return cast("Command", import_module(f".{name}", __name__))


def main(words: Sequence[str] | None = None) -> int:
    """Runs a command line and returns its exit code.

    Parameters:
      words: What follows ``greenroom``; those of this process if None.

    Raises:
      SystemExit: After ``--help`` and ``--version``, and for flags that no subcommand has.
    """
    words = sys.argv[1:] if words is None else words
    if not words or words[0] in ("-h", "--help"):
        print(_help(), file=sys.stdout if words else sys.stderr)
        return ExitCode.OK if words else ExitCode.USAGE
    try:
        if words[0] in COMMANDS:
            return load_command(words[0]).run(words[1:])
        return worker.run(words, commands=COMMANDS)
    except Exception as e:  # noqa: BLE001  # the last line of defence gives the exit code
        traceback.print_exc()
        tell([f"internal error: {type(e).__name__}: {e}"])
        return ExitCode.INTERNAL


def _help() -> str:
    commands = "\n".join(f"  {name:<12}{text}" for name, text in COMMANDS.items())
    return f"""\
usage: greenroom COMMAND ...
       greenroom MODULE[:BROKER] ...    short for: greenroom worker MODULE[:BROKER] ...

Background tasks for Python.

commands:
{commands}

options:
  -h, --help  show this help and exit
  --version   show the version and exit

greenroom COMMAND --help shows what a command takes."""
