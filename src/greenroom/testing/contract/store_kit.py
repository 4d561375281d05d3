"""What the parts of the store's contract share: the hooks that an engine's author fills in, and a few steps."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from ...clock import SYSTEM_CLOCK, Clock
from ...ports.store import Store, StoreOp
from ...ports.transport import Transport
from ..clock import ManualClock
from .kit import DEADLINE_S

T = TypeVar("T")


class StoreKit:
    """The hooks of an engine's author. Only ``make`` has to be written."""

    #: A child made by ``os.fork`` reaches the same store.
    forks: bool = True

    def make(self, tmp_path: Path, clock: Clock) -> Store:
        """Makes an empty store.

        Parameters:
          tmp_path: A private folder; the same one means the same store.
          clock: What the engine must take the time from. An engine that can only follow its server's clock may skip
            the tests of time: ``if isinstance(clock, ManualClock): ...``.
        """
        raise NotImplementedError("say in make() how to make your store")

    def transport_of(self, store: Store) -> Transport | None:
        """The transport that a store is one with; None if there is none."""
        return None

    @pytest.fixture
    def clock(self) -> ManualClock:
        return ManualClock()

    @pytest.fixture
    def store(self, tmp_path: Path, clock: ManualClock) -> Iterator[Store]:
        """A store whose clock stands still until the test moves it."""
        store = self.make(tmp_path, clock)
        yield store
        store.close()

    @pytest.fixture
    def live_store(self, tmp_path: Path) -> Iterator[Store]:
        """A store on the clock of the machine."""
        store = self.make(tmp_path, SYSTEM_CLOCK)
        yield store
        store.close()

    @pytest.fixture
    def transport(self, store: Store) -> Transport:
        """The transport that the store is one with; its clock stands still, too."""
        return self._transport(store)

    def _transport(self, store: Store) -> Transport:
        transport = self.transport_of(store)
        if transport is None:
            pytest.skip("the store is one with no transport")
        return transport


def do(store: Store, op: StoreOp) -> Any:
    """One operation, and its answer."""
    return store.apply([op])[0]


def needs(store: Store, *features: str) -> None:
    """Skips the test if the store lacks one of these features."""
    for feature in features:
        if not getattr(store.features, feature):
            pytest.skip(f"the store has no {feature}")


def race(threads: int, work: Callable[[int], T]) -> list[T]:
    """Runs ``work(number)`` in that many threads, which begin together; what they returned."""
    start = threading.Barrier(threads)
    answers: list[T] = []
    failures: list[BaseException] = []

    def main(number: int) -> None:
        start.wait(DEADLINE_S)
        try:
            answers.append(work(number))
        except BaseException as e:  # noqa: BLE001  # it is raised below
            failures.append(e)

    running = [threading.Thread(target=main, args=(number,)) for number in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join(DEADLINE_S)
    assert not any(thread.is_alive() for thread in running), "the race does not end"
    if failures:
        raise failures[0]
    return answers
