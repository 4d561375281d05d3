"""The command line: the first word is a subcommand if it is one, else a module for ``greenroom worker``."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Sequence

from ..runtime.exit_codes import ExitCode
from . import worker
from .parsing import tell

#: The subcommands: what runs them, and what the help says.
COMMANDS: dict[str, tuple[Callable[[Sequence[str]], int], str]] = {"worker": (worker.run, worker.HELP)}


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
            run, _text = COMMANDS[words[0]]
            return run(words[1:])
        return worker.run(words, commands=COMMANDS)
    except Exception as e:  # noqa: BLE001  # the last line of defence gives the exit code
        traceback.print_exc()
        tell([f"internal error: {type(e).__name__}: {e}"])
        return ExitCode.INTERNAL


def _help() -> str:
    commands = "\n".join(f"  {name:<12}{text}" for name, (_run, text) in COMMANDS.items())
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
