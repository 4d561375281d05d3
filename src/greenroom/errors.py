"""Every error that Greenroom raises, on one page.

The tree (names that Dramatiq programs catch are kept; new ones are placed under them)::

    GreenroomError  (DramatiqError)
      DecodeError
        InvalidMessage
      EncodeError                       also a TypeError and a ValueError, as json.dumps would raise
      BrokerError
        ActorNotFound  QueueNotFound
        BrokerConnectionError
          ConnectionFailed              could not be reached
          ConnectionClosed              was reached, then lost
        BrokerTimeout                   no answer in time; the outcome may be unknown
        BrokerBusy  BrokerFull  BrokerReadOnly
        BrokerCorrupt
          BrokerMoved                   the store was deleted, renamed or replaced while it was in use
        SchemaMismatch
        MessageTooLarge
        StaleLease                      the message is no longer ours to settle
      QueueJoinTimeout
        QueueStalled                    waiting any longer is in vain
      RateLimitExceeded
      ResultError
        ResultMissing                   there is no result
          ResultUnknown                 nor a message that will have one
          ResultPending                 not yet
        ResultTimeout                   there was none in time
        ResultFailure                   the actor failed
      Retry                             raised by an actor to be run again
    MiddlewareError
      SkipMessage
    Interrupt  (BaseException)          control flow, delivered only while user code runs

Foreign exceptions are translated at an engine's edge and nowhere else, always with ``from``.
"""

from __future__ import annotations

import warnings
from datetime import timedelta
from typing import Any


class GreenroomError(Exception):
    """Base class of all errors of the library. ``DramatiqError`` is the same class."""

    def __init__(self, message: str = "") -> None:
        self.message = message
        super().__init__(message)

    def __str__(self) -> str:
        return str(self.message) or repr(self.message)


DramatiqError = GreenroomError


class DecodeError(GreenroomError):
    """Raised when bytes are not a message.

    ``data`` holds the raw bytes and ``error`` the exception of the decoder.
    """

    def __init__(self, message: str, data: bytes, error: BaseException | None = None) -> None:
        super().__init__(message)
        self.data = data
        self.error = error


class InvalidMessage(DecodeError):
    """Raised when bytes are valid JSON but not a valid message; ``field`` names the part at fault."""

    def __init__(self, message: str, data: bytes, error: BaseException | None = None, *, field: str = "") -> None:
        super().__init__(message, data, error)
        self.field = field


class EncodeError(GreenroomError, TypeError, ValueError):
    """Raised when a message cannot be written as JSON; ``path`` says where, as in ``$.args[0]``."""

    def __init__(self, message: str, *, path: str = "$") -> None:
        super().__init__(message)
        self.path = path


class BrokerError(GreenroomError):
    """Base class of errors that have to do with a broker."""


class ActorNotFound(BrokerError):
    """Raised when a message names an actor that the broker does not know."""


class QueueNotFound(BrokerError):
    """Raised when a queue was never declared."""


class BrokerConnectionError(BrokerError):
    """Base class of connection-related errors."""


class ConnectionFailed(BrokerConnectionError):
    """Raised when a broker could not be reached or opened."""


class ConnectionClosed(BrokerConnectionError):
    """Raised when a connection was lost, or used after it was closed."""


class BrokerTimeout(BrokerError):
    """Raised when the broker did not answer in time.

    ``outcome`` is ``"unknown"`` when the operation may have been applied all the same.
    """

    def __init__(self, message: str, *, outcome: str = "unknown") -> None:
        super().__init__(message)
        self.outcome = outcome


class BrokerBusy(BrokerError):
    """Raised when the store stayed locked by others for longer than the busy budget."""


class BrokerFull(BrokerError):
    """Raised when the store has no room left (a full disk, a memory limit)."""


class BrokerReadOnly(BrokerError):
    """Raised when the store cannot be written (permissions, a read-only file system)."""


class BrokerCorrupt(BrokerError):
    """Raised when the store's data is damaged; ``path`` names the file."""

    def __init__(self, message: str, *, path: str = "") -> None:
        super().__init__(message)
        self.path = path


class BrokerMoved(BrokerCorrupt):
    """Raised when the store's file was deleted, renamed or replaced while this process used it."""


class SchemaMismatch(BrokerError):
    """Raised when a store was written by an incompatible version; both versions are in the text."""

    def __init__(self, message: str, *, found: int, supported: int) -> None:
        super().__init__(message)
        self.found = found
        self.supported = supported


