"""Waiting for the wake tokens of many queues, with one blocking command, and for a pipe of our own.

A token that was taken is a promise to look: whoever cannot keep it, because it has no room, must leave none behind it.
So the command is left outstanding only from one idle wait to the next, and ``cancel`` ends it before anything else.
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from ...clock import SYSTEM_CLOCK
from ...errors import BrokerError
from ...host.descriptor import Descriptor
from ...logging import get_logger
from .connection import Connection

#: Seconds after which the server ends a wait by itself, and seconds that it may be late.
BLOCK_S = 10
LATE_S = 5
#: How often the server is asked to end a wait that it does not know, before its answer is waited for.
_TRIES = 100

logger = get_logger(__name__)


class Waiter:
    """Belongs to its consumer's thread, but for ``ring``.

    Parameters:
      connection: For waiting alone.
      call: Has the server do a command, on another connection.
    """

    _writer: Descriptor | None = None

    def __init__(self, connection: Connection, call: Callable[..., Any]) -> None:
        self._connection = connection
        self._call = call
        self._keys: Sequence[bytes] = ()  # what the outstanding command waits for
        self._sent_s = 0.0
        self._client_id = 0
        reader, writer = os.pipe()
        os.set_blocking(reader, False)
        os.set_blocking(writer, False)
        self._reader, self._writer = Descriptor(reader), Descriptor(writer)

    @property
    def is_outstanding(self) -> bool:
        """Whether the server would answer with a token."""
        return bool(self._keys)

    def wait(self, keys: Sequence[bytes], timeout_s: float) -> bool:
        """Waits for a token of ``keys``, for a ring or for the timeout; True unless it was the timeout.

        Raises:
          BrokerError: If the server cannot be asked.
        """
        if self._keys and self._keys != keys:
            self.cancel()
        if keys and not self._keys:
            self._send(keys)
        poll = select.poll()
        poll.register(self._reader, select.POLLIN)
        if self._keys:
            poll.register(self._connection.fileno(), select.POLLIN)
        ready = [number for number, _ in poll.poll(max(0.0, timeout_s) * 1000)]
        is_rung = self._reader.number in ready
        if is_rung:
            self._drain()
        if len(ready) > is_rung:
            return self._read() or is_rung
        if self._keys and SYSTEM_CLOCK.monotonic() - self._sent_s > BLOCK_S + LATE_S:
            self._drop()  # the server, or something on the way to it, has forgotten us
        return is_rung

    def cancel(self) -> None:
        """Has no command outstanding any more. A token that came meanwhile is put back. Raises nothing: whoever cannot
        be asked to forget the command learns of it by the end of the connection."""
        if not self._keys:
            return
        try:
            for _ in range(_TRIES):  # in vain if the server heard it before the wait, which has its own connection
                if self._call("CLIENT", "UNBLOCK", self._client_id) or self._connection.has_answer():
                    break
            self._keys = ()
            answer = self._connection.read()
            if answer is not None:
                self._call("ZADD", answer[0], 0, "1")
        except BrokerError as e:
            logger.debug("A wait could not be ended: %s", e)
            self._drop()
        except BaseException:
            self._drop()
            raise

    def _send(self, keys: Sequence[bytes]) -> None:
        connection = self._connection
        if not connection.is_open:
            self._client_id = 0
        if not self._client_id:
            self._client_id = connection.call("CLIENT", "ID")
        connection.send_command("BZPOPMIN", *keys, BLOCK_S)
        self._keys = keys
        self._sent_s = SYSTEM_CLOCK.monotonic()

    def _read(self) -> bool:
        """The answer of the outstanding command; whether it is a token."""
        self._keys = ()
        return self._connection.read() is not None

    def _drop(self) -> None:
        self._keys = ()
        self._connection.close()

    def _drain(self) -> None:
        with suppress(BlockingIOError):
            while len(os.read(self._reader.number, 4096)) == 4096:
                pass

    def ring(self) -> None:
        """Any thread, signal-safe: ends a wait, or the next one."""
        with suppress(OSError):  # full of wake-ups already, or closed
            if self._writer is not None:
                os.write(self._writer.number, b"!")

    def close(self) -> None:
        """Ends the command, and closes what it waits on."""
        self._drop()
        self._reader.close()

    def __del__(self) -> None:
        # Not in `close`: another thread may ring later, and must not write into whatever has the number then.
        if self._writer is not None:
            self._writer.close()
