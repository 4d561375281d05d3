"""Interrupting a thread from outside, under the names of ``dramatiq.threading``."""

from __future__ import annotations

import platform
import sys
from typing import TYPE_CHECKING

from .errors import Interrupt
from .logging import get_logger

if TYPE_CHECKING:
    from types import ModuleType

__all__ = [
    "Interrupt",
    "current_platform",
    "is_gevent_active",
    "raise_thread_exception",
    "recall_thread_exception",
    "supported_platforms",
]

logger = get_logger(__name__)

current_platform = platform.python_implementation()
#: The Python implementations on which a thread can be interrupted.
supported_platforms = {"CPython"}


def is_gevent_active() -> bool:
    """True if gevent has patched ``threading``."""
    patched: ModuleType | None = sys.modules.get("gevent.monkey")
    return bool(patched and patched.is_module_patched("threading"))


def raise_thread_exception(thread_id: int, exception: type[BaseException]) -> None:
    """Has ``exception`` raised in a thread, at its next Python instruction.

    It does not reach a thread that is blocked in C code (a sleep, a socket, a regular expression) before that returns.
    """
    if current_platform not in supported_platforms:
        logger.critical("Setting thread exceptions is not supported on %s.", current_platform)
        return
    import ctypes  # not at the top: senders import this module and never need it

    count = ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread_id), ctypes.py_object(exception))
    if count == 0:
        logger.critical("Failed to set exception (%s) in thread %r.", exception.__name__, thread_id)
    elif count > 1:  # documented as impossible for a valid id: undo
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread_id), None)
        logger.critical("Exception (%s) was set in multiple threads. Undoing.", exception.__name__)


def recall_thread_exception(thread_id: int) -> None:
    """Takes back an exception that was set in a thread and not raised there yet; does nothing if there is none."""
    if current_platform in supported_platforms:
        import ctypes  # as above

        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread_id), None)
