"""The contract of values, parts and counters."""

from __future__ import annotations

import pytest

from ...errors import MessageTooLarge
from ...ports.store import MAX_OPS, Add, Bump, Delete, Get, GetParts, Put, PutIf, Store
from ..clock import ManualClock
from .store_kit import StoreKit, do, needs, race


class ValuesContract(StoreKit):
    """Values and counters: what is kept, for how long, and what one trip does."""

    # Values

    def test_what_was_put_is_there(self, store: Store) -> None:
        """A value is what was put last; nothing is None."""
        assert store.apply([Get("a"), Put("a", b"1"), Get("a"), Put("a", b"2"), Get("a"), Get("b")]) == [
            None,
            None,
            b"1",
            None,
            b"2",
            None,
        ]

    @pytest.mark.parametrize("value", [b"", b"\0", bytes(range(256)), b"\xff\xfe", "é€😀".encode()])
    def test_any_bytes(self, store: Store, value: bytes) -> None:
        """A value is bytes, whatever they are."""
        do(store, Put("a", value))
        assert do(store, Get("a")) == value

    @pytest.mark.parametrize("key", ["", " ", "a'b\"c", "é€😀", "%_*?[a]", "x" * 512, "a:b@1", "a\nb"])
    def test_any_key(self, store: Store, key: str) -> None:
        """A key is a text, whatever it is, and no key is taken for another."""
        store.apply([Put(key, b"mine"), Put(key + "x", b"other")])
        assert do(store, Get(key)) == b"mine"
        assert do(store, Delete(key))
        assert store.apply([Get(key), Get(key + "x")]) == [None, b"other"]

    def test_a_large_value(self, store: Store) -> None:
        """A value of 16 MiB is kept, if the engine does not say otherwise."""
        size = min(store.features.max_value or 2**24, 2**24)
        do(store, Put("a", b"x" * size))
        assert do(store, Get("a")) == b"x" * size

    def test_too_large_a_value(self, store: Store) -> None:
        """A value over the limit is refused, with its size, before anything is done."""
        limit = store.features.max_value
        if limit is None or limit > 2**26:
            pytest.skip("the store takes values of any size that fits into a test")
        with pytest.raises(MessageTooLarge) as e:
            store.apply([Put("a", b"1"), Put("b", b"x" * (limit + 1))])
        assert (e.value.size, e.value.limit) == (limit + 1, limit)
        if store.features.transactional:
            assert do(store, Get("a")) is None

    def test_nothing_to_do(self, store: Store) -> None:
        """No operations have no answers."""
        assert store.apply([]) == []

    def test_too_much_at_once(self, store: Store) -> None:
        """A trip has a bound, and who goes beyond it is told."""
        assert len(store.apply([Get("a")] * MAX_OPS)) == MAX_OPS
        with pytest.raises(ValueError, match="1001"):
            store.apply([Put("a", b"")] * (MAX_OPS + 1))
        assert do(store, Get("a")) is None

    def test_delete(self, store: Store) -> None:
        """Deleting says whether anything was there."""
        do(store, Put("a", b"1"))
        assert store.apply([Delete("a"), Delete("a"), Get("a")]) == [True, False, None]

    def test_put_if_there_is_nothing(self, store: Store) -> None:
        """Only the first of those who put a value where there is none does it."""
        assert store.apply([PutIf("a", b"1"), PutIf("a", b"2"), Get("a")]) == [True, False, b"1"]

    def test_put_if_it_is_unchanged(self, store: Store) -> None:
        """A value is replaced if it is the one that was expected."""
        do(store, Put("a", b"1"))
        assert store.apply([PutIf("a", b"2", b"0"), PutIf("a", b"2", b"1"), PutIf("a", b"3", b"1")]) == [
            False,
            True,
            False,
        ]
        assert do(store, Get("a")) == b"2"

    # Time

    def test_a_value_expires(self, store: Store, clock: ManualClock) -> None:
        """After its TTL a value is not seen by anything."""
        do(store, Put("a", b"1", ttl_ms=100))
        clock.advance_ms(99)
        assert do(store, Get("a")) == b"1"
        clock.advance_ms(1)
        assert store.apply([Get("a"), PutIf("a", b"2", b"1"), Delete("a")]) == [None, False, False]

    def test_what_has_expired_makes_room(self, store: Store, clock: ManualClock) -> None:
        """Where a value has expired, everything is as if there had been none."""
        store.apply([Put("a", b"1", ttl_ms=10), Add("b", 7, ttl_ms=10), Add("c", 7, ttl_ms=10)])
        clock.advance_ms(10)
        assert store.apply([PutIf("a", b"2"), Add("b", 1), Bump("c")]) == [True, True, 1]

    def test_a_value_without_a_ttl_stays(self, store: Store, clock: ManualClock) -> None:
        """What has no TTL stays until it is deleted, also if an earlier value had one."""
        store.apply([Put("a", b"1"), Put("b", b"0", ttl_ms=10), Put("b", b"1")])
        clock.advance_ms(10**12)
        assert store.apply([Get("a"), Get("b")]) == [b"1", b"1"]

    def test_each_put_sets_the_ttl_anew(self, store: Store, clock: ManualClock) -> None:
        """The TTL counts from the last put, longer or shorter."""
        store.apply([Put("a", b"1", ttl_ms=100), Put("b", b"1", ttl_ms=100)])
        clock.advance_ms(50)
        store.apply([Put("a", b"2", ttl_ms=100), Put("b", b"2", ttl_ms=10)])
        clock.advance_ms(10)
        assert store.apply([Get("a"), Get("b")]) == [b"2", None]
        clock.advance_ms(89)
        assert do(store, Get("a")) == b"2"
        clock.advance_ms(1)
        assert do(store, Get("a")) is None

    def test_a_purge_deletes_what_has_expired_and_nothing_else(self, store: Store, clock: ManualClock) -> None:
        """Purging goes in steps, and ends when nothing is left that has expired."""
        store.apply([Put(f"short {number}", b"1", ttl_ms=10) for number in range(25)])
        store.apply([Put("long", b"1", ttl_ms=1000), Put("for ever", b"1")])
        clock.advance_ms(10)
        steps = []
        while deleted := store.purge(10):
            steps.append(deleted)
        assert max(steps, default=0) <= 10
        assert store.apply([Get("long"), Get("for ever")]) == [b"1", b"1"]
        assert store.purge() == 0

    # Parts

    def test_parts_are_read_in_order(self, store: Store) -> None:
        """Parts come in the order of their numbers, whatever the order in which they were put; gaps are left out."""
        needs(store, "parts")
        store.apply([Put("a", b"%d" % part, part=part) for part in (10, 2, 0, 7, 1)])
        store.apply([Put("a0", b"x", part=3), Put("A", b"x", part=4)])
        assert do(store, GetParts("a")) == [(0, b"0"), (1, b"1"), (2, b"2"), (7, b"7"), (10, b"10")]
        assert do(store, GetParts("a", start=1, limit=2)) == [(1, b"1"), (2, b"2")]
        assert do(store, GetParts("a", start=11)) == []
        assert store.apply([Get("a"), Get("a", part=7), Get("a", part=3)]) == [b"0", b"7", None]

    def test_parts_are_deleted_one_by_one_or_together(self, store: Store) -> None:
        """A part can be deleted alone; a key goes with all its parts."""
        needs(store, "parts")
        store.apply([Put("a", b"x", part=part) for part in range(5)])
        assert store.apply([Delete("a", part=1), Delete("a", part=1)]) == [True, False]
        assert [part for part, _ in do(store, GetParts("a"))] == [0, 2, 3, 4]
        assert store.apply([Delete("a"), GetParts("a"), Delete("a")]) == [True, [], False]

    def test_each_part_expires_on_its_own(self, store: Store, clock: ManualClock) -> None:
        """A part that has expired is left out."""
        needs(store, "parts")
        store.apply([Put("a", b"x", 10 * (part + 1), part) for part in range(3)])
        clock.advance_ms(20)
        assert do(store, GetParts("a")) == [(2, b"x")]

    def test_many_parts(self, store: Store) -> None:
        """A list of thousands is written and read in turns."""
        needs(store, "parts")
        for start in range(0, 5000, MAX_OPS):
            store.apply([Put("a", b"%d" % part, part=part) for part in range(start, start + MAX_OPS)])
        found: list[tuple[int, bytes]] = []
        while page := do(store, GetParts("a", start=len(found))):
            found += page
        assert found == [(part, b"%d" % part) for part in range(5000)]

    # Counters

    def test_a_counter_is_made_once(self, store: Store) -> None:
        """Of those who make a counter the first does, and its value stays."""
        assert store.apply([Add("a", 5), Add("a", 6), Get("a")]) == [True, False, 5]

    def test_bumps_keep_within_bounds(self, store: Store) -> None:
        """A bump beyond a bound is refused and changes nothing."""
        assert store.apply([Bump("a", 2, high=3), Bump("a", 2, high=3), Bump("a", 1, high=3), Get("a")]) == [
            2,
            None,
            3,
            3,
        ]
        assert store.apply([Bump("a", -2, low=0), Bump("a", -2, low=0), Bump("a", -1, low=0), Get("a")]) == [
            1,
            None,
            0,
            0,
        ]

    def test_a_refused_bump_does_not_prolong(self, store: Store, clock: ManualClock) -> None:
        """Who is refused leaves the TTL as it was; who is not sets it anew."""
        do(store, Bump("a", high=1, ttl_ms=100))
        clock.advance_ms(60)
        assert do(store, Bump("a", high=1, ttl_ms=100)) is None
        clock.advance_ms(40)
        assert do(store, Bump("a", high=2, ttl_ms=100)) == 1
        clock.advance_ms(60)
        assert do(store, Bump("a", high=2, ttl_ms=100)) == 2
        clock.advance_ms(60)
        assert do(store, Get("a")) == 2

    def test_counters_that_are_judged_together(self, store: Store) -> None:
        """With ``also``, the sum of several counters is held within the bound, each counted once."""
        store.apply([Bump("a", 2), Bump("b", 3)])
        bump = Bump("c", 1, high=7, also=("a", "b", "c", "nothing"))
        assert store.apply([bump, bump, bump, Get("c")]) == [1, 2, None, 2]

    def test_a_counter_that_has_to_exist(self, store: Store) -> None:
        """Where the counter has to be there already, none is made."""
        gone = Bump("a", -1, low=0, only_existing=True)
        assert store.apply([gone, Get("a"), Add("a", 1), gone, gone]) == [None, None, True, 0, None]

    def test_what_is_no_counter_is_not_bumped(self, store: Store) -> None:
        """A value that is no number refuses to be bumped."""
        assert store.apply([Put("a", b"1"), Bump("a"), Get("a")]) == [None, None, b"1"]

    # Races

    def test_bumps_race(self, store: Store) -> None:
        """However many threads bump a counter, it never passes its bound, and every success counts."""

        def work(number: int) -> int:
            return sum(do(store, Bump("a", high=50)) is not None for _ in range(20))

        assert sum(race(6, work)) == 50
        assert do(store, Get("a")) == 50

    def test_first_puts_race(self, store: Store) -> None:
        """Of many threads that put a value where there is none, one does, for every key."""

        def work(number: int) -> list[int]:
            return [key for key in range(20) if do(store, PutIf(f"k{key}", b"%d" % number))]

        winners = [key for won in race(6, work) for key in won]
        assert sorted(winners) == list(range(20))
