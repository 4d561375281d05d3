"""The parent of the worker processes. It runs no user code and starts no thread.

One loop in the main thread (``ParentLoop``) waits for signals, for reports of the children and for moments, and nothing
else happens anywhere. After each round ``_fill`` compares what is there with what there should be, and starts at most
one child at a time:

* **A place is empty**, since its child crashed: a new child, after a backoff (``core/respawn.py``).
* **A child has worked enough**, or runs code of before a reload: a successor; when that is ready, the old one leaves.
  It finishes what it runs, and nobody waits for that: the next place's turn comes when the successor is ready.
* **A successor of a reload cannot boot**: the reload is off, and the old ones stay.

A child that cannot boot when the program starts ends the program with its reason; afterwards five boots that fail in a
row do. When a child has died, its board is told how before its siblings are told to look at it.

Where others join in, all of it in the main thread:

* ``loop.add(source, callback)`` is one more descriptor in the one wait, ``loop.call_at(when_s, callback)`` a moment.
  What is in the loop is closed by a forked child, so a descriptor of the parent's belongs there before a child starts.
* ``launcher.start(...)`` starts a process that is no worker; it is collected with the others, and told of.
* ``_start_child`` and ``_ended`` are the only places where a child begins and ends, ``_announce`` where all work for
  the first time, ``reload(reason)`` and ``stop(reason)`` what ``HUP`` and ``TERM`` do.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from functools import partial

from ..board import Fate
from ..clock import SYSTEM_CLOCK, Clock
from ..core.respawn import MAX_BOOT_FAILURES, Respawn
from ..logging import get_logger, one_line
from ..settings import Settings, did_you_mean
from .child import ChildSpec, Startable
from .child import main as child_main
from .companions import Companions
from .exit_codes import ExitCode
from .log_output import LogOutput
from .logs import Logs, level_of
from .out_of_memory import OomCounter
from .parent_loop import ParentLoop
from .processes import Launcher, default_start_method
from .reports import REAP, Boarded, Failure, ParentEnd, Ready, Recycle
from .signals import SignalPipe, StopSignals
from .worker_process import WorkerProcess

#: A child ends by itself when its grace is over; this much later it is killed, in seconds.
KILL_MARGIN_S = 1.5
#: After a change of the watched folder it is killed so soon.
URGENT_GRACE_S = 0.5
#: So long a child may take to print its stacks before it is killed, in seconds.
DUMP_S = 0.3

logger = get_logger("greenroom", "MainProcess")


class WorkersFailed(Exception):
    """Raised when the workers did not get to work, or cannot go on. ``failure`` says why, and with which exit code."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.line)
        self.failure = failure


