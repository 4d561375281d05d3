"""Starts processes by any of the three start methods, and learns how they end.

The parent's own waiting is here, and nowhere else:

* A child by ``fork`` or ``spawn`` is ours: ``SIGCHLD`` comes, and ``waitpid`` of its pid says how it ended. A pipe
  would not do, since a process that a task has forked may hold it open.
* A child by ``forkserver`` belongs to the fork server, which writes the exit code into a pipe of its own.
* As PID 1 a process also inherits orphans, those of all processes of its container. They are reaped one by one, after
  a look at whose they are, so that nothing is taken from ``multiprocessing``.

Only the main thread may start processes: on Linux a child dies with the thread that has forked it.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterable
from functools import partial
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import ForkContext, ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from .logs import Logs, run_in_child
from .parent_loop import ParentLoop
from .signals import HANDLED_SIGNALS, TERMINAL_SIGNALS

#: Modules of ours that a fork server imports once for all children. Never the user's: a reload is to see new code.
_PRELOADED = ["greenroom.worker", "greenroom.runtime.child"]

#: What runs in the new process: it closes the sources that it has inherited, then does its work.
Target = Callable[..., None]


def default_start_method() -> str:
    """``fork`` on Linux below Python 3.14, ``forkserver`` from there on, ``spawn`` elsewhere."""
    if sys.platform != "linux":
        return "spawn"  # system libraries of macOS do not survive a fork
    return "fork" if sys.version_info < (3, 14) else "forkserver"


class Launcher:
    """Starts processes and collects them. Owned by the parent's main thread."""

    def __init__(self, start_method: str, loop: ParentLoop, logs: Logs | None = None) -> None:
        self._loop = loop
        self._logs = logs
        self._context: Any = multiprocessing.get_context(start_method)
        self._alive: dict[BaseProcess, Callable[[int], object]] = {}
        self._sentinels: dict[BaseProcess, _Sentinel] = {}
        self._helpers: set[int] = set()
        self._is_init = os.getpid() == 1

    @property
    def parent_pid(self) -> int:
        """What ``os.getppid()`` is in a child; 0 if that cannot be known."""
        return 0 if isinstance(self._context, ForkServerContext) else os.getpid()

    def pipe(self) -> tuple[Any, Any]:
        """Two ends of a duplex pipe; the second can be an argument of ``start``."""
        ours, theirs = self._context.Pipe()
        return ours, theirs

    def start(self, target: Target, args: Iterable[object], name: str, on_exit: Callable[[int], object]) -> BaseProcess:
        """Starts a process that calls ``target(*args, inherited)``.

        Parameters:
          target: A function of a module. ``inherited`` are sources that it closes first.
          args: Can be pickled by ``multiprocessing`` where the start method needs it.
          name: The process's name.
          on_exit: Called in the loop with the exit code, or the negative number of the signal, when it has ended.

        Raises:
          OSError: If the system has no process to give.
        """
        self._start_helpers()
        if self._logs is not None:
            return self._start_speaking(self._logs, target, args, name, on_exit)
        return self._start(target, args, name, on_exit)

    def _start_speaking(
        self, logs: Logs, target: Target, args: Iterable[object], name: str, on_exit: Callable[[int], object]
    ) -> BaseProcess:
        reader, theirs = logs.open(self._context)
        try:
            on_end = partial(logs.ended, reader, on_exit)
            return self._start(run_in_child, (theirs, logs.level, target, tuple(args)), name, on_end)
        except OSError:
            logs.not_started(reader)
            raise
        finally:
            theirs.close()

    def _start(
        self, target: Target, args: Iterable[object], name: str, on_exit: Callable[[int], object]
    ) -> BaseProcess:
        inherited = self._loop.sources if isinstance(self._context, ForkContext) else ()
        process: BaseProcess = self._context.Process(target=target, args=(*args, inherited), name=name)
        previous = signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED_SIGNALS)
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, previous)
        self._alive[process] = on_exit
        if isinstance(self._context, ForkServerContext):
            self._sentinels[process] = sentinel = _Sentinel(process)
            self._loop.add(sentinel, partial(self._look_at, process))
        return process

    def catch_up(self) -> None:
        """Forwards what children have logged until now."""
        if self._logs is not None:
            self._logs.catch_up()

    def collect(self) -> None:
        """Tells of all that have ended; to be called after ``SIGCHLD``."""
        for process in list(self._alive):
            self._look_at(process)
        if self._is_init:
            self._reap_orphans()

    def _look_at(self, process: BaseProcess) -> None:
        exit_code = process.exitcode
        if exit_code is None:
            return
        if process in self._sentinels:
            self._loop.remove(self._sentinels.pop(process))
        self._alive.pop(process)(exit_code)

    def _reap_orphans(self) -> None:
        if sys.platform != "linux":
            return
        known = {process.pid for process in self._alive}
        while True:
            try:
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if ended is None or ended.si_pid in known:  # one of ours has just died: its signal comes next
                return
            if ended.si_pid in self._helpers:
                self._helpers.discard(ended.si_pid)
                self._start_helpers()  # multiprocessing reaps it before it starts another
            else:
                os.waitpid(ended.si_pid, 0)

    def _start_helpers(self) -> None:
        """Starts the processes that a start method needs, unless they run, so that no signal to our group ends them.

        What is blocked here stays blocked in them. ``SIGCHLD`` must not: it is how the fork server learns of an end.
        """
        if isinstance(self._context, ForkContext):
            return
        previous = signal.pthread_sigmask(signal.SIG_BLOCK, TERMINAL_SIGNALS)
        try:
            resource_tracker.ensure_running()  # unblocks TERM and INT, and ignores them
            if isinstance(self._context, ForkServerContext):
                signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, *TERMINAL_SIGNALS))
                self._context.set_forkserver_preload(_PRELOADED)
                forkserver.ensure_running()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, previous)
        if self._is_init and not self._alive:
            self._helpers = set(_children_of_this_thread())


class _Sentinel:
    """What becomes readable when the fork server has written an exit code."""

    def __init__(self, process: BaseProcess) -> None:
        self._process = process

    def fileno(self) -> int:
        return self._process.sentinel

    def close(self) -> None:
        """It belongs to ``multiprocessing``."""


def _children_of_this_thread() -> list[int]:
    try:
        return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]
    except OSError:
        return []
