"""Names of queues and actors, and identifiers.

Queue names follow Dramatiq: ``q`` holds what may run, ``q.DQ`` what is delayed and ``q.XQ`` what is dead. Engines of
our own need one name only; the suffixes matter where a broker is shared with Dramatiq.
"""

from __future__ import annotations

import itertools
import os
import re

from .clock import current_millis
from .forksafe import here, in_child, notice_fork

MAX_NAME_LENGTH = 255
_QUEUE_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9._-]*")


def check_queue_name(name: str) -> str:
    """Returns ``name``, or raises ``ValueError`` if no queue may be called so."""
    if not isinstance(name, str) or not _QUEUE_NAME.fullmatch(name):
        raise ValueError(
            f"Invalid queue name {name!r}: queue names must start with a letter or an underscore, "
            "followed by letters, digits, dots, underscores or dashes."
        )
    return _check_length("queue", name)


def check_actor_name(name: str) -> str:
    """Returns ``name``, or raises ``ValueError`` if no actor may be called so."""
    if not isinstance(name, str) or not name:
        raise ValueError(f"Invalid actor name {name!r}: actor names must be non-empty text.")
    return _check_length("actor", name)


def _check_length(kind: str, name: str) -> str:
    if len(name) > MAX_NAME_LENGTH:
        raise ValueError(f"Invalid {kind} name {name[:40]!r}...: {len(name)} characters, at most {MAX_NAME_LENGTH}.")
    return name


def q_name(queue_name: str) -> str:
    """The canonical name of a queue: ``default`` for ``default``, ``default.DQ`` and ``default.XQ``."""
    if queue_name.endswith((".DQ", ".XQ")):
        return queue_name[:-3]
    return queue_name


def dq_name(queue_name: str) -> str:
    """The name under which Dramatiq keeps the delayed messages of a queue."""
    return queue_name if queue_name.endswith(".DQ") else f"{q_name(queue_name)}.DQ"


def xq_name(queue_name: str) -> str:
    """The name under which Dramatiq keeps the dead letters of a queue."""
    return queue_name if queue_name.endswith(".XQ") else f"{q_name(queue_name)}.XQ"


# Random bits come from the kernel, in pools: `uuid.uuid4` asks it once for each. A message's identifier begins with the
# time in milliseconds at which its pool was made: results are kept by it, and what is written together then lies
# together (3 us a result in SQLite, 9 us with identifiers that are random from the start on). A list's pop is atomic,
# so any thread may take one; a forked child forgets the pool, so that two processes never hand out the same identifier.
_POOL_SIZE = 256
_message_ids: list[str] = []


def new_message_id() -> str:
    """A fresh identifier in the form of a version 4 UUID (RFC 9562)."""
    if not here[0]:
        notice_fork()
    try:
        return _message_ids.pop()
    except IndexError:
        moment = f"{current_millis():012x}"
        digits = os.urandom(9 * _POOL_SIZE).hex()
        fresh = [  # version 4, variant 10xx with its two free bits at 10: 72 random bits
            f"{moment[:8]}-{moment[8:]}-4{digits[i : i + 3]}-a{digits[i + 3 : i + 6]}-{digits[i + 6 : i + 18]}"
            for i in range(0, 18 * _POOL_SIZE, 18)
        ]
        mine = fresh.pop()
        _message_ids.extend(fresh)
        return mine


# A storage id names one push and says nothing: 80 random bits a process, then a counter.
_storage_prefix = os.urandom(10).hex()
_storage_counter = itertools.count()


def new_storage_id() -> str:
    """A fresh identifier for one push: unique across processes, 21 characters or more."""
    if not here[0]:
        notice_fork()
    return f"{_storage_prefix}{next(_storage_counter):x}"


@in_child
def _forget_inherited_ids() -> None:
    global _storage_prefix, _storage_counter
    _message_ids.clear()
    _storage_prefix = os.urandom(10).hex()
    _storage_counter = itertools.count()
