"""assert_enqueued and refute_enqueued."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from unittest import mock

import pytest

import greenroom
from greenroom import Broker
from greenroom.actor import Actor
from greenroom.brokers.stub import StubBroker
from greenroom.testing import assert_enqueued, refute_enqueued

Email = Actor[..., None]


@pytest.fixture
def email(broker: StubBroker) -> Email:
    @greenroom.actor(queue_name="mail", broker=broker)
    def email(address: str, *more: object, **options: object) -> None: ...

    return email


def test_what_was_sent_is_found(email: Email) -> None:
    """By the actor or its name, arguments, queue, delay; the messages come back, in order."""
    first = email.send("ada")
    second = email.send_with_options(args=("bob",), kwargs={"cc": "eve"}, delay=90_000)
    assert [m.message_id for m in assert_enqueued(email)] == [first.message_id, second.message_id]
    assert_enqueued("email", count=2)
    assert_enqueued(email, args=("ada",), kwargs={}, queue="mail", delay=None, count=1)
    for delay in (90_000, "90s", timedelta(seconds=90)):
        (found,) = assert_enqueued(email, kwargs={"cc": "eve"}, delay=delay)
        assert found.message_id == second.message_id
    refute_enqueued(email, args=("eve",))
    refute_enqueued(email, queue="default")
    refute_enqueued(email, delay="1h")
    refute_enqueued("other")
    assert_enqueued("other", count=0)


def test_what_has_run_counts_too(email: Email, worker: greenroom.Worker) -> None:
    """A worker may have run the message already; retries do not count."""
    email.send("ada")
    worker.join()
    assert_enqueued(email, args=["ada"], count=1)


def test_many_at_once_are_found(email: Email) -> None:
    """``send_many`` is sending many."""
    email.send_many([("ada",), ("bob",)], delay=1_000)
    assert_enqueued(email, delay="1s", count=2)


def test_coroutines_send_too(email: Email) -> None:
    """What ``asend`` and its like have sent is known as well."""

    async def main() -> None:
        await email.asend("ada")
        await email.asend_many([("bob",), ("eve",)], delay=1_000)

    asyncio.run(main())
    assert_enqueued(email, count=3)
    assert_enqueued(email, args=("eve",), delay="1s", count=1)


def test_arguments_are_compared_as_they_arrive(email: Email) -> None:
    """A tuple arrives as a list; both ways of writing it match. ``mock.ANY`` matches anything."""
    email.send((1, 2), [3, {"4": 5}], on=(6,))
    assert_enqueued(email, args=((1, 2), (3, {"4": 5})), kwargs={"on": (6,)})
    assert_enqueued(email, args=([1, 2], [3, {"4": 5}]), kwargs={"on": [6]})
    assert_enqueued(email, args=(mock.ANY, [3, {"4": 5}]), kwargs=mock.ANY)
    assert_enqueued(email, args=mock.ANY, kwargs={"on": [6]})
    refute_enqueued(email, args=(object(), 1))
    with pytest.raises(TypeError, match=r"write args=\('ada',\)"):
        assert_enqueued(email, args="ada")


def test_a_list_that_changes_after_it_was_sent(email: Email) -> None:
    """What counts is what was sent, not what became of the object."""
    addresses = ["ada"]
    email.send(addresses)
    addresses.append("bob")
    assert_enqueued(email, args=(["ada"],))


def test_the_failure_says_what_was_sent_instead(email: Email, broker: StubBroker) -> None:
    """Messages of the same actor come first, with what is different about them."""

    @greenroom.actor(broker=broker)
    def other(x: int) -> None: ...

    other.send(1)
    email.send("ada")
    email.send_with_options(args=("bob",), delay=3_600_000)
    with pytest.raises(AssertionError) as caught:
        assert_enqueued(email, args=("bob",), kwargs={}, queue="mail", delay=None)
    assert str(caught.value) == (
        "no message email('bob') in queue 'mail', without delay was enqueued.\n"
        "What was enqueued:\n"
        "  email('ada') in queue 'mail', without delay   <- other args\n"
        "  email('bob') in queue 'mail', delayed by 1 h   <- other delay\n"
        "  other(1) in queue 'default', without delay"
    )


def test_the_failure_of_a_count(email: Email) -> None:
    """Too many or too few: the numbers are named."""
    email.send("ada")
    with pytest.raises(AssertionError, match=r"^1 message email\(\.\.\.\) enqueued, not 2\."):
        assert_enqueued(email, count=2)
    with pytest.raises(AssertionError, match=r"^no messages email\('bob', \.\.\.\) enqueued, not 1\."):
        assert_enqueued(email, args=("bob",), count=1)


def test_the_failure_of_a_refutation(email: Email) -> None:
    """It shows what should not have been sent; of very many it shows a few."""
    email.send_many((str(number),) for number in range(30))
    with pytest.raises(AssertionError, match=r"^30 messages email\(\.\.\.\) enqueued, but none was to be\.") as caught:
        refute_enqueued(email)
    assert str(caught.value).endswith("  and 10 more")


def test_the_failure_when_nothing_was_sent(email: Email) -> None:
    """Then it says so."""
    with pytest.raises(AssertionError, match=r"email\(\.\.\.\) was enqueued\.\nNothing was enqueued\."):
        assert_enqueued(email)


def test_only_a_stub_broker_remembers() -> None:
    """With any other broker the mistake is named, and what to use."""

    class Mute(Broker):
        def enqueue(self, message: object, *, delay: object = None) -> object:  # type: ignore[override]  # a stand-in
            return message

    @greenroom.actor(broker=Mute())
    def put() -> None: ...

    put.send()
    with pytest.raises(TypeError, match=r"only a StubBroker knows what was enqueued.*greenroom_broker"):
        assert_enqueued(put)


def test_a_broker_can_be_named(broker: StubBroker, email: Email) -> None:
    """For actors of several brokers, or before there is a default one."""
    email.send("ada")
    assert_enqueued("email", broker=broker)
    refute_enqueued(email, broker=StubBroker())
