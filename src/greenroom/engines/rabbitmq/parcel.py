"""What was handed to the publisher together, and what has become of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ...errors import BrokerError
from .wire import Publication


class Parcel:
    """Publications that are answered for together. Owned by the thread that drives the publisher, but for ``baton`` and
    ``drives``, which its mutex guards.

    Parameters:
      publications: In their order.
      on_done: Called when it is done, by any thread, while the publisher is driven: it must only wake somebody.
    """

    __slots__ = (
        "_on_done",
        "_refused",
        "_returned",
        "baton",
        "cancelled",
        "done",
        "drives",
        "error",
        "first_tag",
        "left",
        "publications",
        "retried",
        "taken",
        "todo",
    )

    def __init__(self, publications: Sequence[Publication], on_done: Callable[[], object] | None = None) -> None:
        self.publications = publications
        #: Positions that are still to be written, or were written last.
        self.todo: Sequence[int] = range(len(publications))
        self.first_tag = 0
        self.left = 0
        self.taken = False
        self.cancelled = False
        self.retried = False
        #: Whether it is answered for: all is confirmed, or ``error`` is set.
        self.done = False
        self.error: BrokerError | None = None
        self.baton: Any = None
        self.drives = False
        self._refused: list[int] = []
        self._returned: list[int] = []
        self._on_done = on_done

    def cancel(self) -> None:
        """Nobody waits for it any more: what is not written yet never is."""
        self.cancelled = True

    def written(self, first_tag: int) -> None:
        """``todo`` was written, with delivery tags from ``first_tag`` on."""
        self.first_tag = first_tag
        self.left = len(self.todo)
        self._refused = []
        self._returned = []

    def returned(self, id: str | None, key: str) -> None:
        """The broker found no queue for one of them."""
        for position in self.todo:
            publication = self.publications[position]
            if publication.properties.message_id == id and publication.key == key:
                self._returned.append(position)
                return

    def answered(self, tag: int, *, accepted: bool) -> bool:
        """The broker has answered for one of them; True if that was the last."""
        if not accepted:
            self._refused.append(self.todo[tag - self.first_tag])
        self.left -= 1
        return not self.left

    @property
    def homeless(self) -> list[int]:
        """Positions for which there was no queue."""
        return sorted(set(self._returned))

    @property
    def refused(self) -> list[int]:
        """Positions that the broker did not take."""
        return sorted(self._refused)

    @property
    def failed(self) -> list[int]:
        """Positions that are not known to be accepted, of a parcel with an error."""
        if self.homeless or self.refused:
            return sorted({*self._returned, *self._refused})
        return list(self.todo)

    def finish(self, error: BrokerError | None) -> None:
        """It is answered for. Its publications stand until nobody asks any more."""
        if self.done:
            return
        if error is not None:
            self.error = error
        self.done = True
        if self._on_done is not None:
            self._on_done()