class Supervisor:
    """The children of one program. Owned by the parent's main thread."""

    def __init__(
        self,
        settings: Settings,
        make_worker: Callable[[Settings], Startable],
        signals: SignalPipe,
        program: str,
        output: LogOutput | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._settings = settings
        self._make_worker = make_worker
        self._program = program
        self._clock = clock
        self.loop = ParentLoop(clock)
        logs = None if output is None else Logs(output, self.loop, level_of(settings))
        self.launcher = Launcher(settings.start_method or default_start_method(), self.loop, logs)
        self._companions = Companions(settings, self.loop, self.launcher, self)
        #: What the fork functions of middleware are called.
        self._forks: tuple[str, ...] = ()
        self._signals = signals
        self.loop.add(signals, self._read_signals)
        self._stop_signals = StopSignals(clock)
        self._respawn = Respawn()
        self._out_of_memory = OomCounter()
        self._children: list[WorkerProcess] = []
        #: Reloads asked for so far, and whether the last is still going on.
        self._generation = 0
        self._is_reloading = False
        #: What is replaced has no time to finish: somebody waits for the effect of a change.
        self._is_urgent = False
        self._was_announced = False
        self._is_stopping = False
        self._code = 0
        self._failure: Failure | None = None

    def run(self) -> int:
        """Starts the children, and returns when all have ended after a stop."""
        try:
            for number in range(self._settings.processes):
                self._start_child(number)
            if self._settings.hang_timeout_ms is not None:
                self._look_at_beats(self._settings.hang_timeout_ms / 1000, self._clock.monotonic())
            self._companions.start_watcher()
            forks_s = self._settings.worker_fork_timeout_ms / 1000
            self.loop.call_at(self._clock.monotonic() + forks_s, self._companions.start_forks)
            while self._children or self._companions.alive or not self._is_stopping:
                self.loop.wait()
                self._fill()
        finally:
            for child in self._children:
                child.kill(Fate.ENDED_ON_PURPOSE)
            for child in self._children:
                child.process.join()
            self._companions.kill()
            self._companions.join()
        if self._failure is not None:
            raise WorkersFailed(self._failure)
        return self._code

    # --- what there should be

    def _fill(self) -> None:
        """Starts a child if one is needed, none boots, and the backoff is over."""
        serving = [child for child in self._children if child.serves]
        if self._is_stopping or any(child.is_booting for child in serving):
            return
        empty = set(range(self._settings.processes)) - {child.number for child in serving}
        tired = [child.number for child in serving if child.wants_successor]
        outdated = [child.number for child in serving if child.generation < self._generation]
        if self._is_reloading and not (empty or outdated):
            self._is_reloading = self._is_urgent = False
            self._companions.restart_forks(self._forks)
            logger.info("All worker processes run the code of now.")
        for number in (*sorted(empty), *tired, *outdated):
            if not self._respawn.delay_s(self._clock.monotonic()):
                self._start_child(number)
            return

    def _start_child(self, number: int) -> None:
        now_s = self._clock.monotonic()
        try:
            ours, theirs = self.launcher.pipe()
        except OSError as e:
            self._could_not_start(number, e)
            return
        child = WorkerProcess(number, self._generation, ParentEnd(ours), now_s)
        self.loop.add(child.pipe, partial(self._read, child))
        spec = ChildSpec(number, self._settings, os.getpid(), self.launcher.parent_pid, self._make_worker)
        try:
            child.process = self.launcher.start(
                child_main, (spec, theirs), f"WorkerProcess-{number}", partial(self._ended, child)
            )
        except OSError as e:
            self._forget(child)
            self._could_not_start(number, e)
            return
        finally:
            theirs.close()
        self._children.append(child)
        self.loop.call_at(now_s + self._settings.worker_boot_timeout_ms / 1000, partial(self._boot_is_over, child))

    def _could_not_start(self, number: int, error: OSError) -> None:
        line = f"worker process {number} could not be started: {error.strerror}"
        if not self._was_announced:
            self.fail(Failure(ExitCode.UNREACHABLE, line))
            return
        now_s = self._clock.monotonic()
        self._respawn.held_up(now_s)
        self._later(now_s, line)

    def _later(self, now_s: float, line: str, trace: str = "") -> None:
        """Says what happened at ``now_s``, and when the next child is started."""
        logger.error("The %s. The next one starts in %.1f s.%s", line, self._respawn.delay_s(now_s), trace)
        self.loop.call_at(self._respawn.not_before_s, self._fill)

    # --- what children report

    def _read(self, child: WorkerProcess) -> None:
        reports = list(child.pipe.receive())
        self.launcher.catch_up()
        for report in reports:
            if isinstance(report, Boarded):
                child.boarded(report)
            elif isinstance(report, Ready):
                self._became_ready(child, report)
            elif isinstance(report, Recycle):
                child.wants_successor = report.reason
                logger.info("The %s gets a successor: %s.", child, report.reason)
            elif isinstance(report, Failure):
                child.failure = report
                if report.code == ExitCode.CORRUPT and not child.is_booting:
                    self.fail(report)
        if child.pipe.has_ended:
            self.loop.remove(child.pipe)

    def _became_ready(self, child: WorkerProcess, report: Ready) -> None:
        child.became_ready(self._clock.monotonic())
        self._respawn.became_ready()
        self._forks = report.forks
        for other in self._children:
            is_succeeded = other.number == child.number or (self._is_urgent and other.generation < child.generation)
            if is_succeeded and other is not child and other.serves and child.serves:
                self._leave(other)
        if len([c for c in self._children if c.serves and not c.is_booting]) == self._settings.processes:
            self._announce(report)

    def _announce(self, ready: Ready) -> None:
        if self._was_announced:
            return
        self._was_announced = True
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
        self._companions.start_forks(self._forks)

    # --- signals

    def _read_signals(self) -> None:
        numbers = self._signals.read()
        stops = self._stop_signals.add(numbers)
        if stops and self._stop_signals.count > 1:
            logger.warning("Killing the worker processes: a second signal came.")
            self._force()
        elif stops:
            self.stop(f"got {signal.Signals(stops[0]).name}")
        elif signal.SIGHUP in numbers:
            self.reload("got SIGHUP")
        self.launcher.collect()

    def reload(self, reason: str) -> None:
        """Has every child replaced by one that imports the code of now. One that is going on begins anew."""
        if self._is_stopping:  # systemd sends HUP after TERM
            return
        logger.info("Reloading the worker processes: %s.", reason)
        self._generation += 1
        self._is_reloading = True

    def changed(self, paths: Sequence[str]) -> None:
        """Reloads without patience: once the code of now has been seen to boot, all that runs that of before goes."""
        self.reload(f"{one_line(', '.join(paths[:3]))} changed{' among others' if len(paths) > 3 else ''}")
        self._is_urgent = not self._is_stopping

    def stop(self, reason: str) -> None:
        """Stops all children gracefully; the program ends when they have."""
        if self._is_stopping:
            return
        self._is_stopping = True
        self._is_urgent = False
        self._companions.stop()
        if not all(child.is_booting for child in self._children):
            logger.info("Stopping the worker processes: %s.", reason)
        for child in self._children:
            if not child.is_leaving:
                self._leave(child)

    def _force(self) -> None:
        self._is_stopping = True
        self._code = ExitCode.KILLED
        self._companions.kill()
        for child in self._children:
            child.kill(Fate.ENDED_ON_PURPOSE)

    def fail(self, failure: Failure) -> None:
        """The program cannot go on."""
        if not self._is_stopping:  # else it is no news, or what TERM did to a start
            self._failure = failure
            self.stop(failure.line)

    # --- moments

    def _leave(self, child: WorkerProcess) -> None:
        child.stop()
        grace_s = (
            URGENT_GRACE_S if self._is_urgent else self._settings.worker_shutdown_timeout_ms / 1000 + KILL_MARGIN_S
        )
        self.loop.call_at(self._clock.monotonic() + grace_s, partial(self._grace_is_over, child))

    def _grace_is_over(self, child: WorkerProcess) -> None:
        if child in self._children:
            logger.error("The grace is over: killing the %s.", child)
            child.kill(Fate.ENDED_ON_PURPOSE)

    def _boot_is_over(self, child: WorkerProcess) -> None:
        if child in self._children and child.is_booting and child.serves:
            timeout_ms = self._settings.worker_boot_timeout_ms
            evidence = f"it was not ready after {timeout_ms} ms (--worker-boot-timeout)"
            self._condemn(child, evidence, Fate.ENDED_ON_PURPOSE)

    def _look_at_beats(self, timeout_s: float, planned_s: float) -> None:
        now_s = self._clock.monotonic()
        we_slept = now_s - planned_s > timeout_s / 4  # all of us were frozen, perhaps: they get their chance
        for child in self._children:
            if we_slept:
                child.pardon(now_s)
            silent_s = child.silent_s(now_s)
            if silent_s >= timeout_s and child.serves and not child.is_condemned:
                self._condemn(child, f"it has shown no sign of life for {silent_s:.1f} s (--hang-timeout)", Fate.HUNG)
        next_s = now_s + min(1.0, timeout_s / 4)
        self.loop.call_at(next_s, partial(self._look_at_beats, timeout_s, next_s))

    def _condemn(self, child: WorkerProcess, evidence: str, fate: Fate) -> None:
        logger.error("Killing the %s: %s. Its stacks come first.", child, evidence)
        child.condemn(evidence)
        self.loop.call_at(self._clock.monotonic() + DUMP_S, partial(self._execute, child, fate))

    def _execute(self, child: WorkerProcess, fate: Fate) -> None:
        if child in self._children:
            child.kill(fate)

    # --- the end of a child

    def _ended(self, child: WorkerProcess, exit_code: int) -> None:
        self._read(child)
        self._forget(child)
        self._children.remove(child)
        was_struck = exit_code == -signal.SIGKILL and not child.was_killed_by_us
        out_of_memory = was_struck and self._out_of_memory.has_grown()
        child.ended(exit_code, out_of_memory=out_of_memory)
        as_asked = child.ended_as_asked(exit_code)
        if not as_asked or child.was_killed_by_us:
            self._tell_siblings()
        obituary = child.obituary(exit_code, out_of_memory=out_of_memory)
        if child.is_leaving or self._is_stopping:
            self._left(child, exit_code, obituary, as_asked=as_asked)
        elif child.is_booting and not child.runs_something:
            self._boot_failed(child, exit_code, f"{obituary} before it was ready")
        else:
            now_s = self._clock.monotonic()
            self._respawn.crashed(now_s, now_s - (child.ready_s or now_s))
            self._later(now_s, obituary)

    def _forget(self, child: WorkerProcess) -> None:
        self.loop.remove(child.pipe)
        child.pipe.close()

    def _tell_siblings(self) -> None:
        for sibling in self._children:
            if not sibling.is_booting:
                sibling.pipe.send(REAP)

    def _left(self, child: WorkerProcess, exit_code: int, obituary: str, *, as_asked: bool) -> None:
        if as_asked:
            return
        if not child.is_booting:
            logger.error("The %s.", obituary)
        if self._is_stopping:
            self._code = self._code or (ExitCode.KILLED if exit_code < 0 else exit_code)

    def _boot_failed(self, child: WorkerProcess, exit_code: int, line: str) -> None:
        failure = child.failure or Failure(ExitCode.KILLED if exit_code < 0 else exit_code or ExitCode.USAGE, line)
        if self._is_reloading and any(other.generation < self._generation for other in self._children if other.serves):
            self._call_off(failure)
            return
        # An outsider's TERM means all of us, and will come here, too.
        is_verdict = child.failure or not (child.was_killed_by_us or exit_code == -signal.SIGTERM)
        if is_verdict and not self._was_announced:
            self.fail(failure)
            return
        now_s = self._clock.monotonic()
        if failure.code == ExitCode.UNREACHABLE:  # the broker is away: those that run wait for it, too
            self._respawn.held_up(now_s)
        elif self._respawn.boot_failed(now_s, child.started_s):
            line = f"{MAX_BOOT_FAILURES} worker processes in a row could not start, the last because: {failure.line}"
            self.fail(Failure(ExitCode.UNREACHABLE, line, failure.traceback))
            return
        line = f"{child} could not start: {failure.line}" if child.failure else line
        self._later(now_s, line, _below(failure.traceback))

    def _call_off(self, failure: Failure) -> None:
        """The code of now cannot be run: those that work go on with what they have."""
        trace = _below(failure.traceback)
        logger.error("The reload is off, the worker processes stay as they are: %s%s", failure.line, trace)
        self._is_reloading = self._is_urgent = False
        for child in self._children:
            child.generation = self._generation


def _below(traceback: str) -> str:
    return traceback and f"\n{traceback.rstrip()}"
