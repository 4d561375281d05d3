"""Writes the reference of the command line, from what the parsers say: ``python -m greenroom.cli.reference``.

A page has it between two marks; what stands outside of them is written by hand and kept.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from . import COMMANDS, load_command

BEGIN = "<!-- The reference begins. It is made from the parsers: make reference -->"
END = "<!-- The reference ends. -->"
PAGE = Path("docs/cli.md")


def main() -> int:
    """Brings the page up to date that lies in the working directory; returns the exit code."""
    PAGE.write_text(with_reference(PAGE.read_text("utf-8")), "utf-8")
    return 0


def with_reference(page: str) -> str:
    """``page`` with the reference of now between its marks.

    Raises:
      ValueError: If it has no marks.
    """
    before, _, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError(f"The page has no place for the reference: {BEGIN} ... {END}")
    return f"{before}{BEGIN}\n\n{reference()}\n{END}{after}"


def reference() -> str:
    """The reference of all subcommands, as Markdown."""
    worker = _rows(load_command("worker").parser())
    lines: list[str] = []
    for name in COMMANDS:
        lines += _command(load_command(name).parser(), 3, {} if name == "worker" else worker)
    return "\n".join(lines)


def _command(parser: argparse.ArgumentParser, level: int, worker: dict[str, str]) -> Iterator[str]:
    yield f"{'#' * level} {parser.prog}\n"
    yield f"{parser.description}\n"
    yield f"    {_usage(parser)}\n"
    rows = _rows(parser)
    if worker.items() <= rows.items():
        rows = {"all that `greenroom worker` takes": "", **{k: v for k, v in rows.items() if k not in worker}}
    if rows:
        yield "| | |\n|---|---|"
        yield from (f"| {names} | {text} |" for names, text in rows.items())
        yield ""
    examples = getattr(parser, "examples", ())
    if examples:
        yield "".join(f"    {example}\n" for example in examples)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for sub in action.choices.values():
                yield from _command(sub, level + 1, worker)


def _rows(parser: argparse.ArgumentParser) -> dict[str, str]:
    """For each argument, how it is written and what it does."""
    return {
        _names(action): _help(parser, action)
        for action in parser._actions
        if action.dest not in ("help", "version") and not isinstance(action, argparse._SubParsersAction)
    }


def _usage(parser: argparse.ArgumentParser) -> str:
    words = [parser.prog]
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            words.append("{" + ",".join(action.choices) + "}")
        elif not action.option_strings:
            words.append(_arguments(action))
    return " ".join([*words, "[options]"])


def _arguments(action: argparse.Action) -> str:
    name = str(action.metavar or action.dest)
    return {"*": f"[{name} ...]", "+": f"{name} [{name} ...]", "?": f"[{name}]", 0: ""}.get(action.nargs or "", name)


def _names(action: argparse.Action) -> str:
    if not action.option_strings:
        return f"`{_arguments(action)}`"
    arguments = "" if action.nargs == 0 else f" {_arguments(action)}"
    return ", ".join(f"`{name}{arguments}`" for name in action.option_strings)


def _help(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    text = (action.help or "") % {**vars(action), "prog": parser.prog}
    return text.replace("|", "\\|").replace("*", "\\*")


if __name__ == "__main__":
    sys.exit(main())
