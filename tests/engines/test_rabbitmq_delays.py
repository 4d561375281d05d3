"""Delays that RabbitMQ keeps: digits, levels, and messages that come out in time with nobody there."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greenroom.engines.rabbitmq.delays import LEVELS, LONGEST_MS, UNIT_MS, Levels, digits, ttl_ms
from greenroom.engines.rabbitmq.topology import Layout
from greenroom.engines.rabbitmq.wire import read
from tests.engines.rabbitmq_kit import bodies, sent, stranger, transport_at, until_at_rest, wait_until

#: So late a message may be on a busy machine. In a wrong level it would be half a minute late.
LATE_MS = 10_000
YEAR_MS = 366 * 24 * 3600 * 1000


@given(st.integers(1, YEAR_MS))
def test_the_digits_of_a_delay_add_up(delay_ms: int) -> None:
    """The times of the queues that a message goes through add up to its delay, rounded up to the unit; it goes through
    level 0 in any case."""
    found = digits(delay_ms)
    total = sum(ttl_ms(level, digit) for level, digit in enumerate(found))
    assert delay_ms <= total < delay_ms + UNIT_MS
    assert 1 <= found[0] <= 32
    assert all(0 <= digit < 32 for digit in found[1:])
    assert len(found) == LEVELS


def test_a_year_fits() -> None:
    """Any delay up to a year is one passage."""
    assert LONGEST_MS > YEAR_MS


@given(st.integers(1, 2 * YEAR_MS))
def test_what_a_passage_needs_is_among_the_queues(delay_ms: int) -> None:
    """Every queue that a message goes through is one of those that are counted and purged, and its headers hold every
    digit up to the highest, then the end."""
    levels = Levels("quorum")
    passage = levels.passage(delay_ms)
    base, *queues = passage.needs
    assert base == levels.base
    assert set(queues) <= set(levels.queues())
    top = max(int(queue.split(".")[-2]) for queue in queues)
    assert set(passage.headers) == {f"greenroom-{level}" for level in range(top + 2)}
    assert passage.headers[f"greenroom-{top + 1}"] == -1
    assert passage.exchange == f"{levels.base}.0"


@pytest.mark.parametrize("kind", ["classic", "quorum"])
def test_delayed_messages_come_out_in_time(rabbitmq_url: str, kind: str) -> None:
    """With nobody there who could hold them, messages come into their queues when they are due, never before; also
    those that go through several levels and pass one by."""
    with transport_at(rabbitmq_url, layout=Layout(delay_type=kind)) as transport:
        delays_ms = [1, 40, 500, 1025, 2080, 3000]
        transport.ensure(["default"])
        now_ms = transport.clock.now_ms()
        transport.push([sent(queue="first", due_ms=now_ms + delay_ms) for delay_ms in [*delays_ms, 3600 * 1000]])
        wait_until(transport.delayed, "a look at what is delayed")
        seen: dict[bytes, int] = {}
        with stranger(rabbitmq_url) as channel:
            arriving = channel.consume("default", inactivity_timeout=10)
            now_ms = transport.clock.now_ms()  # all that they need is declared by now
            transport.push([sent(b"%d" % delay_ms, due_ms=now_ms + delay_ms) for delay_ms in delays_ms])
            for method, _, body in arriving:
                assert method is not None, f"only {seen} came"
                seen[body] = transport.clock.now_ms() - now_ms - int(body)
                if len(seen) == len(delays_ms):
                    break
        assert all(-1 <= late_ms < LATE_MS for late_ms in seen.values()), seen
        wait_until(lambda: transport.delayed() == 1, "the end of all delays but the longest")


def test_headers_and_priorities_survive_a_delay(rabbitmq_url: str) -> None:
    """The storage id, the priority and the body of a delayed message arrive as they were."""
    with transport_at(rabbitmq_url, layout=Layout(max_priority=9)) as transport:
        envelope = sent(b"\xff body", priority=-4, due_ms=transport.clock.now_ms() + 50)
        transport.push([envelope])
        wait_until(lambda: transport.counts(["default"])["default"].ready, "the message arriving")
    with stranger(rabbitmq_url) as channel:
        _, properties, body = channel.basic_get("default", auto_ack=True)
    id, _ = read(properties)
    assert (id, properties.priority, properties.delivery_mode, body) == (envelope.id, 4, 2, b"\xff body")


def test_all_queues_share_the_levels(rabbitmq_url: str) -> None:
    """Messages of many queues with one delay wait in the same queue, and each comes out in its own."""
    names = [f"queue.{number}" for number in range(10)] + ["q" * 255]
    with transport_at(rabbitmq_url) as transport:
        due_ms = transport.clock.now_ms() + 300
        transport.push([sent(name.encode(), name, due_ms=due_ms) for name in names])
        wait_until(lambda: all(count.ready for count in transport.counts(names).values()), "arriving everywhere")
        for name in names:
            assert bodies(transport, name) == [name.encode()]


def test_beyond_the_longest_delay(rabbitmq_url: str) -> None:
    """What is longer than the levels reach carries the rest of its delay along."""
    with transport_at(rabbitmq_url) as transport:
        publication = transport.routes.of(sent(due_ms=LONGEST_MS + 5000), 0)
        _, meta = read(publication.properties)
        assert meta.rest_ms == 5000
        _, meta = read(transport.routes.of(sent(due_ms=LONGEST_MS), 0).properties)
        assert meta.rest_ms == 0


def test_a_message_whose_queue_was_deleted(rabbitmq_url: str) -> None:
    """A delayed message whose queue is gone when it is due is kept, and sent on by a worker that starts."""
    with transport_at(rabbitmq_url) as transport, stranger(rabbitmq_url) as channel:
        transport.push([sent()])
        channel.queue_delete("default")
        transport.push([sent(b"homeless", due_ms=transport.clock.now_ms() + 100)])  # the queue is not looked for now
        stray = transport.levels.stray
        wait_until(lambda: transport.share.control.ready(stray), "the message becoming a stray")
        assert transport.rescue() == 1
        assert transport.share.control.ready(stray) == 0
        assert bodies(transport) == [b"homeless"]
        assert transport.rescue() == 0


def test_purging_deletes_what_is_delayed_of_one_queue(rabbitmq_url: str) -> None:
    """``purge`` takes the delayed messages of its queue out of the levels, and leaves those of others where they were:
    they come out in time."""
    with transport_at(rabbitmq_url) as transport:
        now_ms = transport.clock.now_ms()
        transport.push([sent(b"mine", "mine", due_ms=now_ms + 30 * 24 * 3600 * 1000), sent(b"now", "mine")])
        transport.push([sent(b"mine", "mine", due_ms=now_ms + 3600 * 1000)])
        until_at_rest(transport, 2)
        now_ms = transport.clock.now_ms()
        transport.push([sent(b"other", "other", due_ms=now_ms + 5000)])
        assert transport.purge("mine") == 3
        wait_until(lambda: transport.counts(["other"])["other"].ready, "the other message arriving")
        assert transport.clock.now_ms() - now_ms >= 5000
        assert transport.counts(["mine"])["mine"].ready == 0
        assert transport.delayed() == 0
