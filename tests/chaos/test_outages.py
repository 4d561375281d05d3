"""A server that is away while a worker program starts, and while it stops."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.proxy import Proxy
from tests.runtime.cli_kit import Program

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")

ACTORS = """
@greenroom.actor
def hold(name):
    mark(name)
    wait_for("go")
    mark(f"{name}-done")
"""


@pytest.fixture(params=["redis", "rabbitmq"])
def url(request: pytest.FixtureRequest) -> str:
    """A server of each kind, empty."""
    return str(request.getfixturevalue(f"{request.param}_url"))


@pytest.fixture
def proxy(url: str) -> Iterator[Proxy]:
    """The way to it."""
    port = urlsplit(url).port
    assert port is not None
    with Proxy(port) as proxy:
        yield proxy


@pytest.fixture
def program(tmp_path: Path, url: str, proxy: Proxy) -> Program:
    return Program(tmp_path, proxy.url(url)).write(ACTORS)


def cut_off(proxy: Proxy) -> None:
    """The server is away: all connections end, and there are no new ones."""
    proxy.refuse()
    proxy.reset()


def test_f31_a_server_that_is_away_when_workers_start(program: Program, proxy: Proxy) -> None:
    """F31: exit code 3 and one line that says where the server was looked for; nothing is started."""
    proxy.refuse()
    ended = program.run("worker", "app", "-p", "2")
    assert ended.returncode == 3, ended.stderr
    (line,) = ended.stderr.splitlines()
    assert str(urlsplit(program.url).port) in line


def test_an_idle_worker_stops_while_the_server_is_away(program: Program, proxy: Proxy) -> None:
    """It has nothing to tell the server, so it waits for nobody."""
    with program.start("worker", "app", "-p", "1", "-t", "1") as running:
        running.wait_until_ready()
        cut_off(proxy)
        running.wait_for_text("trying again in")
        running.process.send_signal(signal.SIGTERM)
        asked_s = time.monotonic()
        assert running.wait() == 0, running.text
        assert time.monotonic() - asked_s < 10


def test_a_worker_that_holds_messages_stops_while_the_server_is_away(program: Program, proxy: Proxy) -> None:
    """It waits for the server with what it has to tell until its grace is over. Then whoever comes next runs all that
    was not settled."""
    names = [f"held-{number}" for number in range(20)]
    for name in names:
        program.send("hold", name)
    with program.start("worker", "app", "-p", "1", "-t", "1", "--worker-shutdown-timeout", "2000") as running:
        running.wait_until_ready()
        program.wait_for_mark(names[0])
        cut_off(proxy)
        running.process.send_signal(signal.SIGTERM)
        running.wait_for_text("Stopping worker process")
        asked_s = time.monotonic()
        program.let_go("go")
        running.wait()
        assert time.monotonic() - asked_s < 20
    proxy.reopen()
    with program.start("worker", "app", "-p", "1", "-t", "1", log="second.txt") as running:
        for name in names:
            program.wait_for_mark(f"{name}-done")
        running.stop()
    assert program.ready("default") == 0


def test_a_stop_waits_for_the_server_if_there_is_something_to_tell(program: Program, proxy: Proxy) -> None:
    """A run that has ended is settled before its worker goes, as long as the grace lasts: it need not run again."""
    with program.start("worker", "app", "-p", "1", "-t", "1") as running:
        running.wait_until_ready()
        program.send("hold", "first")
        program.wait_for_mark("first")
        running.process.send_signal(signal.SIGTERM)
        running.wait_for_text("Stopping worker process")
        proxy.hold()
        program.let_go("go")
        program.wait_for_mark("first-done")
        proxy.heal()
        assert running.wait() == 0, running.text
    with program.broker() as broker:
        assert broker.get_queue_message_counts("default")[0] == 0
