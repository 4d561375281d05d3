"""Interrupting a thread from outside, under the names of ``dramatiq.threading``."""

from __future__ import annotations

import platform
import sys
import threading
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

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

#: Under gevent: the threads that are greenlets and may be interrupted, and what is on its way to them.
_greenlets: WeakValueDictionary[int, Any] = WeakValueDictionary()
_on_their_way: dict[int, tuple[type[BaseException], Any]] = {}


def is_gevent_active() -> bool:
    """True if gevent has patched ``threading``."""
    patched: ModuleType | None = sys.modules.get("gevent.monkey")
    return bool(patched and patched.is_module_patched("threading"))


def raise_thread_exception(thread_id: int, exception: type[BaseException]) -> None:
    """Has ``exception`` raised in a thread, at its next Python instruction.

    It does not reach a thread that is blocked in C code (a sleep, a socket, a regular expression) before that returns.
    Under gevent it is raised where the thread waits, so it ends a sleep, too, and reaches none that never waits.
    """
    if is_gevent_active():
        _throw_into_greenlet(thread_id, exception)
        return
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
    if is_gevent_active():
        _, callback = _on_their_way.pop(thread_id, (None, None))
        if callback is not None:
            callback.stop()
        return
    if current_platform in supported_platforms:
        import ctypes  # as above

        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread_id), None)


def land_thread_exception(thread_id: int) -> None:
    """This thread, whose id it is: has raised here and now what was set in it and not raised yet."""
    exception, _ = _on_their_way.get(thread_id, (None, None))
    recall_thread_exception(thread_id)  # where one is due in a real thread, this call never gets so far as to recall it
    if exception is not None:
        raise exception


def register_greenlet() -> None:
    """This thread may be interrupted. Does nothing without gevent, under which a thread's id does not lead to it."""
    if is_gevent_active():
        from gevent import getcurrent

        _greenlets[threading.get_ident()] = getcurrent()


def _throw_into_greenlet(thread_id: int, exception: type[BaseException]) -> None:
    from gevent import get_hub

    greenlet = _greenlets.get(thread_id)
    if greenlet is None:
        logger.critical("Failed to set exception (%s) in thread %r.", exception.__name__, thread_id)
        return

    def throw() -> None:
        del _on_their_way[thread_id]
        greenlet.throw(exception)

    recall_thread_exception(thread_id)
    _on_their_way[thread_id] = (exception, get_hub().loop.run_callback(throw))  # only the hub may throw
