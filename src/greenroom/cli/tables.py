"""What commands print: tables for people, one line a row; JSON for programs, one document.

At a terminal ``rich`` draws the tables where it is installed (the extra ``cli``), and long texts are cut to its width.
Elsewhere a table is plain text, and nothing is cut.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import IO, Any

from ..logging import one_line

_GAP = "  "
#: A column that is cut keeps so many characters.
_LEAST = 12


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table. ``is_number``: aligned to the right. ``may_be_cut``: where the terminal is too narrow."""

    title: str
    is_number: bool = False
    may_be_cut: bool = False


def print_table(columns: Sequence[Column], rows: Iterable[Sequence[object]], *, file: IO[str] | None = None) -> None:
    """Prints a table on standard output, or into ``file``. Whatever a cell holds, it cannot break its line."""
    file = sys.stdout if file is None else file
    cells = [[one_line(cell) for cell in row] for row in rows]
    widths = [max(len(line[i]) for line in ([c.title for c in columns], *cells)) for i in range(len(columns))]
    if file.isatty():
        widths = _fitted(columns, widths, shutil.get_terminal_size().columns)
        cells = [[_cut(cell, width) for cell, width in zip(row, widths, strict=True)] for row in cells]
        if _print_rich(columns, widths, cells, file):
            return
    for row in ([column.title for column in columns], *cells):
        aligned = (
            cell.rjust(width) if column.is_number else cell.ljust(width)
            for column, cell, width in zip(columns, row, widths, strict=True)
        )
        print(_GAP.join(aligned).rstrip(), file=file)


def _fitted(columns: Sequence[Column], widths: Sequence[int], room: int) -> list[int]:
    """Widths that fit into ``room``, if the columns that may be cut can be made so narrow. Of these, narrow ones keep
    their width, and the others share what is left."""
    fitted = list(widths)
    cut = sorted((i for i, column in enumerate(columns) if column.may_be_cut), key=widths.__getitem__)
    left = room - len(_GAP) * (len(columns) - 1) - sum(width for i, width in enumerate(widths) if i not in cut)
    for position, i in enumerate(cut):
        fitted[i] = min(widths[i], max(_LEAST, left // (len(cut) - position)))
        left -= fitted[i]
    return fitted


def _cut(cell: str, width: int) -> str:
    return cell if len(cell) <= width else f"{cell[: width - 3]}..."


def _print_rich(columns: Sequence[Column], widths: Sequence[int], rows: Iterable[Sequence[str]], file: IO[str]) -> bool:
    """False if ``rich`` is not installed."""
    try:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ImportError:
        return False
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column, width in zip(columns, widths, strict=True):
        table.add_column(column.title, justify="right" if column.is_number else "left", no_wrap=True, width=width)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))  # as Text: what looks like markup in it is none
    # As wide as it has to be: what cannot be cut is wrapped by the terminal, not left out. A width without a height is
    # not heeded everywhere.
    Console(file=file, width=sum(widths) + len(_GAP) * (len(columns) - 1), height=25).print(table)
    return True


def print_json(document: Any) -> None:
    """Prints one JSON document. What JSON has no form for becomes its ``repr``; NaN and Infinity become null."""
    print(json.dumps(_plain(document), indent=2, default=repr))


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
