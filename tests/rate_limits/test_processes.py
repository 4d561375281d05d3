"""Limits between processes: exact in races, and a holder that is killed costs its own slot for its TTL."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import PIPE

import pytest

from greenroom.clock import SYSTEM_CLOCK
from greenroom.rate_limits import ConcurrentRateLimiter, RateLimiterBackend
from greenroom.rate_limits.backends import RedisBackend
from tests.rate_limits.kit import make_backend
from tests.runtime.cli_kit import PATIENCE_S, environment, wait_until
from tests.runtime.engine_kit import ENGINES, url_of

Start = Callable[..., subprocess.Popen[bytes]]

#: Enters ``count`` times and writes down when it came in and went out.
PRESSES = """
import os, sys, time
from greenroom.rate_limits import ConcurrentRateLimiter

limiter = ConcurrentRateLimiter(BACKEND, "key", limit=2)
entered = 0
while entered < int(sys.argv[1]):
    with limiter.acquire(raise_on_failure=False) as granted:
        if granted:
            entered += 1
            came = time.monotonic()
            os.write(1, b"%.6f %.6f\\n" % (came, time.monotonic()))
"""

#: Takes a slot and keeps it.
HOLDS = """
import os, sys, threading
from greenroom.rate_limits import ConcurrentRateLimiter

with ConcurrentRateLimiter(BACKEND, "key", limit=2, ttl=int(sys.argv[1])).acquire():
    os.write(1, b"in\\n")
    threading.Event().wait()
"""

#: Asks a window limiter all the time, and writes down between which times it was granted.
ASKS = """
import os, sys, time
from greenroom.rate_limits import WindowRateLimiter

limiter = WindowRateLimiter(BACKEND, "key", limit=20, window=1)
until = time.monotonic() + 1.5
while (asked := time.monotonic()) < until:
    with limiter.acquire(raise_on_failure=False) as granted:
        if granted:
            os.write(1, b"%.6f %.6f\\n" % (asked, time.monotonic()))
"""


@pytest.fixture(params=ENGINES)
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RateLimiterBackend]:
    url = url_of(request.param, tmp_path, request)
    backend = make_backend(request.param, tmp_path, SYSTEM_CLOCK, url)
    yield backend
    backend.close()


@pytest.fixture
def start(request: pytest.FixtureRequest, backend: RateLimiterBackend, tmp_path: Path) -> Start:
    """Starts a program on the same backend."""
    line = f"SqliteBackend({str(tmp_path / 'limits.db')!r})"
    if isinstance(backend, RedisBackend):
        line = f"RedisBackend(url={request.getfixturevalue('redis_url')!r}, namespace={tmp_path.name!r})"
    head = f"from greenroom.rate_limits.backends import {line.partition('(')[0]}\n"

    def start(program: str, *args: object) -> subprocess.Popen[bytes]:
        code = head + program.replace("BACKEND", line)
        return subprocess.Popen([sys.executable, "-c", code, *map(str, args)], stdout=PIPE, env=environment({}))

    return start


def output(process: subprocess.Popen[bytes]) -> list[bytes]:
    out, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0
    return out.splitlines()


def test_processes_never_pass_the_limit(start: Start) -> None:
    """Three processes press on one key: at no time are more than two of them inside."""
    processes = [start(PRESSES, 60) for _ in range(3)]
    stays = [tuple(map(float, line.split())) for process in processes for line in output(process)]
    assert len(stays) == 180
    changes = sorted([(came, 1) for came, _ in stays] + [(went, -1) for _, went in stays])
    inside = 0
    for _at, change in changes:
        inside += change
        assert inside <= 2


def test_processes_share_a_window(start: Start) -> None:
    """Whatever stretch of a second one looks at: all processes together were granted no more than the limit in it."""
    processes = [start(ASKS) for _ in range(3)]
    grants = [tuple(map(float, line.split())) for process in processes for line in output(process)]
    assert len(grants) >= 20
    for begin, _ in grants:  # the engine counts in whole milliseconds
        assert sum(begin <= asked and answered < begin + 0.998 for asked, answered in grants) <= 20


def test_f109_a_killed_holder_frees_its_slot(backend: RateLimiterBackend, start: Start) -> None:
    """kill -9 of a holder: its slot is free within its TTL, so that nobody is refused later, and the other holder's is
    not touched."""
    ttl_ms = 1500
    limiter = ConcurrentRateLimiter(backend, "key", limit=2, ttl=60_000)
    asked_s: list[float] = []

    def is_free() -> bool:
        asked_s.append(time.monotonic())
        with limiter.acquire(raise_on_failure=False) as granted:
            return granted

    with start(HOLDS, ttl_ms) as victim, limiter.acquire():
        assert victim.stdout is not None
        assert victim.stdout.readline() == b"in\n"
        taken_s = time.monotonic()
        os.kill(victim.pid, signal.SIGKILL)
        victim.wait(PATIENCE_S)
        wait_until(is_free, "the dead holder's slot is free")
        with limiter.acquire():
            assert not is_free()
    *refused_s, _granted, _last = asked_s
    assert all(at_s - taken_s < ttl_ms / 1000 + 0.1 for at_s in refused_s)  # clocks differ a little
