"""A ``RedisBroker`` for programs that were written for Dramatiq's."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis

import greenroom
from greenroom import Message, QueueJoinTimeout, group, pipeline
from greenroom.brokers.redis import RedisBroker
from greenroom.clock import SYSTEM_CLOCK
from greenroom.engines.redis.dramatiq_layout import DramatiqLayout
from greenroom.middleware import GroupCallbacks
from greenroom.rate_limits.backends import RedisBackend


@pytest.fixture
def make(redis_url: str) -> Iterator[Callable[..., RedisBroker]]:
    made: list[RedisBroker] = []

    def make(**options: Any) -> RedisBroker:
        made.append(RedisBroker(url=redis_url, **options))
        made[-1].declare_queue("default")
        return made[-1]

    yield make
    for broker in made:
        broker.client.close()
        broker.close()


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        yield client


def message(name: str = "a", **options: Any) -> Message[Any]:
    return Message("default", "act", (name,), {}, options)


# --- what programs call


def test_the_client_is_a_client(make: Callable[..., RedisBroker], redis_url: str) -> None:
    """``broker.client`` is a ``redis.Redis`` of the same server, the one that was given if one was."""
    broker = make()
    assert broker.client.ping()
    with redis.Redis.from_url(redis_url) as mine:
        assert RedisBroker(client=mine).client is mine


def test_each_broker_has_an_id(make: Callable[..., RedisBroker]) -> None:
    """``broker_id`` names the object."""
    assert make().broker_id != make().broker_id


def test_join_takes_an_interval(make: Callable[..., RedisBroker]) -> None:
    """``join`` has Dramatiq's keywords, and waits for messages in either layout."""
    broker = make()
    broker.join("default", interval=10, timeout=1_000)
    broker.do_enqueue("default", "1", message(redis_message_id="1").encode())
    with pytest.raises(QueueJoinTimeout):
        broker.join("default", interval=10, timeout=50)


def test_fetching_by_hand(make: Callable[..., RedisBroker], client: redis.Redis) -> None:
    """What a program does that consumes by itself: fetch, ack, nack, requeue, and ask how many there are."""
    broker = make()
    bodies = [message(str(number), redis_message_id=str(number)).encode() for number in range(4)]
    for number, body in enumerate(bodies):
        broker.do_enqueue("default", str(number), body)
    assert broker.do_qsize("default") == 4
    assert broker.do_fetch("default", 3) == bodies[:3]
    assert client.smembers(f"dramatiq:__acks__.{broker.broker_id}.default") == {"0", "1", "2"}
    assert client.zscore("dramatiq:__heartbeats__", broker.broker_id) > 0
    broker.do_ack("default", "0")
    broker.do_ack("default", "3")  # not fetched: nothing happens
    broker.do_nack("default", "1")
    broker.do_requeue("default", "2", "none")
    assert client.lrange("dramatiq:default", 0, -1) == ["2", "3"]
    assert client.zrange("dramatiq:default.XQ", 0, -1) == ["1"]
    assert [letter.id for letter in broker.get_dead_letters("default")] == ["1"]
    assert broker.do_qsize("default") == 2
    broker.do_purge("default")
    assert broker.do_qsize("default") == 0
    assert broker.get_queue_message_counts("default") == (0, 0, 0)


def test_the_delayed_side_by_hand(make: Callable[..., RedisBroker]) -> None:
    """``.DQ`` names the delayed side: it is fetched in its order, whatever the times are."""
    broker = make()
    body = message(redis_message_id="1", eta=9_999_999_999_999).encode()
    broker.do_enqueue("default.DQ", "1", body)
    assert broker.do_fetch("default", 1) == []
    assert broker.do_fetch("default.DQ", 1) == [body]


# --- the wire


