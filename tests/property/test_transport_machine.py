"""Random lives of messages, held against a model that is small enough to be seen to be right.

The model is one list of messages. Both engines have to agree with it on every claim (which messages, in which order,
which attempt), on every answer to a settlement, and on what is left in the end.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from greenroom.board import Fate
from greenroom.clock import Clock
from greenroom.core.verdict import Verdict
from greenroom.engines.memory.transport import MemoryTransport
from greenroom.engines.sqlite.transport import SqliteTransport
from greenroom.ports.admin import Counts
from greenroom.ports.transport import MAX_TRIP, Consumer, Delivery, Envelope, ErrorText, Settlement
from greenroom.testing.clock import ManualClock
from greenroom.testing.contract.kit import envelope

QUEUES = ("a", "b", "c")
CONSUMERS = 2
#: How many messages a consumer runs at a time.
PLACES = 2
#: How many incidents a history holds.
HISTORY_LENGTH = 25

queues = st.sampled_from(QUEUES)
some_queues = st.sets(queues, min_size=1)
priorities = st.sampled_from([-1000, -1, 0, 0, 0, 1, 1000])
#: Few and round, so that the clock often stands exactly at a due time.
delays = st.none() | st.sampled_from([-10, 0, 10, 20, 50])
#: Garbage, all of it: an engine does not look into bodies.
garbage = st.sampled_from([b"", b"{", b"\xff\x00", b'"\\ud800"']) | st.binary(max_size=6)
pushes = st.lists(st.tuples(queues, priorities, delays, garbage), min_size=1, max_size=4)
consumer_numbers = st.integers(min_value=0, max_value=CONSUMERS - 1)
#: A verdict, the delay of its release or retry, whether it pushes a message too.
verdicts = st.tuples(st.sampled_from(list(Verdict)), delays, st.booleans())


@dataclass
class Kept:
    """What the model knows of a message."""

    envelope: Envelope
    number: int
    due_ms: int | None
    attempt: int = 0
    crashes: int = 0
    incidents: int = 0
    owner: Any = None  # a Client, or None

    @property
    def place(self) -> tuple[int, int]:
        return self.envelope.priority, self.number


@dataclass(eq=False)
class Client:
    """A consumer and what the model knows of it."""

    consumer: Consumer
    subscribed: set[str] = field(default_factory=set)
    paused: set[str] = field(default_factory=set)
    held: list[Delivery] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.board = self.consumer.board(PLACES)


class TransportMachine(RuleBasedStateMachine):
    """Subclasses say which engine."""

    def make(self, folder: Path, clock: Clock) -> Any:
        raise NotImplementedError

    def kill(self, consumer: Any) -> None:
        """The process of this consumer is gone, as far as the engine can tell."""
        raise NotImplementedError

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.clock = ManualClock()
        self.transport = self.make(Path(self.folder.name), self.clock)
        self.clients: list[Client] = []
        self.alive: dict[str, Kept] = {}
        self.dead: dict[str, tuple[Envelope, ErrorText | None, int, int]] = {}
        self.stale: list[Delivery] = []  # settled by their owners, or taken from them
        self.pushed = 0

    def teardown(self) -> None:
        """Whatever happened: nothing is lost, nothing comes twice, nothing comes that should be gone."""
        try:
            self.nothing_is_lost()
        finally:
            for client in self.clients:
                client.consumer.close()
            self.transport.close()
            self.folder.cleanup()

    def nothing_is_lost(self) -> None:
        for client in self.clients:
            client.consumer.close()
            self.model_gives_back(client)
        self.clock.advance_ms(1_000_000)
        last = Client(self.transport.consumer("last"))
        self.clients.append(last)
        self.model_subscribes(last, set(QUEUES))
        while self.alive:
            before = len(self.alive)
            self.claim_and_compare(last, 7)
            self.trip(last, [Settlement(delivery, Verdict.ACK) for delivery in last.held])
            assert len(self.alive) < before
        assert not last.consumer.exchange((), MAX_TRIP).deliveries
        letters = {letter.id: letter for letter in self.transport.dead(limit=MAX_TRIP)}
        assert letters.keys() == self.dead.keys()
        for storage_id, (sent, *end) in self.dead.items():
            letter = letters[storage_id]
            assert [letter.error, letter.attempt, letter.crashes] == end
            assert (letter.queue, letter.body) == (sent.queue, sent.body)

    # The model

    def is_claimable(self, kept: Kept, client: Client, skip: frozenset[str]) -> bool:
        queue = kept.envelope.queue
        is_due = kept.due_ms is None or kept.due_ms <= self.clock.now_ms()
        is_open = queue in client.subscribed and queue not in client.paused and queue not in skip
        return kept.owner is None and is_due and is_open

    def model_pushes(self, sent: Envelope, crashes: int = 0, incidents: int = 0) -> None:
        self.alive[sent.id] = Kept(sent, self.pushed, sent.due_ms, crashes=crashes, incidents=incidents)
        self.pushed += 1

    def model_subscribes(self, client: Client, names: set[str]) -> None:
        client.consumer.subscribe(names)
        client.subscribed |= names
        client.paused -= names

    def model_gives_back(self, client: Client) -> None:
        for kept in self.alive.values():
            if kept.owner is client:
                kept.owner, kept.due_ms = None, None
        self.stale += client.held
        client.held = []

    def model_settles(self, settlement: Settlement) -> None:
        kept = self.alive[settlement.delivery.id]
        if settlement.verdict is Verdict.RELEASE:
            kept.owner, kept.due_ms = None, settlement.due_ms
            kept.incidents += settlement.error is not None
        else:
            del self.alive[settlement.delivery.id]
        if settlement.verdict is Verdict.DEAD:
            self.dead[kept.envelope.id] = (kept.envelope, settlement.error, kept.attempt, kept.crashes)
        if settlement.retry is not None:
            self.model_pushes(settlement.retry, kept.crashes, kept.incidents + 1)
        for sent in settlement.push:
            self.model_pushes(sent)

    # Steps

    def new_envelope(self, queue: str, priority: int, delay: int | None, garbage: bytes = b"\xff") -> Envelope:
        due_ms = None if delay is None else self.clock.now_ms() + delay
        return envelope(garbage, queue, priority=priority, due_ms=due_ms)

    def claim_and_compare(self, client: Client, limit: int, skip: frozenset[str] = frozenset()) -> None:
        open_to_it = sorted(
            (kept for kept in self.alive.values() if self.is_claimable(kept, client, skip)), key=lambda kept: kept.place
        )
        answer = client.consumer.exchange((), limit, skip)
        expected = open_to_it[:limit]
        for kept in expected:
            kept.attempt += 1
            kept.owner = client
        assert [(d.id, d.queue, d.body, d.attempt, d.redelivered, d.crashes) for d in answer.deliveries] == [
            (k.envelope.id, k.envelope.queue, k.envelope.body, k.attempt, k.attempt > 1, k.crashes) for k in expected
        ]
        if expected:
            history = client.consumer.history(answer.deliveries[-1])
            assert len(history) == min(expected[-1].incidents, HISTORY_LENGTH)
        if len(open_to_it) > limit > 0:
            assert answer.more
        if len(open_to_it) < limit:
            assert not answer.more
        client.held += answer.deliveries

    def trip(self, client: Client, settle: list[Settlement]) -> None:
        """Settles what the client holds: all of it is applied."""
        answer = client.consumer.exchange(settle, 0)
        assert list(answer.settled) == settle
        assert not answer.lost
        assert not answer.refused
        assert not answer.deliveries
        for settlement in settle:
            self.model_settles(settlement)
            client.held.remove(settlement.delivery)
            self.stale.append(settlement.delivery)

    # Rules

    # Hypothesis leaves out some of the rules in each run, so there are few, and the first ones do much.

    @initialize(names=some_queues, batch=pushes)
    def begin(self, names: set[str], batch: list[tuple[str, int, int | None, bytes]]) -> None:
        for number, subscribed in enumerate((set(QUEUES), names)):
            self.clients.append(Client(self.transport.consumer(f"consumer {number}")))
            self.model_subscribes(self.clients[-1], subscribed)
        self.push(batch)

    @rule(batch=pushes)
    def push(self, batch: list[tuple[str, int, int | None, bytes]]) -> None:
        sent = []
        for how in batch:
            sent.append(self.new_envelope(*how))
            self.model_pushes(sent[-1])
        self.transport.push(sent)

    @rule(
        number=consumer_numbers,
        limit=st.integers(min_value=0, max_value=5),
        skip=st.just(set()) | st.sets(queues),
        chosen=st.lists(verdicts, max_size=5),
        backwards=st.booleans(),
        answer_is_lost=st.booleans(),
    )
    def work(
        self,
        number: int,
        limit: int,
        skip: set[str],
        chosen: list[tuple[Verdict, int | None, bool]],
        backwards: bool,
        answer_is_lost: bool,
    ) -> None:
        """Claims some, then settles some of what it holds, perhaps twice."""
        client = self.clients[number]
        self.claim_and_compare(client, limit, frozenset(skip))
        held = client.held[::-1] if backwards else client.held[:]
        settle = [self.new_settlement(delivery, *how) for delivery, how in zip(held, chosen, strict=False)]
        self.trip(client, settle)
        if answer_is_lost:
            self.repeat(client, settle)

    def repeat(self, client: Client, settle: list[Settlement]) -> None:
        """The same trip gets the same answer, and nothing changes."""
        answer = client.consumer.exchange(settle, 0)
        assert list(answer.settled) == settle
        assert not answer.lost
        assert not answer.refused

    def new_settlement(self, delivery: Delivery, verdict: Verdict, delay: int | None, pushes: bool) -> Settlement:
        due_ms = None if delay is None else self.clock.now_ms() + delay
        return Settlement(
            delivery,
            verdict,
            retry=self.new_envelope(delivery.queue, delay or 0, delay) if verdict is Verdict.RETRY else None,
            due_ms=due_ms if verdict is Verdict.RELEASE else None,
            push=(self.new_envelope("b", 0, None),) if pushes else (),
            error=ErrorText("Error", "because", "at line 1") if pushes else None,
        )

    @precondition(lambda self: self.stale or any(client.held for client in self.clients))
    @rule(data=st.data(), how=verdicts)
    def settle_what_is_not_ours(self, data: st.DataObject, how: tuple[Verdict, int | None, bool]) -> None:
        """A settlement of what was settled before, or belongs to somebody else, changes nothing."""
        foreign = [(delivery, client) for client in self.clients for delivery in client.held]
        old = [(delivery, None) for delivery in self.stale[-5:]]
        delivery, owner = data.draw(st.sampled_from(foreign + old))
        client = data.draw(st.sampled_from([client for client in self.clients if client is not owner]))
        settlement = self.new_settlement(delivery, *how)
        answer = client.consumer.exchange([settlement], 0)
        assert [*answer.lost, *answer.settled] == [settlement]
        if owner is not None:
            assert answer.lost

    @rule(ms=st.sampled_from([9, 10, 20]))
    def advance(self, ms: int) -> None:
        self.clock.advance_ms(ms)

    @rule(number=consumer_numbers, names=some_queues, pause=st.booleans())
    def subscribe_or_pause(self, number: int, names: set[str], pause: bool) -> None:
        client = self.clients[number]
        if pause:
            client.consumer.pause(names)
            client.paused |= names
        else:
            self.model_subscribes(client, names)

    @rule(number=consumer_numbers, names=some_queues)
    def replace_a_consumer(self, number: int, names: set[str]) -> None:
        """What a closed consumer held goes back to where it stood."""
        client = self.clients[number]
        client.consumer.close()
        self.model_gives_back(client)
        self.clients[number] = Client(self.transport.consumer(f"consumer {number} again"))
        self.model_subscribes(self.clients[number], names)

    @rule(
        number=consumer_numbers,
        limit=st.integers(min_value=1, max_value=5),
        running=st.integers(min_value=0, max_value=PLACES),
        on_purpose=st.booleans(),
        comes_back=st.booleans(),
    )
    def crash(self, number: int, limit: int, running: int, on_purpose: bool, comes_back: bool) -> None:
        """A process claims some and dies, or seems to. Somebody looks: what ran is charged, unless it was meant, and
        all is given back. If it lives all the same it goes on, and what it held is stale."""
        client = self.clients[number]
        self.claim_and_compare(client, limit)
        ran = client.held[:running]
        for place, delivery in enumerate(ran):
            client.board.cells[place] = delivery.mark
        client.board.write_fate(Fate.ENDED_ON_PURPOSE if on_purpose else Fate.DIED, -9)
        self.kill(client.consumer)
        self.reap(1 - number)
        if not on_purpose:
            for kept in (self.alive[delivery.id] for delivery in ran):
                kept.crashes += 1
                kept.incidents += 1
        self.model_gives_back(client)
        if comes_back:
            client.board = client.consumer.board(PLACES)
            self.reap(number)
        else:
            self.clients[number] = Client(self.transport.consumer(f"consumer {number} again"))
            self.model_subscribes(self.clients[number], client.subscribed)
            client.consumer.close()

    @rule(number=consumer_numbers)
    def reap(self, number: int) -> None:
        """A look for the dead. Where nobody has died nothing changes."""
        consumer = self.clients[number].consumer
        consumer.reap_soon()
        assert not consumer.exchange((), 0).deliveries

    @rule(queue=queues, dead=st.booleans(), dice=st.integers(min_value=0, max_value=3))
    def purge(self, queue: str, dead: bool, dice: int) -> None:
        if dice:  # seldom, or there would be little left to look at
            return
        if dead:
            gone = [storage_id for storage_id, (sent, *_) in self.dead.items() if sent.queue == queue]
            for storage_id in gone:
                del self.dead[storage_id]
        else:
            gone = [k.envelope.id for k in self.alive.values() if k.envelope.queue == queue and k.owner is None]
            for storage_id in gone:
                del self.alive[storage_id]
        assert self.transport.purge(queue, dead=dead) == len(gone)

    @invariant()
    def counts_agree(self) -> None:
        """What is due but not yet promoted may count as ready or as delayed; all else is told apart."""
        counts = self.transport.counts(QUEUES)
        now_ms = self.clock.now_ms()
        for queue in QUEUES:
            kept = [k for k in self.alive.values() if k.envelope.queue == queue]
            claimed = sum(k.owner is not None for k in kept)
            delayed = sum(k.owner is None and k.due_ms is not None and k.due_ms > now_ms for k in kept)
            dead = sum(sent.queue == queue for sent, *_ in self.dead.values())
            found: Counts = counts[queue]
            assert (found.claimed, found.dead) == (claimed, dead)
            assert found.ready + found.delayed == len(kept) - claimed
            assert found.delayed >= delayed


class MemoryMachine(TransportMachine):
    def make(self, folder: Path, clock: Clock) -> Any:
        return MemoryTransport(clock=clock)

    def kill(self, consumer: Any) -> None:
        consumer.abandon()


class SqliteMachine(TransportMachine):
    def make(self, folder: Path, clock: Clock) -> Any:
        return SqliteTransport(folder / "queue.db", clock=clock)

    def kill(self, consumer: Any) -> None:
        owner = consumer._owner
        owner._locks.unlock(owner.slot, owner)


modest = settings(
    max_examples=200,
    stateful_step_count=50,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)


class TestMemoryMachine(MemoryMachine.TestCase):
    settings = modest


class TestSqliteMachine(SqliteMachine.TestCase):
    settings = settings(modest, max_examples=100)
