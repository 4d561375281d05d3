"""A child process: it runs the user's code, obeys its parent and never outlives it.

The life of a child: forget what belongs to the parent, make a worker, start it, report, wait for ``TERM``, stop it.
All that goes wrong before the worker runs becomes one ``Failure`` that travels to the parent, which tells the user
once, however many children met it.

While it boots, ``TERM`` ends a child at once: nothing runs yet. Afterwards it stops gracefully. Signals of the
terminal (``INT``, ``QUIT``, ``HUP``) are the parent's business and ignored. If the parent dies, the child dies: on
Linux by ``PR_SET_PDEATHSIG``, everywhere by the end of the pipe, which a thread watches.

Before it leaves tasks behind at the end of the grace, a child says so on its board, so that nobody is charged.
"""

from __future__ import annotations

import ctypes
import faulthandler
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from multiprocessing import connection, forkserver
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, NoReturn, Protocol

from .. import context
from ..board import Board, Fate
from ..clock import SYSTEM_CLOCK
from ..errors import (
    BrokerBusy,
    BrokerConnectionError,
    BrokerCorrupt,
    BrokerError,
    BrokerFull,
    BrokerReadOnly,
    BrokerTimeout,
    SchemaMismatch,
)
from ..logging import get_logger, one_line
from ..settings import Settings
from .application import ApplicationError, names_of_forks, user_traceback
from .exit_codes import ExitCode
from .parent_loop import Source
from .recycling import Recycling
from .reports import REAP, Boarded, ChildEnd, Failure, Ready, Recycle
from .signals import DUMP_SIGNAL, HANDLED_SIGNALS, TERMINAL_SIGNALS
from .strays import keep_term_from_children

_UNREACHABLE = (BrokerConnectionError, BrokerTimeout, BrokerBusy, BrokerFull, BrokerReadOnly)
_CORRUPT = (BrokerCorrupt, SchemaMismatch)
_PR_SET_PDEATHSIG = 1
_MAX_TRACEBACK_CHARACTERS = 65_536


class Startable(Protocol):
    """What a child runs: a ``Worker``."""

    broker: Any
    on_stuck: Callable[[], object] | None
    #: Who will say on the board how this process ended. Set before ``start``.
    parent_pid: int
    #: Called with the board, before anything runs, and when the board has got a new file.
    on_board: Callable[[Board], object] | None

    @property
    def board(self) -> Board | None:
        """What runs right now, once it has started."""

    @property
    def is_stuck(self) -> bool:
        """True if it cannot work any more."""

    @property
    def fatal_error(self) -> BaseException | None:
        """Why it cannot work any more, where that is no mistake of ours."""

    @property
    def finished(self) -> int:
        """How many messages it has run."""

    def start(self) -> None: ...

    def stop(self, timeout: int) -> None: ...

    def reap_soon(self) -> None:
        """Any thread: a sibling has died."""


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """What a child is told at birth."""

    number: int
    settings: Settings
    #: Who started it: the process that will say how it ended.
    supervisor_pid: int
    #: What ``os.getppid()`` should be; 0 if that is another's business.
    parent_pid: int
    #: Runs in the child, where it may import the user's code; a module's function, so that it can be pickled.
    make_worker: Callable[[Settings], Startable]


def main(spec: ChildSpec, connection_: Connection, inherited: Iterable[Source]) -> None:
    """The whole life of a worker process.

    Parameters:
      spec: What to run.
      connection_: To the parent: reports go there, orders come from there. Its end means that the parent has died.
      inherited: What the parent waits for, if this is a fork.

    Raises:
      SystemExit: At the end, with an ``ExitCode``.
    """
    pipe = begin(connection_, inherited, spec.parent_pid)
    context.has_forks = True
    logger = get_logger("greenroom", f"WorkerProcess({spec.number})")
    wake_reader, wake_writer = os.pipe()
    try:
        worker = _boot(spec, pipe, wake_writer, logger)
    except (Exception, SystemExit) as e:  # noqa: BLE001  # whatever it is, the parent tells the user
        failure = explain(e)
        pipe.report(failure)
        sys.exit(failure.code)
    _wait_for_stop(wake_reader, worker, pipe, Recycling(spec.settings))
    logger.info("Stopping worker process.")
    try:
        code = _stop(worker, pipe, spec.settings, logger)
    except Exception:
        logger.critical("Stopping failed.", exc_info=True)
        code = ExitCode.INTERNAL
    sys.exit(code)


def begin(connection_: Connection, inherited: Iterable[Source], parent_pid: int) -> ChildEnd:
    """What every child does first: it forgets what belongs to the parent, and will not outlive it.

    Parameters:
      connection_: To the parent.
      inherited: What the parent waits for, if this is a fork.
      parent_pid: What ``os.getppid()`` should be; 0 if that is another's business.
    """
    for source in inherited:
        source.close()
    pipe = ChildEnd(connection_)
    _die_with(parent_pid, pipe)
    _forget_signals_of_parent()
    _show_stacks()
    return pipe


