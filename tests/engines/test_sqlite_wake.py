"""Waking across processes: who waits says so on a board, and a sender rings only for them."""

from __future__ import annotations

import os
import select
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from greenroom.engines.sqlite.transport import SqliteTransport
from greenroom.engines.sqlite.wake import NEVER_DUE, SLOTS, Waiter, WakeFolder
from greenroom.testing.contract.kit import consumer_of, envelope, envelopes
from tests.engines.kit import other_process

#: Longer than any wake-up takes, shorter than the test's limit.
LONG_S = 20.0

RINGS = """
from greenroom.engines.sqlite.wake import WakeFolder
hear()
WakeFolder(path, 0o600).ring(None)
"""

DIES_WAITING = """
from greenroom.engines.sqlite.wake import Waiter, WakeFolder
waiter = Waiter(WakeFolder(path, 0o600), 5)
waiter.announce(None)
say("waits")
hear()
"""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[WakeFolder]:
    folder = WakeFolder(tmp_path / "wake", 0o600)
    yield folder
    folder.close()


@pytest.fixture
def waiter(folder: WakeFolder) -> Iterator[Waiter]:
    waiter = Waiter(folder, 5)
    yield waiter
    waiter.close()


def was_rung(waiter: Waiter) -> bool:
    """Whether a byte lies in the FIFO."""
    assert waiter._fifo is not None
    return bool(select.select([waiter._fifo], [], [], 0)[0])


def waited_s(waiter: Waiter, timeout_s: float) -> float:
    started = time.monotonic()
    waiter.wait(timeout_s)
    return time.monotonic() - started


def test_who_waits_is_rung(folder: WakeFolder, waiter: Waiter) -> None:
    """A ring ends the wait of one that has announced it; what rang is swallowed."""
    waiter.announce(None)
    folder.ring(None)
    assert waited_s(waiter, LONG_S) < LONG_S / 2
    assert not was_rung(waiter)


def test_another_process_rings(folder: WakeFolder, waiter: Waiter) -> None:
    """The board and the FIFO connect processes."""
    with other_process(RINGS, folder.path) as other:
        waiter.announce(None)
        other.say("ring")
        assert waited_s(waiter, LONG_S) < LONG_S / 2
        other.end()


def test_nobody_who_works_is_rung(folder: WakeFolder, waiter: Waiter) -> None:
    """Where nobody waits, a sender writes nothing: neither before a wait is announced nor after it was withdrawn."""
    folder.ring(None)
    assert not was_rung(waiter)
    waiter.announce(None)
    waiter.withdraw()
    folder.ring(None)
    assert not was_rung(waiter)
    assert folder._writers == {}, "not even the FIFO was opened"


def test_the_announcement_is_on_the_board(folder: WakeFolder, waiter: Waiter) -> None:
    """A slot holds 0 for nobody, the due time that the waiter knows, or that it knows of none."""
    assert folder.board[5] == 0
    waiter.announce(None)
    assert folder.board[5] == NEVER_DUE
    waiter.announce(1234)
    assert folder.board[5] == 1234
    waiter.withdraw()
    assert bytes(folder.board) == bytes(SLOTS * 8)


@pytest.mark.parametrize(
    ("known_ms", "due_ms", "rings"),
    [(2000, 1000, True), (2000, 2000, False), (2000, 3000, False), (2000, None, True), (None, 1000, True)],
)
def test_an_earlier_due_time_wakes(
    folder: WakeFolder, waiter: Waiter, known_ms: int | None, due_ms: int | None, rings: bool
) -> None:
    """A delayed message wakes only those who know of nothing that is due earlier; one that is ready wakes all."""
    waiter.announce(known_ms)
    folder.ring(due_ms)
    assert was_rung(waiter) is rings


def test_all_who_wait_are_rung(folder: WakeFolder) -> None:
    """A slot a waiter, so none eats the wake-up of another."""
    waiters = [Waiter(folder, slot) for slot in (0, 1, SLOTS - 1)]
    for waiter in waiters:
        waiter.announce(None)
    folder.ring(None)
    assert [was_rung(waiter) for waiter in waiters] == [True, True, True]
    for waiter in waiters:
        waiter.close()


def test_a_dead_waiters_announcement_is_harmless(folder: WakeFolder) -> None:
    """A process that died while it waited leaves its announcement; senders go on, and the living are still rung."""
    with other_process(DIES_WAITING, folder.path) as other:
        assert other.hear() == "waits"
        folder.ring(None)  # opens the FIFO while there is a reader
        other.kill()
    assert folder.board[5] == NEVER_DUE
    alive = Waiter(folder, 6)
    alive.announce(None)
    for _ in range(3):
        folder.ring(None)
    assert was_rung(alive)
    alive.close()
    folder.clear(5)
    assert folder.board[5] == 0


