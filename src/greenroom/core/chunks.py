"""Many items, a chunk at a time, by somebody who may fail half-way."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from types import TracebackType
from typing import Any, Self, TypeVar

T = TypeVar("T")


def in_chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """The items, ``size`` at a time, read lazily."""
    rest = iter(items)
    while chunk := list(islice(rest, size)):
        yield chunk


class InChunks:
    """Chunks of what is read lazily. Whatever is raised in its block learns how far it has come: ``accepted`` and
    ``index`` are set on it.

    Parameters:
      items: What there is.
      size: The longest chunk.
    """

    def __init__(self, items: Iterable[Any], size: int) -> None:
        self._items = iter(items)
        self._size = size
        #: How many items were in the chunks that are done: a chunk is done when the next one is asked for.
        self.accepted = 0

    def __iter__(self) -> Iterator[list[Any]]:
        while chunk := list(islice(self._items, self._size)):
            yield chunk
            self.accepted += len(chunk)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if isinstance(error, Exception):
            error.accepted = error.index = self.accepted  # type: ignore[attr-defined]  # documented above
