"""The message: what is sent, kept and run.

Its wire form is Dramatiq's: one JSON object of seven keys, and a new field must live inside ``options`` (an eighth key
is refused by every reader, ours included).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, ClassVar, Generic, TypeVar

import msgspec

from . import encoder as _encoders
from . import seams
from .clock import current_millis
from .encoder import MAX_DEPTH, JSONEncoder, get_encoder, is_plain, try_fast_encode
from .errors import DecodeError, EncodeError, InvalidMessage
from .names import new_message_id

R = TypeVar("R", covariant=True)

#: No message may be larger than this, in bytes, unless the broker is told otherwise (``max_message_bytes``).
MAX_MESSAGE_BYTES = 16 * 1024 * 1024

#: A message shorter than this cannot be nested deeper than MAX_DEPTH: its keys alone take 100 bytes, and each level
#: takes two brackets.
_TOO_SHORT_TO_BE_DEEP = 100 + 2 * MAX_DEPTH


class Message(msgspec.Struct, Generic[R], frozen=True, order=True, forbid_unknown_fields=True):
    """What is sent: an actor's name, its arguments, and options. Frozen; ``copy`` makes a changed one.

    Parameters:
      queue_name: The queue to send it to.
      actor_name: The actor to run.
      args: Positional arguments; any iterable, kept as a tuple.
      kwargs: Keyword arguments.
      options: What middleware reads and writes: ``max_retries``, ``time_limit``, ...
      message_id: Data, constant over retries and delays; a fresh UUID by default.
      message_timestamp: UNIX milliseconds of the first construction; constant over retries.
    """

    queue_name: str
    actor_name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    options: dict[str, Any]
    message_id: str = msgspec.field(default_factory=new_message_id)
    message_timestamp: int = msgspec.field(default_factory=current_millis)

    _field_defaults: ClassVar[dict[str, Any]] = {}
    _fields: ClassVar[tuple[str, ...]] = (
        "queue_name",
        "actor_name",
        "args",
        "kwargs",
        "options",
        "message_id",
        "message_timestamp",
    )

    def __post_init__(self) -> None:
        if type(self.args) is not tuple:
            msgspec.structs.force_setattr(self, "args", tuple(self.args))

    def __or__(self, other: Any) -> Any:
        """Combines this message with another (or with a pipeline) into a pipeline."""
        return seams.make_pipeline(self, other)

    def asdict(self) -> dict[str, Any]:
        """The fields as a dict; not a deep copy: ``options`` is the same object."""
        return {name: getattr(self, name) for name in self._fields}

    _asdict = asdict

    def _replace(self, **changes: Any) -> Message[R]:
        return msgspec.structs.replace(self, **changes)

    def copy(self, **attributes: Any) -> Message[R]:
        """A copy with ``attributes`` replaced; ``options`` are merged into the present ones."""
        attributes["options"] = {**self.options, **attributes.get("options", {})}
        return msgspec.structs.replace(self, **attributes)

    def encode(self) -> bytes:
        """The message as bytes, by the global encoder.

        Raises:
          EncodeError: If JSON has no form for an argument; the text names its path.
        """
        encoder = get_encoder()
        if type(encoder) is JSONEncoder:
            kwargs, options = self.kwargs, self.options  # nearly always empty
            if (
                is_plain(self.args)
                and (not kwargs or is_plain(kwargs))
                and (not options or is_plain(options))
                and type(self.message_id) is type(self.queue_name) is type(self.actor_name) is str
                and type(self.message_timestamp) is int
            ):
                fast = try_fast_encode(self)
                if fast is not None:
                    return fast
            for name, value in (("args", self.args), ("kwargs", self.kwargs)):
                if _is_deeper_than(value, MAX_DEPTH):
                    raise EncodeError(f"The {name} are nested more than {MAX_DEPTH} deep.", path=f"$.{name}")
        return encoder.encode(self.asdict())

    @classmethod
    def decode(cls, data: bytes) -> Message[Any]:
        """Bytes to a message, by the global encoder.

        Raises:
          DecodeError: If the bytes are not a message; ``InvalidMessage`` if they are valid JSON all the same.
        """
        return decode_message(data)

    def get_result(self, *, backend: Any = None, block: bool = False, timeout: int | None = None) -> R:
        """The result of this message, from ``backend`` or else from the default broker's result backend.

        Parameters:
          backend: A ``ResultBackend``.
          block: Wait for the result to be there.
          timeout: Milliseconds to wait at the most; 10 000 by default.

        Raises:
          ResultMissing: If ``block`` is False and there is none yet.
          ResultTimeout: If there was none in time.
          ResultFailure: If the actor failed.
          RuntimeError: If there is no result backend.
        """
        backend = backend or seams.results_backend()
        result: R = backend.get_result(self, block=block, timeout=timeout)
        return result

    async def aget_result(
        self,
        *,
        backend: Any = None,
        block: bool = False,
        timeout: int | None = None,  # noqa: ASYNC109  # as in get_result
    ) -> R:
        """``get_result`` for coroutines: it does not block the event loop."""
        backend = backend or seams.results_backend()
        result: R = await backend.aget_result(self, block=block, timeout=timeout)
        return result

    @property
    def message_datetime(self) -> datetime:
        """``message_timestamp`` as a datetime in UTC."""
        return datetime.fromtimestamp(self.message_timestamp / 1000, tz=UTC)

    def __str__(self) -> str:
        arguments = [repr(arg) for arg in self.args]
        arguments += [f"{name}={value!r}" for name, value in self.kwargs.items()]
        return f"{self.actor_name}({', '.join(arguments)})"


_fast_decode = msgspec.json.Decoder(Message[Any]).decode


def decode_message(data: bytes) -> Message[Any]:
    """``Message.decode`` as a function, for the worker's hot path."""
    if type(_encoders._encoder) is not JSONEncoder:
        return _from_fields(_foreign_decode(data), data)
    try:
        message = _fast_decode(data)
    except (ValueError, RecursionError):
        message = _from_fields(_object(JSONEncoder().decode(data), data), data)
    if len(data) > _TOO_SHORT_TO_BE_DEEP and data.count(b"[") + data.count(b"{") > MAX_DEPTH:
        for name, value in (("args", message.args), ("kwargs", message.kwargs)):
            if _is_deeper_than(value, MAX_DEPTH):
                raise InvalidMessage(f"The {name} are nested more than {MAX_DEPTH} deep.", data, field=name)
    return message


