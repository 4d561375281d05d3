"""What one process has open of a broker: its publishing and its controlling connection, and its consumers."""

from __future__ import annotations

from typing import Any

from .connection import Targets
from .control import Control
from .publisher import Publisher
from .topology import Layout


class ProcessShare:
    """Any thread. Forgotten in a forked child, never closed there.

    Parameters:
      targets: Where to.
      layout: How queues are declared.
      confirm: Whether to wait until the broker says that it keeps a message.
    """

    def __init__(self, targets: Targets, layout: Layout, *, confirm: bool) -> None:
        self.publisher = Publisher(targets, layout, confirm=confirm)
        self.control = Control(targets, layout)
        #: Those that are not closed yet.
        self.consumers: set[Any] = set()

    def close(self) -> None:
        """Closes everything; the consumers first, for they publish."""
        for consumer in list(self.consumers):
            consumer.close()
        self.publisher.close()
        self.control.close()
