"""Options: the near name for a misspelt one, and bounds."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from numbers import Real
from typing import Any

from .suspects import is_max_crashes
from .waiting import check_policy

MIN_PRIORITY = -1000
MAX_PRIORITY = 1000

#: No delay is longer than this: ten years, in milliseconds.
MAX_DELAY_MS = 10 * 366 * 24 * 60 * 60 * 1000

#: Options of messages that no middleware lists: the library's own.
OWN_MESSAGE_OPTIONS = frozenset(
    (
        "broker_priority",
        "completed_group",
        "delay",
        "eta",
        "group_completion_callbacks",
        "group_completion_uuid",
        "group_member",
        "pipe_plan",
        "pipe_target",
        "priority",
        "redis_message_id",
        "requeue_timestamp",
        "retries",
        "traceback",
    )
)

#: Options of actors that no middleware lists: the library's own.
OWN_ACTOR_OPTIONS = frozenset(("limit_policy", "max_crashes"))


def undefined_options_error(unknown: Iterable[str], known: Iterable[str]) -> str:
    """The text of the error about actor options that no middleware defines, with the near names."""
    unknown, known = sorted(unknown), sorted(known)
    hints = []
    for name in unknown:
        if near := near_name(name, known):
            hints.append(f"did you mean {near!r} instead of {name!r}?")
    hint = " " + " ".join(hints) if hints else " Did you forget to add a middleware to your Broker?"
    return f"The following actor options are undefined: {', '.join(unknown)}.{hint}"


def near_name(name: str, known: Iterable[str]) -> str | None:
    """The name in ``known`` that ``name`` is probably a misspelling of, or None."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.75)
    return near[0] if near and near[0] != name else None


def check_priority(priority: Any) -> int:
    """Returns ``priority``; raises ``ValueError`` unless it is an integer from -1000 to 1000 (lower runs sooner)."""
    if not isinstance(priority, int) or isinstance(priority, bool) or not MIN_PRIORITY <= priority <= MAX_PRIORITY:
        raise ValueError(f"priority must be an integer from {MIN_PRIORITY} to {MAX_PRIORITY}, not {priority!r}.")
    return priority


def delay_to_ms(delay: float | timedelta | None) -> int | None:
    """A delay in milliseconds, or None.

    Raises:
      ValueError: For negative and absurd ones.
      TypeError: For other types.
    """
    if delay is None:
        return None
    if isinstance(delay, timedelta):
        delay_ms = int(delay.total_seconds() * 1000)
    elif isinstance(delay, (int, float)) and not isinstance(delay, bool):
        delay_ms = int(delay) if math.isfinite(delay) else -1
    else:
        raise TypeError(f"delay must be milliseconds or a timedelta, not {type(delay).__name__}.")
    if not 0 <= delay_ms <= MAX_DELAY_MS:
        raise ValueError(f"delay must be from 0 to {MAX_DELAY_MS} milliseconds, not {delay_ms}.")
    return delay_ms


def check_options(options: Mapping[str, Any]) -> None:
    """Checks the values of the options that the library itself reads. Others are nobody's business here.

    Raises:
      ValueError: For a number out of its bounds.
      TypeError: For a value of the wrong type.
    """
    for name, value in options.items():
        check = _CHECKS.get(name)
        if check is not None and value is not None:
            check(name, value)


def message_option_error(name: str, value: Any) -> str | None:
    """What is wrong with an option of a message that was received, if anything is: whoever reads it later could only
    fail, after the actor has run. None of those that the library does not read itself is wrong."""
    check = _MESSAGE_CHECKS.get(name)
    if check is None or (value is None and name not in _NEVER_NONE):
        return None
    if isinstance(value, bool):
        return f"{name} must be a number, not bool."
    try:
        check(name, value)
    except OverflowError:
        return f"{name} is too large a number."
    except (ValueError, TypeError) as e:
        return str(e)
    return None


def check_not_negative(name: str, value: Any) -> None:
    """Raises unless ``value`` is a number and at least 0."""
    if not _number(name, value) >= 0:
        raise ValueError(f"{name} must not be negative: {value!r}.")


def check_time_limit(name: str, value: Any) -> None:
    """Raises unless ``value`` is a number greater than 0."""
    if not _number(name, value) > 0:
        raise ValueError(f"{name} must be greater than 0 milliseconds, or None or float('inf') for none: {value!r}.")


def check_max_crashes(name: str, value: Any) -> None:
    """Raises unless ``value`` is a whole number greater than 0, or None."""
    if not is_max_crashes(value):
        raise ValueError(f"{name} must be a whole number greater than 0, or None for no limit: {value!r}.")


def _number(name: str, value: Any) -> float:
    if not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, not {type(value).__name__}.")
    number = float(value)
    if math.isnan(number):
        raise ValueError(f"{name} must be a number, not NaN.")
    return number


def _check_bounded(name: str, value: Any) -> None:
    if not 0 <= _number(name, value) <= MAX_DELAY_MS:
        raise ValueError(f"{name} must be from 0 to {MAX_DELAY_MS}: {value!r:.100}.")


def _check_callable(name: str, value: Any) -> None:
    if not callable(value):
        raise TypeError(f"{name} must be a function, not {type(value).__name__}.")


def _check_exception_classes(name: str, value: Any) -> None:
    classes = value if isinstance(value, tuple) else (value,)
    if not all(isinstance(item, type) and issubclass(item, BaseException) for item in classes):
        raise TypeError(f"{name} must be an exception class or a tuple of them, not {value!r}.")


_CHECKS: dict[str, Callable[[str, Any], object]] = {
    "delay": lambda _name, value: delay_to_ms(value),
    "limit_policy": check_policy,
    "max_age": check_not_negative,
    "max_backoff": check_not_negative,
    "max_crashes": check_max_crashes,
    "max_retries": check_not_negative,
    "min_backoff": check_not_negative,
    "priority": lambda _name, value: check_priority(value),
    "result_ttl": check_not_negative,
    "retry_when": _check_callable,
    "throws": _check_exception_classes,
    "time_limit": check_time_limit,
}

_NEVER_NONE = ("priority", "retries")
#: Options that may come in a message, and what is made of them. ``eta`` is checked where it is read.
_MESSAGE_CHECKS: dict[str, Callable[[str, Any], object]] = {
    "max_age": check_not_negative,
    "max_backoff": _check_bounded,
    "max_retries": check_not_negative,
    "min_backoff": _check_bounded,
    "priority": lambda _name, value: check_priority(value),
    "retries": _check_bounded,
    "time_limit": check_time_limit,
}
#: The names of these.
MESSAGE_CHECKED = frozenset(_MESSAGE_CHECKS)