def explain(error: BaseException, what: str = "the worker could not start") -> Failure:
    """What an exception means to the user, and to the exit code. ``what`` begins the line of one that nobody knows."""
    if isinstance(error, ApplicationError):
        cause = error.__cause__
        trace = _format(cause, user_traceback(cause)) if cause is not None else ""
        return Failure(ExitCode.USAGE, one_line(error), trace, error.missing_module)
    if isinstance(error, _CORRUPT):
        return Failure(ExitCode.CORRUPT, one_line(error))
    if isinstance(error, _UNREACHABLE) or type(error) is BrokerError:
        return Failure(ExitCode.UNREACHABLE, one_line(error))
    line = one_line(f"{what}: {type(error).__name__}: {error}")
    return Failure(ExitCode.INTERNAL, line, _format(error, error.__traceback__))


def _format(error: BaseException, trace: TracebackType | None) -> str:
    return "".join(traceback.format_exception(type(error), error, trace))[-_MAX_TRACEBACK_CHARACTERS:]


def _boot(spec: ChildSpec, pipe: ChildEnd, wake_writer: int, logger: logging.Logger) -> Startable:
    worker = spec.make_worker(spec.settings)
    threading.Thread(target=_obey, args=(pipe, worker), name="ParentWatch", daemon=True).start()
    _stop_on_term(wake_writer)
    worker.parent_pid = spec.supervisor_pid
    worker.on_board = partial(_tell_of_board, pipe)
    worker.on_stuck = partial(os.write, wake_writer, bytes((signal.SIGTERM,)))  # as if it had been told to stop
    worker.start()
    logger.info("Worker process is ready.")
    broker = worker.broker
    queues = tuple(sorted(broker.get_declared_queues()))
    pipe.report(Ready(one_line(repr(broker)), queues, names_of_forks(broker)))
    return worker


def _tell_of_board(pipe: ChildEnd, board: Board) -> None:
    if board.path is not None:
        pipe.report(Boarded(os.path.abspath(board.path)))


def _wait_for_stop(wake_reader: int, worker: Startable, pipe: ChildEnd, recycling: Recycling) -> None:
    """Waits for ``TERM``. Meanwhile asks, once, for a successor if it has worked enough."""
    look_s = recycling.look_every_s
    while True:
        if connection.wait([wake_reader], look_s):
            if signal.SIGTERM in os.read(wake_reader, 1024):
                return
        elif reason := recycling.reason(worker.finished):
            pipe.report(Recycle(reason))
            look_s = None


def _stop(worker: Startable, pipe: ChildEnd, settings: Settings, logger: logging.Logger) -> ExitCode:
    failure = explain(worker.fatal_error, "the worker could not go on") if worker.fatal_error is not None else None
    if failure is not None:
        logger.critical("%s", failure.line)
        pipe.report(failure)
    grace_ms = settings.worker_shutdown_timeout_ms
    deadline = SYSTEM_CLOCK.monotonic() + grace_ms / 1000
    worker.stop(timeout=grace_ms)
    if failure is not None:
        _leave(ExitCode(failure.code))
    if worker.is_stuck:
        logger.critical("This process ends because it cannot work any more.")
        _leave(ExitCode.INTERNAL)
    if SYSTEM_CLOCK.monotonic() < deadline:
        worker.broker.close()
        return ExitCode.OK
    logger.error("Tasks were still running after the grace of %d ms; their messages are given back.", grace_ms)
    if worker.board is not None:
        worker.board.write_fate(Fate.ENDED_ON_PURPOSE)
    return _leave(ExitCode.OK)


def _leave(code: ExitCode) -> NoReturn:
    """Ends the process although threads still run, which would keep the interpreter alive."""
    logging.shutdown()
    os._exit(code)


# --- parent and signals


def _die_with(parent_pid: int, pipe: ChildEnd) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if (parent_pid and os.getppid() != parent_pid) or not pipe.parent_lives():  # it died before the line above
        os._exit(ExitCode.KILLED)
    _let_fork_server_die()


def _let_fork_server_die() -> None:
    """A fork server ends when nobody holds its pipe any more, and ``multiprocessing`` has its children hold it, too.
    If only the parent does, the server dies with it, and this process with the server."""
    server: Any = forkserver._forkserver  # there is no other way to this descriptor
    descriptor, server._forkserver_alive_fd = getattr(server, "_forkserver_alive_fd", None), None
    if descriptor is not None:
        os.close(descriptor)


def _obey(pipe: ChildEnd, worker: Startable) -> None:
    for order in pipe.orders():
        if order == REAP:
            worker.reap_soon()
    os._exit(ExitCode.KILLED)  # the parent has died


def _forget_signals_of_parent() -> None:
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGTERM, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    for number in TERMINAL_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED_SIGNALS)


def _show_stacks() -> None:
    """Where it was when it crashed, or when the parent asks: printed by C code, whatever Python is doing."""
    faulthandler.enable(2)
    faulthandler.register(DUMP_SIGNAL, 2)


def _stop_on_term(wake_writer: int) -> None:
    os.set_blocking(wake_writer, False)
    signal.set_wakeup_fd(wake_writer, warn_on_full_buffer=False)
    signal.signal(signal.SIGTERM, lambda _number, _frame: None)  # the byte in the pipe is what counts
    keep_term_from_children()
