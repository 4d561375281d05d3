"""What the broker has handed to a channel and waits to hear of.

A delivery tag is a number that means something on its own channel only: on the next one the same number is another
message. So a token is a tag together with its ``Epoch``, the channel, and a token of an earlier epoch is never sent.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeAlias


class Epoch:
    """One channel from its opening to its end. Only itself is the same."""

    __slots__ = ()


#: What a delivery is settled by.
Token: TypeAlias = tuple[Epoch, int]


class Unacked(dict[int, Any]):
    """What is to be settled on one channel: by tag, in the order of the tags. The values are the reader's."""

    def plan(self, settled: Iterable[int]) -> tuple[int, list[int]]:
        """How to acknowledge tags that were just taken out: all up to the first number by one frame (0: none), and each
        of the others by one of its own.

        One frame may stand for many tags only as far as every older one is settled, too. What somebody else holds
        comes between them.
        """
        oldest = next(iter(self), None)
        if oldest is None:
            return max(settled, default=0), []
        upto = 0
        others = []
        for tag in settled:
            if tag > oldest:
                others.append(tag)
            elif tag > upto:
                upto = tag
        return upto, others
