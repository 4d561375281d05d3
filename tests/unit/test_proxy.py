"""The proxy that tests make a bad network with does what it says."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from tests.proxy import HOST, Proxy, proxy_process
from tests.runtime.cli_kit import wait_until

#: Seconds in which nothing comes, where nothing is to come.
QUIET_S = 0.05


class Echo:
    """A server that sends back what it gets; ``seen`` is all that it got."""

    def __init__(self) -> None:
        self.seen = b""
        self._listener = socket.create_server((HOST, 0))
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            try:
                while data := connection.recv(65536):
                    self.seen += data
                    connection.sendall(data)
            except OSError:
                pass

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()


@pytest.fixture
def echo() -> Iterator[Echo]:
    server = Echo()
    yield server
    server.close()


@pytest.fixture
def proxy(echo: Echo) -> Iterator[Proxy]:
    with Proxy(echo.port) as proxy:
        yield proxy


@pytest.fixture
def client(proxy: Proxy) -> Iterator[socket.socket]:
    with connect(proxy) as connection:
        yield connection


def connect(proxy: Proxy) -> socket.socket:
    return socket.create_connection((HOST, proxy.port), 10)


def ask(client: socket.socket, text: bytes) -> bytes:
    client.sendall(text)
    return read(client, len(text))


def ask_once(proxy: Proxy) -> None:
    with connect(proxy) as client:
        ask(client, b"x")


def read(client: socket.socket, size: int) -> bytes:
    answer = b""
    while len(answer) < size:
        part = client.recv(size - len(answer))
        assert part, f"hung up after {answer!r}"
        answer += part
    return answer


def hears_nothing(client: socket.socket) -> bool:
    client.settimeout(QUIET_S)
    try:
        return not client.recv(1)
    except TimeoutError:
        return True
    finally:
        client.settimeout(10)


def test_all_passes(client: socket.socket, proxy: Proxy) -> None:
    """Unless told otherwise it passes everything, in order, and counts it."""
    data = bytes(range(256)) * 4096
    threading.Thread(target=client.sendall, args=(data,)).start()
    assert read(client, len(data)) == data
    assert proxy.passed == (len(data), len(data))
    assert (proxy.connections, proxy.accepted) == (1, 1)


def test_delay(client: socket.socket, proxy: Proxy) -> None:
    """Each way takes its time; what is sent together arrives together, not one after the other."""
    proxy.delay(20, 30)
    began_s = time.monotonic()
    for number in range(100):
        client.sendall(b"%02d" % number)
    assert read(client, 200) == b"".join(b"%02d" % number for number in range(100))
    assert 0.05 <= time.monotonic() - began_s < 100 * 0.05 / 2


def test_rate(client: socket.socket, proxy: Proxy) -> None:
    """So many bytes a second pass."""
    proxy.rate(10_000)
    began_s = time.monotonic()
    assert ask(client, b"x" * 500) == b"x" * 500
    assert time.monotonic() - began_s >= 0.1  # 0.05 s each way


def test_a_partition_holds_what_is_sent(client: socket.socket, proxy: Proxy, echo: Echo) -> None:
    """Nothing passes, and nobody hangs up; afterwards all of it arrives. New connections fare the same."""
    proxy.hold()
    client.sendall(b"old")
    with connect(proxy) as other:
        other.sendall(b"new")
        assert hears_nothing(client)
        assert hears_nothing(other)
        assert echo.seen == b""
        proxy.heal()
        assert read(client, 3) == b"old"
        assert read(other, 3) == b"new"


@pytest.mark.parametrize("up", [True, False])
def test_one_way_loss(client: socket.socket, proxy: Proxy, echo: Echo, *, up: bool) -> None:
    """If only one direction is held, the server gets the question or it does not; the answer comes in neither case."""
    proxy.hold(up=up, down=not up)
    client.sendall(b"question")
    if up:
        assert hears_nothing(client)
        assert echo.seen == b""
    else:
        wait_until(lambda: echo.seen == b"question", "the question has arrived")
        assert hears_nothing(client)
    proxy.heal()
    assert read(client, 8) == b"question"


def test_half_open(client: socket.socket, proxy: Proxy, echo: Echo) -> None:
    """Old connections pass nothing any more, and nobody hangs up; new ones are served."""
    assert ask(client, b"1") == b"1"
    proxy.freeze()
    client.sendall(b"2")
    assert hears_nothing(client)
    with connect(proxy) as later:
        assert ask(later, b"3") == b"3"
    proxy.heal()
    assert hears_nothing(client)
    client.close()
    assert echo.seen == b"13"
    proxy.thaw()
    wait_until(lambda: echo.seen == b"132", "what was held has arrived, after its sender has gone")


def test_reset(client: socket.socket, proxy: Proxy) -> None:
    """Both sides hear RST; who comes later is served."""
    assert ask(client, b"1") == b"1"
    assert proxy.reset() == 1
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    with connect(proxy) as later:
        assert ask(later, b"2") == b"2"
    wait_until(lambda: proxy.connections == 0, "all connections have ended")


def test_close(client: socket.socket, proxy: Proxy) -> None:
    """Both sides hear FIN."""
    assert ask(client, b"1") == b"1"
    proxy.close()
    assert client.recv(1) == b""


def test_refuse_and_reopen(client: socket.socket, proxy: Proxy) -> None:
    """Nobody listens, then the same port is open again."""
    assert ask(client, b"1") == b"1"
    proxy.refuse()
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    with pytest.raises(ConnectionRefusedError):
        connect(proxy)
    proxy.reopen()
    with connect(proxy) as later:
        assert ask(later, b"2") == b"2"


@pytest.mark.parametrize("size", range(5))
def test_cut_in_the_middle(proxy: Proxy, echo: Echo, size: int) -> None:
    """So many bytes arrive, then the connection is reset, either way."""
    proxy.cut_after(up=size + 1)
    with connect(proxy) as client:
        client.sendall(b"abcdefgh")
        with pytest.raises(ConnectionResetError):
            read(client, 8)
    wait_until(lambda: echo.seen == b"abcdefgh"[: size + 1], "the first bytes have arrived")
    proxy.cut_after(down=size + 1)
    with connect(proxy) as client:
        client.sendall(b"abcdefgh")
        with pytest.raises(ConnectionResetError):
            read(client, 8)
    proxy.heal()
    with connect(proxy) as client:
        assert ask(client, b"whole") == b"whole"


def test_either_side_hangs_up(client: socket.socket, proxy: Proxy) -> None:
    """What a client closes is closed at the server, and the other way round."""
    assert ask(client, b"1") == b"1"
    client.close()
    wait_until(lambda: proxy.connections == 0, "the server's side has ended")


def test_a_server_that_is_not_there(echo: Echo, proxy: Proxy) -> None:
    """Without a server, a client is connected and reset at once."""
    proxy.target = 1
    with pytest.raises(ConnectionResetError):
        ask_once(proxy)


def test_in_a_process_of_its_own(echo: Echo) -> None:
    """A benchmark's proxy delays each way by about as much as it was told."""
    with proxy_process(echo.port, delay_ms=5) as port, socket.create_connection((HOST, port), 10) as client:
        durations = []
        for _ in range(20):
            began_s = time.monotonic()
            assert ask(client, b"x") == b"x"
            durations.append(time.monotonic() - began_s)
        client.shutdown(socket.SHUT_RDWR)
    assert min(durations) >= 0.010
    assert sorted(durations)[5] < 0.1  # the machine may be busy with others
