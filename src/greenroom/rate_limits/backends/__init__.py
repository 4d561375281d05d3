"""What keeps the state of limits: in memory, in a SQLite file, or on a Redis server. Loaded when they are asked for."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .redis import RedisBackend
    from .sqlite import SqliteBackend
    from .stub import StubBackend

__all__ = ["RedisBackend", "SqliteBackend", "StubBackend"]

_MODULES = {"RedisBackend": "redis", "SqliteBackend": "sqlite", "StubBackend": "stub"}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
