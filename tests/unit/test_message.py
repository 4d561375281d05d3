"""The message: its fields, its bytes, and what is refused."""

from __future__ import annotations

import copy
import json
import pickle
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from greenroom.encoder import Encoder, JSONEncoder, PickleEncoder, get_encoder, set_encoder
from greenroom.errors import DecodeError, EncodeError, InvalidMessage
from greenroom.message import Message

FIELDS = ("queue_name", "actor_name", "args", "kwargs", "options", "message_id", "message_timestamp")
#: As Dramatiq writes it.
WIRE = (
    b'{"queue_name":"default","actor_name":"add","args":[1,2],"kwargs":{"k":"\\u00e9"},"options":{},'
    b'"message_id":"id","message_timestamp":5}'
)


def message(**fields: Any) -> Message[Any]:
    known: dict[str, Any] = {
        "queue_name": "default",
        "actor_name": "add",
        "args": (1, 2),
        "kwargs": {"k": "\u00e9"},
        "options": {},
        "message_id": "id",
        "message_timestamp": 5,
    }
    return Message(**{**known, **fields})


@pytest.fixture
def encoder() -> Iterator[None]:
    before = get_encoder()
    yield
    set_encoder(before)


def test_the_bytes_are_dramatiqs() -> None:
    """A message is written byte for byte as Dramatiq writes it, and read again."""
    assert message().encode() == WIRE
    assert Message.decode(WIRE) == message()


def test_fresh_id_and_time() -> None:
    """Unless given, the id is a fresh UUID and the timestamp the time in milliseconds."""
    before = _now_ms()
    first, second = (Message("default", "add", (), {}, {}) for _ in range(2))
    assert first.message_id != second.message_id
    assert uuid.UUID(first.message_id).version == 4
    assert before <= first.message_timestamp <= _now_ms()


def _now_ms() -> int:
    return int(datetime.now(UTC).timestamp() * 1000)


def test_arguments_become_a_tuple() -> None:
    """Any iterable of arguments is kept as a tuple; decoded ones are a tuple, too."""
    assert message(args=[1, 2]).args == (1, 2)
    assert message(args=iter("ab")).args == ("a", "b")
    assert type(Message.decode(WIRE).args) is tuple


def test_it_is_frozen() -> None:
    """A message cannot be changed."""
    with pytest.raises(AttributeError):
        message().queue_name = "other"  # type: ignore[misc]  # that is the mistake


def test_copy_merges_options() -> None:
    """A copy replaces fields and merges options, and leaves the original alone."""
    original = message(options={"a": 1, "b": 2})
    changed = original.copy(queue_name="other", options={"b": 3, "c": 4})
    assert (changed.queue_name, changed.options) == ("other", {"a": 1, "b": 3, "c": 4})
    assert (original.queue_name, original.options) == ("default", {"a": 1, "b": 2})
    assert changed.message_id == original.message_id


def test_a_copy_has_options_of_its_own() -> None:
    """What is written into a copy's options does not show in the original."""
    original = message(options={"a": 1})
    original.copy().options["b"] = 2
    assert original.options == {"a": 1}


def test_the_names_of_a_namedtuple() -> None:
    """What was a namedtuple once still answers to its names."""
    sent = message()
    assert sent._fields == FIELDS
    assert sent._field_defaults == {}
    assert sent._asdict() == sent.asdict()
    assert list(sent.asdict()) == list(FIELDS)
    assert sent.asdict()["options"] is sent.options
    assert sent._replace(options={"x": 1}).options == {"x": 1}


def test_order_and_equality() -> None:
    """Messages are equal by their fields, and ordered like tuples."""
    assert message() == message()
    assert message() != message(message_id="other")
    assert message(queue_name="a", actor_name="z") < message(queue_name="b", actor_name="a")


def test_the_text() -> None:
    """As text, a message is the call that it stands for."""
    assert str(message(kwargs={"k": "v"})) == "add(1, 2, k='v')"
    assert str(message(args=(), kwargs={})) == "add()"


def test_the_time() -> None:
    """The timestamp as a datetime knows its zone."""
    assert message(message_timestamp=1_700_000_000_123).message_datetime == datetime(
        2023, 11, 14, 22, 13, 20, 123_000, tzinfo=UTC
    )


