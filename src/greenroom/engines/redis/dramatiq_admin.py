"""Looking into Dramatiq's queues, and acting on what is there."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from ...ports.admin import Counts, DeadLetter, Peeked, State
from ...ports.transport import Envelope
from .connection import Argument
from .dramatiq_consumer import enqueued
from .dramatiq_layout import Claim, DramatiqLayout, Place, due_ms_of, pairs
from .keys import Keys
from .scripts import load_alone
from .share import ProcessShare

#: How many messages are deleted in one step.
DROP_CHUNK = 1000


class DramatiqAdmin:
    """What ``SharedTransport`` adds to its own ``Admin``. Thread-safe; without state.

    Parameters:
      share: What this process has open to the server.
      layout: Dramatiq's keys.
      keys: Ours.
    """

    def __init__(self, share: ProcessShare, layout: DramatiqLayout, keys: Keys) -> None:
        self._share = share
        self._layout = layout
        self._keys = keys

    # --- looking

    def counts(self, queues: Sequence[str]) -> dict[str, Counts]:
        """Messages by queue. What a process of Dramatiq's keeps in its memory until it is due counts as claimed."""
        keys: list[Argument] = []
        for queue in queues:
            for place in (Place(queue), Place(queue, True)):
                keys += (self._layout.list_of(place), self._layout.bodies_of(place))
            keys.append(self._layout.dead_of(queue)[0])
        flat = self._share.run(load_alone("dramatiq_counts"), keys, [])
        found = {}
        numbers = zip(*[iter(flat)] * 5, strict=True)
        for queue, (ready, all_ready, late, all_late, dead) in zip(queues, numbers, strict=True):
            found[queue] = Counts(ready, late, max(0, all_ready - ready + all_late - late), dead)
        return found

    def peek(self, place: Place, skip: int, limit: int) -> list[Peeked]:
        """Messages of a list, in its order, without the first ``skip``."""
        ids = self._share.call(b"LRANGE", self._layout.list_of(place), skip, skip + limit - 1)
        if not ids:
            return []
        bodies = self._share.call(b"HMGET", self._layout.bodies_of(place), *ids)
        state: State = "delayed" if place.delayed else "ready"
        return [
            Peeked(place.queue, id_.decode(), body, state, due_ms=due_ms_of(body) if place.delayed else None)
            for id_, body in zip(ids, bodies, strict=True)
            if body is not None
        ]

    def dead(self, queue: str, limit: int, after: tuple[int, str] | None = None) -> list[DeadLetter]:
        """Dead letters of a queue, newest first. Dramatiq says nothing of why they died.

        Parameters:
          after: When the last one seen has died (ms), and its id.
        """
        key, bodies_key = self._layout.dead_of(queue)
        highest: Argument = b"+inf" if after is None else after[0]
        letters: list[DeadLetter] = []
        offset = 0
        while len(letters) < limit:
            order = (b"WITHSCORES", b"LIMIT", offset, limit)
            scored = pairs(self._share.call(b"ZREVRANGEBYSCORE", key, highest, b"-inf", *order))
            if not scored:
                break
            offset += len(scored)
            there = [(id_, float(score)) for id_, score in scored]
            if after is not None:
                there = [(id_, ms) for id_, ms in there if (int(ms), id_.decode()) < after]
            letters += self._letters(queue, there, bodies_key)
        return letters[:limit]

    def dead_letters(self, queue: str, ids: Collection[str]) -> list[DeadLetter]:
        """Those of these dead letters that are there."""
        key, bodies_key = self._layout.dead_of(queue)
        scored = [(id_.encode(), self._share.call(b"ZSCORE", key, id_)) for id_ in ids]
        there = [(id_, float(score)) for id_, score in scored if score is not None]
        return self._letters(queue, there, bodies_key)

    def _letters(self, queue: str, scored: Sequence[tuple[bytes, float]], bodies_key: bytes) -> list[DeadLetter]:
        if not scored:
            return []
        bodies = self._share.call(b"HMGET", bodies_key, *(id_ for id_, _ in scored))
        return [
            DeadLetter(queue, id_.decode(), body, None, 1, 0, int(died_ms))
            for (id_, died_ms), body in zip(scored, bodies, strict=True)
            if body is not None
        ]

    # --- acting

    def replace(self, queue: str, replacements: Mapping[str, Envelope | None]) -> int:
        """Deletes dead letters and enqueues what replaces them, in one atomic step; returns how many there were."""
        list_, bodies = self._layout.list_of(Place(queue)), self._layout.bodies_of(Place(queue))
        keys: list[Argument] = [*self._layout.dead_of(queue), list_, bodies, self._keys.of(queue).wake]
        args: list[Argument] = []
        for id_, envelope in replacements.items():
            message = None if envelope is None else enqueued(envelope)
            args += (id_, "", "") if message is None else (id_, message.id, message.body)
        count: int = self._share.run(load_alone("dramatiq_dead"), keys, args) if args else 0
        return count

    def purge(self, queue: str) -> int:
        """Deletes what is ready or delayed; returns how many."""
        return sum(self._purge(Place(queue, delayed)) for delayed in (False, True))

    def _purge(self, place: Place) -> int:
        keys: list[Argument] = [
            self._layout.list_of(place),
            self._layout.bodies_of(place),
            self._layout.due_of(place.queue),
        ]
        total = 0
        while count := self._share.run(load_alone("dramatiq_drop"), keys, [DROP_CHUNK]):
            total += count
        return total

    def purge_dead(self, queue: str) -> int:
        """Deletes all dead letters; returns how many."""
        total = 0
        while count := self.drop_dead(queue, b"+inf"):
            total += count
        return total

    def drop_dead(self, queue: str, until_ms: Argument) -> int:
        """Deletes up to ``DROP_CHUNK`` of the dead letters that died until then; returns how many."""
        key = self._layout.dead_of(queue)[0]
        ids = self._share.call(b"ZRANGEBYSCORE", key, b"-inf", until_ms, b"LIMIT", 0, DROP_CHUNK)
        return self.replace(queue, {id_.decode(): None for id_ in ids})

    def fetch(self, owner: str, place: Place, limit: int) -> list[Claim]:
        """Claims the first messages of a list for ``owner``, whatever they say of their time."""
        keys: list[Argument] = [
            self._layout.heartbeats_key,
            self._layout.list_of(place),
            self._layout.bodies_of(place),
            self._layout.claims_of(owner, place),
        ]
        flat = self._share.run(load_alone("dramatiq_fetch"), keys, [owner, limit])
        return [Claim(place, id_.decode(), body) for id_, body in zip(*[iter(flat)] * 2, strict=True)]
