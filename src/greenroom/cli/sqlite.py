"""``greenroom sqlite``: backs a queue file up, or salvages a damaged one."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from ..errors import BrokerError
from ..logging import one_line
from ..runtime.child import explain
from ..runtime.exit_codes import ExitCode
from .asking import Progress
from .parsing import Parser, note, tell
from .tables import print_json

if TYPE_CHECKING:
    from ..engines.sqlite.recover import Recovery


#: So much of SQLite's report is printed.
_DAMAGE_LINES = 5


def parser() -> Parser:
    """What ``greenroom sqlite`` takes."""
    parser = Parser(
        prog="greenroom sqlite",
        description="Looks after queue files: backs one up while it is in use, or salvages what can be read of a "
        "damaged one.",
        examples=("greenroom sqlite backup --help", "greenroom sqlite recover --help"),
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    _add_backup(actions)
    _add_recover(actions)
    return parser


def _add_backup(actions: Any) -> None:
    parser = actions.add_parser(
        "backup",
        help="copy a queue file that may be in use",
        description="Copies a queue file as it is at one moment. Senders and workers go on meanwhile. The copy is "
        "examined, and only its owner may read it.",
        examples=(
            "greenroom sqlite backup .greenroom/queue.db /backups/monday.db",
            "greenroom sqlite backup .greenroom/queue.db /backups/latest.db --force --json",
        ),
    )
    parser.add_argument("db", metavar="DB", type=Path, help="the queue file")
    parser.add_argument("file", metavar="FILE", type=Path, help="the copy")
    parser.add_argument("--force", action="store_true", help="replace FILE if it is there")
    _add_json(parser)
    parser.set_defaults(act=_backup)


def _add_recover(actions: Any) -> None:
    parser = actions.add_parser(
        "recover",
        help="salvage what can be read of a damaged queue file",
        description="Writes what can be read of a damaged queue file to a new one: messages, ready or delayed again, "
        "dead letters, results. The damaged file stays as it is. Stop all processes that use it first. The exit code "
        f"is 0 if nothing was lost, and {int(ExitCode.CORRUPT)} if something was.",
        examples=(
            "greenroom sqlite recover .greenroom/queue.db",
            "greenroom sqlite recover .greenroom/queue.db -o salvaged.db --json",
        ),
    )
    parser.add_argument("db", metavar="DB", type=Path, help="the damaged file")
    parser.add_argument(
        "-o", "--output", metavar="NEW", type=Path, help="the new file (default: DB-recovered.db beside the old one)"
    )
    parser.add_argument(
        "--ignore-log", action="store_true", help="leave DB-wal out, because it is known to belong to another file"
    )
    _add_json(parser)
    parser.set_defaults(act=_recover)


def _add_json(parser: Any) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of text")


def run(words: Sequence[str]) -> int:
    """Runs it; returns the exit code."""
    arguments = parser().parse_args(words)
    try:
        return int(arguments.act(arguments))
    except (FileNotFoundError, FileExistsError) as e:
        tell([one_line(e)])
        return ExitCode.USAGE
    except BrokerError as e:
        failure = explain(e, "this could not be done")
        tell([failure.line])
        return failure.code
    except KeyboardInterrupt:
        tell(["interrupted; nothing was written"])
        return ExitCode.KILLED


@contextmanager
def _progress(verb: str) -> Iterator[Callable[..., None]]:
    """Shows how far it has come; called with how much is done, and if that is known with how much there is."""
    progress = Progress(verb, None)
    try:
        yield lambda done, _all=None: progress.show(done)
    finally:
        progress.clear()


def _backup(arguments: argparse.Namespace) -> int:
    from ..engines.sqlite.backup import back_up

    with _progress("Pages copied:") as progress:
        backup = back_up(arguments.db, arguments.file, force=arguments.force, progress=progress)
    if arguments.json:
        print_json(msgspec.to_builtins(backup))
    else:
        print(
            f"{backup.target}: {backup.bytes / 1024:,.0f} KiB, {backup.ready} ready, {backup.delayed} delayed, "
            f"{backup.claimed} running, {backup.dead} dead."
        )
    return ExitCode.OK


def _recover(arguments: argparse.Namespace) -> int:
    from ..engines.sqlite.recover import recover

    target = arguments.output or arguments.db.with_name(f"{arguments.db.stem}-recovered.db")
    with _progress("Rows read:") as progress:
        recovery = recover(arguments.db, target, ignore_log=arguments.ignore_log, progress=progress)
    if arguments.json:
        print_json({**msgspec.to_builtins(recovery), "is_complete": recovery.is_complete})
    else:
        _print_recovery(recovery)
    sys.stdout.flush()
    return ExitCode.OK if recovery.is_complete else ExitCode.CORRUPT


def _print_recovery(recovery: Recovery) -> None:
    print(
        f"{recovery.target}: {recovery.ready} ready, {recovery.delayed} delayed, {recovery.dead} dead, "
        f"{recovery.others} other rows."
    )
    if not recovery.damage:
        print("The file was sound.")
    for line in recovery.damage[:_DAMAGE_LINES]:
        print(f"Damage: {one_line(line, 200)}")
    if recovery.log == "left out":
        note("the write-ahead log was left out: the file is sound without it")
    if recovery.without_log is not None:
        note(
            f"without its write-ahead log the file holds {recovery.without_log} messages and dead letters; if that log "
            "is not its own, say --ignore-log"
        )
    if recovery.may_repeat:
        note("messages that were done may be among these: it could not be seen what had been deleted")
    if not recovery.is_complete:
        known = "" if recovery.is_exact else " or more"
        tell([f"{recovery.lost}{known} messages and dead letters are lost"])
    old, new = shlex.quote(recovery.source), shlex.quote(recovery.target)
    print(f"To use it: stop all that use the old one, move {old}, {old}-wal and {old}-shm away, rename {new} to {old}.")