class MessageTooLarge(BrokerError):
    """Raised before anything is sent when a message exceeds ``limit`` bytes."""

    def __init__(self, message: str, *, size: int, limit: int) -> None:
        super().__init__(message)
        self.size = size
        self.limit = limit


class StaleLease(BrokerError):
    """Raised, or reported, when a settlement came after the message was given to somebody else."""


class QueueJoinTimeout(GreenroomError):
    """Raised when joining a queue took longer than the given timeout."""


class QueueStalled(QueueJoinTimeout):
    """Raised as soon as joining a queue cannot end in time: nothing runs, nothing is due, and the next attempt is due
    too late, or no worker consumes the queue.

    The text names the messages, their retries so far, when the next attempt is due, and the last exception, which is
    also the ``__cause__``. ``message_ids`` names the messages that wait.
    """

    def __init__(self, message: str, *, message_ids: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.message_ids = message_ids


class RateLimitExceeded(GreenroomError):
    """Raised when a rate limit has been exceeded.

    ``retry_at_ms`` is when there may be room again, in UNIX milliseconds, or None if nobody knows. ``slot`` is what was
    asked for, if a message can stand in line for it, and ``store`` who keeps the line.
    """

    def __init__(
        self, message: str = "", *, retry_at_ms: int | None = None, slot: Any = None, store: Any = None
    ) -> None:
        super().__init__(message)
        self.retry_at_ms = retry_at_ms
        self.slot = slot
        self.store = store


class ResultError(GreenroomError):
    """Base class of errors that have to do with results."""


class ResultMissing(ResultError):
    """Raised when there is no result. ``ResultUnknown`` and ``ResultPending`` say more, where more is known."""


class ResultUnknown(ResultMissing):
    """Raised when nothing is known of a message that stores a result: it was never sent, or its result has expired."""


class ResultPending(ResultMissing):
    """Raised when there is no result yet.

    ``state`` is ``"enqueued"``, ``"delayed"`` or ``"retrying"``; ``attempts`` counts the attempts that have failed,
    ``last_error`` says how the last of them did, and ``next_attempt_ms`` (UNIX milliseconds) when the next one is due.
    """

    def __init__(
        self,
        message: str = "",
        *,
        state: str = "enqueued",
        attempts: int = 0,
        last_error: str | None = None,
        next_attempt_ms: int | None = None,
    ) -> None:
        super().__init__(message)
        self.state = state
        self.attempts = attempts
        self.last_error = last_error
        self.next_attempt_ms = next_attempt_ms


class ResultTimeout(ResultError):
    """Raised when there was no result in time. The fields are those of ``ResultPending``; ``state`` is None where
    nothing is known."""

    def __init__(
        self,
        message: str = "",
        *,
        state: str | None = None,
        attempts: int = 0,
        last_error: str | None = None,
        next_attempt_ms: int | None = None,
    ) -> None:
        super().__init__(message)
        self.state = state
        self.attempts = attempts
        self.last_error = last_error
        self.next_attempt_ms = next_attempt_ms


class ResultFailure(ResultError):
    """Raised when the actor failed for good: with the name of its error's class, the error's text, and the traceback as
    text. The class itself is never looked up by its name."""

    def __init__(self, message: str = "", orig_exc_type: str = "", orig_exc_msg: str = "", traceback: str = "") -> None:
        super().__init__(message)
        self.orig_exc_type = orig_exc_type
        self.orig_exc_msg = orig_exc_msg
        self.traceback = traceback


class Retry(GreenroomError):
    """Raised by an actor to be run again, after ``delay`` (milliseconds or a timedelta) if given.

    It counts as a failed attempt but is not logged as an error. The delay has no upper bound.
    """

    def __init__(self, message: str = "", delay: int | timedelta | None = None) -> None:
        super().__init__(message)
        if isinstance(delay, timedelta):
            delay = int(delay.total_seconds() * 1000)
        self.delay = delay


class MiddlewareError(Exception):
    """Base class of errors that a middleware's ``before_*`` hook may raise to be heard."""


class SkipMessage(MiddlewareError):
    """Raised in ``before_process_message`` so that the message is not run."""


class Interrupt(BaseException):
    """Base class of the exceptions that end an actor from outside. Not an ``Exception``: code that
    catches ``Exception`` does not swallow it."""


def __getattr__(name: str) -> object:
    if name == "ConnectionError":
        warnings.warn(
            "errors.ConnectionError is deprecated, use errors.BrokerConnectionError. The old name is removed in 3.0.",
            DeprecationWarning,
            stacklevel=2,
        )
        return BrokerConnectionError
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
