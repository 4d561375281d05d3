"""``greenroom worker``: runs worker processes."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable, Sequence

from .. import __version__
from ..runtime.application import load_broker
from ..runtime.exit_codes import ExitCode
from ..runtime.processes import WorkersFailed, run_processes
from ..settings import Settings, SettingsError
from ..worker import Worker
from .parsing import Parser, tell

HELP = "run worker processes for the actors of a program"


def run(words: Sequence[str], *, commands: Iterable[str] = ()) -> int:
    """Runs ``greenroom worker`` with the words that follow it; returns the exit code.

    Parameters:
      words: The command line behind the subcommand.
      commands: The names of all subcommands, if the first word may be a misspelt one of them.
    """
    try:
        settings = Settings.load(vars(_parser().parse_intermixed_args(words)))
        return run_processes(settings, make_worker, program=f"Greenroom {__version__}")
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


def _parser() -> Parser:
    parser = Parser(prog="greenroom worker", description="Runs worker processes for the actors of a program.")
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
    add("--log-file", metavar="FILE", help="append log lines to this file (default: standard error)")
    add("--skip-logging", action="store_true", default=None, help="leave logging to the program")
    add("--use-spawn", action="store_true", default=None, help="start fresh interpreters instead of forking")
    add(
        "--worker-shutdown-timeout",
        dest="worker_shutdown_timeout_ms",
        metavar="MS",
        help="how long running tasks may go on after a stop, in milliseconds (default: 600000)",
    )
    add("-v", "--verbose", action="count", help="log at DEBUG")
    add("--version", action="version", version=f"greenroom {__version__}")
    return parser
