"""Results, groups and limits on a Redis server, beside messages on RabbitMQ."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

import greenroom
from greenroom import Message, group, pipeline
from greenroom.brokers.rabbitmq import RabbitmqBroker
from greenroom.errors import ResultFailure
from greenroom.middleware import GroupCallbacks
from greenroom.rate_limits import ConcurrentRateLimiter
from greenroom.rate_limits.backends import RedisBackend as LimitsBackend
from greenroom.results import Results
from greenroom.results.backends import RedisBackend
from tests.runtime.worker_kit import working

PATIENCE_MS = 20_000
#: How many members may run at a time.
PLACES = 2


class Place:
    """A broker, a store beside it, and actors that note what they do."""

    def __init__(self, url: str, redis_url: str, **options: Any) -> None:
        self.results = RedisBackend(url=redis_url)
        self.limits = LimitsBackend(url=redis_url, **options)
        self.broker = RabbitmqBroker(url=url, **options)
        self.broker.add_middleware(Results(backend=self.results))
        self.broker.add_middleware(GroupCallbacks(self.limits))
        self.running, self.most = set[int](), 0
        self.called: list[list[Any]] = []
        self.was_called = threading.Event()
        limiter = ConcurrentRateLimiter(self.limits, "members", limit=PLACES)

        @greenroom.actor(broker=self.broker, store_results=True, limit_policy="wait")
        def limited(number: int) -> int:
            with limiter.acquire():
                self.running.add(number)
                self.most = max(self.most, len(self.running))
                threading.Event().wait(0.01)
                self.running.discard(number)
                return 2 * number

        @greenroom.actor(broker=self.broker, store_results=True, max_retries=1, min_backoff=10, max_backoff=20)
        def fail(text: str) -> None:
            raise ValueError(text)

        @greenroom.actor(broker=self.broker)
        def finish(*args: Any) -> None:
            self.called.append(list(args))
            self.was_called.set()

        self.limited, self.fail, self.finish = limited, fail, finish

    def close(self) -> None:
        self.results.close()
        self.limits.close()
        self.broker.close()


@pytest.fixture
def place(rabbitmq_url: str, redis_url: str) -> Iterator[Place]:
    with closing(Place(rabbitmq_url, redis_url)) as place:
        yield place


def test_a_group_under_a_limit(place: Place) -> None:
    """Twelve members, two at a time; those that find no room come again and lose no retry. All results are there, and
    the callback is called once."""
    many = group([place.limited.message(number) for number in range(12)], broker=place.broker)
    many.add_completion_callback(place.finish.message("done"))
    with working(place.broker, threads=6):
        many.run()
        assert list(many.get_results(block=True, timeout=PATIENCE_MS)) == [2 * number for number in range(12)]
        assert place.was_called.wait(PATIENCE_MS / 1000)
        place.broker.join("default", timeout=PATIENCE_MS)
    assert place.called == [["done"]]
    assert 1 <= place.most <= PLACES
    assert place.broker.get_queue_message_counts("default")[2] == 0


def test_a_group_in_a_pipeline(place: Place) -> None:
    """What Dramatiq cannot do: the results of a group are the next stage's argument."""
    line = pipeline(
        [group([place.limited.message(number) for number in range(3)], broker=place.broker), place.finish.message()],
        broker=place.broker,
    )
    with working(place.broker, threads=2):
        line.run()
        assert place.was_called.wait(PATIENCE_MS / 1000)
    assert place.called == [[[0, 2, 4]]]


def test_a_member_that_fails(place: Place) -> None:
    """A group completes, too, if a member dies; whoever waits for its result is told why, and the letter has it."""
    many = group([place.limited.message(1), place.fail.message("no luck")], broker=place.broker)
    many.add_completion_callback(place.finish.message("done"))
    with working(place.broker, threads=2):
        many.run()
        assert place.was_called.wait(PATIENCE_MS / 1000)
        with pytest.raises(ResultFailure, match="no luck"):
            list(many.get_results(block=True, timeout=PATIENCE_MS))
    (letter,) = place.broker.get_dead_letters("default")
    assert letter.error is not None
    assert (letter.error.type, letter.error.message) == ("ValueError", "no luck")


def test_what_dramatiq_cannot_read_is_refused(rabbitmq_url: str, redis_url: str) -> None:
    """With wire="dramatiq" groups in pipelines, policies of pipelines, more than 400 stages, and groups in groups with
    callbacks are refused by name, and nothing is sent."""
    with closing(Place(rabbitmq_url, redis_url, wire="dramatiq")) as place:
        broker, message = place.broker, place.limited.message(1)
        inner = group([message, message], broker=broker)
        with pytest.raises(ValueError, match=r"A group inside a pipeline.*wire="):
            pipeline([message, inner, message], broker=broker).run()
        with pytest.raises(ValueError, match=r"on_error='skip'.*wire="):
            pipeline([message, message], broker=broker, on_error="skip").run()
        with pytest.raises(ValueError, match=r"401 stages.*wire="):
            pipeline([message] * 401, broker=broker).run()
        outer = group([inner, message], broker=broker)
        outer.add_completion_callback(Message("default", "finish", (), {}, {}))
        with pytest.raises(NotImplementedError, match="A group inside of a group that has callbacks"):
            outer.run()
        assert broker.get_queue_message_counts("default") == (0, 0, 0)
        pipeline([message] * 400, broker=broker).run()
        assert broker.get_queue_message_counts("default") == (1, 0, 0)
