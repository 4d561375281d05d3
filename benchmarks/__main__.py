"""The command line: ``python -m benchmarks [CASE ...]``."""

from __future__ import annotations

import argparse
import os
import platform
import signal
import sqlite3
import sys
from collections.abc import Sequence
from pathlib import Path

from .cases import CASES, summary
from .harness import CannotRun, Options, Row, Skipped, table


def positive(text: str) -> int:
    """A whole number above 0."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def parser() -> argparse.ArgumentParser:
    """The arguments of the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measures Greenroom beside a peer.")
    parser.add_argument("cases", nargs="*", metavar="CASE", help="which to run, in this order (default: all)")
    parser.add_argument("--list", action="store_true", help="lists the cases and ends")
    parser.add_argument("--quick", action="store_true", help="fewer messages and, unless --rounds says so, one round")
    parser.add_argument("--rounds", type=positive, metavar="N", help="rounds in turn (default: 3)")
    parser.add_argument("--messages", type=positive, metavar="N", help="messages or sends of each measurement")
    parser.add_argument("--prototype", type=Path, metavar="DIR", default=os.environ.get("BENCH_PROTOTYPE"))
    parser.add_argument("--folder", type=Path, metavar="DIR", help="where files are written (default: as tempfile)")
    return parser


def options(args: argparse.Namespace) -> Options:
    """What the cases need of the arguments."""
    rounds = args.rounds or (1 if args.quick else 3)
    prototype = Path(args.prototype).resolve() if args.prototype else None
    return Options(rounds, args.messages, args.quick, prototype, args.folder)


def measure(names: Sequence[str], chosen: Options) -> tuple[list[Row], list[str]]:
    """Runs the cases; their rows, and the names of those that could not run."""
    rows: list[Row] = []
    failed: list[str] = []
    for name in names:
        print(f"{name}: {summary(name)}", flush=True)
        try:
            rows.extend(CASES[name].run(chosen))
        except Skipped as reason:
            print(f"  skipped: {reason}", flush=True)
        except CannotRun as reason:
            failed.append(name)
            print(f"  could not run: {reason}", flush=True)
    return rows, failed


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0 whatever the figures are, 1 if a case could not run, 2 for bad arguments."""
    args = parser().parse_args(argv)
    if args.list:
        print("\n".join(f"{name:16}{summary(name)}" for name in CASES))
        return 0
    unknown = [name for name in args.cases if name not in CASES]
    if unknown:
        parser().error(f"no such case: {', '.join(unknown)}; there are {', '.join(CASES)}")
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    print(f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}, {os.cpu_count()} cores", flush=True)
    rows, failed = measure(args.cases or list(CASES), options(args))
    if rows:
        print("\n" + table(rows))
    if failed:
        print(f"\ncould not run: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
