"""Settlements that the engine has taken and not answered for yet: a broker that confirms what is published answers some
trips later."""

from __future__ import annotations

from collections.abc import Sequence

from ..core.run import Run
from ..ports.transport import Exchange, Settlement


class Unanswered:
    """Owned by the pump's thread. False while there are none."""

    def __init__(self) -> None:
        self._asked: dict[int, Run | Settlement] = {}  # by the identity of the settlement; a run holds its own

    def __bool__(self) -> bool:
        return bool(self._asked)

    def sort_out(
        self, runs: Sequence[Run], settle: Sequence[Settlement], exchange: Exchange
    ) -> tuple[list[Run], list[Run]]:
        """What has become of runs by this trip, of those that it took along and of earlier ones: which are settled, and
        which are lost.

        Parameters:
          runs: Those whose settlements the trip took along.
          settle: All settlements of the trip.
          exchange: Its answer.
        """
        asked = self._asked
        asked.update((id(s), s) for s in settle)
        asked.update((id(run.settlement), run) for run in runs)
        settled, lost = ([asked.pop(id(s), s) for s in answered] for answered in (exchange.settled, exchange.lost))
        for s, _ in exchange.refused:
            asked.pop(id(s), None)
        return _runs(settled), _runs(lost)


def _runs(found: Sequence[Run | Settlement]) -> list[Run]:
    return [each for each in found if not isinstance(each, Settlement)]
