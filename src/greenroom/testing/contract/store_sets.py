"""The contract of sets: a member counts once, and completion happens once."""

from __future__ import annotations

import random

import pytest

from ...ports.store import MAX_OPS, Get, Progress, Put, SetAdd, SetDrop, SetLook, SetRemove, Store, StoreOp
from ...ports.transport import MAX_TRIP, Envelope, Transport, pack
from ..clock import ManualClock
from .kit import ack, bodies, claim, consumer_of, drained, envelope, envelopes, nobody_gets_any, nothing_comes, settle
from .store_kit import StoreKit, do, needs, race


class SetsContract(StoreKit):
    """Sets as barriers, alone and in one step with messages."""

    def test_members_are_removed(self, store: Store) -> None:
        """A set knows how many members it had, how many are left and how many failed."""
        needs(store, "sets")
        assert store.apply(
            [
                SetAdd("a", ("1", "2", "3")),
                SetRemove("a", "2"),
                SetRemove("a", "3", failed=True),
                SetLook("a"),
                SetRemove("a", "1"),
                SetLook("a"),
            ]
        ) == [
            Progress(3, 3, 0),
            Progress(3, 2, 0),
            Progress(3, 1, 1),
            Progress(3, 1, 1),
            Progress(3, 0, 1),
            Progress(3, 0, 1),
        ]

    def test_a_member_counts_once(self, store: Store) -> None:
        """Who is removed again, who never was a member and who is added again after removal change nothing."""
        needs(store, "sets")
        store.apply([SetAdd("a", ("1", "2")), SetRemove("a", "1")])
        again: list[StoreOp] = [
            SetRemove("a", "1"),
            SetRemove("a", "1", failed=True),
            SetRemove("a", "stranger"),
            SetAdd("a", ("1",)),
        ]
        assert store.apply(again) == [Progress(2, 1, 0)] * 4

    def test_there_is_no_such_set(self, store: Store) -> None:
        """What is not there has no progress, and removing from it makes nothing."""
        needs(store, "sets")
        assert store.apply([SetLook("a"), SetRemove("a", "1"), SetLook("a"), SetDrop("a")]) == [None, None, None, False]

    def test_members_are_added_in_turns(self, store: Store) -> None:
        """A large set is made of several additions, of a bounded size each."""
        needs(store, "sets")
        members = [str(number) for number in range(2500)]
        for start in range(0, len(members), MAX_OPS):
            do(store, SetAdd("a", tuple(members[start : start + MAX_OPS])))
        assert do(store, SetLook("a")) == Progress(2500, 2500, 0)
        for start in range(0, len(members), MAX_OPS):
            answers = store.apply([SetRemove("a", member) for member in members[start : start + MAX_OPS]])
        assert answers[-1] == Progress(2500, 0, 0)
        with pytest.raises(ValueError, match="1001"):
            do(store, SetAdd("b", tuple(map(str, range(MAX_OPS + 1)))))

    def test_a_complete_set_stays_complete(self, store: Store) -> None:
        """To a set that is complete nothing is added."""
        needs(store, "sets")
        store.apply([SetAdd("a", ("1",)), SetRemove("a", "1")])
        assert store.apply([SetAdd("a", ("2",)), SetRemove("a", "2")]) == [Progress(1, 0, 0)] * 2

    def test_an_empty_set_is_complete(self, store: Store) -> None:
        """A set that is made without members is complete at once."""
        needs(store, "sets")
        assert store.apply([SetAdd("a"), SetAdd("a", ("1",))]) == [Progress(0, 0, 0)] * 2

    def test_a_set_that_was_dropped(self, store: Store) -> None:
        """A dropped set is gone, and its key may be used for another one."""
        needs(store, "sets")
        store.apply([SetAdd("a", ("1", "2")), SetRemove("a", "1")])
        assert store.apply([SetDrop("a"), SetLook("a"), SetAdd("a", ("1",)), SetRemove("a", "1")]) == [
            True,
            None,
            Progress(1, 1, 0),
            Progress(1, 0, 0),
        ]

    def test_a_set_expires(self, store: Store, clock: ManualClock) -> None:
        """After its TTL, which counts from its making, a set is gone; its key may be used again."""
        needs(store, "sets")
        do(store, SetAdd("a", ("1", "2"), ttl_ms=100))
        clock.advance_ms(99)
        assert do(store, SetRemove("a", "1")) == Progress(2, 1, 0)
        clock.advance_ms(1)
        assert store.apply([SetRemove("a", "2"), SetLook("a")]) == [None, None]
        assert do(store, SetAdd("a", ("1",))) == Progress(1, 1, 0)
        while store.purge():
            pass
        assert do(store, SetRemove("a", "1")) == Progress(1, 0, 0)

    def test_a_purge_of_sets(self, store: Store, clock: ManualClock) -> None:
        """Purging deletes what is left of expired and dropped sets, and leaves the others alone."""
        needs(store, "sets")
        members = tuple(map(str, range(30)))
        store.apply([SetAdd("short", members, ttl_ms=10), SetAdd("dropped", members), SetAdd("long", members)])
        do(store, SetDrop("dropped"))
        clock.advance_ms(10)
        while store.purge(7):
            pass
        assert store.apply([SetLook("short"), SetLook("dropped"), SetLook("long")]) == [None, None, Progress(30, 30, 0)]

    # Sets of sets

    def test_a_set_in_a_set(self, store: Store) -> None:
        """The completion of a set removes it from the set that it is a member of."""
        needs(store, "sets")
        store.apply([SetAdd("out", ("in", "other")), SetAdd("in", ("1", "2"), parent=("out", "in"))])
        do(store, SetRemove("in", "1"))
        assert do(store, SetLook("out")) == Progress(2, 2, 0)
        do(store, SetRemove("in", "2"))
        assert do(store, SetLook("out")) == Progress(2, 1, 0)

    def test_failures_go_up(self, store: Store) -> None:
        """A set with a failed member is a failed member itself."""
        needs(store, "sets")
        store.apply([SetAdd("out", ("in",)), SetAdd("in", ("1", "2"), parent=("out", "in"))])
        store.apply([SetRemove("in", "1", failed=True), SetRemove("in", "2")])
        assert do(store, SetLook("out")) == Progress(1, 0, 1)

    def test_sets_in_sets_in_sets(self, store: Store) -> None:
        """The completion of the innermost set completes all around it, in one step."""
        needs(store, "sets")
        do(store, SetAdd("0", ("1",)))
        store.apply(
            [SetAdd(str(depth), (str(depth + 1),), parent=(str(depth - 1), str(depth))) for depth in range(1, 50)]
        )
        do(store, SetRemove("49", "50"))
        assert store.apply([SetLook(str(depth)) for depth in range(50)]) == [Progress(1, 0, 0)] * 50

    def test_an_empty_set_in_a_set(self, store: Store) -> None:
        """A set without members is removed from the one around it as soon as it is made."""
        needs(store, "sets")
        store.apply([SetAdd("out", ("in",)), SetAdd("in", parent=("out", "in"))])
        assert do(store, SetLook("out")) == Progress(1, 0, 0)

    # Pushing

    def test_completion_pushes(self, store: Store, transport: Transport) -> None:
        """What waits for a set is pushed once it is complete, not before, with queue, priority and due time."""
        needs(store, "sets", "pushes")
        then = Envelope("other", "the id", b"then", -3)
        do(store, SetAdd("a", ("1", "2"), then=(pack(then), pack(envelope(b"too")))))
        consumer = consumer_of(transport, "other", "default")
        do(store, SetRemove("a", "1"))
        assert nothing_comes(consumer)
        do(store, SetRemove("a", "2"))
        first, second = claim(consumer, 2)
        assert (first.queue, first.id, first.body) == ("other", "the id", b"then")
        assert second.body == b"too"

    @pytest.mark.parametrize("failed", [False, True])
    def test_what_is_pushed_depends_on_failures(self, store: Store, transport: Transport, *, failed: bool) -> None:
        """``then`` is pushed in any case, ``then_ok`` only if nothing failed."""
        needs(store, "sets", "pushes")
        always, if_ok = envelopes(b"always", b"if ok")
        do(store, SetAdd("a", ("1", "2"), then=(pack(always),), then_ok=(pack(if_ok),)))
        store.apply([SetRemove("a", "1", failed=failed), SetRemove("a", "2")])
        assert drained(transport) == ([b"always"] if failed else [b"always", b"if ok"])

    def test_an_empty_set_pushes_at_once(self, store: Store, transport: Transport) -> None:
        """Nobody has to be waited for."""
        needs(store, "sets", "pushes")
        do(store, SetAdd("a", then=(pack(envelope(b"then")),)))
        do(store, SetAdd("a", then=(pack(envelope(b"again")),)))
        assert drained(transport) == [b"then"]

    def test_a_set_that_is_gone_pushes_nothing(self, store: Store, transport: Transport, clock: ManualClock) -> None:
        """A set that has expired or was dropped does nothing more."""
        needs(store, "sets", "pushes")
        then = (pack(envelope(b"then")),)
        store.apply([SetAdd("short", ("1",), 10, then), SetAdd("dropped", ("1",), then=then), SetDrop("dropped")])
        clock.advance_ms(10)
        store.apply([SetRemove("short", "1"), SetRemove("dropped", "1")])
        assert nobody_gets_any(transport)

    def test_what_is_pushed_carries_its_writes(self, store: Store, transport: Transport) -> None:
        """What an envelope writes is done when the completion pushes it."""
        needs(store, "sets", "pushes")
        then = Envelope("default", "1", b"then", writes=(Put("marker", b"pending"), SetRemove("next", "1")))
        after = Envelope("default", "2", b"after")
        store.apply([SetAdd("next", ("1",), then=(pack(after),)), SetAdd("a", ("1",), then=(pack(then),))])
        assert do(store, Get("marker")) is None
        do(store, SetRemove("a", "1"))
        assert do(store, Get("marker")) == b"pending"
        assert drained(transport) == [b"then", b"after"]

    def test_what_is_no_envelope_is_refused_in_time(self, store: Store) -> None:
        """What could not be pushed later is refused when the set is made."""
        needs(store, "sets", "pushes")
        with pytest.raises(ValueError, match="no packed envelope"):
            do(store, SetAdd("a", ("1",), then=(b"garbage",)))
        assert do(store, SetLook("a")) is None

    def test_completion_in_settlements(self, store: Store, transport: Transport) -> None:
        """Members that are removed by settlements complete the set in the trip that settles the last one."""
        needs(store, "sets", "pushes")
        members = [str(number) for number in range(300)]
        do(store, SetAdd("a", tuple(members), then=(pack(envelope(b"then", "callbacks")),)))
        transport.push(envelopes(*(member.encode() for member in members)))
        consumer = consumer_of(transport)
        held = claim(consumer, 300)
        settled = [ack(delivery, writes=(SetRemove("a", delivery.body.decode()),)) for delivery in held]
        settle(consumer, *settled[:299])
        assert do(store, SetLook("a")) == Progress(300, 1, 0)
        assert nobody_gets_any(transport, "callbacks")
        settle(consumer, settled[299])
        assert bodies(claim(consumer_of(transport, "callbacks"), 1)) == [b"then"]
        assert nobody_gets_any(transport, "callbacks")

    def test_several_sets_in_one_trip(self, store: Store, transport: Transport) -> None:
        """One trip may complete any number of sets, one within another, too."""
        needs(store, "sets", "pushes")
        names = [str(number) for number in range(20)]
        do(store, SetAdd("all", tuple(names), then=(pack(envelope(b"all", "callbacks")),)))
        for name in names:
            then = (pack(envelope(name.encode(), "callbacks")),)
            do(store, SetAdd(name, ("1",), then=then, parent=("all", name)))
        transport.push(envelopes(*(name.encode() for name in names)))
        consumer = consumer_of(transport)
        held = claim(consumer, 20)
        settle(consumer, *(ack(d, writes=(SetRemove(d.body.decode(), "1"),)) for d in held))
        called = bodies(claim(consumer_of(transport, "callbacks"), 21))
        assert sorted(called) == sorted([*(name.encode() for name in names), b"all"])
        assert called[-1] == b"all"

    # Races

    def test_removals_race(self, store: Store, transport: Transport) -> None:
        """Threads that remove the same members in different orders complete the set once, and push once."""
        needs(store, "sets", "pushes")
        members = [str(number) for number in range(40)]
        do(store, SetAdd("a", tuple(members), then=(pack(envelope(b"then")),)))

        def work(number: int) -> None:
            for member in random.Random(number).sample(members, len(members)):
                do(store, SetRemove("a", member))

        race(4, work)
        assert do(store, SetLook("a")) == Progress(40, 0, 0)
        assert bodies(consumer_of(transport).exchange((), MAX_TRIP).deliveries) == [b"then"]
