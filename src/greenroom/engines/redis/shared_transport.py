"""The transport on a namespace that Dramatiq uses, too, or has used."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from msgspec import structs

from ...clock import SYSTEM_CLOCK
from ...errors import BrokerError, BrokerTimeout
from ...ports.admin import Counts, DeadLetter, Peeked, State, check_step
from ...ports.transport import Envelope
from .both_pages import merged, parse_letters, parse_shown, peek_theirs
from .dramatiq_admin import DROP_CHUNK, DramatiqAdmin
from .dramatiq_bury import OURS, Undertaker
from .dramatiq_consumer import DramatiqConsumer, enqueued
from .dramatiq_layout import DramatiqLayout, Step
from .envelopes import check_envelope
from .errors import NotReplicated, Unsent, is_unknown
from .share import ProcessShare
from .store import RedisStore
from .transport import RedisTransport
from .two_layouts import TwoLayouts

#: After how long without a sign of life Dramatiq takes a process for dead.
HEARTBEAT_TIMEOUT_MS = 60_000


class SharedTransport(RedisTransport):
    """Runs what Dramatiq has left in its queues, beside what is in ours. Thread-safe and fork-safe.

    Parameters:
      client: Any ``redis.Redis``; its settings are used for connections of our own.
      namespace: What the keys of both begin with.
      heartbeat_timeout_ms: After how long without a sign of life a process is dead that has claimed of Dramatiq's
        queues.
      wire: Whether all that is written is for Dramatiq to read. Then there is no store, and delayed messages have no
        order but their times.
      settings: As ``RedisTransport``.
    """

    def __init__(
        self,
        client: Any,
        *,
        namespace: str = "dramatiq",
        heartbeat_timeout_ms: int = HEARTBEAT_TIMEOUT_MS,
        wire: bool = False,
        **settings: Any,
    ) -> None:
        super().__init__(client, namespace=namespace, **settings)
        self.wire = wire
        if wire:
            self.features = structs.replace(self.features, store=False, priority=False)
        self._namespace = namespace
        self._declared: set[str] = set()
        self._heartbeat_timeout_ms = heartbeat_timeout_ms

    def _open(self) -> ProcessShare:
        share = super()._open()
        layout = DramatiqLayout(share, self._namespace, self.keys)
        share.also_bury = Undertaker(share, layout, self.keys, wire=self.wire).bury
        return share

    @property
    def layout(self) -> DramatiqLayout:
        """Dramatiq's keys."""
        return DramatiqLayout(self.share, self._namespace, self.keys)

    @property
    def theirs(self) -> DramatiqAdmin:
        """Looks into Dramatiq's queues."""
        return DramatiqAdmin(self.share, self.layout, self.keys)

    def declare(self, queues: Collection[str]) -> None:
        """Says which queues Dramatiq may have, too: it keeps no list of them."""
        self._declared.update(queues)

    def push(self, batch: Sequence[Envelope]) -> None:
        """Returns once the batch is kept, all or nothing."""
        if not self.wire:
            super().push(batch)
            return
        for envelope in batch:
            check_envelope(envelope, self._max_body)
        messages = [enqueued(envelope) for envelope in batch]
        if messages:
            self._push_theirs([Step("push", messages[0].place, messages=messages)])

    def _push_theirs(self, steps: Sequence[Step]) -> None:
        layout, now_ms = self.layout, self._now_ms()
        try:
            try:
                layout.trip("", steps, now_ms=now_ms)
            except Unsent:  # on a connection that was closed meanwhile
                layout.trip("", steps, now_ms=now_ms)
            self.share.wait_for_replicas()
        except BrokerError as e:
            if isinstance(e, NotReplicated) or not is_unknown(e):
                raise
            raise BrokerTimeout(f"It is not known whether what was sent is kept: {e}") from e

    def consumer(self, owner: str) -> TwoLayouts:  # type: ignore[override]  # it answers the same port
        """A new owner of claims. Registers it on the server."""
        ours = super().consumer(owner)
        layout = self.layout
        theirs = DramatiqConsumer(
            layout,
            OURS + ours.owner_id,
            heartbeat_timeout_ms=self._heartbeat_timeout_ms,
            clock=self.clock,
            wire=self.wire,
            write=RedisStore(self).apply,
            now_ms=self._now_ms,
        )
        return TwoLayouts(ours, theirs, layout, clock=self.clock, wire=self.wire, expire=self._expire)

    def _expire(self, queues: Sequence[str]) -> bool:
        """Deletes some of Dramatiq's dead letters that are too old; returns whether there may be more of them."""
        ttl_ms = self._retention.ttl_ms
        if ttl_ms is None:
            return False
        now_ms = self._now_ms()
        until_ms = (self.layout.now_ms() if now_ms is None else now_ms) - ttl_ms
        return DROP_CHUNK in [self.theirs.drop_dead(queue, until_ms) for queue in queues]

    def _now_ms(self) -> int | None:
        """The time for scripts; None if the server's counts."""
        return None if self.clock is SYSTEM_CLOCK else self.clock.now_ms()

    # --- looking and acting

    def _known(self) -> list[str]:
        return sorted(self._declared | super().counts().keys())

    def counts(self, queues: Collection[str] | None = None) -> dict[str, Counts]:
        """Messages by queue, of both layouts. Those of one layout are of one moment."""
        ours = super().counts(queues)
        named = list(ours) if queues is not None else sorted(self._declared | ours.keys())
        both = {queue: _sum(ours.get(queue, Counts()), theirs) for queue, theirs in self.theirs.counts(named).items()}
        return both if queues is not None else {queue: found for queue, found in both.items() if found != Counts()}

    def peek(
        self, queue: str, *, state: State | None = None, limit: int = 20, after: str | None = None
    ) -> list[Peeked]:
        """The messages of a queue, ours and then Dramatiq's. What those have claimed is not shown. See the port."""
        shown = parse_shown(after)
        if shown is None:
            page = super().peek(queue, state=state, limit=limit, after=after)
            if page:
                return page
            shown = (0, 0)
        return peek_theirs(self.theirs, queue, state, limit, shown)

    def dead(self, queue: str | None = None, *, limit: int = 100, after: str | None = None) -> list[DeadLetter]:
        """Dead letters of both layouts, newest first. See the port."""
        ours_after, theirs_after = parse_letters(after)
        ours = super().dead(queue, limit=limit, after=ours_after)
        names = self._known() if queue is None else [queue]
        theirs = [letter for name in names for letter in self.theirs.dead(name, limit, theirs_after)]
        return merged(ours, theirs, limit, ours_after, theirs_after)

    def dead_letters(self, ids: Collection[str]) -> list[DeadLetter]:
        """Those of these dead letters that are there, with their history."""
        found = {letter.id: letter for letter in super().dead_letters(ids)}
        for queue in self._known():
            missing = [id_ for id_ in ids if id_ not in found]
            if missing:
                found |= {letter.id: letter for letter in self.theirs.dead_letters(queue, missing)}
        return [found[id_] for id_ in ids if id_ in found]

    def move(self, replacements: Mapping[str, Envelope]) -> int:
        """Puts dead letters back into queues of their own layout. See the port."""
        check_step(replacements)
        for envelope in replacements.values():
            check_envelope(envelope, self._max_body)
        by_queue: dict[str, dict[str, Envelope]] = {}
        for id_, envelope in replacements.items():
            by_queue.setdefault(envelope.queue, {})[id_] = envelope
        count = sum(self.theirs.replace(queue, some) for queue, some in by_queue.items())
        if not self.wire:
            return count + super().move(replacements)
        ours = {letter.id for letter in super().dead_letters(replacements)}
        self.push([envelope for id_, envelope in replacements.items() if id_ in ours])
        return count + super().drop(ours)

    def drop(self, ids: Collection[str]) -> int:
        """Deletes dead letters; returns how many of them were there."""
        count = super().drop(ids)
        return count + sum(self.theirs.replace(queue, dict.fromkeys(ids)) for queue in self._known())

    def purge(self, queue: str, *, dead: bool = False) -> int:
        """Deletes what is ready or delayed now, or else what is dead, of both layouts; returns how many."""
        count = super().purge(queue, dead=dead)
        return count + (self.theirs.purge_dead(queue) if dead else self.theirs.purge(queue))


def _sum(ours: Counts, theirs: Counts) -> Counts:
    return Counts(*(getattr(ours, name) + getattr(theirs, name) for name in Counts.__struct_fields__))
