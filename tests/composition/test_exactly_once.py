"""The end of a group, and the next stage of a pipeline, come once: whatever is delivered again, late, or in disorder.

Workers are played here, message by message, so that each may die, or be taken for dead and settle too late.
"""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from greenroom import group, pipeline
from greenroom.brokers.stub import StubBroker
from greenroom.composition.built_in import built_in
from greenroom.core.run import Run
from greenroom.core.verdict import Verdict
from greenroom.engines.memory.store import MemoryStore
from greenroom.engines.memory.transport import MemoryTransport
from greenroom.message import decode_message
from greenroom.middleware import GroupCallbacks
from greenroom.ports.store import Progress
from greenroom.ports.transport import Settlement
from greenroom.rate_limits import StoreBackend
from greenroom.runtime.endings import sealed
from greenroom.runtime.steps import Steps
from greenroom.runtime.store_writer import write_now
from tests.composition.kit import Actors, leftovers

#: What becomes of a message that was claimed: it ends well or badly; its worker dies before it has settled; its worker
#: was taken for dead and settles when others have the message. All others end well.
FATES = st.lists(st.sampled_from(["ends", "fails", "dies", "late", "dies before it settles"]), max_size=40)


class Workers:
    """Plays workers on a broker in memory. ``pushed`` holds, for each message that was met, the storage ids it had: one
    for each time that somebody has put it into a queue."""

    def __init__(self, broker: Any, fates: list[str], order: random.Random) -> None:
        self.broker = broker
        self.fates = iter(fates)
        self.order = order
        self.pushed: dict[str, set[str]] = {}
        self.failed: set[str] = set()
        #: Whether a message has failed, each time that others could learn of its end.
        self.ends: dict[str, list[bool]] = {}

    def run_all(self) -> None:
        """Until nothing is left."""
        late: list[tuple[Any, Settlement]] = []
        while True:
            consumer = self.broker.transport.consumer("player")
            consumer.subscribe(self.broker.get_declared_queues())
            deliveries = list(consumer.exchange((), self.order.randint(1, 5)).deliveries)
            if not deliveries:
                break
            self.order.shuffle(deliveries)
            settlements = [s for delivery in deliveries if (s := self._end(consumer, delivery)) is not None]
            self._take_for_dead(consumer)
            late += [(consumer, s) for s in settlements]
        consumer.close()
        for stale, settlement in late:
            assert not stale.exchange((settlement,), 0).settled

    def _take_for_dead(self, consumer: Any) -> None:
        """What it has not settled goes back, and it does not know."""
        transport = self.broker.transport
        with transport._lock.get():
            transport._give_back_all(consumer)

    def _end(self, consumer: Any, delivery: Any) -> Settlement | None:
        message = decode_message(delivery.body)
        self.pushed.setdefault(message.message_id, set()).add(delivery.id)
        fate = next(self.fates, "ends")
        if fate == "dies":
            return None
        internal = built_in(self.broker, message)
        run = Run(message, delivery, internal or self.broker.get_actor(message.actor_name))
        run.result = 1 if internal is None else run.actor.run(*message.args)
        if fate == "fails" and internal is None:
            run.fail()
        verdict = Verdict.DEAD if run.failed else Verdict.ACK
        settlement = Steps(self.broker)._end(run, Settlement(delivery, verdict), self.broker.hooks.ending)
        if run.ending is not None:  # for a store that is not the broker's: that happens, come what may
            self.ends.setdefault(run.message_id, []).append(run.failed)
            write_now(run.ending)
            settlement = sealed(run.ending)
            if fate == "dies before it settles":
                return None
        if fate == "late":
            return settlement
        if run.failed:
            self.failed.add(message.message_id)
        if run.ending is None:
            self.ends.setdefault(run.message_id, []).append(run.failed)
        assert consumer.exchange((settlement,), 0).settled == [settlement]
        if run.ending is not None:
            run.ending.jobs = run.ending.later
            write_now(run.ending)
        return None

    def has_left_as_failed(self, message: Any) -> bool:
        """Whether the first end of a member was a failure: that is what counts for its group."""
        return self.ends[message.message_id][0]

    def check_once(self) -> None:
        """Nothing was put into a queue twice."""
        assert {name: ids for name, ids in self.pushed.items() if len(ids) > 1} == {}


def make_broker(*, elsewhere: bool) -> StubBroker:
    """A broker that keeps compositions itself, or in another store."""
    broker = StubBroker()
    if elsewhere:
        broker.add_middleware(GroupCallbacks(StoreBackend(MemoryStore(MemoryTransport()))))
    return broker


