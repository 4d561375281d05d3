"""Fork safety in one helper: a value is made on first use in this process and forgotten (not closed) in a child.

A connection, a lock or a thread that crosses a fork is shared by two processes that do not know of each other. So no
engine keeps one any other way than in a ``PerProcess``:

* first use in a process makes the value;
* a child forgets what it inherited but keeps it referenced for ever: a finaliser that closed an inherited connection
  would say goodbye on the parent's socket, or drop the parent's locks;
* ``before_fork`` brings the value to rest in the parent first (SQLite: its connection is closed, see
  ``engines/sqlite/database.py``), ``after_fork`` lets it go on;
* a fork waits for a factory that runs: what is half made is as dangerous as what is in use.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from typing import Any, Generic, TypeVar

T = TypeVar("T")

_registry: weakref.WeakSet[PerProcess[Any]] = weakref.WeakSet()
_registry_lock = threading.Lock()  # guards: the registry is not changed while a fork walks it
_resting: list[PerProcess[Any]] = []
_inherited: list[Any] = []  # kept for ever, so that no finaliser runs in a child


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
        with _registry_lock:
            _registry.add(self)

    def get(self) -> T:
        """The value of this process, made now if this is its first use."""
        value = self._value
        if value is not None:
            return value
        with self._lock:
            if self._value is None:
                self._value = self._factory()
            return self._value

    def peek(self) -> T | None:
        """The value of this process, or None if it was not used here."""
        return self._value

    def take(self) -> T | None:
        """Removes and returns the value. The next ``get`` makes a new one."""
        with self._lock:
            value, self._value = self._value, None
            return value

    def close(self, close: Callable[[T], None]) -> None:
        """Closes the value, if there is one, and removes it: in this order, so that a fork meanwhile still finds it
        and brings it to rest."""
        value = self._value
        if value is not None:
            close(value)
            with self._lock:
                if self._value is value:
                    self._value = None

    def _rest(self) -> None:
        value = self._value
        if value is not None and value not in self._rested:
            if self._before_fork is not None:
                self._before_fork(value)
            self._rested.append(value)

    def _hold(self) -> None:
        self._lock.acquire()
        self._rest()  # what was made since

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
    # First nobody uses what there is, then nobody makes more: who uses one value may wait for another to be made.
    _registry_lock.acquire()
    _resting[:] = list(_registry)
    for holder in _resting:
        holder._rest()
    for holder in _resting:
        holder._hold()


def _after_fork_in_parent() -> None:
    while _resting:
        _resting.pop()._go_on()
    _registry_lock.release()


def _after_fork_in_child() -> None:
    global _registry_lock
    _resting.clear()
    _registry_lock = threading.Lock()
    for holder in list(_registry):
        holder._forget()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
