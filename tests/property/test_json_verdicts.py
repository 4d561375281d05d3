"""The encoder gives the verdicts of the standard library, whatever it is given: that keeps its fast path honest.

The reference is ``json.dumps(value, separators=(",", ":"), allow_nan=False)`` and ``json.loads(data.decode())``.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import math
import uuid
from collections import OrderedDict
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from greenroom.encoder import JSONEncoder
from greenroom.errors import DecodeError, EncodeError
from greenroom.message import Message

MODEST = settings(
    max_examples=500, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)


class Text(str):
    """A subclass of str."""

    __slots__ = ()


class Number(int):
    """A subclass of int."""


class Real(float):
    """A subclass of float."""


class Colour(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


class Mood(enum.StrEnum):
    GOOD = "good"


@dataclasses.dataclass
class Point:
    x: int


class Pair(NamedTuple):
    first: int
    second: str


finite = st.floats(allow_nan=False, allow_infinity=False)
text = st.text(st.characters() | st.sampled_from('\ud800\udfff\x00\x1f\x7f\u2028"\\/<>\U0001f33f'), max_size=12)
integers = st.integers() | st.integers(min_value=-(2**80), max_value=2**80) | st.sampled_from([2**63, 2**64, -(2**63)])
plain_atoms = st.none() | st.booleans() | integers | finite | text
odd_atoms = (
    st.sampled_from([math.nan, math.inf, -math.inf, -0.0, 1e16, 5e-324, 1.7976931348623157e308])
    | st.sampled_from([Text("x"), Text("\ud800"), Number(7), Number(2**70), Real(1.5), Real(math.nan)])
    | st.sampled_from([Colour.RED, Level.HIGH, Mood.GOOD, Point(1), Pair(1, "x"), OrderedDict(a=1), object, Ellipsis])
    | st.sampled_from([datetime(2024, 1, 1, tzinfo=UTC), date(2024, 1, 1), timedelta(1), uuid.UUID(int=1)])
    | st.sampled_from([Decimal("1.5"), b"bytes", bytearray(b"x"), {1, 2}, frozenset("a"), 1j, range(3), [math.nan]])
)
odd_keys = st.integers() | finite | st.booleans() | st.none() | st.just((1, 2)) | st.just(b"k") | st.just(Text("k"))


def nested(atoms: st.SearchStrategy[Any], keys: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.recursive(
        atoms,
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.lists(inner, max_size=4).map(tuple)
            | st.dictionaries(keys, inner, max_size=4)
        ),
        max_leaves=12,
    )


plain_values = nested(plain_atoms, text)
any_values = nested(plain_atoms | odd_atoms, text | odd_keys)


def reference_encode(value: Any) -> bytes | None:
    """What the standard library writes, or None if it refuses."""
    try:
        return json.dumps(value, separators=(",", ":"), allow_nan=False).encode("ascii")
    except (TypeError, ValueError, RecursionError):
        return None


def reference_decode(data: bytes) -> Any:
    """What the standard library reads; raises ValueError if it refuses."""
    try:
        return json.loads(data.decode("utf-8"))
    except RecursionError as e:
        raise ValueError("too deep") from e


def same(a: Any, b: Any) -> bool:
    """Equal in value and in type, at every depth; NaN equals NaN, and 0.0 is not -0.0."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float):
        return repr(a) == repr(b)
    return bool(a == b)


def message(*, args: Any = (), kwargs: Any = None, options: Any = None, **fields: Any) -> Message[Any]:
    return Message(
        **{
            "queue_name": "default",
            "actor_name": "actor",
            "args": args,
            "kwargs": {} if kwargs is None else kwargs,
            "options": {} if options is None else options,
            "message_id": "id",
            "message_timestamp": 5,
            **fields,
        }
    )


def check_message(sent: Message[Any]) -> None:
    expected = reference_encode(sent.asdict())
    if expected is None:
        with pytest.raises(EncodeError):
            sent.encode()
        return
    data = sent.encode()
    assert data.isascii()
    assert same(json.loads(data), json.loads(expected))


def check_decoding(data: bytes) -> None:
    """The encoder reads what the library reads, as the same value."""
    try:
        expected = reference_decode(data)
    except ValueError:
        with pytest.raises(DecodeError):
            JSONEncoder().decode(data)
        return
    assert same(JSONEncoder().decode(data), expected)


