"""Being told that a key of the store has changed, by the server's publish and subscribe.

Whoever watches a key listens to the channel of its text, and every process that watches anything to one more channel.
A script that has changed keys counts the listeners of that one: none, and it publishes nothing, so a result that nobody
waits for costs one look for a whole trip.

What was published while a connection was down is lost. So once the server knows again what is watched, every watch is
told.
"""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable, Collection
from typing import Any, Self

from ...backoff import compute_backoff
from ...errors import BrokerError
from .connection import Connection, Connector
from .keys import Keys

#: Seconds after which a silent connection is asked whether it is still there; twice that, and it is given up.
PING_S = 15.0
#: Seconds that a watch waits for the server to know of it. After that it is in force once the connection is up.
CONFIRM_S = 5.0
#: The first and the longest wait before the next attempt to connect, in milliseconds.
_FIRST_WAIT_MS = 50
_LONGEST_WAIT_MS = 5_000


class KeyWatch:
    """One watch: some channels and whom to tell. Made by ``Listener.watch``."""

    def __init__(self, listener: Listener, channels: frozenset[bytes], notify: Callable[[], None]) -> None:
        self._listener = listener
        self.channels = channels
        self.notify = notify

    def close(self) -> None:
        """Ends it; closing again does nothing."""
        self._listener.forget(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class Listener:
    """One connection and one thread a process, from its first watch on. Any thread may watch.

    ``_changed`` puts the thread and those who watch in order. The thread alone reads, connects and closes; whoever
    holds the condition may send.
    """

    def __init__(self, connector: Connector, keys: Keys) -> None:
        self._keys = keys
        self._connection = connector.new()
        # guards: what is watched and what the server was told agree. Sending is all that is done under it.
        self._changed = threading.Condition()
        self._watches: dict[bytes, set[KeyWatch]] = {}
        self._unconfirmed: dict[bytes, int] = {}
        self._untold: set[KeyWatch] = set()
        self._is_up = False
        self._attempts = 0
        self._reader, self._writer = os.pipe()
        #: False once it is told nothing any more.
        self.is_usable = True
        threading.Thread(target=self._main, name="store-listener", daemon=True).start()

    # --- any thread

    def watch(self, keys: Collection[str], notify: Callable[[], None]) -> KeyWatch:
        """A watch on keys, in force when this returns; where the server cannot be reached, as soon as it can."""
        channels = frozenset([self._keys.prefix + b"k:" + key.encode("utf-8", "surrogatepass") for key in keys])
        watch = KeyWatch(self, channels, notify)
        with self._changed:
            new = [channel for channel in channels if channel not in self._watches]
            if new and not self._watches:
                new.append(self._keys.watch)
            for channel in channels:
                self._watches.setdefault(channel, set()).add(watch)
            self._tell_server(b"SUBSCRIBE", new)
            attempts = self._attempts
            self._changed.wait_for(
                lambda: self._is_confirmed(channels) or attempts != self._attempts or not self.is_usable, CONFIRM_S
            )
        return watch

    def _is_confirmed(self, channels: frozenset[bytes]) -> bool:
        return self._is_up and not any(self._unconfirmed.get(channel) for channel in (*channels, self._keys.watch))

    def forget(self, watch: KeyWatch) -> None:
        """Ends a watch."""
        with self._changed:
            gone = []
            for channel in watch.channels:
                others = self._watches.get(channel)
                if others is not None and watch in others:
                    others.discard(watch)
                    if not others:
                        del self._watches[channel]
                        gone.append(channel)
            if gone and not self._watches:
                gone.append(self._keys.watch)
            self._tell_server(b"UNSUBSCRIBE", gone)

    def _tell_server(self, command: bytes, channels: list[bytes]) -> None:
        """Under the condition. If the connection is down, the thread says it all when it is up again."""
        if not channels or not self._is_up:
            return
        if command == b"SUBSCRIBE":
            for channel in channels:
                self._unconfirmed[channel] = self._unconfirmed.get(channel, 0) + 1
        try:
            self._connection.send_command(command, *channels)
        except BrokerError:  # the thread finds it closed
            self._is_up = False
            self._wake()

    def close(self) -> None:
        """Ends the thread. The watches that are left are told nothing more."""
        with self._changed:
            if self.is_usable:
                self.is_usable = False
                self._wake()
                self._changed.notify_all()

    def _wake(self) -> None:
        os.write(self._writer, b"\0")

    # --- the thread

    def _main(self) -> None:
        attempts = 0
        while self.is_usable:
            try:
                self._connect()
                attempts = 0
                self._listen()
            except (BrokerError, OSError):
                pass  # once more
            with self._changed:
                self._is_up = False
                self._attempts += 1
                self._connection.close()
                self._changed.notify_all()
            if self.is_usable:
                attempts, wait_ms = compute_backoff(attempts, factor=_FIRST_WAIT_MS, max_backoff=_LONGEST_WAIT_MS)
                self._sleep(wait_ms / 1000)
        os.close(self._reader)
        os.close(self._writer)

    def _sleep(self, seconds: float) -> None:
        if self._poll(seconds):
            os.read(self._reader, 4096)

    def _poll(self, seconds: float, *others: int) -> list[int]:
        """Which of these, and of the pipe, can be read. Not by ``select``, which fails beyond a thousand open files."""
        poll = select.poll()
        for number in (self._reader, *others):
            poll.register(number, select.POLLIN)
        return [number for number, _ in poll.poll(seconds * 1000)]

    def _connect(self) -> None:
        self._connection.connect()
        with self._changed:
            self._unconfirmed.clear()
            self._is_up = True
            if self._watches:
                self._tell_server(b"SUBSCRIBE", [*self._watches, self._keys.watch])
            self._untold = {watch for watches in self._watches.values() for watch in watches}

    def _listen(self) -> None:
        connection, is_pinged = self._connection, False
        while self.is_usable:
            while connection.has_answer():
                is_pinged = False
                for watch in self._read(connection):
                    watch.notify()
            ready = self._poll(PING_S, connection.fileno())
            if self._reader in ready:
                os.read(self._reader, 4096)
                if not self._is_up:
                    return
            if not ready:
                if is_pinged:
                    return
                is_pinged = True
                with self._changed:
                    connection.send_command(b"PING")

    def _read(self, connection: Connection) -> set[KeyWatch]:
        """One message; whom to tell."""
        message: list[Any] = connection.read()
        kind, channel = message[0], message[1]
        with self._changed:
            if kind == b"message":
                return set(self._watches.get(channel, ()))
            if kind == b"subscribe":
                self._unconfirmed[channel] = self._unconfirmed.get(channel, 1) - 1
                if self._unconfirmed[channel] <= 0:
                    del self._unconfirmed[channel]
                    self._changed.notify_all()
                if channel == self._keys.watch:  # the last one of those that are said again
                    told, self._untold = self._untold, set()
                    return told
        return set()
