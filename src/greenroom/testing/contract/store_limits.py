"""The contract of windows and slots."""

from __future__ import annotations

import random

import pytest

from ...ports.store import Delete, Grant, LeaseRelease, LeaseRenew, LeaseTake, Store
from ..clock import ManualClock
from .store_kit import StoreKit, do, needs, race


class LimitsContract(StoreKit):
    """How often, and how many at a time."""

    # Windows

    def test_a_sliding_window_grants_up_to_its_limit(self, store: Store, clock: ManualClock) -> None:
        """Within a window only ``limit`` are granted; the next one when the first has left it, to the millisecond."""
        needs(store, "windows")
        grant = Grant("a", 2, 100)
        start_ms = clock.now_ms()
        assert do(store, grant) == 0
        clock.advance_ms(30)
        assert do(store, grant) == 0
        assert do(store, grant) == start_ms + 100
        clock.advance_ms(69)
        assert do(store, grant) == start_ms + 100
        clock.advance_ms(1)
        assert do(store, grant) == 0
        assert do(store, grant) == start_ms + 130

    def test_a_window_grants_up_to_its_limit(self, store: Store, clock: ManualClock) -> None:
        """A window that does not slide begins at a multiple of its length, and then grants ``limit`` again."""
        needs(store, "windows")
        grant = Grant("a", 2, 1000, sliding=False)
        boundary_ms = (clock.now_ms() // 1000 + 1) * 1000
        clock.advance_ms(boundary_ms - clock.now_ms() - 1)
        assert store.apply([grant, grant, grant]) == [0, 0, boundary_ms]
        clock.advance_ms(1)
        assert store.apply([grant, grant, grant]) == [0, 0, boundary_ms + 1000]

    @pytest.mark.parametrize("sliding", [True, False])
    def test_the_answer_says_when(self, store: Store, clock: ManualClock, *, sliding: bool) -> None:
        """Who asks again at the time that a refusal names is granted, if nobody else asked."""
        needs(store, "windows")
        random_ms = random.Random(5)
        for _ in range(40):
            again_ms = do(store, Grant("a", 3, 70, sliding))
            if again_ms:
                assert 0 < again_ms - clock.now_ms() <= 70
                clock.advance_ms(again_ms - clock.now_ms())
                assert do(store, Grant("a", 3, 70, sliding)) == 0
            clock.advance_ms(random_ms.randrange(20))

    def test_a_sliding_window_is_never_exceeded(self, store: Store, clock: ManualClock) -> None:
        """In no stretch of the window's length, wherever it begins, are more than ``limit`` granted; and as soon as
        there is room, it is."""
        needs(store, "windows")
        chance = random.Random(11)
        granted: list[int] = []
        for _ in range(400):
            now_ms = clock.now_ms()
            answer = do(store, Grant("a", 5, 100))
            recent = [at_ms for at_ms in granted if at_ms > now_ms - 100]
            assert (answer == 0) == (len(recent) < 5)
            if answer == 0:
                granted.append(now_ms)
            clock.advance_ms(chance.choice([0, 0, 1, 3, 10, 40]))

    def test_another_limit(self, store: Store, clock: ManualClock) -> None:
        """A limit that is raised or lowered holds from then on."""
        needs(store, "windows")
        assert store.apply([Grant("a", 2, 100)] * 3)[2] > 0
        assert store.apply([Grant("a", 4, 100)] * 3)[:2] == [0, 0]
        clock.advance_ms(100)
        assert do(store, Grant("a", 1, 100)) == 0
        assert do(store, Grant("a", 1, 100)) == clock.now_ms() + 100

    @pytest.mark.parametrize("sliding", [True, False])
    def test_a_limit_of_none(self, store: Store, clock: ManualClock, *, sliding: bool) -> None:
        """A limit of 0 grants nothing."""
        needs(store, "windows")
        assert do(store, Grant("a", 0, 100, sliding)) > clock.now_ms()

    def test_a_window_is_forgotten(self, store: Store) -> None:
        """Deleting the key of a window begins it anew."""
        needs(store, "windows")
        store.apply([Grant("a", 1, 100), Delete("a")])
        assert do(store, Grant("a", 1, 100)) == 0

    def test_grants_race(self, store: Store) -> None:
        """However many threads ask, only ``limit`` are granted."""
        needs(store, "windows")

        def work(number: int) -> int:
            return sum(do(store, Grant("a", 30, 1000)) == 0 for _ in range(15))

        assert sum(race(6, work)) == 30

    # Slots

    def test_slots_are_taken_up_to_the_limit(self, store: Store, clock: ManualClock) -> None:
        """Each holder gets a slot until there is none; the refusal says when the first one ends."""
        needs(store, "leases")
        first = do(store, LeaseTake("a", "x", 2, 100))
        clock.advance_ms(10)
        second = do(store, LeaseTake("a", "y", 2, 100))
        refused = do(store, LeaseTake("a", "z", 2, 100))
        assert 0 < first.fence < second.fence
        assert first.until_ms == clock.now_ms() + 90
        assert (refused.fence, refused.until_ms) == (0, first.until_ms)

    def test_keys_have_slots_of_their_own(self, store: Store) -> None:
        """What is taken of one key is not taken of another."""
        needs(store, "leases")
        assert do(store, LeaseTake("a", "x", 1, 100)).fence
        assert do(store, LeaseTake("b", "x", 1, 100)).fence

    def test_a_slot_that_was_given_back_is_free(self, store: Store) -> None:
        """A slot is given back by its holder, once, and by nobody else; fences always rise."""
        needs(store, "leases")
        before = do(store, LeaseTake("a", "x", 1, 100))
        assert store.apply([LeaseRelease("a", "y"), LeaseRelease("a", "x"), LeaseRelease("a", "x")]) == [
            False,
            True,
            False,
        ]
        assert do(store, LeaseTake("a", "y", 1, 100)).fence > before.fence

    def test_taking_twice_is_taking_once(self, store: Store, clock: ManualClock) -> None:
        """A holder that asks again has the slot that it had, renewed."""
        needs(store, "leases")
        first = do(store, LeaseTake("a", "x", 2, 100))
        clock.advance_ms(50)
        again = do(store, LeaseTake("a", "x", 2, 100))
        assert (again.fence, again.until_ms) == (first.fence, first.until_ms + 50)
        assert do(store, LeaseTake("a", "y", 2, 100)).fence
        assert not do(store, LeaseTake("a", "z", 2, 100)).fence

    def test_a_dead_holder_costs_its_own_slot_only(self, store: Store, clock: ManualClock) -> None:
        """The slot of who does not renew is free after its TTL; those of the others stay theirs."""
        needs(store, "leases")
        store.apply([LeaseTake("a", "dead", 2, 100), LeaseTake("a", "alive", 2, 100)])
        clock.advance_ms(99)
        assert do(store, LeaseRenew("a", "alive", 100))
        assert not do(store, LeaseTake("a", "next", 2, 100)).fence
        clock.advance_ms(1)
        assert do(store, LeaseTake("a", "next", 2, 100)).fence
        assert not do(store, LeaseTake("a", "too many", 2, 100)).fence
        assert not do(store, LeaseRenew("a", "dead", 100))

    def test_who_was_refused_prolongs_nothing(self, store: Store, clock: ManualClock) -> None:
        """Asking in vain does not keep a slot taken."""
        needs(store, "leases")
        do(store, LeaseTake("a", "dead", 1, 100))
        for _ in range(10):
            clock.advance_ms(10)
            refused = do(store, LeaseTake("a", "next", 1, 100))
        assert refused.fence

    def test_a_slot_that_has_ended_is_lost(self, store: Store, clock: ManualClock) -> None:
        """After its end a slot is neither renewed nor given back, even if nobody has taken it."""
        needs(store, "leases")
        do(store, LeaseTake("a", "x", 1, 100))
        clock.advance_ms(100)
        assert store.apply([LeaseRenew("a", "x", 100), LeaseRelease("a", "x")]) == [False, False]

    def test_slots_race(self, store: Store) -> None:
        """However many threads take and give back, there are never more holders than slots."""
        needs(store, "leases")
        holders: set[str] = set()
        most = []
        fences = []

        def work(number: int) -> None:
            for turn in range(15):
                holder = f"{number}.{turn}"
                lease = do(store, LeaseTake("a", holder, 3, 60_000))
                if lease.fence:
                    holders.add(holder)
                    most.append(len(holders))
                    fences.append(lease.fence)
                    holders.discard(holder)
                    assert do(store, LeaseRelease("a", holder))

        race(6, work)
        assert max(most) <= 3
        assert len(set(fences)) == len(fences)
