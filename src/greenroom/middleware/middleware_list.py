"""The list that a broker hands out as its ``middleware``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from .middleware import Middleware


class MiddlewareList(list[Middleware]):
    """A list that says when it was changed."""

    def __init__(self, items: Iterable[Middleware], changed: Callable[[], None]) -> None:
        super().__init__(items)
        self._changed = changed


def _announcing(name: str) -> Any:
    plain = getattr(list, name)

    def method(self: MiddlewareList, *args: Any, **kwargs: Any) -> Any:
        result = plain(self, *args, **kwargs)
        self._changed()
        return result

    method.__name__ = name
    method.__doc__ = plain.__doc__
    return method


for _name in (
    "append", "extend", "insert", "remove", "pop", "clear", "sort", "reverse",
    "__setitem__", "__delitem__", "__iadd__", "__imul__",
):  # fmt: skip
    setattr(MiddlewareList, _name, _announcing(_name))
