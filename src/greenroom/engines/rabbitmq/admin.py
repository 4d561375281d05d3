"""Looking into the queues of RabbitMQ and acting on them: the ``Admin`` of the engine.

A queue can only be looked into by taking its messages and giving them back: while somebody looks, others see it without
them. AMQP neither lists queues nor tells what consumers hold: ``counts`` knows the queues that this process has
declared, counts nothing as claimed (``features.counts_claimed``), and what is delayed not by queue
(``features.counts_delayed``): ``delayed`` tells how many there are in all.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Mapping
from time import monotonic
from typing import Any

from ...errors import BrokerError
from ...ports.admin import Counts, DeadLetter, Peeked, State, check_step, parse_place
from ...ports.transport import Envelope
from .control import Control, Found
from .letters import afterlife, letter_of, peeked, rank
from .routes import Routes
from .share import ProcessShare
from .topology import dead_letter_queue, delay_queue
from .wire import Publication

#: Seconds for which queues of the levels that were not there are not asked for again.
_ABSENT_S = 2.0


class RabbitmqAdmin:
    """The ``Admin`` of a ``RabbitmqTransport``. Any thread may use it; each look is made by one at a time."""

    routes: Routes
    _queues: set[str]
    _present_levels: set[str]
    _absent_until_s: float

    @property
    def share(self) -> ProcessShare:
        """What this process has open."""
        raise NotImplementedError

    def publish(self, publications: Collection[Publication]) -> None:
        """Returns once they are accepted."""
        raise NotImplementedError

    def check_size(self, envelope: Envelope) -> None:
        """Raises ``MessageTooLarge``."""
        raise NotImplementedError

    @property
    def _control(self) -> Control:
        return self.share.control

    # --- looking

    def counts(self, queues: Collection[str] | None = None) -> dict[str, Counts]:
        """Ready and dead messages by queue; of the queues that this process knows if none are named."""
        return {queue: self._counts(queue) for queue in (sorted(self._queues) if queues is None else queues)}

    def _counts(self, queue: str) -> Counts:
        control = self._control
        ready = control.ready(queue) or 0
        waiting = control.ready(delay_queue(queue)) or 0
        return Counts(ready=ready, delayed=waiting, dead=control.ready(dead_letter_queue(queue)) or 0)

    def delayed(self) -> int:
        """How many messages of all queues together are delayed now."""
        return sum(self._in_levels().values())

    def _in_levels(self) -> dict[str, int]:
        """How many messages there are in each queue of the levels that holds any."""
        control = self._control
        present = self._present_levels
        if monotonic() >= self._absent_until_s:
            found = control.ready_in_any([name for name in self.levels.queues() if name not in present])
            present.update(name for name, ready in found.items() if ready is not None)
            self._absent_until_s = monotonic() + _ABSENT_S
        return {name: ready for name in sorted(present) if (ready := control.ready(name))}

    @property
    def levels(self) -> Any:
        """The levels of delay."""
        raise NotImplementedError

    def peek(
        self, queue: str, *, state: State | None = None, limit: int = 20, after: str | None = None
    ) -> list[Peeked]:
        """What is ready in a queue, in the order of its turns. What is claimed or delayed cannot be shown. A message
        that was looked at is handed out as a redelivery."""
        start = parse_place(after, 3)[2] + 1 if after is not None else 0
        if state in ("claimed", "delayed"):
            return []
        with self._control.look(queue, start + limit) as look:
            found = list(look.messages())[start:]
        return [peeked(queue, message, start + number) for number, message in enumerate(found)]

    def dead(self, queue: str | None = None, *, limit: int = 100, after: str | None = None) -> list[DeadLetter]:
        """Dead letters of a queue, or of those that this process knows; newest first."""
        end = None if after is None else parse_place(after, 2)
        newest: list[DeadLetter] = []
        for name in sorted(self._queues) if queue is None else [queue]:
            with self._control.look(dead_letter_queue(name)) as look:
                letters = (letter_of(name, found) for found in look.messages())
                older = (letter for letter in letters if end is None or rank(letter) < end)
                newest = heapq.nlargest(limit, [*newest, *heapq.nlargest(limit, older, key=rank)], key=rank)
        return newest

    def dead_letters(self, ids: Collection[str]) -> list[DeadLetter]:
        """Those of these dead letters that are there."""
        check_step(ids)
        found: dict[str, DeadLetter] = {}
        self._with_letters(ids, lambda letters: found.update((letter.id, letter) for letter in letters))
        return [found[id] for id in dict.fromkeys(ids) if id in found]

    def paused(self) -> set[str]:
        """Nothing: queues are not paused here."""
        return set()

    # --- acting

    def move(self, replacements: Mapping[str, Envelope]) -> int:
        """Puts dead letters back into queues. Each letter goes once the broker keeps what replaces it."""
        check_step(replacements)
        for envelope in replacements.values():
            self.check_size(envelope)

        def put_back(letters: list[DeadLetter]) -> None:
            now_ms = self._now_ms()
            self.publish([self.routes.of(replacements[letter.id], now_ms, afterlife(letter)) for letter in letters])

        return self._with_letters(replacements, put_back, take=True)

    def _now_ms(self) -> int:
        raise NotImplementedError

    def drop(self, ids: Collection[str]) -> int:
        """Deletes dead letters; returns how many of them were there."""
        check_step(ids)
        return self._with_letters(ids, lambda _letters: None, take=True)

    def _with_letters(
        self, ids: Collection[str], act: Callable[[list[DeadLetter]], object], *, take: bool = False
    ) -> int:
        """Finds dead letters, calls ``act`` with those of each queue, then deletes them or leaves them."""
        wanted = set(ids)
        number = 0
        for queue in sorted(self._queues):
            if not wanted:
                break
            with self._control.look(dead_letter_queue(queue)) as look:
                pairs: dict[str, tuple[Found, DeadLetter]] = {}
                for found in look.messages():
                    letter = letter_of(queue, found)
                    if letter.id in wanted:
                        pairs[letter.id] = (found, letter)
                if pairs:
                    act([letter for _, letter in pairs.values()])
                if take:
                    for found, _ in pairs.values():
                        look.take(found)
            wanted -= pairs.keys()
            number += len(pairs)
        return number

    def purge(self, queue: str, *, dead: bool = False) -> int:
        """Deletes what is ready or delayed now, or else what is dead; returns how many. What moves from one level of
        delay to the next in that moment is missed."""
        control = self._control
        if dead:
            return control.purge(dead_letter_queue(queue))
        deleted = control.purge(queue) + control.purge(delay_queue(queue))
        for name in self._in_levels():
            with control.look(name) as look:
                for found in look.messages():
                    if found.key == queue:
                        look.take(found)
                        deleted += 1
        return deleted

    def pause(self, queues: Collection[str]) -> None:
        """Not here.

        Raises:
          BrokerError: Always.
        """
        raise BrokerError("RabbitMQ cannot pause queues: stop the workers, or start them without these (-Q).")

    def resume(self, queues: Collection[str]) -> None:
        """Not here. Raises as ``pause``."""
        self.pause(queues)
