"""pika's errors, and the broker's, to ours: the only place where they are translated."""

from __future__ import annotations

import socket
from collections.abc import Iterator

from pika import exceptions
from pika.adapters.utils.connection_workflow import (
    AMQPConnectionWorkflowFailed,
    AMQPConnectorPhaseErrorBase,
)

from ...errors import BrokerError, BrokerFull, BrokerReadOnly, ConnectionClosed, ConnectionFailed

#: Reply codes of AMQP 0-9-1.
NO_ROUTE = 312
ACCESS_REFUSED = 403
NOT_FOUND = 404
RESOURCE_LOCKED = 405
PRECONDITION_FAILED = 406


class QueueMismatch(BrokerError):
    """Raised when a queue exists with other arguments than it is declared with. For good: until it is deleted, or the
    broker is told otherwise."""


class QueueGone(BrokerError):
    """Raised when a queue could not be found, nor made."""


def translate(error: BaseException | None, where: str) -> BrokerError:
    """The error of ours that says what ``error`` means to a user; to be raised ``from`` it.

    Parameters:
      error: What pika raised or told.
      where: The broker's address, without the password.
    """
    if isinstance(error, BrokerError):
        return error
    if isinstance(error, AMQPConnectionWorkflowFailed):
        return _never_reached(error, where)
    if isinstance(error, exceptions.ConnectionClosedByBroker):
        return ConnectionClosed(f"RabbitMQ at {where} closed the connection: {error.reply_code} {error.reply_text}.")
    if isinstance(error, exceptions.AMQPHeartbeatTimeout):
        return ConnectionClosed(f"RabbitMQ at {where} was silent for too long: the connection was given up.")
    if isinstance(error, exceptions.ChannelClosedByBroker):
        return channel_error(error.reply_code, error.reply_text, where)
    return ConnectionClosed(f"The connection to RabbitMQ at {where} was lost: {_text(error)}.")


def channel_error(code: int, text: str, where: str) -> BrokerError:
    """What the broker means that has closed a channel."""
    text = text.removeprefix("PRECONDITION_FAILED - ").removeprefix("NOT_FOUND - ").removeprefix("ACCESS_REFUSED - ")
    if code == ACCESS_REFUSED:
        return BrokerReadOnly(f"RabbitMQ at {where} refuses access: {text}.")
    if code == NOT_FOUND:
        return QueueGone(f"RabbitMQ at {where} does not find it: {text}.")
    if code == PRECONDITION_FAILED and "inequivalent arg" in text:
        return QueueMismatch(
            f"A queue at {where} exists with other arguments: {text}. Delete the queue once it is empty, or declare it "
            "as it is (max_priority, queue_type, dead_letter_ttl_ms)."
        )
    if code == PRECONDITION_FAILED and "message size" in text:
        return BrokerFull(f"RabbitMQ at {where} does not take a message so large: {text}.")
    return BrokerError(f"RabbitMQ at {where} refused: {code} {text}.")


def _never_reached(error: AMQPConnectionWorkflowFailed, where: str) -> ConnectionFailed:
    causes = list(_causes(error))
    for cause in causes:
        if isinstance(cause, (exceptions.ProbableAuthenticationError, exceptions.AuthenticationError)):
            return ConnectionFailed(f"RabbitMQ at {where} refused the user name or the password.")
        if isinstance(cause, exceptions.ProbableAccessDeniedError):
            return ConnectionFailed(f"RabbitMQ at {where} lets this user not into that virtual host: {_text(cause)}.")
    reasons = sorted({_text(cause) for cause in causes}) or [_text(error)]
    return ConnectionFailed(f"RabbitMQ at {where} could not be reached: {'; '.join(reasons)}.")


def _causes(error: AMQPConnectionWorkflowFailed) -> Iterator[BaseException]:
    for cause in error.exceptions:
        yield cause.exception if isinstance(cause, AMQPConnectorPhaseErrorBase) else cause


def _text(error: BaseException | None) -> str:
    """One line about an error, without a full stop."""
    if isinstance(error, OSError) and not isinstance(error, socket.timeout):
        return error.strerror or str(error) or type(error).__name__
    text = " ".join(str(argument) for argument in error.args) if error is not None else ""
    return " ".join(text.split()).rstrip(".") or type(error).__name__
