"""What was sent: assertions about messages, whose failures say what was sent instead."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any, Final

from ..actor import Actor
from ..broker import Broker, get_broker
from ..brokers.stub import Enqueued, StubBroker
from ..core.durations import duration_ms, human_duration
from ..errors import EncodeError
from ..message import Message


class _Any:
    def __repr__(self) -> str:
        return "any"


#: Stands for "whatever it is".
ANY: Final[Any] = _Any()

#: How many messages a failure lists.
_LISTED = 20


def assert_enqueued(
    actor: Actor[..., Any] | str,
    *,
    args: Iterable[Any] = ANY,
    kwargs: Mapping[str, Any] = ANY,
    queue: str = ANY,
    delay: str | timedelta | float | None = ANY,
    count: int | None = None,
    broker: Broker | None = None,
) -> list[Message[Any]]:
    """Asserts that a message was sent during this test, whether or not it has run meanwhile. Retries do not count.

    What is not given may be anything.

    Parameters:
      actor: The actor, or its name.
      args: Its positional arguments.
      kwargs: Its keyword arguments.
      queue: The name of the queue.
      delay: ``"90s"``, a timedelta or milliseconds; None for a message without delay.
      count: How many such messages there were; None for one or more.
      broker: A ``StubBroker``; None for the actor's, or for the default broker if ``actor`` is a name.

    Returns:
      The messages that match, in the order in which they were sent.

    Raises:
      AssertionError: If there were none, or not ``count``; the text lists what was sent.
      TypeError: If the broker is not a ``StubBroker``.
    """
    __tracebackhide__ = True
    wanted = _Wanted(actor, args, kwargs, queue, delay)
    sent = _sent(actor, broker)
    found = [message for entry, message in sent if not wanted.differences(entry, message)]
    if len(found) == count or (count is None and found):
        return found
    if count is None:
        problem = f"no message {wanted} was enqueued"
    else:
        problem = f"{_number(len(found))} {wanted} enqueued, not {count}"
    raise AssertionError(f"{problem}.\n{wanted.compared(sent)}")


def refute_enqueued(
    actor: Actor[..., Any] | str,
    *,
    args: Iterable[Any] = ANY,
    kwargs: Mapping[str, Any] = ANY,
    queue: str = ANY,
    delay: str | timedelta | float | None = ANY,
    broker: Broker | None = None,
) -> None:
    """Asserts that no such message was sent during this test. Parameters are those of ``assert_enqueued``.

    Raises:
      AssertionError: If there was one; the text lists what was sent.
      TypeError: If the broker is not a ``StubBroker``.
    """
    __tracebackhide__ = True
    wanted = _Wanted(actor, args, kwargs, queue, delay)
    sent = _sent(actor, broker)
    found = [message for entry, message in sent if not wanted.differences(entry, message)]
    if found:
        raise AssertionError(f"{_number(len(found))} {wanted} enqueued, but none was to be.\n{wanted.compared(sent)}")


class _Wanted:
    """What a message has to be like."""

    def __init__(self, actor: Any, args: Any, kwargs: Any, queue: Any, delay: Any) -> None:
        self.actor_name: str = actor if isinstance(actor, str) else actor.actor_name
        if isinstance(args, str):
            raise TypeError(f"args are all positional arguments: write args=({args!r},).")
        # Whatever else they are, such as `mock.ANY`, has its own idea of being equal.
        self.args = tuple(args) if isinstance(args, Iterable) else args
        self.kwargs = dict(kwargs) if isinstance(kwargs, Mapping) else kwargs
        self.queue = queue
        self.delay_ms = delay if delay is ANY or delay is None else duration_ms(delay)

    def differences(self, entry: Enqueued, message: Message[Any]) -> list[str]:
        """The names of what is not as it should be."""
        if message.actor_name != self.actor_name:
            return ["actor"]
        differences = []
        if self.args is not ANY and not _is_same(self.args, message.args):
            differences.append("args")
        if self.kwargs is not ANY and not _is_same(self.kwargs, message.kwargs):
            differences.append("kwargs")
        if self.queue is not ANY and message.queue_name != self.queue:
            differences.append("queue")
        if self.delay_ms is not ANY and entry.delay_ms != self.delay_ms:
            differences.append("delay")
        return differences

    def compared(self, sent: list[tuple[Enqueued, Message[Any]]]) -> str:
        """What was sent, line by line; first, and with what is different, the messages for the same actor."""
        if not sent:
            return "Nothing was enqueued."
        lines = []
        for entry, message in sorted(sent, key=lambda pair: pair[1].actor_name != self.actor_name):
            wrong = [name for name in self.differences(entry, message) if name != "actor"]
            hint = f"   <- other {', '.join(wrong)}" if wrong else ""
            lines.append(f"  {message} {_where(message.queue_name, entry.delay_ms)}{hint}")
        more = [f"  and {len(lines) - _LISTED} more"] if len(lines) > _LISTED else []
        return "\n".join(["What was enqueued:", *lines[:_LISTED], *more])

    def __str__(self) -> str:
        arguments = [repr(arg) for arg in self.args] if isinstance(self.args, tuple) else ["..."]
        if isinstance(self.kwargs, dict):
            arguments += [f"{name}={value!r}" for name, value in self.kwargs.items()]
        elif arguments != ["..."]:
            arguments.append("...")
        text = f"{self.actor_name}({', '.join(arguments)})"
        where = _where(self.queue, self.delay_ms)
        return f"{text} {where}" if where else text


def _where(queue: Any, delay_ms: Any) -> str:
    parts = [] if queue is ANY else [f"in queue {queue!r}"]
    if delay_ms is not ANY:
        parts.append("without delay" if delay_ms is None else f"delayed by {human_duration(delay_ms)}")
    return ", ".join(parts)


def _number(count: int) -> str:
    return "1 message" if count == 1 else f"{count or 'no'} messages"


def _sent(actor: Any, broker: Broker | None) -> list[tuple[Enqueued, Message[Any]]]:
    if broker is None:
        broker = get_broker() if isinstance(actor, str) else actor.broker
    if not isinstance(broker, StubBroker):
        raise TypeError(f"only a StubBroker knows what was enqueued, and this is {broker!r}; use `greenroom_broker`.")
    return [(entry, entry.message) for entry in list(broker.enqueued)]


def _is_same(wanted: Any, found: Any) -> bool:
    """Compares with a message that was encoded: as it is (so that ``mock.ANY`` works), or after the same journey."""
    return bool(wanted == found) or bool(_travelled(wanted) == found)


def _travelled(value: Any) -> Any:
    """A tuple of arguments, or a dict of them, as an actor gets it."""
    if isinstance(value, dict):
        message: Message[Any] = Message("q", "a", (), value, {})
    elif isinstance(value, tuple):
        message = Message("q", "a", value, {}, {})
    else:
        return value
    try:
        message = Message.decode(message.encode())
    except (EncodeError, TypeError, ValueError):  # it could not have been sent
        return ANY
    return message.kwargs if isinstance(value, dict) else message.args
