"""A TCP proxy that makes a network bad: slow, cut, one-way, half-open, reset.

In a thread of this process, for tests::

    with Proxy(server.port) as proxy:
        client = connect(proxy.url(server.url))
        proxy.hold()         # nothing passes, in either direction, and nobody hangs up
        proxy.heal()         # what was held arrives now, as the network would have sent it again

In a process of its own, for benchmarks, so that it does not compete for the interpreter's lock::

    with proxy_process(server.port, delay_ms=1.0) as port: ...
"""

from __future__ import annotations

import asyncio
import selectors
import socket
import struct
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit

from scripts.servers import free_port

HOST = "127.0.0.1"
#: Bytes that one direction of a connection holds before its sender has to wait.
BOUND = 64 * 1024 * 1024
T = TypeVar("T")


@dataclass
class Way:
    """What happens to the bytes of one direction; ``up`` is from the clients to the server."""

    delay_s: float = 0.0
    bytes_per_s: float = float("inf")
    held: bool = False
    passed: int = 0  # bytes, of all connections


@dataclass
class Conduct:
    """How all connections are treated. Changed on the proxy's loop only."""

    up: Way = field(default_factory=Way)
    down: Way = field(default_factory=Way)
    cut_up: int | None = None
    cut_down: int | None = None


class End(asyncio.Protocol):
    """One side of a connection: what it receives goes to the other side, in order, when its time has come.

    Belongs to the proxy's loop.

    Parameters:
      way: How what is received here is treated.
      cut_after: After so many bytes the connection is reset; None for never.
    """

    def __init__(self, way: Way, cut_after: int | None) -> None:
        self.transport: asyncio.Transport | None = None
        self.other: End | None = None
        self._way = way
        self._left = cut_after
        self._queue: deque[tuple[float, bytes | None]] = deque()
        self._size = 0
        self._timer: asyncio.TimerHandle | None = None
        self._last_due_s = 0.0
        self._loop = asyncio.get_running_loop()
        self.frozen = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def data_received(self, data: bytes) -> None:
        if self._left is not None:
            data, self._left = data[: self._left], self._left - len(data)
        self._put(data)
        if self._left is not None and self._left <= 0:
            self._put(None)

    def _put(self, data: bytes | None) -> None:
        size = len(data or b"")
        begin_s = max(self._loop.time(), self._last_due_s - self._way.delay_s)
        self._last_due_s = begin_s + size / self._way.bytes_per_s + self._way.delay_s
        self._queue.append((self._last_due_s, data))
        self._size += size
        if self._size > BOUND and self.transport is not None:
            self.transport.pause_reading()
        self.flush()

    def flush(self) -> None:
        """Passes on what is due."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._queue and not self._is_stopped and self.other is not None and self.other.transport is not None:
            due_s, data = self._queue[0]
            if due_s > self._loop.time():
                self._timer = self._loop.call_at(due_s, self.flush)
                return
            self._queue.popleft()
            self._pass_on(data, self.other.transport)

    @property
    def _is_stopped(self) -> bool:
        return self._way.held or self.frozen

    def _pass_on(self, data: bytes | None, transport: asyncio.Transport) -> None:
        if data is None:
            self.reset()
        elif not transport.is_closing():
            self._size -= len(data)
            self._way.passed += len(data)
            transport.write(data)
            if self._size <= BOUND and self.transport is not None and not self.transport.is_closing():
                self.transport.resume_reading()

    def reset(self) -> None:
        """Ends both sides with RST."""
        for end in (self, self.other):
            if end is not None and end.transport is not None and not end.transport.is_closing():
                linger = struct.pack("ii", 1, 0)
                end.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                end.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """The other side hears of it, unless nothing passes: then only when that is over."""
        self._queue.append((0.0, b""))
        self._when_free(self._hang_up)

    def _hang_up(self) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.close()

    def _when_free(self, act: Callable[[], None]) -> None:
        if self._is_stopped or any(data for _, data in self._queue):
            self._loop.call_later(0.01, self._when_free, act)
        else:
            act()


class Proxy:
    """Listens on a port of its own and passes on to ``target``. Its methods may be called by any thread; each returns
    when it has taken effect.

    Parameters:
      target: The port of the real server.
    """

    def __init__(self, target: int) -> None:
        self.target = target
        self.port = 0
        self.accepted = 0
        self._conduct = Conduct()
        self._ends: set[End] = set()
        self._server: asyncio.Server | None = None
        # epoll rounds to milliseconds; select does not
        self._loop = asyncio.SelectorEventLoop(selectors.SelectSelector())
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self.reopen()
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, trace: TracebackType | None) -> None:
        self.heal()
        self.refuse()
        self._on_loop(self._cancel_all)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _listen(self) -> asyncio.Server:
        """Outgoing connections must not be given the port while nobody listens on it, so it is one of the servers'."""
        while not self.port:
            port = free_port()
            with suppress(OSError):  # somebody was faster
                server = await self._loop.create_server(self._accept, HOST, port)
                self.port = port
                return server
        return await self._loop.create_server(self._accept, HOST, self.port)

    async def _cancel_all(self) -> None:
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)

    def url(self, url: str) -> str:
        """A server's URL, by way of this proxy."""
        return url.replace(f":{urlsplit(url).port}", f":{self.port}")

    # --- what can be done to the network

    def delay(self, up_ms: float, down_ms: float | None = None) -> None:
        """Every byte takes so long, each way (both the same if only one is given)."""

        def change(conduct: Conduct) -> None:
            conduct.up.delay_s = up_ms / 1000
            conduct.down.delay_s = (up_ms if down_ms is None else down_ms) / 1000

        self._change(change)

    def rate(self, bytes_per_s: float) -> None:
        """A connection passes so many bytes a second, each way."""

        def change(conduct: Conduct) -> None:
            conduct.up.bytes_per_s = conduct.down.bytes_per_s = bytes_per_s

        self._change(change)

    def hold(self, *, up: bool = True, down: bool = True) -> None:
        """A partition: nothing passes and nobody hangs up, on old connections and on new ones."""

        def change(conduct: Conduct) -> None:
            conduct.up.held, conduct.down.held = up, down

        self._change(change)

    def heal(self) -> None:
        """Ends a partition: what was held arrives; ends cuts, too."""

        def change(conduct: Conduct) -> None:
            conduct.up.held = conduct.down.held = False
            conduct.cut_up = conduct.cut_down = None

        self._change(change)

    def cut_after(self, *, up: int | None = None, down: int | None = None) -> None:
        """Connections that are made from now on are reset after so many bytes."""

        def change(conduct: Conduct) -> None:
            conduct.cut_up, conduct.cut_down = up, down

        self._change(change)

    def reset(self) -> int:
        """RST for all connections of now; new ones pass. How many there were."""

        async def act() -> int:
            ends = [end for end in self._ends if end.transport is not None and not end.transport.is_closing()]
            for end in ends:
                end.reset()
            return len(ends) // 2

        return self._on_loop(act)

    def close(self) -> None:
        """FIN for all connections of now, to both sides."""

        async def act() -> None:
            for end in self._ends:
                if end.transport is not None:
                    end.transport.close()

        self._on_loop(act)

    def freeze(self) -> None:
        """The connections of now are half-open from here on: nothing passes any more, for ever, and nobody hangs up. As
        if the server's host had vanished, and another one had its address now. New connections pass."""

        async def act() -> None:
            for end in self._ends:
                end.frozen = True

        self._on_loop(act)

    def thaw(self) -> None:
        """What half-open connections have held arrives, as late as that is."""

        async def act() -> None:
            for end in self._ends:
                end.frozen = False
                end.flush()

        self._on_loop(act)

    def refuse(self) -> None:
        """RST for all connections, and nobody listens any more."""

        async def act() -> None:
            if self._server is not None:
                self._server.close()
                self._server = None

        self._on_loop(act)
        self.reset()

    def reopen(self) -> None:
        """Listens again, on the same port."""

        async def act() -> None:
            if self._server is None:
                self._server = await self._listen()

        self._on_loop(act)

    @property
    def connections(self) -> int:
        """How many connections there are."""
        return sum(end.transport is not None and not end.transport.is_closing() for end in list(self._ends)) // 2

    @property
    def passed(self) -> tuple[int, int]:
        """Bytes that went up and down so far."""
        return self._conduct.up.passed, self._conduct.down.passed

    # --- on the loop

    def _accept(self) -> End:
        self.accepted += 1
        client = End(self._conduct.up, self._conduct.cut_up)
        server = End(self._conduct.down, self._conduct.cut_down)
        client.other, server.other = server, client
        self._ends = {
            end for end in self._ends if end.transport is None or end.frozen or not end.transport.is_closing()
        }
        self._ends |= {client, server}
        task = self._loop.create_task(self._connect(client, server))
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        return client

    async def _connect(self, client: End, server: End) -> None:
        try:
            await self._loop.create_connection(lambda: server, HOST, self.target)
        except OSError:
            client.reset()
            return
        if client.transport is None or client.transport.is_closing():
            server.reset()
        client.flush()
        server.flush()

    def _change(self, change: Callable[[Conduct], None]) -> None:
        async def act() -> None:
            change(self._conduct)
            for end in list(self._ends):
                end.flush()

        self._on_loop(act)

    def _on_loop(self, act: Callable[[], Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(act(), self._loop).result(30.0)


@contextmanager
def proxy_process(target: int, delay_ms: float = 0.0) -> Iterator[int]:
    """A proxy in a process of its own, with a delay each way; the port it listens on."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.proxy", str(target), str(delay_ms)],
        cwd=Path(__file__).resolve().parents[1],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        yield int(process.stdout.readline())
    finally:
        process.communicate(timeout=30)  # the end of its input is its end


def main() -> None:
    """``python -m tests.proxy TARGET DELAY_MS`` prints its port and runs until its input ends."""
    target, delay_ms = sys.argv[1:]
    with Proxy(int(target)) as proxy:
        proxy.delay(float(delay_ms))
        print(proxy.port, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