def test_what_the_wire_writes(make: Callable[..., RedisBroker], client: redis.Redis) -> None:
    """With wire="dramatiq" a message is where Dramatiq has it, in its words, with its storage id in its options."""
    broker = make(wire="dramatiq")
    sent = broker.enqueue(message("now"))
    late = broker.enqueue(message("late"), delay=60_000)
    (id,) = client.lrange("dramatiq:default", 0, -1)
    fields = json.loads(client.hget("dramatiq:default.msgs", id))
    assert fields == {**sent.asdict(), "args": ["now"], "options": {"redis_message_id": id}}
    (late_id,) = client.lrange("dramatiq:default.DQ", 0, -1)
    fields = json.loads(client.hget("dramatiq:default.DQ.msgs", late_id))
    assert fields["queue_name"] == "default.DQ"
    assert fields["options"] == {"redis_message_id": late_id, "eta": late.options["eta"]}
    assert not client.exists("{dramatiq}:g1:m:default")
    assert broker.get_queue_message_counts("default") == (1, 1, 0)
    broker.flush("default")
    assert client.keys("dramatiq:*") == []


def test_many_go_together(make: Callable[..., RedisBroker], client: redis.Redis) -> None:
    """``send_many`` works on the wire, too."""
    broker = make(wire="dramatiq")
    assert broker.enqueue_many([message(str(number)) for number in range(1_500)]) == 1_500
    ids = client.lrange("dramatiq:default", 0, -1)
    assert len(set(ids)) == 1_500
    assert set(client.hkeys("dramatiq:default.msgs")) == set(ids)


def test_another_wire_is_refused() -> None:
    """``wire`` is "dramatiq" or nothing."""
    with pytest.raises(ValueError, match="wire"):
        RedisBroker(wire="celery")


def test_what_dramatiq_cannot_read_is_refused(make: Callable[..., RedisBroker], client: redis.Redis) -> None:
    """Groups in pipelines, policies of pipelines, more than 400 stages, and groups in groups with callbacks are refused
    by name, and nothing is sent."""
    broker = make(wire="dramatiq")
    limits = RedisBackend(client=broker.client)
    broker.add_middleware(GroupCallbacks(limits))
    broker.declare_actor(greenroom.actor(broker=broker, actor_name="act")(print))
    inner = group([message(), message()], broker=broker)
    with pytest.raises(ValueError, match=r"A group inside a pipeline.*wire="):
        pipeline([message(), inner, message()], broker=broker).run()
    with pytest.raises(ValueError, match=r"on_error='skip'.*wire="):
        pipeline([message(), message()], broker=broker, on_error="skip").run()
    with pytest.raises(ValueError, match=r"401 stages.*wire="):
        pipeline([message()] * 401, broker=broker).run()
    outer = group([inner, message()], broker=broker)
    outer.add_completion_callback(message("done"))
    with pytest.raises(NotImplementedError, match="A group inside of a group that has callbacks"):
        outer.run()
    assert client.keys("dramatiq:*") == []
    pipeline([message()] * 400, broker=broker).run()
    assert client.llen("dramatiq:default") == 1
    limits.close()


def test_results_need_a_backend_that_dramatiq_reads(make: Callable[..., RedisBroker]) -> None:
    """On the wire there is no store of the broker's own, so ``Results`` is told where to keep results."""
    broker = make(wire="dramatiq")
    broker.add_middleware(greenroom.results.Results())
    with pytest.raises(RuntimeError, match="Say where to keep results"):
        broker.get_results_backend()


# --- what it costs


def test_a_look_costs_no_command(make: Callable[..., RedisBroker], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Dramatiq has left nothing, looking for it is a part of the trips that are made anyway."""
    consumer = make().transport.consumer("test")
    consumer.subscribe(["default", *(f"q{number}" for number in range(20))])
    while consumer.exchange((), 10).more:
        pass
    looks: list[Any] = []
    monkeypatch.setattr(consumer._ours.trips.rider, "_told", looks.append)
    monkeypatch.setattr(DramatiqLayout, "trip", None)
    consumer._theirs._look_at = SYSTEM_CLOCK.monotonic()  # a look is due
    consumer.exchange((), 10)
    assert [look.heartbeats for look in looks] == [0]
    assert set(looks[0].lengths.values()) == {(0, 0)}
    assert len(looks[0].lengths) == 21
    monkeypatch.undo()
    consumer.close()
