"""``greenroom worker``: runs worker processes."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable, Sequence

from .. import __version__
from ..runtime import watch
from ..runtime.application import load_broker
from ..runtime.exit_codes import ExitCode
from ..runtime.program import run_processes
from ..runtime.supervisor import WorkersFailed
from ..settings import Settings, SettingsError
from ..worker import Worker
from .parsing import Parser, tell


def run(words: Sequence[str], *, commands: Iterable[str] = ()) -> int:
    """Runs ``greenroom worker`` with the words that follow it; returns the exit code.

    Parameters:
      words: The command line behind the subcommand.
      commands: The names of all subcommands, if the first word may be a misspelt one of them.
    """
    try:
        settings = Settings.load(vars(parser().parse_intermixed_args(words)))
        if settings.watch is not None and not watch.is_available():
            raise SettingsError([watch.MISSING])
        return run_processes(settings, make_worker, program=f"Greenroom {__version__}", is_all=True)
    except SettingsError as e:
        tell(e.errors)
        return ExitCode.USAGE
    except WorkersFailed as e:
        failure = e.failure
        sys.stderr.write(failure.traceback)
        near = difflib.get_close_matches(failure.missing_module, list(commands), n=1)
        tell([failure.line + (f"; did you mean the command {near[0]!r}?" if near else "")])
        return failure.code


def make_worker(settings: Settings) -> Worker:
    """The worker of a process, not started yet. Imports the user's modules and runs the hooks of a process's boot.

    Raises:
      ApplicationError: If the modules or the broker cannot be loaded.
    """
    broker = load_broker(settings.modules, settings.path)
    broker.emit_after("process_boot")
    return Worker(
        broker,
        queues=settings.queues,
        worker_timeout=settings.worker_timeout_ms,
        worker_threads=settings.threads,
        concurrency=settings.concurrency,
    )


def parser() -> Parser:
    """What ``greenroom worker`` takes."""
    parser = Parser(prog="greenroom worker", description="Runs worker processes for the actors of a program.")
    add_options(parser)
    return parser


def add_options(parser: Parser) -> None:
    """Adds what a worker program can be told. ``greenroom check`` takes the same words."""
    add = parser.add_argument
    add(
        "modules",
        metavar="MODULE[:BROKER]",
        nargs="*",
        help="modules to import. The first may name the broker: a variable, or a function to call before the default "
        "broker is used. Flags that take several words take all that follow, so put modules first",
    )
    # No types and no defaults here: Settings checks what was given, all of it at once, and knows the defaults.
    add("-p", "--processes", metavar="N", help="worker processes (default: one for each usable CPU)")
    add("-t", "--threads", metavar="N", help="threads of each process (default: 8)")
    add("--concurrency", metavar="N", help="async actors that each process runs at a time (default: 100)")
    add("-P", "--path", metavar="DIR", nargs="*", help="folders to import from (default: .)")
    add("-Q", "--queues", metavar="QUEUE", nargs="*", help="the only queues to consume (default: all)")
    add("--pid-file", metavar="FILE", help="hold the process id in this file; exit with 4 if another process does")
    add("--log-file", metavar="FILE", help="append log lines to this file (default: standard error)")
    add("--skip-logging", action="store_true", default=None, help="leave logging and output to the program")
    add("--use-spawn", action="store_true", default=None, help="the same as --start-method spawn")
    add(
        "--start-method",
        metavar="METHOD",
        help="how processes are started: fork, spawn or forkserver (default: fork on Linux below Python 3.14, "
        "forkserver from there on, spawn elsewhere)",
    )
    add(
        "--worker-boot-timeout",
        dest="worker_boot_timeout_ms",
        metavar="MS",
        help="how long a process may take to be ready, in milliseconds; then it is killed (default: 60000)",
    )
    add(
        "-f",
        "--fork-function",
        dest="fork_functions",
        metavar="MODULE:FUNCTION",
        action="append",
        help="run this function in a process of its own beside the workers; may be repeated",
    )
    add(
        "--worker-fork-timeout",
        dest="worker_fork_timeout_ms",
        metavar="MS",
        help="start these functions after so many milliseconds, should the workers not be ready (default: 30000)",
    )
    add(
        "--worker-shutdown-timeout",
        dest="worker_shutdown_timeout_ms",
        metavar="MS",
        help="how long running tasks may go on after a stop, in milliseconds (default: 600000)",
    )
    add(
        "--hang-timeout",
        dest="hang_timeout_ms",
        metavar="MS",
        help="kill a process that shows no sign of life for so many milliseconds (default: never)",
    )
    add("--max-tasks-per-child", metavar="N", help="replace a process that has run so many messages (default: never)")
    add(
        "--max-rss-per-child",
        dest="max_rss_per_child_mib",
        metavar="MIB",
        help="replace a process that holds so much memory, in MiB (default: never)",
    )
    add("--watch", metavar="DIR", help="restart the workers when a file in this folder changes; for development")
    add("--watch-use-polling", action="store_true", default=None, help="look at the files instead of being told")
    add(
        "-i",
        "--watch-include",
        metavar="PATTERN",
        action="append",
        help="files that count, besides **.py; may be repeated",
    )
    add("-x", "--watch-exclude", metavar="PATTERN", action="append", help="files that do not count; may be repeated")
    add("-v", "--verbose", action="count", help="log at DEBUG")
    add("--version", action="version", version=f"greenroom {__version__}")