@MODEST
@given(st.dictionaries(text, any_values, max_size=4))
@example({"a": {math.nan: 1}})
@example({"a": {(1, 2): 1}})
@example({"a": 10**5000})
def test_encoding_has_the_librarys_verdict(data: dict[str, Any]) -> None:
    """Any fields are written as the standard library would write them, or refused where it would refuse."""
    expected = reference_encode(data)
    if expected is None:
        with pytest.raises(EncodeError) as e:
            JSONEncoder().encode(data)
        assert e.value.path.startswith("$")
        return
    encoded = JSONEncoder().encode(data)
    assert encoded.isascii()
    assert same(json.loads(encoded), json.loads(expected))
    assert same(JSONEncoder().decode(encoded), json.loads(expected))


@MODEST
@given(
    st.lists(any_values, max_size=3),
    st.dictionaries(text, any_values, max_size=3),
    st.dictionaries(text, any_values, max_size=2),
)
def test_messages_have_the_librarys_verdict(args: list[Any], kwargs: dict[str, Any], options: dict[str, Any]) -> None:
    """A message is written, or refused, as the standard library would its fields."""
    check_message(message(args=args, kwargs=kwargs, options=options))


@MODEST
@given(
    st.sampled_from(["queue_name", "actor_name", "message_id", "message_timestamp"]),
    plain_atoms | odd_atoms | st.lists(plain_atoms, max_size=2),
)
@example("message_id", uuid.UUID(int=1))
@example("message_timestamp", math.nan)
@example("message_timestamp", datetime(2024, 1, 1, tzinfo=UTC))
@example("actor_name", b"actor")
@example("queue_name", Mood.GOOD)
def test_odd_fields_have_the_librarys_verdict(name: str, value: Any) -> None:
    """The fields that a program seldom sets itself are held to the same verdict: a UUID as an id is refused."""
    check_message(message(**{name: value}))


@MODEST
@given(st.lists(plain_values, max_size=3), st.dictionaries(text, plain_values, max_size=3))
def test_plain_messages_come_back_as_they_were(args: list[Any], kwargs: dict[str, Any]) -> None:
    """What is sent is what arrives, but that tuples become lists."""
    sent = message(args=args, kwargs=kwargs)
    got = Message.decode(sent.encode())
    assert type(got.args) is tuple
    assert same(list(got.args), json.loads(json.dumps(args)))
    assert same(got.kwargs, json.loads(json.dumps(kwargs)))
    assert (got.queue_name, got.actor_name, got.message_id, got.message_timestamp) == ("default", "actor", "id", 5)


json_texts = any_values.map(lambda value: json.dumps(value, default=str, skipkeys=True, ensure_ascii=False))
loose_texts = st.sampled_from(
    [
        "NaN", "[NaN,-Infinity,Infinity]", "1e400", "-1e400", '"\\ud800"', '"\\ud83d\\ude00"', '"\\udc00\\ud800"', "-0",
        "-0.0", "01", "1.", ".5", "+1", "1e5", "1E+2", "0e-99999", '{"a":1,"a":2}', "[1,]", "{}{}", " {} ", "\t[]\r\n",
        "\x0b{}", "\ufeff{}", "nul", "true", '"\x01"', '"\t"', '"\\x"', '"\\u12"', "'a'", "// c", "[1 2]", "{1:2}",
        "9" * 30, "-" + "9" * 30, "9" * 4301, "1" + "0" * 400, "0." + "3" * 40, "1" + "0" * 400 + ".0", "", " ", "null",
        "\u00a0{}", "18446744073709551615", "18446744073709551616", "-9223372036854775809", "1e-400",
        "2.2250738585072011e-308", "9007199254740993.0", "123456789012345678901234567890.5", "[" * 60 + "]" * 60,
    ]
)  # fmt: skip


@st.composite
def mutated_json(draw: st.DrawFn) -> bytes:
    """JSON, and JSON with a few bytes changed, doubled or dropped."""
    data = bytearray(draw(json_texts | loose_texts).encode("utf-8", "surrogatepass"))
    for _ in range(draw(st.integers(min_value=0, max_value=3))):
        at = draw(st.integers(min_value=0, max_value=len(data)))
        new = draw(
            st.binary(max_size=2) | st.sampled_from([b'"', b"\\", b",", b"[", b"}", b"0", b"e", b"-", b"\\ud800"])
        )
        data[at : at + draw(st.integers(min_value=0, max_value=2))] = new
    return bytes(data)


