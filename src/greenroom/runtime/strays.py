"""Processes that are forked inside of an actor.

The child of such a fork that comes back to the worker is a second one that nobody counts: the same messages wait in it,
and the same one runs. It must not settle that, nor run another, nor write on the board that it shares with its parent.
So both lanes look at a witness (``forksafe``) when an actor has returned or raised, and the child ends there. That of a
coroutine must not wait for anything either: the event loop would take the next step of other coroutines, and wake-ups
that are meant for its parent, with which it shares its descriptors.

What stays away, such as the processes of a pool, must be as easy to end as any other. So it does not inherit what the
worker does with ``TERM``: it would not die of it, and the number would go into the pipe by which the worker is stopped.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from types import CodeType, FrameType
from typing import NoReturn

from ..core.run import Run
from ..logging import get_logger, one_line
from .exit_codes import ExitCode

logger = get_logger("greenroom.worker", "Stray")


class _Forking(threading.local):
    """What a thread that forks has to put back afterwards."""

    mask: set[int] | None = None


_forking = _Forking()


def leave(run: Run | None = None, error: BaseException | None = None) -> NoReturn:
    """Ends this process, which is none of the workers, without any clean-up: what there is belongs to its parent."""
    logger.error(
        "This process was forked inside of an actor%s and came back to the worker%s. It ends, with exit code %d; the "
        "message is its parent's. End such a process with os._exit, or use multiprocessing or subprocess.",
        "" if run is None else f" (message {one_line(run.message_id, 255)})",
        "" if error is None else f" with {one_line(repr(error), 255)}",
        ExitCode.INTERNAL,
    )
    logging.shutdown()
    os._exit(ExitCode.INTERNAL)


def leave_with(coroutine: CodeType) -> None:
    """In a child: ends it as soon as control leaves a coroutine of this code, if it is inside of one. For that it is
    profiled, which costs time in a process that should not be there; those of ``multiprocessing`` never come back."""

    def watch(frame: FrameType, event: str, _arg: object) -> None:
        if frame.f_code is coroutine and event == "return":  # or it waits for something
            leave(frame.f_locals.get("run"))
        elif frame.f_code.co_qualname == "BaseProcess._bootstrap":
            sys.setprofile(None)

    caller: FrameType | None = sys._getframe()
    while caller is not None and caller.f_code is not coroutine:
        caller = caller.f_back
    if caller is not None:
        sys.setprofile(watch)


def keep_term_from_children() -> None:
    """From now on the children of this process die of ``TERM``. Called once, by a worker process."""
    os.register_at_fork(before=_block_term, after_in_parent=_unblock_term, after_in_child=_die_of_term)


def _block_term() -> None:
    """It could come before the child has forgotten what its parent does with it."""
    _forking.mask = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM,))


def _unblock_term() -> None:
    if _forking.mask is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, _forking.mask)


def _die_of_term() -> None:
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _unblock_term()
