"""Processes beside the workers, as their parent sees them: fork functions, and the one that watches for changes.

One that ends with 0 has done its work and is not started again. One that ends otherwise is, after a backoff. A fork
function that cannot be found when the program starts is a mistake of its command line, and ends the program.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.process import BaseProcess
from typing import Any, Protocol

from ..board import Fate, ending
from ..core.respawn import Respawn
from ..logging import get_logger
from ..settings import Settings
from . import forks, watch
from .parent_loop import ParentLoop
from .processes import Launcher
from .reports import Changed, Failure, ParentEnd

logger = get_logger("greenroom", "MainProcess")


class Keeper(Protocol):
    """Whom the companions keep company."""

    def fail(self, failure: Failure) -> None:
        """The program cannot go on."""

    def changed(self, paths: Sequence[str]) -> None:
        """Files of the watched folder have changed."""


class Companion:
    """One process, and those that replace it. Owned by the parent's main thread."""

    def __init__(self, kind: str, target: Callable[..., None], spec: Any) -> None:
        self.kind = kind
        self.target = target
        self.spec = spec
        self.respawn = Respawn()
        self.process: BaseProcess | None = None
        self.pipe: ParentEnd | None = None
        self.starts = 0
        self.started_s = 0.0
        #: Why it ends, if it has said so.
        self.failure: Failure | None = None

    def __str__(self) -> str:
        pid = f" (PID {self.process.pid})" if self.process is not None else ""
        return f"{self.kind} {self.spec.name}{pid}"


class Companions:
    """All of them. Owned by the parent's main thread."""

    def __init__(self, settings: Settings, loop: ParentLoop, launcher: Launcher, keeper: Keeper) -> None:
        self._settings = settings
        self._loop = loop
        self._launcher = launcher
        self._keeper = keeper
        self._watchers: list[Companion] = []
        self._forks: list[Companion] = []
        #: Told to end, to make room for a successor.
        self._leaving: list[Companion] = []
        self._of_middleware: tuple[str, ...] = ()
        self._next = 0
        self._was_reloaded = False
        self._is_stopping = False

    @property
    def alive(self) -> bool:
        """Whether any of them runs."""
        return any(companion.process is not None for companion in self._all)

    def start_watcher(self) -> None:
        """Starts the process that watches, if there is something to watch."""
        if self._settings.watch is not None:
            spec = watch.WatchSpec(self._settings, self._launcher.parent_pid)
            self._watchers.append(Companion("process of the", watch.main, spec))
            self._start(self._watchers[-1])

    def start_forks(self, of_middleware: Sequence[str] = ()) -> None:
        """Starts the fork functions that were not started yet.

        Parameters:
          of_middleware: What those of the middleware are called, in order.
        """
        named = [(name, None) for name in self._settings.fork_functions]
        for name, index in (*named, *((name, index) for index, name in enumerate(of_middleware))):
            if not any((c.spec.name, c.spec.index) == (name, index) for c in self._forks):
                number, self._next = self._next, self._next + 1
                spec = forks.ForkSpec(number, name, index, self._settings, self._launcher.parent_pid)
                self._forks.append(Companion("fork process of", forks.main, spec))
                self._start(self._forks[-1])

    def restart_forks(self, of_middleware: Sequence[str]) -> None:
        """Has the fork functions run the code of now. Each starts when its predecessor has ended, for there may be only
        one place to listen at. Those that had ended are started, too."""
        self._was_reloaded = True
        self._of_middleware = tuple(of_middleware)
        running = [companion for companion in self._forks if companion.process is not None]
        self._leaving += running
        self._forks = []
        for companion in running:
            self._end(companion)
        if not running:
            self.start_forks(self._of_middleware)

    def stop(self) -> None:
        """Tells all to end."""
        self._is_stopping = True
        for companion in self._all:
            self._end(companion)

    def kill(self) -> None:
        """Kills those that are left."""
        self._is_stopping = True
        for companion in self._all:
            if companion.process is not None:
                companion.process.kill()

    def join(self) -> None:
        """Waits for those that were killed."""
        for companion in self._all:
            if companion.process is not None:
                companion.process.join()

    @property
    def _all(self) -> list[Companion]:
        return [*self._watchers, *self._forks, *self._leaving]

    def _start(self, companion: Companion) -> None:
        if self._is_stopping or companion.process is not None or companion not in self._all:
            return
        ours, theirs = self._launcher.pipe()
        companion.pipe = pipe = ParentEnd(ours)
        companion.starts += 1
        companion.failure = None
        companion.started_s = self._loop.clock.monotonic()
        self._loop.add(pipe, partial(self._read, companion))
        try:
            companion.process = self._launcher.start(
                companion.target, (companion.spec, theirs), companion.spec.name, partial(self._ended, companion)
            )
        except OSError as e:
            self._hang_up(companion)
            self._again(companion, f"{companion} could not be started: {e.strerror}")
        finally:
            theirs.close()

    def _end(self, companion: Companion) -> None:
        if companion.process is not None:
            companion.process.terminate()
            grace_s = self._settings.worker_shutdown_timeout_ms / 1000
            self._loop.call_at(self._loop.clock.monotonic() + grace_s, partial(self._grace_is_over, companion.process))

    @staticmethod
    def _grace_is_over(process: BaseProcess) -> None:
        if process.is_alive():
            process.kill()

    def _read(self, companion: Companion) -> None:
        pipe = companion.pipe
        if pipe is None:
            return
        for report in pipe.receive():
            if isinstance(report, Changed):
                self._keeper.changed(report.paths)
            elif isinstance(report, Failure):
                companion.failure = report
        if pipe.has_ended:
            self._loop.remove(pipe)

    def _hang_up(self, companion: Companion) -> None:
        if companion.pipe is not None:
            self._loop.remove(companion.pipe)
            companion.pipe.close()
            companion.pipe = None

    def _ended(self, companion: Companion, exit_code: int) -> None:
        self._read(companion)
        self._hang_up(companion)
        line = f"{companion} {ending(Fate.DIED, exit_code)}"
        companion.process = None
        if companion in self._leaving:
            self._leaving.remove(companion)
            self.start_forks(self._of_middleware)
        elif self._is_stopping:
            return
        elif exit_code == 0:
            logger.info("The %s.", line)
        elif companion.failure is not None and companion.spec.name not in self._settings.fork_functions:
            logger.error("The %s cannot be run: %s", companion, companion.failure.line)
        elif companion.failure is not None and companion.starts == 1 and not self._was_reloaded:
            self._keeper.fail(companion.failure)
        else:
            self._again(companion, f"{companion}: {companion.failure.line}" if companion.failure else line)

    def _again(self, companion: Companion, line: str) -> None:
        now_s = self._loop.clock.monotonic()
        companion.respawn.crashed(now_s, now_s - companion.started_s)
        logger.error("The %s. It starts again in %.1f s.", line, companion.respawn.delay_s(now_s))
        self._loop.call_at(companion.respawn.not_before_s, partial(self._start, companion))
