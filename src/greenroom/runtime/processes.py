"""The parent of the worker processes. It runs no user code and starts no thread.

One loop in the main thread waits for signals and for reports of the children, and nothing else happens anywhere:

* A signal handler only lets the interpreter write the signal's number into a pipe (``signal.set_wakeup_fd``).
* Each child has one pipe; it carries one report (``Ready`` or ``Failure``) to the parent, and its end tells the child
  that the parent has died.
* Children are reaped on ``SIGCHLD``, never by the end of a pipe: a process that a task forked may hold that open.

What happens when a child ends without having been asked to is decided in one place, ``_child_ended``: it stops the
others and the program ends with the child's code.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import connection, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import ForkContext, ForkProcess, SpawnContext, SpawnProcess
from types import FrameType

from ..clock import SYSTEM_CLOCK, Clock
from ..logging import get_logger
from ..settings import Settings, did_you_mean
from .child import HANDLED_SIGNALS, ChildSpec, Failure, Ready, Startable, decode_report, set_up_logging
from .child import main as child_main
from .exit_codes import ExitCode

#: They stop gracefully, and by force if one comes while another is obeyed. HUP only stops: systemd sends it after TERM.
_STOP_SIGNALS = frozenset((signal.SIGTERM, signal.SIGINT, signal.SIGQUIT))
#: The same signal within this time, in seconds, is an echo: timeout(1) and others send it to us and to our group.
_ECHO_S = 0.05
#: A child ends by itself when its grace is over; this much later it is killed, in seconds.
_KILL_MARGIN_S = 2.0

logger = get_logger("greenroom", "MainProcess")


class WorkersFailed(Exception):
    """Raised when the workers did not get to work. ``failure`` says why, and with which exit code."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.line)
        self.failure = failure


def run_processes(
    settings: Settings, make_worker: Callable[[Settings], Startable], *, program: str = "Greenroom"
) -> int:
    """Runs ``settings.processes`` workers until a signal stops them, and returns the exit code.

    Call it in the main thread of a program that has no other thread: it forks, and takes over the signal handlers
    meanwhile.

    Parameters:
      settings: What to run.
      make_worker: Called in each child, where it imports the user's code. A function of a module.
      program: What the log line at the start calls it: its name and version.

    Raises:
      WorkersFailed: If a child could not start; the others are stopped then.
    """
    try:
        set_up_logging(settings)
    except OSError as e:
        line = f"the log file {settings.log_file!r} cannot be opened: {e.strerror}"
        raise WorkersFailed(Failure(ExitCode.USAGE, line)) from e
    with _signals_into_a_pipe() as signals:
        return _Processes(settings, make_worker, signals, program).run()


class StopSignals:
    """Counts the signals that ask for a stop, and no echoes. Owned by the parent's main thread."""

    def __init__(self, clock: Clock) -> None:
        self.count = 0
        self._clock = clock
        self._last: dict[int, float] = {}

    def add(self, numbers: Iterable[int]) -> list[int]:
        """Counts what is new among ``numbers``, and returns it."""
        now = self._clock.monotonic()
        fresh = []
        for number in numbers:
            if number in _STOP_SIGNALS and now - self._last.get(number, -_ECHO_S) >= _ECHO_S:
                self._last[number] = now
                fresh.append(number)
        self.count += len(fresh)
        return fresh


@dataclass(slots=True, eq=False)
class _Child:
    """Owned by the parent's main thread."""

    number: int
    process: ForkProcess | SpawnProcess
    pipe: Connection
    is_ready: bool = False
    pipe_ended: bool = False


