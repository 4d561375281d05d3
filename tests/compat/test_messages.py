"""Messages, proxies and encoders."""

from __future__ import annotations

import json
import pickle
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

import greenroom as dramatiq
from greenroom.brokers.stub import StubBroker
from greenroom.clock import current_millis


def message(**changes: Any) -> dramatiq.Message[Any]:
    fields: dict[str, Any] = {
        "queue_name": "default",
        "actor_name": "add",
        "args": (1, 2),
        "kwargs": {"k": "é"},
        "options": {},
        "message_id": "id",
        "message_timestamp": 5,
    }
    return dramatiq.Message(**{**fields, **changes})


@pytest.fixture
def global_encoder() -> Iterator[None]:
    """Puts the encoder back in the end."""
    before = dramatiq.get_encoder()
    yield
    dramatiq.set_encoder(before)


def test_a_message_has_an_id_and_a_time_of_its_own() -> None:
    """By default the id is a random UUID with dashes, the timestamp UNIX milliseconds."""
    before = current_millis()
    first, second = (dramatiq.Message("default", "add", (), {}, {}) for _ in range(2))
    assert first.message_id != second.message_id
    assert str(uuid.UUID(first.message_id)) == first.message_id
    assert uuid.UUID(first.message_id).version == 4
    assert before <= first.message_timestamp <= current_millis()


def test_the_bytes_are_dramatiqs() -> None:
    """JSON without spaces, in ASCII, with the seven keys in their order."""
    assert message().encode() == (
        b'{"queue_name":"default","actor_name":"add","args":[1,2],"kwargs":{"k":"\\u00e9"},"options":{},'
        b'"message_id":"id","message_timestamp":5}'
    )


def test_decode_is_the_inverse_of_encode() -> None:
    """What was encoded is decoded to an equal message, with a tuple of arguments."""
    decoded = dramatiq.Message.decode(message().encode())
    assert decoded == message()
    assert isinstance(decoded.args, tuple)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff", b'"x"', b"{}", b'{"queue_name":"default"}'])
def test_garbage_is_a_decode_error(data: bytes) -> None:
    """Whatever is wrong with the bytes, ``DecodeError`` carries them."""
    with pytest.raises(dramatiq.DecodeError) as e:
        dramatiq.Message.decode(data)
    assert e.value.data == data


def test_an_eighth_key_is_refused() -> None:
    """A message has seven fields; what is new has to live in the options."""
    fields = json.loads(message().encode())
    with pytest.raises(dramatiq.DecodeError):
        dramatiq.Message.decode(json.dumps({**fields, "new": 1}).encode())


def test_asdict_is_shallow() -> None:
    """``asdict`` has the fields, and the very options of the message."""
    m = message()
    assert m.asdict() == m._asdict()
    assert list(m.asdict()) == list(m._fields)
    assert m.asdict()["options"] is m.options


def test_copy_merges_options_and_replaces_the_rest() -> None:
    """``copy`` adds to the options and leaves the original as it was."""
    m = message(options={"a": 1, "b": 2})
    copied = m.copy(queue_name="other", args=[9], options={"b": 3})
    assert (copied.queue_name, copied.args, copied.options) == ("other", (9,), {"a": 1, "b": 3})
    assert (copied.message_id, copied.message_timestamp) == ("id", 5)
    assert (m.queue_name, m.options) == ("default", {"a": 1, "b": 2})


def test_replace_replaces_the_options_too() -> None:
    """``_replace`` is the namedtuple's: the options are not merged."""
    assert message(options={"a": 1})._replace(options={"b": 2}).options == {"b": 2}


def test_what_is_left_of_the_namedtuple() -> None:
    """``_fields`` and ``_field_defaults`` are there."""
    assert message()._fields == (
        "queue_name",
        "actor_name",
        "args",
        "kwargs",
        "options",
        "message_id",
        "message_timestamp",
    )
    assert message()._field_defaults == {}


def test_a_message_is_frozen() -> None:
    """Its fields cannot be set."""
    with pytest.raises(AttributeError):
        message().queue_name = "x"  # type: ignore[misc]  # that is what is tried


def test_messages_compare_and_sort_as_tuples() -> None:
    """Equal by value, ordered by their fields in order."""
    assert message() == message()
    assert message(queue_name="a") < message(queue_name="b")
    assert min(message(message_timestamp=2), message(message_timestamp=1)).message_timestamp == 1


def test_str_is_the_call() -> None:
    """A message prints as the call of its actor."""
    assert str(message()) == "add(1, 2, k='é')"


