"""Runs the worker processes of a program: what surrounds the supervisor, and what a program of one's own calls."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

from ..settings import Settings
from .child import Startable
from .exit_codes import ExitCode
from .logs import log_output
from .pid_file import PidFileError, held
from .reports import Failure
from .signals import signals_into_a_pipe
from .supervisor import Supervisor, WorkersFailed


def run_processes(
    settings: Settings,
    make_worker: Callable[[Settings], Startable],
    *,
    program: str = "Greenroom",
    is_all: bool = False,
) -> int:
    """Runs ``settings.processes`` workers until a signal stops them, and returns the exit code.

    Call it in the main thread of a program that has no other thread: it forks, and takes over the signal handlers
    meanwhile.

    Parameters:
      settings: What to run.
      make_worker: Called in each child, where it imports the user's code. A function of a module.
      program: What the log line at the start calls it: its name and version.
      is_all: The program ends right afterwards: a signal to stop that comes then means nothing any more.

    Raises:
      WorkersFailed: If a child could not start when the program did, if children failed to start five times in a row
        later, or if the broker's data turned out to be damaged. All children are stopped then.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(held(settings.pid_file))
            output = stack.enter_context(log_output(settings))
        except PidFileError as e:
            raise WorkersFailed(Failure(ExitCode.PID_FILE, str(e))) from e
        except OSError as e:
            line = f"the log file {settings.log_file!r} cannot be opened: {e.strerror}"
            raise WorkersFailed(Failure(ExitCode.USAGE, line)) from e
        signals = stack.enter_context(signals_into_a_pipe(forever=is_all))
        return Supervisor(settings, make_worker, signals, program, output).run()
