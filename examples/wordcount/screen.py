"""The progress bar and the closing table: with rich on a terminal that has it, in plain text elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib.util import find_spec

from .totals import Totals

TOP = 10
BAR_WIDTH = 40
SHOWN_FAILURES = 5

Rows = list[tuple[str, str]]
Show = Callable[[int], None]  # called with the number of files that are done


def progress(total: int) -> AbstractContextManager[Show]:
    """The best bar that can be shown here."""
    if not sys.stdout.isatty():
        return _lines(total)
    return _rich_bar(total) if find_spec("rich") else _text_bar(total)


@contextmanager
def _lines(total: int) -> Iterator[Show]:
    shown = 0

    def show(done: int) -> None:
        nonlocal shown
        if done * 10 // total > shown * 10 // total:  # another tenth
            shown = done
            print(f"counted {done} of {total} files", flush=True)

    yield show


@contextmanager
def _text_bar(total: int) -> Iterator[Show]:
    def show(done: int) -> None:
        filled = done * BAR_WIDTH // total
        print(f"\rcounting [{'#' * filled:.<{BAR_WIDTH}}] {done}/{total} files", end="", flush=True)

    show(0)
    try:
        yield show
    finally:
        print()


@contextmanager
def _rich_bar(total: int) -> Iterator[Show]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("counting"), BarColumn(), MofNCompleteColumn(), TextColumn("files"), TimeElapsedColumn())
    with Progress(*columns) as bar:
        task = bar.add_task("counting", total=total)
        yield lambda done: bar.update(task, completed=done)


def show_table(totals: Totals) -> None:
    """Prints the top words and the figures of the run, then the files that could not be counted."""
    top = [(word, f"{times:,}") for word, times in totals.words.most_common(TOP)]
    figures = [
        ("all words", f"{totals.words.total():,}"),
        ("files", f"{totals.counted:,}"),
        ("failures", f"{len(totals.failures):,}"),
        ("messages a second", f"{totals.messages_a_second:,.0f}"),
    ]
    if sys.stdout.isatty() and find_spec("rich"):
        _rich_table(top, figures)
    else:
        _plain_table(top, figures)
    for path, reason in list(totals.failures.items())[:SHOWN_FAILURES]:
        print(f"failed: {path!r}: {reason}")  # repr: a name may hold anything, even line breaks
    if len(totals.failures) > SHOWN_FAILURES:
        print(f"failed: {len(totals.failures) - SHOWN_FAILURES} more")


def _rich_table(top: Rows, figures: Rows) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table()
    table.add_column("word")
    table.add_column("times", justify="right")
    for row in top:
        table.add_row(*row)
    table.add_section()
    for row in figures:
        table.add_row(*row, style="bold")
    Console().print(table)


def _plain_table(top: Rows, figures: Rows) -> None:
    head = ("word", "times")
    left, right = (max(len(row[column]) for row in [head, *top, *figures]) for column in (0, 1))
    rule = ("-" * left, "-" * right)
    for word, number in [head, rule, *top, rule, *figures]:
        print(f"{word:<{left}}  {number:>{right}}")