@settings(MODEST, max_examples=2000)
@given(mutated_json())
def test_decoding_has_the_librarys_verdict(value: bytes) -> None:
    """Any bytes are read as the standard library reads them, or refused where it would refuse."""
    check_decoding(b'{"a":' + value + b"}")
    check_decoding(value)


@settings(MODEST, max_examples=2000)
@given(st.data())
def test_decoding_a_message_has_the_librarys_verdict(data: st.DataObject) -> None:
    """A message is read on the fast path only as it would be on the slow one: the same verdict, the same fields."""
    fields = message(args=(1,)).asdict()
    texts = {name: json.dumps(value).encode() for name, value in fields.items()}
    for name in data.draw(st.lists(st.sampled_from(sorted(texts)), max_size=2, unique=True)):
        odd = st.sampled_from(
            [b"5.0", b"5e0", b"true", b"null", b"[]", b"{}", b'""', b"-0", b"1e400", b"NaN", b"9" * 25]
        )
        texts[name] = data.draw(mutated_json() | odd)
    members = [json.dumps(name).encode() + b":" + text for name, text in texts.items()]
    for _ in range(data.draw(st.integers(min_value=0, max_value=1))):
        members.append(data.draw(st.sampled_from([*members, b'"extra":1', b'"args":[2]', b'"\\u0061rgs":[3]'])))
    if data.draw(st.booleans()):
        del members[data.draw(st.integers(min_value=0, max_value=len(members) - 1))]
    raw = b"{" + b",".join(members) + b"}"
    expected = valid_fields(raw)
    if expected is None:
        with pytest.raises(DecodeError):
            Message.decode(raw)
    else:
        found = Message.decode(raw).asdict()
        assert same({**found, "args": list(found["args"])}, {name: expected.get(name, found[name]) for name in found})


def valid_fields(raw: bytes) -> dict[str, Any] | None:
    """The fields, if the library reads them and they are those of a message; id and time may be missing."""
    try:
        fields = reference_decode(raw)
    except ValueError:
        return None
    kinds = {**dict.fromkeys(("queue_name", "actor_name", "message_id"), str), "args": list, "message_timestamp": int}
    kinds |= {"kwargs": dict, "options": dict}
    if not isinstance(fields, dict) or not fields.keys() <= kinds.keys():
        return None
    if kinds.keys() - fields.keys() - {"message_id", "message_timestamp"}:
        return None
    return fields if all(type(value) is kinds[name] for name, value in fields.items()) else None


def test_a_structure_that_contains_itself() -> None:
    """A circular structure is refused as fast as the standard library refuses it, however it branches."""
    parent: dict[str, Any] = {"children": []}
    parent["children"] += [{"parent": parent} for _ in range(4)]
    for sent in (message(args=(parent,)), message(kwargs=parent), message(options=parent)):
        with pytest.raises(EncodeError):
            sent.encode()
    with pytest.raises(EncodeError):
        JSONEncoder().encode(parent)


@pytest.mark.parametrize("depth", [62, 63, 64, 65, 66, 67, 200, 100_000])
@pytest.mark.parametrize("brackets", ["[]", "{}"])
def test_what_can_be_sent_can_be_read(depth: int, brackets: str) -> None:
    """Arguments nested so deep that they cannot be read are refused when they are sent, and the other way round."""
    value: Any = 1
    for _ in range(depth):
        value = [value] if brackets == "[]" else {"k": value}
    opening = "[" if brackets == "[]" else '{"k":'
    written = f"{opening * depth}1{brackets[1] * depth}"
    raw = message().encode().replace(b'"args":[]', b'"args":[' + written.encode() + b"]")
    try:
        message(args=(value,)).encode()
    except EncodeError:
        with pytest.raises(DecodeError):
            Message.decode(raw)
        assert depth > 64
    else:
        assert Message.decode(raw).encode() == raw
        assert depth <= 64
    finally:
        _dismantle(value)


def _dismantle(value: Any) -> None:
    """Takes a deep structure apart from the top, so that freeing it does not recurse."""
    while isinstance(value, (list, dict)) and value:
        value = value.pop() if isinstance(value, list) else value.popitem()[1]