def test_the_time_as_a_datetime() -> None:
    """``message_datetime`` is aware, in UTC."""
    assert message(message_timestamp=1_500).message_datetime == datetime(1970, 1, 1, 0, 0, 1, 500_000, tzinfo=UTC)


def test_a_message_can_be_pickled() -> None:
    """It travels through ``multiprocessing`` as it is."""
    assert pickle.loads(pickle.dumps(message())) == message()


@pytest.mark.parametrize("value", [object(), b"x", {1, 2}, datetime(2020, 1, 1, tzinfo=UTC), float("nan")])
def test_what_json_has_no_form_for_is_refused_at_enqueue(broker: StubBroker, value: Any) -> None:
    """The error is a ``TypeError`` as with ``json.dumps``, names the place, and nothing is sent."""
    add = dramatiq.actor(lambda x: x, actor_name="add")
    with pytest.raises(TypeError, match=r"\$\.args\[0\]"):
        add.send(value)
    assert broker.queues["default"].qsize() == 0


# --- proxies


def test_a_proxy_passes_attributes_through() -> None:
    """It has the fields and methods of its message, and equals it."""
    proxy = dramatiq.MessageProxy(message())
    assert (proxy.queue_name, proxy.args, proxy.message_timestamp) == ("default", (1, 2), 5)
    assert proxy.copy(queue_name="x").queue_name == "x"
    assert proxy == message()
    assert proxy == dramatiq.MessageProxy(message())
    assert proxy != message(message_id="other")
    assert str(proxy) == str(message())


def test_a_proxy_can_be_failed() -> None:
    """``fail`` marks it; an exception can be attached and dropped."""
    proxy = dramatiq.MessageProxy(message())
    assert proxy.failed is False
    proxy.fail()
    error = ValueError()
    proxy.stuff_exception(error)
    assert (proxy.failed, proxy._exception) == (True, error)
    proxy.clear_exception()
    assert proxy._exception is None


def test_a_proxy_may_carry_what_middleware_puts_on_it() -> None:
    """Middleware may set attributes of its own."""
    proxy: Any = dramatiq.MessageProxy(message())
    proxy.started_at = 5
    assert proxy.started_at == 5


def test_ordering_proxies_is_deprecated() -> None:
    """``<`` still answers, with a ``DeprecationWarning``."""
    first, second = (dramatiq.MessageProxy(message(message_timestamp=t)) for t in (1, 2))
    with pytest.warns(DeprecationWarning, match="deprecated"):
        assert first < second


# --- encoders


class ReversedEncoder(dramatiq.Encoder):
    """A user's encoder, in Dramatiq's style."""

    def encode(self, data: dict[str, Any]) -> bytes:
        return json.dumps(data).encode()[::-1]

    def decode(self, data: bytes) -> dict[str, Any]:
        fields: dict[str, Any] = json.loads(data[::-1])
        return fields


def test_an_encoder_of_ones_own(global_encoder: None) -> None:
    """Messages go through the encoder that was set."""
    dramatiq.set_encoder(ReversedEncoder())
    assert message().encode().startswith(b"}")
    assert dramatiq.Message.decode(message().encode()) == message()


def test_whatever_an_encoder_raises_is_a_decode_error(global_encoder: None) -> None:
    """So a worker dead-letters what a user's encoder cannot read."""
    dramatiq.set_encoder(ReversedEncoder())
    with pytest.raises(dramatiq.DecodeError) as e:
        dramatiq.Message.decode(b"garbage")
    assert isinstance(e.value.error, ValueError)


def test_a_worker_outlives_what_it_cannot_decode(
    global_encoder: None, broker: StubBroker, worker: dramatiq.Worker
) -> None:
    """One message of garbage goes to the dead letters, the others run."""
    done: list[int] = []
    note = dramatiq.actor(done.append, actor_name="note")
    dramatiq.set_encoder(ReversedEncoder())
    broker.queues["default"].put(b"garbage")
    note.send(1)
    broker.join("default", timeout=10_000, fail_fast=False)
    assert done == [1]
    assert len(broker.dead_letters) == 1


def test_pickle_has_to_be_chosen(global_encoder: None) -> None:
    """With ``PickleEncoder`` set, arguments may be what JSON has no form for."""
    dramatiq.set_encoder(dramatiq.PickleEncoder())
    assert dramatiq.Message.decode(message(args=({1, 2},)).encode()).args == ({1, 2},)
