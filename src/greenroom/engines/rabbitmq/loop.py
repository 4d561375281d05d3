"""The event loop below pika's connections.

pika takes any loop that has the methods of its ``AbstractSelectorIOLoop``. This one is small, is driven step by step by
the thread that needs it, can be waited for by another loop (``fileno``), and writes at once:

* a write needs no round trip through the selector: ``flush`` calls the writer, which asks for more only if the socket
  is full;
* pika sends each frame by a system call of its own, three for a message. The socket is corked meanwhile, so that they
  leave as full segments (see ``docs/performance.md``).
"""

from __future__ import annotations

import heapq
import itertools
import os
import selectors
import socket
import sys
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from time import monotonic

Handler = Callable[[int, int], object]
Callback = Callable[[], object]

#: No step waits longer than this, in seconds.
_LONGEST_WAIT_S = 5.0
#: Callbacks may add callbacks, but not for ever.
_MOST_STEPS = 10
_CORK: int | None = getattr(socket, "TCP_CORK", None) if sys.platform == "linux" else None


class Timer:
    """A call that is due at a time; falsy once it was cancelled."""

    __slots__ = ("callback", "due_s", "number")

    def __init__(self, due_s: float, number: int, callback: Callback) -> None:
        self.due_s = due_s
        self.number = number
        self.callback: Callback | None = callback

    def __lt__(self, other: Timer) -> bool:
        return (self.due_s, self.number) < (other.due_s, other.number)


