"""Encoders: how the fields of a message become bytes.

JSON gives the verdicts of the standard library: what Dramatiq wrote is read, what it would refuse is refused. msgspec
is a fast path, taken only where the two agree. Measured differences of msgspec 0.22, and how they are kept out:

* datetime, UUID, Decimal, bytes, sets, dataclasses and enums are written silently: ``is_plain`` lets only exact JSON
  types through to it;
* NaN and Infinity become ``null``: ``is_plain`` refuses them, and the slow path names the place;
* text outside ASCII is written raw: what it wrote is used only if it is ASCII;
* integers beyond 64 bits, lone surrogates, and on the way back ``NaN``, ``1e400``, ``\\ud800`` raise: whatever it
  refuses goes to the standard library, whose word is final.
"""

from __future__ import annotations

import abc
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from .errors import DecodeError, EncodeError

MessageData = dict[str, Any]

#: How deep the arguments of a message may be nested.
MAX_DEPTH = 64

_ATOMS = frozenset((str, int, bool, type(None)))
_STR = frozenset((str,))

fast_encode = msgspec.json.Encoder().encode
_fast_decode = msgspec.json.Decoder().decode


class Encoder(abc.ABC):
    """Base class of encoders: the fields of a message to bytes and back."""

    @abc.abstractmethod
    def encode(self, data: MessageData) -> bytes:
        """Converts the fields of a message to bytes."""
        raise NotImplementedError

    @abc.abstractmethod
    def decode(self, data: bytes) -> MessageData:
        """Converts bytes to the fields of a message; raises ``DecodeError`` on any failure."""
        raise NotImplementedError


class JSONEncoder(Encoder):
    """The default: JSON without spaces, in ASCII, with the standard library's verdicts."""

    def encode(self, data: MessageData) -> bytes:
        """Raises ``EncodeError`` (a ``TypeError`` and ``ValueError``) that names the path of what cannot be written."""
        if is_plain(data):
            fast = try_fast_encode(data)
            if fast is not None:
                return fast
        try:
            return json.dumps(data, separators=(",", ":"), allow_nan=False).encode("ascii")
        except RecursionError as e:
            raise EncodeError("The message is nested too deeply, or contains itself.") from e
        except (TypeError, ValueError) as e:
            path = find_fault(data) or "$"
            raise EncodeError(f"The message cannot be written as JSON: {e}, at {path}.", path=path) from e

    def decode(self, data: bytes) -> MessageData:
        """Whatever the bytes say: results are read with encoders, too, and need not be objects."""
        try:
            fields: MessageData = _fast_decode(data)
        except (ValueError, RecursionError):  # msgspec's own errors are ValueErrors
            fields = slow_decode(data)
        return fields


class PickleEncoder(Encoder):
    """Pickles messages. Whoever can write to the broker can then run any code in every worker: use it only where all
    who can reach the broker are trusted. Never chosen by a message, only by ``set_encoder``."""

    def encode(self, data: MessageData) -> bytes:
        import pickle  # not at the top: hardly anybody needs it

        return pickle.dumps(data)

    def decode(self, data: bytes) -> MessageData:
        import pickle  # as above

        try:
            fields: MessageData = pickle.loads(data)  # noqa: S301  # who sets this encoder has been told what it means
        except Exception as e:
            raise DecodeError("failed to decode message: not a pickle", data, e) from e
        return fields


def is_plain(value: Any, depth: int = MAX_DEPTH) -> bool:
    """True if ``value`` consists of exact JSON types only, with finite floats, nested at most ``depth`` deep."""
    kind = type(value)
    if kind in _ATOMS:
        return True
    if kind is float:
        return math.isfinite(value)
    if kind is dict:
        if not _STR.issuperset(map(type, value)):
            return False
        inner: Iterable[Any] = value.values()
    elif kind is tuple or kind is list:
        inner = value
    else:
        return False
    # The flat case, by far the most frequent, is decided without a Python call an item.
    if _ATOMS.issuperset(map(type, inner)):
        return depth > 0
    return depth > 0 and all(is_plain(item, depth - 1) for item in inner)


def try_fast_encode(data: Any) -> bytes | None:
    """What msgspec writes for plain ``data``, or None where the standard library would write something else."""
    try:
        encoded = fast_encode(data)
    except (ValueError, OverflowError, RecursionError):
        return None
    return encoded if encoded.isascii() else None


def slow_decode(data: bytes) -> Any:
    """Decodes with the standard library; any failure is a ``DecodeError``."""
    try:
        return json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as e:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise DecodeError(f"failed to decode message: {type(e).__name__}: {e}", data, e) from e


def find_fault(value: Any, path: str = "$", depth: int = 200) -> str:
    """The path of the first thing in ``value`` that JSON has no form for; empty if there is none to be found."""
    if (isinstance(value, float) and not math.isfinite(value)) or (isinstance(value, int) and not _is_writable(value)):
        return path
    if value is None or isinstance(value, (str, int, float)):
        return ""
    if depth == 0:
        return path
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, (str, int, float, bool, type(None))):
                return f"{path} (key {key!r:.100})"
            if isinstance(key, int) and not _is_writable(key):
                return f"{path} (a key of too many digits)"
            if fault := find_fault(item, f"{path}.{key}", depth - 1):
                return fault
        return "" if isinstance(value, dict) else path
    if isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            if fault := find_fault(item, f"{path}[{i}]", depth - 1):
                return fault
        return ""
    return path


def _is_writable(number: int) -> bool:
    """False for a number of more digits than Python writes and reads (4 300 by default)."""
    try:
        int.__repr__(number)
    except ValueError:
        return False
    return True


_encoder: Encoder = JSONEncoder()


def get_encoder() -> Encoder:
    """The encoder that messages use, one a process: ``JSONEncoder`` unless ``set_encoder`` was called."""
    return _encoder


def set_encoder(encoder: Encoder) -> None:
    """Sets the encoder that messages use."""
    global _encoder
    _encoder = encoder
