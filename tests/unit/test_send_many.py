"""``send_many`` and ``enqueue_many``: lazily, a thousand at a time, each thousand as a whole or not at all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from greenroom import Actor, Message, Middleware, actor
from greenroom.brokers.engine import EngineBroker
from greenroom.engines.memory.transport import MemoryTransport
from greenroom.errors import BrokerFull, MiddlewareError
from greenroom.ports.admin import Counts
from greenroom.ports.transport import Envelope
from greenroom.testing.clock import ManualClock


class Recording(MemoryTransport):
    """Keeps how large the batches were, and may refuse one."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.batches: list[int] = []
        self.refuse: int | None = None

    def push(self, batch: Iterable[Envelope]) -> None:
        batch = list(batch)
        if len(self.batches) == self.refuse:
            raise BrokerFull("no room")
        super().push(batch)
        self.batches.append(len(batch))


class RecordingBroker(EngineBroker):
    def __init__(self, middleware: Iterable[Middleware] = ()) -> None:
        clock = ManualClock()
        self.transport = Recording(clock=clock)
        super().__init__(middleware, clock=clock)

    def found(self) -> list[Message[Any]]:
        consumer = self.transport.consumer("test")
        consumer.subscribe(["default"])
        messages: list[Message[Any]] = []
        while deliveries := consumer.exchange((), 1000).deliveries:
            messages += [Message.decode(delivery.body) for delivery in deliveries]
        return messages


@pytest.fixture
def broker() -> RecordingBroker:
    return RecordingBroker()


@pytest.fixture
def work(broker: RecordingBroker) -> Actor[..., Any]:
    return actor(lambda *_: None, broker=broker, actor_name="work")


def test_chunks_of_a_thousand(broker: RecordingBroker, work: Actor[..., Any]) -> None:
    """Items go to the broker in thousands, in order, and their number is returned."""
    assert work.send_many((n,) for n in range(2500)) == 2500
    assert broker.transport.batches == [1000, 1000, 500]
    messages = broker.found()
    assert [message.args for message in messages] == [(n,) for n in range(2500)]
    assert len({message.message_id for message in messages}) == 2500


@pytest.mark.parametrize("count", [0, 1, 999, 1000, 1001])
def test_any_number(broker: RecordingBroker, work: Actor[..., Any], count: int) -> None:
    """None at all, one, and the numbers around a chunk."""
    assert work.send_many((n,) for n in range(count)) == count
    assert sum(broker.transport.batches) == count


def test_items_are_read_lazily(broker: RecordingBroker, work: Actor[..., Any]) -> None:
    """No more than a chunk is read ahead of what was accepted: an endless source is no problem for the memory."""

    def items() -> Iterator[tuple[int]]:
        for number in range(3000):
            assert number - sum(broker.transport.batches) < 1000
            yield (number,)

    assert work.send_many(items()) == 3000


def test_a_failure_tells_how_far_it_came(broker: RecordingBroker, work: Actor[..., Any]) -> None:
    """The exception says how many were accepted, and where the chunk begins that was not; that one is not there."""
    broker.transport.refuse = 2
    with pytest.raises(BrokerFull) as e:
        work.send_many((n,) for n in range(5000))
    assert (e.value.accepted, e.value.index) == (2000, 2000)
    assert broker.transport.counts(["default"])["default"] == Counts(ready=2000)


def test_a_failing_source(broker: RecordingBroker, work: Actor[..., Any]) -> None:
    """If reading the items fails the chunk that was being read is not sent."""

    def items() -> Iterator[tuple[int]]:
        yield from ((n,) for n in range(1500))
        raise OSError("the file ended")

    with pytest.raises(OSError, match="the file ended") as e:
        work.send_many(items())
    assert (e.value.accepted, e.value.index) == (1000, 1000)  # type: ignore[attr-defined]  # set by send_many
    assert broker.transport.batches == [1000]


