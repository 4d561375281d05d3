"""What keeps the state of limits: in memory, or in a SQLite file. Loaded when they are asked for."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .sqlite import SqliteBackend
    from .stub import StubBackend

__all__ = ["SqliteBackend", "StubBackend"]

_MODULES = {"SqliteBackend": "sqlite", "StubBackend": "stub"}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
