"""Redis's errors to ours: the only place where they are translated."""

from __future__ import annotations

import re

import redis.exceptions as theirs

from ...errors import (
    BrokerBusy,
    BrokerError,
    BrokerFull,
    BrokerReadOnly,
    BrokerTimeout,
    ConnectionClosed,
    ConnectionFailed,
)


class NoScript(BrokerError):
    """The server does not know the script; nothing was done."""


class Unsent(ConnectionClosed):
    """The connection was lost before the whole command was handed over; nothing was done."""


class NotReplicated(BrokerTimeout):
    """The server has it, but too few replicas did in time."""


def is_unknown(error: BrokerError) -> bool:
    """True if what was asked for may have been done all the same: no answer came."""
    return isinstance(error, (ConnectionClosed, BrokerTimeout)) and not isinstance(error, Unsent)


def translate_connect(error: BaseException, where: str, *, by_tls: bool = False) -> BrokerError:
    """The error of ours for one that came while a connection was made; to be raised ``from`` it."""
    if by_tls and isinstance(error, theirs.TimeoutError):
        return ConnectionFailed(f"The Redis server at {where} cannot be reached: {error}; does it speak TLS at all?")
    if isinstance(error, (theirs.ResponseError, theirs.AuthenticationError)):
        return translate(error, where)
    return ConnectionFailed(f"The Redis server at {where} cannot be reached: {error}")


def translate(error: BaseException, where: str) -> BrokerError:
    """The error of ours that says what ``error`` means to a user; to be raised ``from`` it.

    Parameters:
      where: The server, for the text.
    """
    text = str(error)
    if isinstance(error, theirs.NoScriptError):
        return NoScript(text)
    if isinstance(error, theirs.TimeoutError):
        return BrokerTimeout(f"The Redis server at {where} did not answer in time: it is not known what it did. {text}")
    if isinstance(error, theirs.BusyLoadingError):
        return BrokerBusy(f"The Redis server at {where} is still loading its data.")
    if isinstance(error, (theirs.AuthenticationError, theirs.AuthorizationError)):
        return ConnectionFailed(f"The Redis server at {where} refuses this user: {text}")
    if isinstance(error, theirs.ResponseError):
        return _translate_response(error, text, where)
    if isinstance(error, (theirs.ConnectionError, OSError)):
        return ConnectionClosed(f"The connection to the Redis server at {where} was lost: {text}")
    return BrokerError(f"The Redis server at {where} could not be used: {text}")


#: The code of an error, the first word of its text. An error inside of a script has it, too, and older servers put
#: their own words before it.
_CODE = re.compile(r"(?:^|-)([A-Z]{3,})\b")
_REFUSED_WRITE = ("MISCONF", "NOREPLICAS")
_REFUSED_USER = ("NOAUTH", "WRONGPASS", "NOPERM")
_OF_CLUSTERS = (theirs.AskError, theirs.MovedError, theirs.ClusterCrossSlotError)
_NOT_NOW = ("BUSY", "LOADING", "TRYAGAIN", "CLUSTERDOWN", "MASTERDOWN")


def _translate_response(error: theirs.ResponseError, text: str, where: str) -> BrokerError:
    found = _CODE.search(text)
    code = found.group(1) if found else ""
    if isinstance(error, theirs.ReadOnlyError) or code == "READONLY":
        return BrokerReadOnly(f"The Redis server at {where} is a replica, or became one: {text}")
    if isinstance(error, theirs.OutOfMemoryError) or code == "OOM":
        return BrokerFull(f"The Redis server at {where} has no memory left (maxmemory): {text}")
    if isinstance(error, theirs.NoPermissionError) or code in _REFUSED_USER:
        return ConnectionFailed(f"The Redis server at {where} refuses this user: {text}")
    if isinstance(error, _OF_CLUSTERS):
        what = "is a node of a Cluster that has these keys elsewhere; Greenroom speaks to one server"
        return ConnectionFailed(f"The Redis server at {where} {what}: {text}")
    if code == "WRONGTYPE":
        what = "has keys of another program in the namespace: choose another namespace, or delete them"
        return BrokerError(f"The Redis server at {where} {what}: {text}")
    if code in _NOT_NOW:
        return BrokerBusy(f"The Redis server at {where} cannot answer now: {text}")
    if code in _REFUSED_WRITE:
        return BrokerReadOnly(f"The Redis server at {where} takes no writes: {text}")
    return BrokerError(f"The Redis server at {where} could not do this: {text}")
