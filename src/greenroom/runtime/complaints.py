"""What the log says of messages that cannot be run: a line a second of each kind, however many there are."""

from __future__ import annotations

import logging

from ..clock import Clock
from ..core.throttle import Throttle

#: Lines a second, of each kind.
PER_S = 1


class Complaints:
    """Owned by the pump's thread, or by whoever admits messages without one.

    Parameters:
      logger: Where the lines go.
      clock: What counts the seconds.
    """

    def __init__(self, logger: logging.Logger, clock: Clock) -> None:
        self._logger = logger
        self._clock = clock
        self._kinds: dict[str, tuple[int, Throttle]] = {}

    def say(self, level: int, kind: str, text: str, *args: object) -> None:
        """Logs a line, unless there was one of that kind this second; then it is counted, and told of in the next.

        Parameters:
          level: The one of its kind.
          kind: What messages of the kind do, as in ``"are dead-lettered"``.
          text: The line, with ``args`` as for a logger.
        """
        _level, throttle = self._kinds.setdefault(kind, (level, Throttle(PER_S)))
        unsaid = throttle.ask(self._clock.monotonic())
        if unsaid is None:
            return
        more = f" ({unsaid} more since the last line like this)" if unsaid else ""
        self._logger.log(level, "%s%s", text % args, more)

    def catch_up(self) -> None:
        """Says what was left out, once a second has passed. To be called now and then; costs nothing if there is
        nothing to say."""
        for kind, (level, throttle) in self._kinds.items():
            if unsaid := throttle.rest(self._clock.monotonic()):
                self._logger.log(level, "%d more messages %s.", unsaid, kind)
