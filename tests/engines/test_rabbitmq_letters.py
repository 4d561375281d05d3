"""Dead letters in RabbitMQ: ours, Dramatiq's and the broker's own; shown, put back and dropped without losing one."""

from __future__ import annotations

from typing import Any

import pytest

from greenroom.engines.rabbitmq import control
from greenroom.engines.rabbitmq.wire import HISTORY_LIMIT, Meta, properties_of, read
from greenroom.errors import BrokerError
from greenroom.ports.transport import ErrorText, Incident
from tests.engines.rabbitmq_kit import bodies, sent, stranger, transport_at, wait_until

ERROR = ErrorText("ValueError", "no \u2713 \x00 such thing", "Traceback:\n  ...")


def _bury(transport: Any, *ids: str) -> None:
    transport.ensure(["default"])
    for number, id in enumerate(ids):
        meta = Meta(attempt=1, error=ERROR, died_ms=1000 + number, history=(Incident(1, 1, None),))
        transport.publish([transport.routes.dead("default", id, id.encode(), meta)])


def test_a_letter_is_shown_as_it_was_written(rabbitmq_url: str) -> None:
    """A dead letter has its id, body, error, time, attempt and history, however often it is looked at."""
    with transport_at(rabbitmq_url) as transport:
        _bury(transport, "a", "b")
        for _ in range(3):
            assert [letter.id for letter in transport.dead("default")] == ["b", "a"]
        (letter,) = transport.dead_letters(["a"])
        assert (letter.body, letter.error, letter.died_ms, letter.attempt) == (b"a", ERROR, 1000, 1)
        assert letter.history == (Incident(1, 1, None),)
        assert transport.counts()["default"].dead == 2


def test_what_dramatiq_and_the_broker_have_dead_lettered(rabbitmq_url: str) -> None:
    """A message that another program rejected is a dead letter with the broker's reason and time, under an id that
    stays the same; it can be put back."""
    with transport_at(rabbitmq_url) as transport, stranger(rabbitmq_url) as channel:
        transport.ensure(["default"])
        channel.basic_publish("", "default", b'{"from": "dramatiq"}')
        wait_until(lambda: transport.counts()["default"].ready, "arriving")
        method, _, _ = channel.basic_get("default")
        channel.basic_nack(method.delivery_tag, requeue=False)
        wait_until(lambda: transport.counts()["default"].dead, "dying")
        (letter,) = transport.dead()
        assert letter.error == ErrorText("DeadLettered", "RabbitMQ has dead-lettered it: rejected")
        assert abs(letter.died_ms - transport.clock.now_ms()) < 60_000
        assert transport.dead()[0].id == letter.id
        assert transport.move({letter.id: sent(letter.body)}) == 1
        assert transport.counts()["default"].ready == 1
        assert transport.dead() == []


def test_putting_back_is_interrupted(rabbitmq_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the replacement cannot be sent, the letter is still there; when the connection ends after it was sent, both
    are: never none."""
    with transport_at(rabbitmq_url) as transport:
        _bury(transport, "a")

        def fails(_publications: object) -> None:
            raise BrokerError("it cannot be sent")

        with monkeypatch.context() as patch:
            patch.setattr(transport, "publish", fails)
            with pytest.raises(BrokerError, match="cannot be sent"):
                transport.move({"a": sent(b"again")})
        assert transport.counts()["default"].dead == 1

        def breaks(publications: Any) -> None:
            type(transport).publish(transport, publications)
            transport.share.control._link.loop.cut()

        with monkeypatch.context() as patch:
            patch.setattr(transport, "publish", breaks)
            with pytest.raises(BrokerError):
                transport.move({"a": sent(b"again")})
        counts = transport.counts()["default"]
        assert counts.ready == 1
        wait_until(lambda: transport.counts()["default"].dead == 1, "the letter being given back")


def test_a_history_fits_into_one_frame(rabbitmq_url: str) -> None:
    """However long its history is, a message can be published: the oldest tracebacks go first."""
    long = Incident(1, 1, ErrorText("E", "m" * 3000, "\n\u2713" * 2000))
    meta = Meta(history=(long,) * HISTORY_LIMIT, error=long.error, died_ms=5)
    with transport_at(rabbitmq_url) as transport:
        transport.publish([transport.routes.dead("default", "a", b"body", meta)])
        (letter,) = transport.dead("default")
    assert len(letter.history) == HISTORY_LIMIT
    assert letter.history[-1] == long
    assert letter.history[0] == Incident(1, 1, ErrorText("E", "m" * 1000))


def test_a_header_that_is_not_ours() -> None:
    """A header of our name with something else in it is as good as none."""
    properties = properties_of("id", Meta(), headers={"greenroom": "nonsense"})
    assert read(properties) == ("id", Meta())
    properties = properties_of("id", Meta(), headers={"greenroom": {"a": "table"}})
    assert read(properties) == ("id", Meta())


def test_pausing_is_refused(rabbitmq_url: str) -> None:
    """RabbitMQ cannot pause a queue, and the error says what to do instead."""
    with transport_at(rabbitmq_url) as transport, pytest.raises(BrokerError, match="-Q"):
        transport.pause(["default"])


def test_a_slow_server_hides_no_letter(rabbitmq_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the messages of a queue take to come, who looks sees all of them: silence proves nothing."""
    monkeypatch.setattr(control, "_LULL_S", 0.0)
    monkeypatch.setattr(control, "_LULL_S", 0.0)
    monkeypatch.setattr(control, "_QUIET_S", 0.0)
    with transport_at(rabbitmq_url) as transport:
        _bury(transport, "a", "b")
        assert [letter.id for letter in transport.dead("default")] == ["b", "a"]
        assert transport.move({"a": sent(b"again")}) == 1
        assert transport.drop(["b"]) == 1


def test_a_look_beside_a_worker(rabbitmq_url: str) -> None:
    """What a worker takes between the count and the look is not waited for."""
    with transport_at(rabbitmq_url) as transport, stranger(rabbitmq_url) as channel:
        transport.push([sent(b"1"), sent(b"2"), sent(b"3")])
        count = transport.share.control.ready

        def ready(queue: str) -> int | None:
            found = count(queue)
            channel.basic_get(queue)
            return found

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(transport.share.control, "ready", ready)
            assert bodies(transport) == [b"2", b"3"]


def test_looking_needs_no_queue(rabbitmq_url: str) -> None:
    """A queue that does not exist holds nothing, and looking makes none."""
    with transport_at(rabbitmq_url) as transport:
        assert transport.dead("unheard") == []
        assert transport.peek("unheard") == []
        assert transport.purge("unheard") == 0
        assert transport.counts(["unheard"])["unheard"].ready == 0
        assert transport.share.control.ready("unheard") is None
