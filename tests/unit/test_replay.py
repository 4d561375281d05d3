"""How a dead letter becomes a message that can run again."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from greenroom import Encoder, JSONEncoder, Message, set_encoder
from greenroom.brokers.replay import envelope_of
from greenroom.ports.admin import DeadLetter
from greenroom.ports.transport import Envelope

NOW_MS = 1_700_000_000_000


def replayed(body: bytes, queue: str = "default", **actors: Any) -> Envelope:
    return envelope_of(DeadLetter(queue, "old", body, None, 3, 2, 5), actors, NOW_MS)


def test_what_tells_of_past_attempts_goes() -> None:
    """Retries, traceback, requeue time and eta are left out; all else stays, and the timestamp is now."""
    options = {"retries": 20, "traceback": "x", "requeue_timestamp": 1, "eta": 2, "max_retries": 20, "time_limit": 5}
    message = Message("default", "mail", (1,), {"a": None}, options, "the-id", 3)
    envelope = replayed(message.encode())
    again = Message.decode(envelope.body)
    kept = {"max_retries": 20, "time_limit": 5}
    assert again == Message("default", "mail", (1,), {"a": None}, kept, "the-id", NOW_MS)
    assert (envelope.queue, envelope.due_ms) == ("default", None)
    assert envelope.id != "old"


def test_it_goes_back_to_its_queue() -> None:
    """The queue is the one that it died in, whatever its message says."""
    assert replayed(Message("default.DQ", "mail", (), {}, {}).encode(), "default").queue == "default"


@pytest.mark.parametrize(
    ("options", "priority"),
    [({}, 0), ({"priority": 5}, 5), ({"priority": "high"}, 0), ({"priority": 5_000}, 0)],
)
def test_the_priority_of_a_message(options: dict[str, Any], priority: int) -> None:
    """A message has its own priority; one that is none counts as 0, for a worker to say what is wrong."""
    assert replayed(Message("default", "mail", (), {}, options).encode()).priority == priority


def test_the_priority_of_an_actor() -> None:
    """A message without a priority has its actor's, where that is known."""
    body = Message("default", "mail", (), {}, {}).encode()
    assert replayed(body, mail=SimpleNamespace(priority=-7)).priority == -7
    assert replayed(body, other=SimpleNamespace(priority=-7)).priority == 0


@pytest.mark.parametrize(
    "body",
    [
        b"\xff",
        b"{}",
        b'{"queue_name":"default","actor_name":"a","args":[NaN],"kwargs":{},"options":{"retries":1}}',
    ],
    ids=["bytes", "no message", "not to be encoded"],
)
def test_what_cannot_be_read_or_written_goes_back_as_it_is(body: bytes) -> None:
    """Bytes that are no message, and messages that JSON cannot hold any more, are put back unchanged."""
    envelope = replayed(body)
    assert (envelope.body, envelope.priority) == (body, 0)


def test_an_encoder_that_fails() -> None:
    """An encoder of a user's own may raise anything: the message goes back as it is."""

    class Broken(Encoder):
        def encode(self, data: dict[str, Any]) -> bytes:
            raise ArithmeticError

        def decode(self, data: bytes) -> dict[str, Any]:
            return JSONEncoder().decode(data)

    body = Message("default", "mail", (), {}, {"retries": 3}).encode()
    set_encoder(Broken())
    try:
        assert replayed(body).body == body
    finally:
        set_encoder(JSONEncoder())
