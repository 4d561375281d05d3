"""Encoders: bytes, verdicts, texts of errors. What JSON accepts is held against the standard library elsewhere."""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest

from greenroom import Message
from greenroom.encoder import (
    MAX_DEPTH,
    Encoder,
    JSONEncoder,
    PickleEncoder,
    find_fault,
    get_encoder,
    is_plain,
    set_encoder,
)
from greenroom.errors import DecodeError, EncodeError, GreenroomError


@pytest.fixture
def restore_encoder() -> Iterator[None]:
    before = get_encoder()
    yield
    set_encoder(before)


def test_the_bytes() -> None:
    """JSON is written without spaces, in ASCII, in the order of the keys."""
    data = {"b": [1, 2.5, None, True], "a": {"k": "\u00e9\U0001f33f"}}
    assert JSONEncoder().encode(data) == b'{"b":[1,2.5,null,true],"a":{"k":"\\u00e9\\ud83c\\udf3f"}}'


@pytest.mark.parametrize(
    ("data", "path"),
    [
        ({"args": [1, math.nan]}, "$.args[1]"),
        ({"kwargs": {"x": {"y": math.inf}}}, "$.kwargs.x.y"),
        ({"args": [datetime(2024, 1, 1)]}, "$.args[0]"),  # noqa: DTZ001  # any datetime will do
        ({"options": {"deep": [[b"bytes"]]}}, "$.options.deep[0][0]"),
        ({"kwargs": {(1, 2): 3}}, "$.kwargs (key (1, 2))"),
        ({"args": [{1, 2}]}, "$.args[0]"),
    ],
)
def test_the_error_names_the_place(data: dict[str, Any], path: str) -> None:
    """What JSON has no form for is refused with the path to it."""
    with pytest.raises(EncodeError) as e:
        JSONEncoder().encode(data)
    assert e.value.path == path
    assert path in str(e.value)


def test_an_encode_error_is_what_json_would_raise() -> None:
    """Programs that catch what ``json.dumps`` raises go on working."""
    with pytest.raises(EncodeError) as e:
        JSONEncoder().encode({"x": object()})
    assert isinstance(e.value, TypeError)
    assert isinstance(e.value, ValueError)
    assert isinstance(e.value, GreenroomError)
    assert isinstance(e.value.__cause__, TypeError)


def test_a_number_of_too_many_digits() -> None:
    """What Python does not write out is refused with its place, also as a key."""
    with pytest.raises(EncodeError, match=r"\$\.x\[1\]") as e:
        JSONEncoder().encode({"x": [1, 10**5000]})
    assert e.value.path == "$.x[1]"
    with pytest.raises(EncodeError, match="a key of too many digits"):
        JSONEncoder().encode({"x": {10**5000: 1}})


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b'{"a":01}', b"\xef\xbb\xbf{}", b'{"a":1}x', b"[" * 100_000])
def test_what_is_not_json(data: bytes) -> None:
    """Bytes that are no JSON raise ``DecodeError``, with the bytes and the cause."""
    with pytest.raises(DecodeError) as e:
        JSONEncoder().decode(data)
    assert e.value.data == data
    assert isinstance(e.value.error, (ValueError, RecursionError))


@pytest.mark.parametrize(("data", "kind"), [(b"[]", "list"), (b"1", "int"), (b'"x"', "str"), (b"null", "NoneType")])
def test_what_is_not_an_object(data: bytes, kind: str) -> None:
    """JSON that is no object is read, for it may be a result; as a message it raises ``DecodeError`` that names it."""
    assert JSONEncoder().decode(data) == json.loads(data)
    with pytest.raises(DecodeError, match=f"expected an object, got {kind}"):
        Message.decode(data)


def test_what_dramatiq_may_have_written_is_read() -> None:
    """NaN, infinities and half surrogates, which the standard library writes, are read."""
    found = JSONEncoder().decode(b'{"a":NaN,"b":-Infinity,"c":"\\ud800","d":1e400}')
    assert math.isnan(found["a"])
    assert (found["b"], found["c"], found["d"]) == (-math.inf, "\ud800", math.inf)


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (1, True),
        ("x", True),
        (None, True),
        (1.5, True),
        ((), True),
        ([[], {}], True),
        ({"a": (1, [2.0])}, True),
        (math.nan, False),
        ({1: 2}, False),
        ([b"x"], False),
        (type("Sub", (int,), {})(1), False),
    ],
)
def test_what_is_plain(value: Any, plain: bool) -> None:
    """Only exact JSON types with finite floats are plain."""
    assert is_plain(value) is plain


def test_plain_has_a_depth() -> None:
    """What is nested deeper than the limit is not plain, and looking does not go deeper either."""
    value: Any = 1
    for _ in range(MAX_DEPTH):
        value = [value]
    assert is_plain(value)
    assert not is_plain([value])
    circle: list[Any] = []
    circle.append(circle)
    assert not is_plain(circle)


def test_nothing_at_fault() -> None:
    """Where nothing is wrong, there is no path."""
    assert find_fault({"a": [1, "x", None, 1.5, (True,)], 1: 2}) == ""


def test_pickle_there_and_back() -> None:
    """The pickle encoder takes what JSON does not."""
    data = {"args": (1, b"bytes", {2, 3})}
    assert PickleEncoder().decode(PickleEncoder().encode(data)) == data


@pytest.mark.parametrize("value", [[1], "x", None])
def test_a_pickle_that_is_no_message(restore_encoder: None, value: Any) -> None:
    """It is read, for it may be a result; as a message it raises ``DecodeError``."""
    data = pickle.dumps(value)
    assert PickleEncoder().decode(data) == value
    set_encoder(PickleEncoder())
    with pytest.raises(DecodeError, match=f"expected an object, got {type(value).__name__}"):
        Message.decode(data)


@pytest.mark.parametrize("data", [b"", b"garbage", b"{}"])
def test_what_is_no_pickle(data: bytes) -> None:
    """Bytes that are no pickle, or the pickle of something else, raise ``DecodeError``."""
    with pytest.raises(DecodeError) as e:
        PickleEncoder().decode(data)
    assert e.value.data == data


@pytest.mark.usefixtures("restore_encoder")
def test_the_encoder_of_the_process() -> None:
    """JSON is the default, and ``set_encoder`` changes it."""
    assert type(get_encoder()) is JSONEncoder
    other = PickleEncoder()
    set_encoder(other)
    assert get_encoder() is other


def test_an_encoder_has_two_methods() -> None:
    """The base class cannot be used by itself."""
    with pytest.raises(TypeError, match="abstract"):
        Encoder()  # type: ignore[abstract]  # that is the mistake