@settings(max_examples=150, deadline=None)
@given(fates=FATES, members=st.integers(0, 6), inner=st.integers(0, 4), seed=st.integers(), elsewhere=st.booleans())
def test_callbacks_come_once(fates: list[str], members: int, inner: int, seed: int, elsewhere: bool) -> None:
    """A group in a group: each callback is sent exactly once, and both sets count who failed."""
    broker = make_broker(elsewhere=elsewhere)
    actors = Actors(broker)
    nested = group([actors.add.message(1, 1) for _ in range(inner)], broker=broker)
    nested.add_completion_callback(actors.note.message("inner"))
    outer = group([nested, *(actors.add.message(1, 1) for _ in range(members))], broker=broker)
    outer.add_completion_callback(actors.note.message("outer"))
    outer.run()
    workers = Workers(broker, fates, random.Random(seed))
    workers.run_all()
    workers.check_once()
    inner_failed = sum(map(workers.has_left_as_failed, nested.children))
    outer_failed = sum(map(workers.has_left_as_failed, outer.children[1:])) + (inner_failed > 0)
    assert nested._progress() == Progress(inner, 0, inner_failed)
    assert outer._progress() == Progress(members + 1, 0, outer_failed)
    callbacks = {fields["message_id"] for one in (nested, outer) for fields in one.completion_callbacks}
    assert callbacks <= workers.pushed.keys()


@settings(max_examples=150, deadline=None)
@given(fates=FATES, stages=st.sampled_from([2, 5, 22]), seed=st.integers(), elsewhere=st.booleans())
def test_stages_come_once(fates: list[str], stages: int, seed: int, elsewhere: bool) -> None:
    """Stages come in their order under the ids they were given, each once, up to the first that fails."""
    broker = make_broker(elsewhere=elsewhere)
    actors = Actors(broker)
    pipe = pipeline([actors.add.message(1) for _ in range(stages)], broker=broker).run()
    workers = Workers(broker, fates, random.Random(seed))
    workers.run_all()
    workers.check_once()
    expected = [stage.message_id for stage in pipe.messages]
    failed = [number for number, message_id in enumerate(expected, 1) if message_id in workers.failed]
    assert list(workers.pushed) == expected[: failed[0] if failed else stages]
    assert leftovers(broker) == set()


@settings(max_examples=150, deadline=None)
@given(
    fates=FATES,
    members=st.integers(0, 5),
    on_error=st.sampled_from(["fail", "skip", "collect"]),
    seed=st.integers(),
    elsewhere=st.booleans(),
)
def test_a_group_between_stages_goes_on_once(
    fates: list[str], members: int, on_error: str, seed: int, elsewhere: bool
) -> None:
    """The stage after a group comes once if the group's policy lets it, and not at all if not; nothing is left over."""
    broker = make_broker(elsewhere=elsewhere)
    actors = Actors(broker)
    stage = group([actors.add.message(1) for _ in range(members)], broker=broker, on_error=on_error)
    pipe = pipeline([actors.add.message(1), stage, actors.note.message()], broker=broker).run()
    first, many, last = pipe.messages
    workers = Workers(broker, fates, random.Random(seed))
    workers.run_all()
    workers.check_once()
    has_failed = any(child.message_id in workers.failed for child in many.children)
    goes_on = first.message_id not in workers.failed and not (has_failed and on_error == "fail")
    members_ends = [set(workers.ends.get(child.message_id, ())) for child in many.children]
    if all(len(ends) < 2 for ends in members_ends):  # else both are right
        assert (last.message_id in workers.pushed) == goes_on
    if not elsewhere:  # there one that ends twice leaves its second result, for a while
        assert leftovers(broker) == set()


@pytest.mark.parametrize("on_error", ["fail", "skip"])
def test_a_pipeline_that_is_sent_twice(on_error: str) -> None:
    """A first stage that runs again after it has ended, because it was sent twice, is followed by nothing."""
    broker = StubBroker()
    actors = Actors(broker)
    pipe = pipeline([actors.add.message(1) for _ in range(25)], broker=broker, on_error=on_error).run()
    broker.enqueue(broker.enqueued[0].message)
    workers = Workers(broker, [], random.Random(1))
    workers.run_all()
    first, *others = pipe.messages
    assert len(workers.pushed.pop(first.message_id)) == 2
    workers.check_once()
    assert list(workers.pushed) == [stage.message_id for stage in others]
