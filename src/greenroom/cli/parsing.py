"""What all subcommands share: a parser that is brief about mistakes, and how mistakes are told."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from typing import NoReturn

from ..runtime.exit_codes import ExitCode


class Parser(argparse.ArgumentParser):
    """An ``ArgumentParser`` that tells a mistake in one line and takes no abbreviated flags.

    Parameters:
      examples: Command lines that the help ends with.
    """

    def __init__(self, *, prog: str, description: str, examples: Iterable[str] = ()) -> None:
        super().__init__(prog=prog, description=description, allow_abbrev=False)
        self.examples = tuple(examples)

    def format_help(self) -> str:
        """The help, with the examples as they are written."""
        lines = ["", "examples:", *(f"  {example}" for example in self.examples), ""] if self.examples else [""]
        return super().format_help() + "\n".join(lines)

    def error(self, message: str) -> NoReturn:
        """Prints one line and exits with code 2."""
        tell([f"{message} (see {self.prog} --help)"])
        self.exit(ExitCode.USAGE)


def tell(lines: Iterable[str]) -> None:
    """Prints what went wrong on standard error, one line each."""
    for line in lines:
        print(f"greenroom: error: {line}", file=sys.stderr)


def note(line: str) -> None:
    """Prints a remark on standard error."""
    print(f"greenroom: note: {line}", file=sys.stderr)
