"""A child process: it runs the user's code, obeys its parent and never outlives it.

The life of a child: forget what belongs to the parent, make a worker, start it, report, wait for ``TERM``, stop it.
All that goes wrong before the worker runs becomes one ``Failure`` that travels to the parent, which tells the user
once, however many children met it.

While it boots, ``TERM`` ends a child at once: nothing runs yet. Afterwards it stops gracefully. Signals of the
terminal (``INT``, ``QUIT``, ``HUP``) are the parent's business and ignored. If the parent dies, the child dies: on
Linux by ``PR_SET_PDEATHSIG``, everywhere by the end of the pipe, which a thread watches.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Protocol

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
from ..logging import LOG_FORMAT, get_logger, one_line
from ..settings import Settings
from .application import ApplicationError, user_traceback
from .exit_codes import ExitCode

#: Signals that the parent handles for all; a terminal sends them to the children, too.
TERMINAL_SIGNALS = (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP)
#: Signals that are blocked around a fork, so that no child ever runs a handler of its parent.
HANDLED_SIGNALS = (signal.SIGTERM, signal.SIGCHLD, *TERMINAL_SIGNALS)

_UNREACHABLE = (BrokerConnectionError, BrokerTimeout, BrokerBusy, BrokerFull, BrokerReadOnly)
_CORRUPT = (BrokerCorrupt, SchemaMismatch)
_PR_SET_PDEATHSIG = 1
_MAX_TRACEBACK_CHARACTERS = 65_536


@dataclass(frozen=True, slots=True)
class Ready:
    """What a child reports once its worker runs."""

    #: The broker's ``repr``.
    broker: str
    #: The names of the declared queues, sorted.
    queues: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a child, or a program, did not get to work."""

    #: An ``ExitCode``, or the code with which the user's code ended the process.
    code: int
    #: One line for the user.
    line: str
    #: The traceback, where it helps: the user's code or ours raised.
    traceback: str = ""
    #: The module's name, if the reason is that there is no such module.
    missing_module: str = ""


class Startable(Protocol):
    """What a child runs: a ``Worker``."""

    broker: Any
    on_stuck: Callable[[], object] | None

    @property
    def is_stuck(self) -> bool: ...

    def start(self) -> None: ...

    def stop(self, timeout: int) -> None: ...


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """What a child is told at birth."""

    number: int
    settings: Settings
    parent_pid: int
    #: Runs in the child, where it may import the user's code; a module's function, so that it can be pickled.
    make_worker: Callable[[Settings], Startable]


def encode_report(report: Ready | Failure) -> bytes:
    """A report as JSON: the parent reads nothing that a child's user code could have bent."""
    return json.dumps({type(report).__name__: asdict(report)}).encode()


def decode_report(data: bytes) -> Ready | Failure:
    """The report that ``encode_report`` wrote."""
    ((kind, content),) = json.loads(data).items()
    if kind == "Ready":
        return Ready(content["broker"], tuple(content["queues"]))
    return Failure(**content)


def main(spec: ChildSpec, pipe: Connection, inherited: Iterable[Connection]) -> None:
    """The whole life of a worker process.

    Parameters:
      spec: What to run.
      pipe: To the parent. It carries one report; its end means that the parent has died.
      inherited: The parent's ends of all pipes, if this is a fork.

    Raises:
      SystemExit: At the end, with an ``ExitCode``.
    """
    for connection in inherited:
        connection.close()
    _die_with(spec.parent_pid)
    _forget_signals_of_parent()
    set_up_logging(spec.settings)
    logger = get_logger("greenroom", f"WorkerProcess({spec.number})")
    wake_reader, wake_writer = os.pipe()
    try:
        worker = _boot(spec, pipe, wake_writer)
    except (Exception, SystemExit) as e:  # noqa: BLE001  # whatever it is, the parent tells the user
        failure = explain(e)
        pipe.send_bytes(encode_report(failure))
        sys.exit(failure.code)
    logger.info("Worker process is ready.")
    _wait_for_stop(wake_reader)
    logger.info("Stopping worker process.")
    try:
        code = _stop(worker, spec.settings, logger)
    except Exception:
        logger.critical("Stopping failed.", exc_info=True)
        code = ExitCode.INTERNAL
    sys.exit(code)