def _foreign_decode(data: bytes) -> dict[str, Any]:
    """The fields by an encoder of a user's own, which may raise anything."""
    try:
        fields = get_encoder().decode(data)
    except DecodeError:
        raise
    except Exception as e:
        raise DecodeError(f"failed to decode message: {type(e).__name__}: {e}", data, e) from e
    return _object(fields, data)


def _object(fields: Any, data: bytes) -> dict[str, Any]:
    if not isinstance(fields, dict):
        raise DecodeError(f"failed to decode message: expected an object, got {type(fields).__name__}", data)
    return fields


_FIELD_TYPES: Mapping[str, tuple[type, ...]] = {
    "queue_name": (str,),
    "actor_name": (str,),
    "args": (list, tuple),
    "kwargs": (dict,),
    "options": (dict,),
    "message_id": (str,),
    "message_timestamp": (int,),
}


def _from_fields(fields: dict[str, Any], data: bytes) -> Message[Any]:
    """Checks every field, because a message that enters half-checked fails far from its cause. As on the fast path, id
    and timestamp are made up where they are missing."""
    for name, types in _FIELD_TYPES.items():
        if name not in fields:
            if name in ("message_id", "message_timestamp"):
                continue
            raise InvalidMessage(f"The message has no {name!r}.", data, field=name)
        if not isinstance(fields[name], types) or isinstance(fields[name], bool):
            raise InvalidMessage(
                f"The message's {name!r} is of type {type(fields[name]).__name__}, not {types[0].__name__}.",
                data,
                field=name,
            )
    if unknown := fields.keys() - _FIELD_TYPES.keys():
        raise InvalidMessage(f"The message has unknown fields: {sorted(map(str, unknown))!r:.200}.", data)
    try:
        return Message(**fields)
    except (TypeError, ValueError) as e:
        raise DecodeError(f"failed to decode message: {e}", data, e) from e


def _is_deeper_than(value: Any, limit: int) -> bool:
    """Goes down one branch at a time, so that in a structure that contains itself the first one decides."""
    inner: Iterable[Any] = value.values() if isinstance(value, dict) else value
    return any(
        limit == 0 or _is_deeper_than(item, limit - 1) for item in inner if isinstance(item, (dict, list, tuple))
    )