def test_a_missing_fifo_is_harmless(folder: WakeFolder, waiter: Waiter) -> None:
    """If somebody tidied up the folder, nobody fails; the look once a second is the net."""
    waiter.announce(None)
    (folder.path / "5").unlink()
    folder.ring(None)
    assert waited_s(waiter, 0.01) < LONG_S


def test_a_full_fifo_does_not_block(folder: WakeFolder, waiter: Waiter) -> None:
    """A waiter that is stopped and swallows nothing does not stop its senders."""
    waiter.announce(None)
    for _ in range(70_000):
        folder.ring(None)
    assert was_rung(waiter)
    waiter.wait(0.0)


def test_its_own_process_rings_a_waiter(waiter: Waiter) -> None:
    """``ring`` ends the wait, or the next one, announced or not."""
    waiter.ring()
    assert waited_s(waiter, LONG_S) < LONG_S / 2


def test_a_ring_after_the_end(folder: WakeFolder) -> None:
    """A thread that rings too late writes into nobody's file."""
    waiter = Waiter(folder, 9)
    waiter.close()
    reader, writer = os.pipe()  # takes the numbers that have become free
    os.set_blocking(reader, False)
    waiter.ring()
    with pytest.raises(BlockingIOError):
        os.read(reader, 1)
    os.close(reader)
    os.close(writer)


def test_a_slot_beyond_the_board_only_times_out(folder: WakeFolder) -> None:
    """There is no FIFO for it, so its waits end by their timeouts and by its own process."""
    waiter = Waiter(folder, SLOTS)
    waiter.announce(None)
    folder.ring(None)
    folder.clear(SLOTS)
    assert waited_s(waiter, 0.01) < LONG_S
    waiter.ring()
    assert waited_s(waiter, LONG_S) < LONG_S / 2
    waiter.close()


def test_files_of_the_folder(tmp_path: Path) -> None:
    """The folder and what is in it have the permissions that were asked for."""
    folder = WakeFolder(tmp_path / "wake", 0o660)
    waiter = Waiter(folder, 0)
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o770
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.path.iterdir()} == {0o660}
    assert (folder.path / "0").is_fifo()
    waiter.close()
    folder.close()


def test_a_sender_does_not_ring_a_busy_worker(tmp_path: Path) -> None:
    """Through the engine: a push while the consumer works touches no FIFO; while it waits, it does."""
    transport = SqliteTransport(tmp_path / "queue.db")
    consumer = consumer_of(transport)
    transport.push(envelopes(b"1"))
    assert consumer.exchange((), 10).deliveries
    assert not was_rung(consumer._owner._waiter)
    consumer._owner._waiter.announce(None)
    transport.push([envelope(b"2")])
    assert was_rung(consumer._owner._waiter)
    transport.close()


# --- descriptors that somebody else has closed


def test_a_wait_on_closed_descriptors_says_so(folder: WakeFolder) -> None:
    """A task has closed what its process has open: the wait does not last, and tells that it makes no sense to wait
    again. A ring is lost, and harmless."""
    waiter = Waiter(folder, 7)
    assert waiter.wait(0.0)
    for descriptor in (waiter._reader, waiter._fifo, waiter._writer):
        assert descriptor is not None
        os.close(descriptor.number)
    waiter.ring()
    started = time.monotonic()
    assert not waiter.wait(LONG_S)
    assert time.monotonic() - started < LONG_S / 2
    waiter.close()


def test_a_waiter_that_cannot_be_made_leaves_nothing_open(folder: WakeFolder, tmp_path: Path) -> None:
    """Where its FIFO cannot be made, here because the folder is gone, no descriptor stays behind."""
    before = set(os.listdir("/proc/self/fd"))
    folder.path = tmp_path / "gone"
    with pytest.raises(FileNotFoundError):
        Waiter(folder, 1)
    assert set(os.listdir("/proc/self/fd")) <= before


def test_a_stranger_keeps_what_has_our_number(folder: WakeFolder) -> None:
    """Another file has the number of a descriptor that was closed under us: closing ours leaves it open."""
    waiter = Waiter(folder, 7)
    number = waiter._reader.number
    reader, writer = os.pipe()
    os.dup2(writer, number)
    waiter.close()
    os.write(number, b"!")
    assert os.read(reader, 1) == b"!"
    for descriptor in (reader, writer, number):
        os.close(descriptor)


def test_ringing_with_a_closed_writer(folder: WakeFolder, waiter: Waiter) -> None:
    """The sender's side, too: a FIFO whose descriptor was closed is opened anew, after a while."""
    waiter.announce(None)
    folder.ring(None)
    os.close(folder._writers[5].number)
    folder.ring(None)
    assert folder._writers == {}
    folder._silent_until.clear()
    waiter.wait(0.0)
    folder.ring(None)
    assert was_rung(waiter)