def set_up_logging(settings: Settings) -> None:
    """Sends log records to standard error or to the log file. Leaves logging that is set up already as it is.

    Raises:
      OSError: If the log file cannot be opened.
    """
    if settings.skip_logging or logging.getLogger().handlers:
        return
    handler: logging.Handler = logging.StreamHandler()
    if settings.log_file is not None:
        handler = logging.FileHandler(settings.log_file, encoding="utf-8")
    level = logging.DEBUG if settings.verbose else logging.INFO
    logging.basicConfig(level=level, format=LOG_FORMAT, handlers=[handler])


def explain(error: BaseException) -> Failure:
    """What an exception at start means to the user, and to the exit code."""
    if isinstance(error, ApplicationError):
        cause = error.__cause__
        trace = _format(cause, user_traceback(cause)) if cause is not None else ""
        return Failure(ExitCode.USAGE, one_line(error), trace, error.missing_module)
    if isinstance(error, _CORRUPT):
        return Failure(ExitCode.CORRUPT, one_line(error))
    if isinstance(error, _UNREACHABLE) or type(error) is BrokerError:
        return Failure(ExitCode.UNREACHABLE, one_line(error))
    line = one_line(f"the worker could not start: {type(error).__name__}: {error}")
    return Failure(ExitCode.INTERNAL, line, _format(error, error.__traceback__))


def _format(error: BaseException, trace: TracebackType | None) -> str:
    return "".join(traceback.format_exception(type(error), error, trace))[-_MAX_TRACEBACK_CHARACTERS:]


def _boot(spec: ChildSpec, pipe: Connection, wake_writer: int) -> Startable:
    worker = spec.make_worker(spec.settings)
    threading.Thread(target=_watch_parent, args=(pipe,), name="ParentWatch", daemon=True).start()
    _stop_on_term(wake_writer)
    worker.on_stuck = partial(os.write, wake_writer, bytes((signal.SIGTERM,)))  # as if it had been told to stop
    worker.start()
    report = Ready(one_line(repr(worker.broker)), tuple(sorted(worker.broker.get_declared_queues())))
    pipe.send_bytes(encode_report(report))
    return worker


def _stop(worker: Startable, settings: Settings, logger: logging.Logger) -> ExitCode:
    grace_ms = settings.worker_shutdown_timeout_ms
    deadline = SYSTEM_CLOCK.monotonic() + grace_ms / 1000
    worker.stop(timeout=grace_ms)
    if worker.is_stuck:
        logger.critical("This process ends because it cannot work any more.")
        logging.shutdown()
        os._exit(ExitCode.INTERNAL)  # their threads would keep the interpreter alive
    if SYSTEM_CLOCK.monotonic() < deadline:
        worker.broker.close()
        return ExitCode.OK
    logger.error("Tasks were still running after the grace of %d ms.", grace_ms)
    logging.shutdown()
    os._exit(ExitCode.KILLED)  # their threads would keep the interpreter alive


# --- parent and signals


def _die_with(parent_pid: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:  # it died before the line above
        os._exit(ExitCode.KILLED)


def _watch_parent(pipe: Connection) -> None:
    """The parent never writes, so whatever ends this read is its death."""
    try:
        pipe.recv_bytes()
    except (EOFError, OSError):
        os._exit(ExitCode.KILLED)


def _forget_signals_of_parent() -> None:
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGTERM, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    for number in TERMINAL_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED_SIGNALS)


def _stop_on_term(wake_writer: int) -> None:
    os.set_blocking(wake_writer, False)
    signal.set_wakeup_fd(wake_writer, warn_on_full_buffer=False)
    signal.signal(signal.SIGTERM, lambda _number, _frame: None)  # the byte in the pipe is what counts


def _wait_for_stop(wake_reader: int) -> None:
    while signal.SIGTERM not in os.read(wake_reader, 1024):
        pass