@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy, lambda sent: pickle.loads(pickle.dumps(sent))])
def test_it_can_be_copied_and_pickled(how: Any) -> None:
    """The usual ways to copy an object work."""
    sent = message(options={"a": [1]})
    assert how(sent) == sent


@pytest.mark.parametrize("name", FIELDS[:5])
def test_a_field_is_missing(name: str) -> None:
    """Bytes without one of the five fields that say what to do are no message, and the error names it."""
    fields = json.loads(WIRE)
    del fields[name]
    with pytest.raises(InvalidMessage, match=f"no '{name}'") as e:
        Message.decode(json.dumps(fields).encode())
    assert e.value.field == name


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("value", [None, True, 1.5, [[]], "5", {"x": 1}, 5])
def test_a_field_of_another_type(name: str, value: Any) -> None:
    """A field of another type is refused, and the error names field and type."""
    fields = json.loads(WIRE)
    if type(value) is type(fields[name]):
        return
    raw = json.dumps({**fields, name: value}).encode()
    with pytest.raises(InvalidMessage, match=f"'{name}' is of type {type(value).__name__}") as e:
        Message.decode(raw)
    assert (e.value.field, e.value.data) == (name, raw)


def test_an_eighth_field() -> None:
    """A field that no reader knows is refused: new ones live inside ``options``."""
    with pytest.raises(InvalidMessage, match="unknown fields: \\['extra'\\]"):
        Message.decode(WIRE[:-1] + b',"extra":1}')


@pytest.mark.parametrize("data", [b"", b"garbage", b"[]", b"null", b"\xff\xfe", b'"text"', b"{}", b"[" * 100_000])
def test_what_is_no_message(data: bytes) -> None:
    """Whatever the bytes, the error is a ``DecodeError`` that carries them."""
    with pytest.raises(DecodeError) as e:
        Message.decode(data)
    assert e.value.data == data


def test_what_cannot_be_written() -> None:
    """An argument that JSON has no form for is refused with its path."""
    with pytest.raises(EncodeError, match=r"\$\.args\[1\]"):
        message(args=(1, object())).encode()
    with pytest.raises(EncodeError, match=r"\$\.kwargs\.when"):
        message(kwargs={"when": datetime.now(UTC)}).encode()


def test_a_uuid_is_no_message_id() -> None:
    """An id that is not text is refused, as the standard library refuses it."""
    with pytest.raises(EncodeError, match=r"\$\.message_id"):
        message(message_id=uuid.uuid4()).encode()


def test_options_may_be_deep() -> None:
    """Arguments have a depth; options do not, since pipelines nest their stages there."""
    target: dict[str, Any] = {}
    for _ in range(200):
        target = {"options": {"pipe_target": target}}
    sent = message(options=target)
    assert Message.decode(sent.encode()) == sent


@pytest.mark.usefixtures("encoder")
def test_another_encoder() -> None:
    """With another encoder set, messages go through it, both ways."""
    set_encoder(PickleEncoder())
    sent = message(args=(b"bytes", {1, 2}))
    assert Message.decode(sent.encode()) == sent
    with pytest.raises(DecodeError):
        Message.decode(WIRE)


@pytest.mark.usefixtures("encoder")
def test_a_subclass_of_the_json_encoder_is_asked() -> None:
    """The fast path is for the default encoder only: a subclass's methods are called."""

    class Loud(JSONEncoder):
        def encode(self, data: dict[str, Any]) -> bytes:
            return b"!" + super().encode(data)

        def decode(self, data: bytes) -> dict[str, Any]:
            return super().decode(data[1:])

    set_encoder(Loud())
    assert message().encode() == b"!" + WIRE
    assert Message.decode(b"!" + WIRE) == message()


@pytest.mark.usefixtures("encoder")
def test_what_another_encoder_brings_is_checked() -> None:
    """Fields that a user's encoder decodes are checked like all others."""

    class Odd(Encoder):
        def encode(self, data: dict[str, Any]) -> bytes:
            return b""

        def decode(self, data: bytes) -> dict[str, Any]:
            return {**message().asdict(), "args": 5}

    set_encoder(Odd())
    with pytest.raises(InvalidMessage, match="'args' is of type int"):
        Message.decode(b"")
