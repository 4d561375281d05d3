"""Middleware: policies around messages, one a file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..threading import Interrupt, raise_thread_exception
from .age_limit import AgeLimit
from .callbacks import Callbacks
from .current_message import CurrentMessage
from .group_callbacks import GroupCallbacks
from .middleware import Middleware, MiddlewareError, SkipMessage
from .pipelines import Pipelines
from .retries import Retries
from .shutdown import Shutdown, ShutdownNotifications
from .time_limit import TimeLimit, TimeLimitExceeded

if TYPE_CHECKING:
    from .asyncio import AsyncIO

__all__ = [
    "AgeLimit",
    "AsyncIO",
    "Callbacks",
    "CurrentMessage",
    "GroupCallbacks",
    "Interrupt",
    "Middleware",
    "MiddlewareError",
    "Pipelines",
    "Retries",
    "Shutdown",
    "ShutdownNotifications",
    "SkipMessage",
    "TimeLimit",
    "TimeLimitExceeded",
    "default_middleware",
    "raise_thread_exception",
]

#: What a broker has when it is given no middleware, in this order.
default_middleware: list[type[Middleware]] = [
    AgeLimit,
    TimeLimit,
    ShutdownNotifications,
    Callbacks,
    Pipelines,
    Retries,
]


def __getattr__(name: str) -> Any:
    if name == "AsyncIO":  # it needs asyncio, which takes longer to import than all of this
        from .asyncio import AsyncIO

        return AsyncIO
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