class Loop:
    """Owned by the thread that drives it. ``wake`` and ``add_callback`` are for any thread, ``wake`` also for signal
    handlers."""

    READ = 1
    WRITE = 2
    ERROR = 4

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._handlers: dict[int, Handler] = {}
        self._wanted: dict[int, int] = {}  # what pika asked for
        self._unwritten: set[int] = set()  # those that want to write, and that the selector does not know of
        self._corks: dict[int, socket.socket] = {}
        self._timers: list[Timer] = []
        self._timer_numbers = itertools.count()
        self._callbacks: deque[Callback] = deque()
        self._woken = False
        # Not a pipe: who rings a socket object that was closed meanwhile gets an error, not somebody else's file.
        self._bell_out, self._bell_in = socket.socketpair()
        self._bell_out.setblocking(False)
        self._bell_in.setblocking(False)
        self._selector.register(self._bell_out, selectors.EVENT_READ)
        #: Whether what is to be written is written without asking the selector: only once the sockets are connected.
        self.eager = False
        self.is_closed = False

    # --- what pika asks for

    def add_handler(self, fd: int, handler: Handler, events: int) -> None:
        """Calls ``handler(fd, events)`` when one of ``events`` is there."""
        self._handlers[fd] = handler
        self._wanted[fd] = 0
        self.update_handler(fd, events)

    def update_handler(self, fd: int, events: int) -> None:
        """Changes what a handler waits for."""
        before, self._wanted[fd] = self._wanted[fd], events
        if events & self.WRITE and not before & self.WRITE and self.eager:
            self._unwritten.add(fd)
            events &= ~self.WRITE
        elif not events & self.WRITE:
            self._unwritten.discard(fd)
        self._select(fd, events)

    def remove_handler(self, fd: int) -> None:
        """Forgets a file descriptor."""
        del self._handlers[fd], self._wanted[fd]
        self._unwritten.discard(fd)
        if fd in self._selector.get_map():
            self._selector.unregister(fd)
        if cork := self._corks.pop(fd, None):
            cork.close()

    def call_later(self, delay: float, callback: Callback) -> Timer:
        """Calls ``callback`` in ``delay`` seconds."""
        timer = Timer(monotonic() + delay, next(self._timer_numbers), callback)
        heapq.heappush(self._timers, timer)
        return timer

    def remove_timeout(self, timer: Timer) -> None:
        """Cancels a call."""
        timer.callback = None

    def add_callback(self, callback: Callback) -> None:
        """Any thread: calls ``callback`` in the next step."""
        self._callbacks.append(callback)
        self.wake()

    add_callback_threadsafe = add_callback

    def start(self) -> None:
        """Not for this loop: it is driven by ``run_once``."""
        raise NotImplementedError("this loop is driven step by step")

    stop = start

    # --- what we ask for

    def wake(self) -> None:
        """Any thread, signal-safe: ends the step that waits, or the next one."""
        if self._woken:  # the byte is on its way; a loop that has not read it yet will look
            return
        self._woken = True
        try:
            self._bell_in.send(b"!")
        except OSError:  # full, so it rings already; or closed
            return

    def fileno(self) -> int:
        """A descriptor that can be read when a step has something to do, -1 if there is none."""
        return self._selector.fileno() if hasattr(self._selector, "fileno") else -1

    @property
    def is_writing(self) -> bool:
        """Whether something that pika has buffered is not with the system yet."""
        return any(wanted & self.WRITE for wanted in self._wanted.values())

    def flush(self) -> None:
        """Writes what is buffered, as far as the system takes it."""
        for fd in list(self._unwritten):
            self._unwritten.discard(fd)
            self._write(fd)
            wanted = self._wanted.get(fd, 0)
            if wanted & self.WRITE and fd not in self._unwritten:  # the rest goes when there is room
                self._select(fd, wanted)

    def run_once(self, timeout_s: float) -> None:
        """One step: writes what is to be written, waits up to ``timeout_s`` seconds, calls what is due."""
        if self._unwritten:
            self.flush()
        for key, mask in self._selector.select(self._patience(timeout_s)):
            if key.fileobj is self._bell_out:
                self._silence()
            else:
                self._handle(key.fd, mask)
        self._run_timers()
        for _ in range(len(self._callbacks)):  # what they add has its turn in the next step
            self._callbacks.popleft()()
        if self._unwritten:
            self.flush()

    def catch_up(self) -> None:
        """Does all that can be done now, without waiting: pika tells of what it has noticed a step or two later."""
        self.run_once(0)
        for _ in range(_MOST_STEPS):
            if not self._callbacks:
                return
            self.run_once(0)

    def cut(self) -> None:
        """Breaks every connection that lives on this loop: whoever reads it in the next step finds its end."""
        for fd in self._handlers:
            with suppress(OSError), socket.socket(fileno=os.dup(fd)) as end:
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Closes what the loop has opened itself. It cannot be used any more."""
        if self.is_closed:
            return
        self.is_closed = True
        for fd in list(self._handlers):
            self.remove_handler(fd)
        self._timers.clear()
        self._callbacks.clear()
        self._selector.close()
        self._bell_in.close()
        self._bell_out.close()

    # --- inside

    def _select(self, fd: int, events: int) -> None:
        mask = (selectors.EVENT_READ if events & self.READ else 0) | (
            selectors.EVENT_WRITE if events & self.WRITE else 0
        )
        known = self._selector.get_map().get(fd)
        if not mask:
            if known:
                self._selector.unregister(fd)
        elif known is None:
            self._selector.register(fd, mask)
        elif known.events != mask:
            self._selector.modify(fd, mask)

    def _handle(self, fd: int, mask: int) -> None:
        handler = self._handlers.get(fd)
        if handler is None:  # another handler of this step has removed it
            return
        events = (self.READ if mask & selectors.EVENT_READ else 0) | (self.WRITE if mask & selectors.EVENT_WRITE else 0)
        if events := events & self._wanted[fd]:
            handler(fd, events)

    def _write(self, fd: int) -> None:
        cork = self._cork_of(fd)
        if cork is None or _CORK is None:
            self._handlers[fd](fd, self.WRITE)
            return
        cork.setsockopt(socket.IPPROTO_TCP, _CORK, 1)
        self._handlers[fd](fd, self.WRITE)
        if cork.fileno() >= 0:  # else the connection broke, and the handler has removed itself
            cork.setsockopt(socket.IPPROTO_TCP, _CORK, 0)

    def _cork_of(self, fd: int) -> socket.socket | None:
        if _CORK is None:
            return None
        cork = self._corks.get(fd)
        if cork is None:
            cork = self._corks[fd] = socket.socket(fileno=os.dup(fd))
        return cork

    def _patience(self, timeout_s: float) -> float:
        if self._callbacks or timeout_s <= 0:
            return 0
        timeout_s = min(timeout_s, _LONGEST_WAIT_S)
        while self._timers and self._timers[0].callback is None:
            heapq.heappop(self._timers)
        if self._timers:
            timeout_s = min(timeout_s, max(0.0, self._timers[0].due_s - monotonic()))
        return timeout_s

    def _silence(self) -> None:
        self._woken = False
        try:
            self._bell_out.recv(512)
        except BlockingIOError:
            return

    def _run_timers(self) -> None:
        if not self._timers:
            return
        now_s = monotonic()
        due: list[Timer] = []
        while self._timers and self._timers[0].due_s <= now_s:
            due.append(heapq.heappop(self._timers))
        for timer in due:
            callback, timer.callback = timer.callback, None
            if callback is not None:
                callback()