@pytest.mark.parametrize("item", [1, "text", [1], {"a": 1}, None])
def test_an_item_that_is_no_tuple(broker: RecordingBroker, work: Actor[..., Any], item: Any) -> None:
    """Items are tuples of positional arguments: a bare value is a mistake that is told with its position."""
    with pytest.raises(TypeError, match="Item 1 of send_many"):
        work.send_many([(1,), item])
    assert broker.transport.batches == []


def test_messages_may_be_items(broker: RecordingBroker, work: Actor[..., Any]) -> None:
    """Messages keep their ids and arguments; options of the call are added to theirs."""
    message = work.message_with_options(args=(1,), kwargs={"x": 2}, max_retries=1)
    work.send_many([message, (3,)], time_limit=50)
    first, second = broker.found()
    assert first == message.copy(options={"time_limit": 50})
    assert (second.args, second.options) == ((3,), {"time_limit": 50})


def test_options_are_not_shared(broker: RecordingBroker, work: Actor[..., Any]) -> None:
    """Each message has options of its own."""
    ids: set[int] = set()

    class Watch(Middleware):
        def before_enqueue(self, broker: Any, message: Any, delay: int | None) -> None:
            ids.add(id(message.options))
            message.options["seen"] = len(ids)

    broker.add_middleware(Watch())
    work.send_many([(1,), (2,), (3,)], priority=5)
    assert [message.options for message in broker.found()] == [{"priority": 5, "seen": n} for n in (1, 2, 3)]


def test_a_delay_for_all(broker: RecordingBroker, work: Actor[..., Any]) -> None:
    """``delay`` holds for every item; hooks see it in milliseconds."""
    seen = []

    class Watch(Middleware):
        def before_enqueue(self, broker: Any, message: Any, delay: int | None) -> None:
            seen.append(delay)

        def before_delay_message(self, broker: Any, message: Any) -> None:
            seen.append(message.options["eta"])

    broker.add_middleware(Watch())
    work.send_many([(1,), (2,)], delay=1500)
    due_ms = broker.clock.now_ms() + 1500
    assert sorted(seen) == [1500, 1500, due_ms, due_ms]
    assert broker.transport.counts(["default"])["default"] == Counts(delayed=2)


def test_a_veto_fails_its_chunk(broker: RecordingBroker, work: Actor[..., Any]) -> None:
    """``before_enqueue`` runs for each item; a veto fails the chunk before anything of it is sent."""

    class Veto(Middleware):
        def before_enqueue(self, broker: Any, message: Any, delay: int | None) -> None:
            if message.args == (1500,):
                raise MiddlewareError("not this one")

    broker.add_middleware(Veto())
    with pytest.raises(MiddlewareError, match="not this one") as e:
        work.send_many((n,) for n in range(2500))
    assert e.value.accepted == 1000  # type: ignore[attr-defined]  # set by send_many
    assert broker.transport.batches == [1000]


def test_hooks_after_all_are_accepted(broker: RecordingBroker, work: Actor[..., Any]) -> None:
    """``after_enqueue`` runs for each message once its chunk is accepted."""
    seen = []

    class Watch(Middleware):
        def after_enqueue(self, broker: Any, message: Any, delay: int | None) -> None:
            seen.append((message.args[0], len(broker.transport.batches)))

    broker.add_middleware(Watch())
    work.send_many((n,) for n in range(1001))
    assert seen == [(n, 1) for n in range(1000)] + [(1000, 2)]


def test_many_of_different_actors(broker: RecordingBroker, work: Actor[..., Any]) -> None:
    """``broker.enqueue_many`` takes messages of any actors and queues, in one batch."""
    other = actor(lambda: None, broker=broker, actor_name="other", queue_name="elsewhere")
    assert broker.enqueue_many([work.message(1), other.message(), work.message(2)]) == 3
    assert broker.transport.batches == [3]
    assert broker.transport.counts(["elsewhere"])["elsewhere"] == Counts(ready=1)
