"""The contract of watching, and of a store that crossed a fork."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path

import pytest

from ...clock import SYSTEM_CLOCK
from ...ports import watching
from ...ports.store import Delete, Get, LeaseTake, Put, SetAdd, SetDrop, SetRemove, Store, StoreOp
from ...ports.watching import await_for, wait_for
from .kit import DEADLINE_S, ack, claim_one, consumer_of, envelopes, settle
from .processes import in_child
from .store_kit import StoreKit, do, needs

CHANGES: list[StoreOp] = [
    Put("a", b"1"),
    Put("a", b"1", part=7),
    Delete("b"),
    SetRemove("s", "1", failed=True),
    SetRemove("t", "1"),
    SetDrop("s"),
]


class WatchingContract(StoreKit):
    """Who waits for a key is told."""

    @pytest.mark.parametrize("change", CHANGES)
    def test_a_change_is_told(self, store: Store, change: StoreOp) -> None:
        """What changes a key calls those who watch it, from whichever thread."""
        needs(store, "wakes", "sets")
        store.apply([Put("b", b"1"), SetAdd("s", ("1", "2")), SetAdd("t", ("1",))])
        told = threading.Event()
        with store.watch([change.key, "another"], told.set):
            changer = threading.Thread(target=lambda: do(store, change))
            changer.start()
            assert told.wait(DEADLINE_S)
            changer.join()

    def test_every_watch_is_told(self, store: Store) -> None:
        """Any number may watch one key, and one watch any number of keys."""
        needs(store, "wakes")
        told = [threading.Event() for _ in range(20)]
        watches = [store.watch([f"own {number}", "all"], event.set) for number, event in enumerate(told)]
        do(store, Put("all", b"1"))
        assert all(event.wait(DEADLINE_S) for event in told)
        for watch in watches:
            watch.close()
            watch.close()

    def test_a_closed_watch_is_told_nothing(self, store: Store) -> None:
        """After its end a watch is not called any more; another one on the same key still is."""
        needs(store, "wakes")
        calls: list[int] = []
        told = threading.Event()
        with store.watch(["a"], told.set):
            store.watch(["a"], lambda: calls.append(1)).close()
            do(store, Put("a", b"1"))
            assert told.wait(DEADLINE_S)
        assert calls == []

    def test_waiting_for_a_value(self, live_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        """A wait ends with what it waited for; where the engine wakes it does not take the look that is made in case
        that it did not."""
        monkeypatch.setattr(watching, "NET_S", 2 * DEADLINE_S)
        helper = threading.Timer(0.05, lambda: do(live_store, Put("a", b"1")))
        helper.start()
        started_s = time.monotonic()
        assert wait_for(live_store, ["a"], lambda: do(live_store, Get("a")), DEADLINE_S) == b"1"
        helper.join()
        assert time.monotonic() - started_s < DEADLINE_S

    def test_waiting_in_vain(self, live_store: Store) -> None:
        """A wait ends after its timeout with None; one of 0 looks once."""
        looks: list[int] = []
        assert wait_for(live_store, ["a"], lambda: looks.append(1), 0.02) is None
        assert len(looks) >= 2
        looks.clear()
        assert wait_for(live_store, ["a"], lambda: looks.append(1), 0) is None
        assert looks == [1]

    def test_awaiting_a_value(self, live_store: Store) -> None:
        """Many coroutines of a loop wait at once, and block nothing."""

        async def look() -> bytes | None:
            value: bytes | None = await asyncio.to_thread(do, live_store, Get("a"))
            return value

        async def main() -> list[bytes | None]:
            waiting = [asyncio.create_task(await_for(live_store, ["a"], look, DEADLINE_S)) for _ in range(5)]
            await asyncio.to_thread(do, live_store, Put("a", b"1"))
            assert await await_for(live_store, ["b"], _nothing, 0.02) is None
            return await asyncio.gather(*waiting)

        assert asyncio.run(main()) == [b"1"] * 5

    def test_a_settlement_is_told(self, live_store: Store) -> None:
        """What a settlement, or a push, writes calls those who watch it."""
        needs(live_store, "wakes")
        transport = self._transport(live_store)
        told = threading.Event()
        transport.push(envelopes(b"1"))
        consumer = consumer_of(transport)
        with live_store.watch(["r"], told.set):
            settle(consumer, ack(claim_one(consumer), writes=(Put("r", b"1"),)))
            assert told.wait(DEADLINE_S)

    # Processes

    def test_another_process_is_told(self, live_store: Store) -> None:
        """What another process changes calls those who watch it here."""
        self._needs_fork()
        needs(live_store, "wakes")
        told = threading.Event()
        do(live_store, Put("before", b"1"))
        with live_store.watch(["a"], told.set):
            in_child(lambda: do(live_store, Put("a", b"1")))
            assert told.wait(DEADLINE_S)
        assert do(live_store, Get("a")) == b"1"

    def test_a_child_waits(self, live_store: Store, tmp_path: Path) -> None:
        """A child that inherited a store waits with it for what its parent does, while the parent waits as well."""
        self._needs_fork()
        do(live_store, Put("before", b"1"))
        with live_store.watch(["b"], threading.Event().set):
            helper = threading.Thread(target=lambda: _answer(live_store))

            def work() -> None:
                do(live_store, Put("question", b"1"))
                assert wait_for(live_store, ["answer"], lambda: do(live_store, Get("answer")), DEADLINE_S) == b"2"

            helper.start()
            in_child(work)
            helper.join()

    def test_processes_race_for_slots(self, live_store: Store) -> None:
        """Processes that ask for slots at the same time get no more than there are."""
        self._needs_fork()
        needs(live_store, "leases")
        do(live_store, Put("before", b"1"))

        def work() -> None:
            for number in range(20):
                lease = do(live_store, LeaseTake("a", f"{number}", 5, 600_000))
                if lease.fence:
                    do(live_store, Put("taken", b"x", part=lease.fence))

        in_child(work)
        in_child(work)
        work()
        leases = [do(live_store, LeaseTake("a", f"{number}", 5, 600_000)) for number in range(20)]
        assert sum(lease.fence > 0 for lease in leases) == 5

    def test_a_store_that_was_closed(self, store: Store, tmp_path: Path) -> None:
        """A store may be closed before its first use, twice, and used again."""
        store.close()
        store.close()
        do(store, Put("a", b"1"))
        assert do(store, Get("a")) == b"1"
        with store.watch(["a"], threading.Event().set):
            store.close()
        told = threading.Event()
        with store.watch(["a"], told.set):
            do(store, Put("a", b"2"))
            assert told.wait(DEADLINE_S) or not store.features.wakes

    def _needs_fork(self) -> None:
        if not self.forks:
            pytest.skip("a forked child does not reach the same store")


def _answer(store: Store) -> None:
    asked = wait_for(store, ["question"], lambda: do(store, Get("question")), DEADLINE_S, clock=SYSTEM_CLOCK)
    if asked is not None:
        do(store, Put("answer", b"2"))


async def _nothing() -> bytes | None:
    return None
