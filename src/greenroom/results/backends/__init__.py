"""Places to keep results in. Loaded on first use, because each needs its engine."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .redis import RedisBackend as RedisBackend
    from .sqlite import SqliteBackend as SqliteBackend
    from .store import StoreBackend as StoreBackend
    from .stub import StubBackend as StubBackend

__all__ = ["RedisBackend", "SqliteBackend", "StoreBackend", "StubBackend"]

_MODULES = {"RedisBackend": "redis", "SqliteBackend": "sqlite", "StoreBackend": "store", "StubBackend": "stub"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)