class _Processes:
    """The children of one program. Owned by the parent's main thread."""

    def __init__(
        self,
        settings: Settings,
        make_worker: Callable[[Settings], Startable],
        signals: int,
        program: str,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._settings = settings
        self._make_worker = make_worker
        self._signals = signals
        self._program = program
        self._clock = clock
        self._children: list[_Child] = []
        self._code = 0
        self._failure: Failure | None = None
        self._stop_signals = StopSignals(clock)
        self._kill_at: float | None = None
        self._is_stopping = False

    def run(self) -> int:
        try:
            self._start()
            while self._children:
                self._wait()
        finally:
            self._kill_all()
            for child in self._children:
                child.process.join()
        if self._failure is not None:
            raise WorkersFailed(self._failure)
        return self._code

    def _start(self) -> None:
        context: ForkContext | SpawnContext
        if self._settings.use_spawn or sys.platform == "darwin":  # system libraries of macOS do not survive a fork
            context = multiprocessing.get_context("spawn")
            resource_tracker.ensure_running()  # it unblocks signals, so not below
        else:
            context = multiprocessing.get_context("fork")
        signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED_SIGNALS)
        try:
            for number in range(self._settings.processes):
                self._start_child(context, number)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED_SIGNALS)

    def _start_child(self, context: ForkContext | SpawnContext, number: int) -> None:
        ours, theirs = context.Pipe()
        spec = ChildSpec(number, self._settings, os.getpid(), self._make_worker)
        is_fork = context.get_start_method() == "fork"
        inherited = [*(child.pipe for child in self._children), ours] if is_fork else []
        process = context.Process(target=child_main, args=(spec, theirs, inherited), name=f"WorkerProcess-{number}")
        process.start()
        theirs.close()
        self._children.append(_Child(number, process, ours))

    # --- the loop

    def _wait(self) -> None:
        timeout_s = None if self._kill_at is None else max(0.0, self._kill_at - self._clock.monotonic())
        pipes = [child.pipe for child in self._children if not child.pipe_ended]
        ready = connection.wait([self._signals, *pipes], timeout_s)
        for child in self._children:
            if child.pipe in ready:
                self._read_report(child)
        if self._signals in ready:
            self._handle_signals(os.read(self._signals, 4096))
        if self._kill_at is not None and self._clock.monotonic() >= self._kill_at:
            logger.error("The grace is over: killing the worker processes that are left.")
            self._kill_all()

    def _handle_signals(self, numbers: bytes) -> None:
        stops = self._stop_signals.add(numbers)
        if stops and self._stop_signals.count > 1:
            logger.warning("Killing the worker processes: a second signal came.")
            self._kill_all()
        elif stops or signal.SIGHUP in numbers:
            self._stop(f"got {signal.Signals(stops[0] if stops else signal.SIGHUP).name}")
        self._reap()

    def _read_report(self, child: _Child) -> None:
        try:
            report = decode_report(child.pipe.recv_bytes())
        except (EOFError, OSError):
            child.pipe_ended = True
            return
        if isinstance(report, Failure):
            self._start_failed(report)
            return
        child.is_ready = True
        if all(c.is_ready for c in self._children) and not self._is_stopping:
            self._announce(report)

    def _announce(self, ready: Ready) -> None:
        settings = self._settings
        logger.info(
            "%s runs: PID %d, processes: %d, threads: %d each, queues: %s, broker: %s.",
            self._program,
            os.getpid(),
            settings.processes,
            settings.threads,
            ", ".join(settings.queues) if settings.queues else f"all ({', '.join(ready.queues)})",
            ready.broker,
        )
        for queue in settings.queues or ():
            if queue not in ready.queues:
                logger.warning("No actor uses queue %r%s", queue, did_you_mean(queue, ready.queues) or ".")

    # --- ending

    def _stop(self, reason: str) -> None:
        if self._is_stopping:
            return
        self._is_stopping = True
        if any(child.is_ready for child in self._children):
            logger.info("Stopping the worker processes: %s.", reason)
        grace_s = self._settings.worker_shutdown_timeout_ms / 1000
        self._kill_at = self._clock.monotonic() + grace_s + _KILL_MARGIN_S
        for child in self._children:
            child.process.terminate()

    def _kill_all(self) -> None:
        self._is_stopping = True
        self._kill_at = None
        for child in self._children:
            child.process.kill()

    def _start_failed(self, failure: Failure) -> None:
        if not self._is_stopping:  # else it is no news, or what TERM did to its start
            self._failure = failure
            self._stop(failure.line)

    def _reap(self) -> None:
        for child in list(self._children):
            exit_code = child.process.exitcode
            if exit_code is None:
                continue
            if not child.pipe_ended and child.pipe.poll():
                self._read_report(child)
            self._children.remove(child)
            child.pipe.close()
            self._child_ended(child, exit_code)

    def _child_ended(self, child: _Child, exit_code: int) -> None:
        """The policy: a child that ends unasked stops the others, and its code becomes the program's."""
        code = ExitCode.KILLED if exit_code < 0 else exit_code
        if self._is_stopping:
            asked_while_booting = exit_code == -signal.SIGTERM and not child.is_ready
            self._code = self._code or (0 if asked_while_booting else code)
            return
        line = f"worker process {child.number} (PID {child.process.pid}) {_how_it_ended(exit_code)}"
        if not child.is_ready:
            self._start_failed(Failure(code or ExitCode.USAGE, f"{line} before it was ready"))
            return
        self._code = code
        logger.error("The %s.", line)
        self._stop(line)


def _how_it_ended(exit_code: int) -> str:
    if exit_code >= 0:
        return f"ended with code {exit_code}"
    try:
        return f"was killed by {signal.Signals(-exit_code).name}"
    except ValueError:  # a real-time signal
        return f"was killed by signal {-exit_code}"


@contextmanager
def _signals_into_a_pipe() -> Iterator[int]:
    """Has the interpreter write the number of each signal of ours into a pipe; gives its reading end."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    previous_writer = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    previous = {number: signal.signal(number, _do_nothing) for number in HANDLED_SIGNALS}
    try:
        yield reader
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(previous_writer)
        os.close(reader)
        os.close(writer)


def _do_nothing(_number: int, _frame: FrameType | None) -> None:
    """A handler must be there for the number to be written."""
