"""Fork safety in one helper: a value is made on first use in this process and forgotten (not closed) in a child.

A connection, a lock or a thread that crosses a fork is shared by two processes that do not know of each other. So no
engine keeps one any other way than in a ``PerProcess``:

* first use in a process makes the value;
* a child forgets what it inherited but keeps it referenced for ever, beyond the interpreter's own end: a finaliser
  that closed an inherited connection would say goodbye on the parent's socket, or take a lock of the parent's for its
  own;
* ``before_fork`` brings the value to rest in the parent first (SQLite: its connection is closed, see
  ``engines/sqlite/database.py``), ``after_fork`` lets it go on;
* a fork waits for a factory that runs: what is half made is as dangerous as what is in use.

**Not every fork is announced.** Python tells of ``os.fork``, but a program around the interpreter may fork from C, as
uWSGI does: then nothing rests, and no hook runs in the child. So who uses what may be inherited looks at a *witness*
first, one byte of memory that the kernel wipes in a child: 20 ns, where asking for the process's number takes 200. The
first look in a child does what the hook would have done (``notice_fork``), and what is not a value in a ``PerProcess``
is told by ``in_child``.
"""

from __future__ import annotations

import atexit
import mmap
import os
import sys
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Generic, Protocol, TypeVar

from .logging import get_logger

T = TypeVar("T")
F = TypeVar("F", bound=Callable[[], object])

#: Since Linux 4.14; the module ``mmap`` has no name for it.
_MADV_WIPEONFORK = 18

logger = get_logger(__name__)


class Witness(Protocol):
    """``witness[0]`` is true in the process that set it, and false in every process that was forked from that."""

    def __getitem__(self, index: int, /) -> int: ...

    def __setitem__(self, index: int, value: int, /) -> None: ...


class _PidWitness:
    """The same for kernels that do not wipe memory, ten times slower."""

    def __init__(self) -> None:
        self._pid = 0

    def __getitem__(self, _index: int, /) -> int:
        return self._pid == os.getpid()

    def __setitem__(self, _index: int, _value: int, /) -> None:
        self._pid = os.getpid()


def new_witness() -> Witness:
    """A witness of this process: true here, false in every child."""
    witness = _wiped_page() or _PidWitness()
    witness[0] = 1
    return witness


def _wiped_page() -> Witness | None:
    if sys.platform != "linux":
        return None
    page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    try:
        page.madvise(_MADV_WIPEONFORK)
    except OSError:
        return None
    return memoryview(page)


#: False in a child that has not noticed yet that it is one; then ``notice_fork`` comes before anything else.
here = new_witness()

_registry: weakref.WeakSet[PerProcess[Any]] = weakref.WeakSet()
# guards: the registry is not changed while a fork walks it. Reentrant, for a signal handler that forks.
_registry_lock = threading.RLock()
_resting: list[PerProcess[Any]] = []
_inherited: list[Any] = []  # kept for ever, so that no finaliser runs in a child
_told_in_child: list[Callable[[], object]] = []
_noticing: dict[int, threading.RLock] = {}  # by process: an inherited lock may be held for ever


def in_child(function: F) -> F:
    """A decorator: ``function`` is called once in every child, before the child uses what it inherited.

    It must not use a ``PerProcess``, and wait for nothing: the thread that held an inherited lock does not exist here.
    """
    _told_in_child.append(function)
    return function


def keep(value: object) -> None:
    """Keeps what a child inherited, for ever: none of its finalisers runs, not at the interpreter's end either."""
    _inherited.append(value)


def notice_fork() -> None:
    """Forgets what this process inherited. To be called where ``here[0]`` is false; any thread."""
    with _noticing.setdefault(os.getpid(), threading.RLock()):
        if not here[0]:
            _begin_anew()


class PerProcess(Generic[T]):
    """Holds one value a process. Any thread may call ``get``.

    Parameters:
      factory: Makes the value; called at most once a process and generation.
      before_fork: Called with an existing value in the forking thread, before the fork.
      after_fork: Called with that value in the parent, after the fork.
    """

    __slots__ = ("__weakref__", "_after_fork", "_before_fork", "_factory", "_lock", "_rested", "_value")

    def __init__(
        self,
        factory: Callable[[], T],
        *,
        before_fork: Callable[[T], None] | None = None,
        after_fork: Callable[[T], None] | None = None,
    ) -> None:
        self._factory = factory
        self._before_fork = before_fork
        self._after_fork = after_fork
        self._value: T | None = None
        self._rested: list[T] = []  # by the fork that is going on
        # guards: the factory runs once, and never while another thread forks
        self._lock = threading.RLock()
        if not here[0]:
            notice_fork()
        with _registry_lock:
            _registry.add(self)

    def get(self) -> T:
        """The value of this process, made now if this is its first use."""
        if not here[0]:
            notice_fork()
        value = self._value
        if value is not None:
            return value
        with self._lock:
            if self._value is None:
                self._value = self._factory()
            return self._value

    def peek(self) -> T | None:
        """The value of this process, or None if it was not used here."""
        if not here[0]:
            notice_fork()
        return self._value

    def take(self) -> T | None:
        """Removes and returns the value. The next ``get`` makes a new one."""
        if not here[0]:
            notice_fork()
        with self._lock:
            value, self._value = self._value, None
            return value

    def close(self, close: Callable[[T], None]) -> None:
        """Closes the value, if there is one, and removes it: in this order, so that a fork meanwhile still finds it
        and brings it to rest."""
        value = self.peek()
        if value is not None:
            close(value)
            with self._lock:
                if self._value is value:
                    self._value = None

    def __del__(self, here: Witness = here) -> None:
        if not here[0]:  # the value would go with its holder, and be finalised where it must not be
            notice_fork()
            self._forget()  # a collector of garbage has taken it out of the registry already

    def _rest(self) -> None:
        value = self._value
        if value is not None and value not in self._rested:
            if self._before_fork is not None:
                self._before_fork(value)
            self._rested.append(value)

    def _hold(self) -> None:
        self._lock.acquire()
        try:
            self._rest()  # what was made since
        except Exception as e:  # noqa: BLE001  # nobody can keep the fork from coming, so the others must rest
            logger.warning("A process forks although something in it cannot rest: %s", e)

    def _go_on(self) -> None:
        self._lock.release()
        while self._rested:
            value = self._rested.pop()
            if self._after_fork is not None:
                self._after_fork(value)

    def _forget(self) -> None:
        self._lock = threading.RLock()
        _inherited.extend(self._rested)
        self._rested = []
        if self._value is not None:
            _inherited.append(self._value)
            self._value = None


def _before_fork() -> None:
    if not here[0]:
        notice_fork()
    # First nobody uses what there is, then nobody makes more: who uses one value may wait for another to be made.
    _registry_lock.acquire()
    _resting[:] = list(_registry)
    for holder in _resting:
        with suppress(Exception):  # tried again below
            holder._rest()
    for holder in _resting:
        holder._hold()


def _after_fork_in_parent() -> None:
    while _resting:
        _resting.pop()._go_on()
    _registry_lock.release()


def _begin_anew() -> None:
    global _registry_lock
    _resting.clear()
    _registry_lock = threading.RLock()
    for holder in list(_registry):
        holder._forget()
    for tell in _told_in_child:
        tell()
    here[0] = 1


def _outlive_the_interpreter() -> None:
    """At the end the interpreter clears every module, and so would finalise what a child must never finalise."""
    if not here[0]:
        notice_fork()
    if _inherited:
        import ctypes

        for value in _inherited:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(value))


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_begin_anew)
atexit.register(_outlive_the_interpreter)
