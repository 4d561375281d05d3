"""The store contract, run for the SQLite engine, and what is this engine's alone."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from greenroom.clock import Clock
from greenroom.engines.sqlite.bell import Bell, Listener
from greenroom.engines.sqlite.store import SqliteStore
from greenroom.engines.sqlite.transport import SqliteTransport
from greenroom.ports.store import Put, SetAdd, Store
from greenroom.ports.transport import Transport
from greenroom.testing.clock import ManualClock
from greenroom.testing.contract import StoreContract
from greenroom.testing.contract.kit import DEADLINE_S, consumer_of
from greenroom.testing.contract.processes import in_child
from greenroom.testing.contract.store_kit import do
from tests.engines.kit import query


class TestSqliteStore(StoreContract):
    def make(self, tmp_path: Path, clock: Clock) -> Store:
        return SqliteStore(SqliteTransport(tmp_path / "queue.db", clock=clock, max_body=17 * 1024 * 1024))

    def transport_of(self, store: Store) -> Transport:
        assert isinstance(store, SqliteStore)
        return store.transport


def test_a_store_in_a_file_of_its_own(tmp_path: Path) -> None:
    """A store is one with a transport on the same file, and with no other."""
    store = SqliteStore(SqliteTransport(tmp_path / "results.db"))
    assert store.is_one_with(SqliteTransport(tmp_path / "results.db"))
    assert not store.is_one_with(SqliteTransport(tmp_path / "queue.db"))
    assert not (tmp_path / "results.db").exists()


def test_workers_purge(tmp_path: Path) -> None:
    """What has expired is deleted by the trips of a worker, without anybody asking for it."""
    clock = ManualClock()
    transport = SqliteTransport(tmp_path / "queue.db", clock=clock)
    store = SqliteStore(transport)
    store.apply([Put(f"short {number}", b"1", 10) for number in range(600)])
    store.apply([Put("long", b"1", 10**6), SetAdd("set", ("1", "2"), 10)])
    consumer = consumer_of(transport)
    for _ in range(3):
        clock.advance_ms(1000)
        consumer.exchange((), 0)
    transport.close()
    assert query(transport.path, "select key from value") == [("long",)]
    assert query(transport.path, "select count(*) from member") == [(0,)]
    assert query(transport.path, "select count(*) from gathering") == [(0,)]


def test_writers_purge(tmp_path: Path) -> None:
    """In a file that no worker uses, those who write delete what has expired."""
    clock = ManualClock()
    store = SqliteStore(SqliteTransport(tmp_path / "results.db", clock=clock))
    do(store, Put("short", b"1", 10))
    clock.advance_ms(10)
    store._purge_at_s = 0.0
    do(store, Put("long", b"1"))
    store.close()
    assert query(store.transport.path, "select key from value") == [("long",)]


# Telling other processes


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder for bells and listeners; those that a test leaves open are closed."""
    before = set(threading.enumerate())
    yield tmp_path
    left = [thread for thread in threading.enumerate() if thread not in before]
    for thread in left:
        thread.join(DEADLINE_S)
    assert not any(thread.is_alive() for thread in left)


def test_a_bell_that_nobody_hears(folder: Path) -> None:
    """Ringing costs nothing and fails nowhere while nobody watches, or where no file can be made."""
    Bell(folder, 0o600).ring(["a"])
    Bell(folder / "missing", 0o600).ring(["a"])


def test_a_bell_that_rings_too_much(folder: Path) -> None:
    """If a listener is so slow that its FIFO is full, it tells all of its watches, so none is missed."""
    listener, bell = Listener(folder, 0o600), Bell(folder, 0o600)
    held_up, go_on, told = threading.Event(), threading.Event(), threading.Event()

    def hold_up() -> None:
        held_up.set()
        go_on.wait(DEADLINE_S)

    noisy = [f"noisy {number}" for number in range(200)]
    slow = listener.watch(noisy, hold_up)
    quiet = listener.watch(["quiet"], told.set)
    bell.ring(noisy[:1])
    assert held_up.wait(DEADLINE_S)
    for _ in range(500):
        bell.ring(noisy)
    bell.ring(["quiet"])
    go_on.set()
    assert told.wait(DEADLINE_S)
    slow.close()
    quiet.close()
    listener.close()
    bell.close()


def test_more_listeners_than_places(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who finds no place watches all the same, and is told nothing; when a place is free the next one has it."""
    monkeypatch.setattr("greenroom.engines.sqlite.bell.SLOTS", 1)
    first, second = Listener(folder, 0o600), Listener(folder, 0o600)
    bell = Bell(folder, 0o600)
    told, unheard = threading.Event(), threading.Event()
    with first.watch(["a"], told.set), second.watch(["a"], unheard.set):
        bell.ring(["a"])
        assert told.wait(DEADLINE_S)
        assert not unheard.is_set()
    first.close()
    third = Listener(folder, 0o600)
    told.clear()
    with third.watch(["a"], told.set):
        bell.ring(["a"])
        assert told.wait(DEADLINE_S)
    for listener in (second, third, third):
        listener.close()
    bell.close()


def test_a_listener_that_was_killed(tmp_path: Path) -> None:
    """Writers are not held up by a process that died while it watched, and the next one takes its place."""
    store = SqliteStore(SqliteTransport(tmp_path / "queue.db"))
    do(store, Put("before", b"1"))

    def work() -> None:
        store.watch(["a"], lambda: None)
        os.kill(os.getpid(), signal.SIGKILL)

    in_child(work, expected=-signal.SIGKILL)
    do(store, Put("a", b"1"))
    told = threading.Event()
    with store.watch(["a"], told.set):
        assert store._listener.get()._slot == 0
        do(store, Put("a", b"2"))
        assert told.wait(DEADLINE_S)
    store.close()


def test_a_listener_whose_descriptors_were_closed(tmp_path: Path) -> None:
    """If somebody closes a listener's descriptors, the next watch makes another one."""
    store = SqliteStore(SqliteTransport(tmp_path / "queue.db"))
    with store.watch(["a"], lambda: None):
        deaf = store._listener.get()
        os.close(deaf._fifo.number)
        deaf._writer.close()  # ends its wait, which would not notice
        while deaf.is_usable:
            os.sched_yield()
    told = threading.Event()
    with store.watch(["a"], told.set):
        do(store, Put("a", b"1"))
        assert told.wait(DEADLINE_S)
    store.close()
