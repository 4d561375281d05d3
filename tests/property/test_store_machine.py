"""Random lives of a store, held against a model that is small enough to be seen to be right.

The model keeps everything it was ever told in lists and asks them each time: how many grants lie in the last window,
whose slots have not ended, who is missing in a set. Both engines have to agree with it on every answer, on what becomes
claimable, and on what completions push: once, whatever was given back, settled late or repeated before.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from greenroom.clock import Clock
from greenroom.core.verdict import Verdict
from greenroom.engines.memory.store import MemoryStore
from greenroom.engines.memory.transport import MemoryTransport
from greenroom.engines.redis.store import RedisStore
from greenroom.engines.redis.transport import RedisTransport
from greenroom.engines.sqlite.store import SqliteStore
from greenroom.engines.sqlite.transport import SqliteTransport
from greenroom.ports.store import (
    Add,
    Bump,
    Delete,
    Get,
    GetParts,
    Grant,
    Lease,
    LeaseRelease,
    LeaseRenew,
    LeaseTake,
    Progress,
    Put,
    PutIf,
    SetAdd,
    SetDrop,
    SetLook,
    SetRemove,
    StoreOp,
)
from greenroom.ports.transport import MAX_TRIP, Delivery, Envelope, Settlement, pack
from greenroom.testing.clock import ManualClock
from greenroom.testing.contract.kit import envelope

WINDOW_MS = 20

keys = st.sampled_from(["a", "b"])
ttls = st.sampled_from([None, 5, 10, 40])
bodies = st.sampled_from([b"", b"1", b"2"])
parts = st.sampled_from([0, 0, 1, 7])
bounds = st.none() | st.integers(-2, 4)
members = st.sampled_from(["1", "2", "3"])
holders = st.sampled_from(["x", "y", "z"])
sets = st.sampled_from(["in", "mid", "out"])
#: A set may be a member of the next one, never of itself.
PARENTS = {"in": ("mid", "1"), "mid": ("out", "1"), "out": None}

values = (
    st.builds(Put, keys, bodies, ttls, parts)
    | st.builds(PutIf, keys, bodies, st.none() | bodies, ttls)
    | st.builds(Get, keys, parts)
    | st.builds(GetParts, keys, st.integers(0, 7), st.integers(1, 3))
    | st.builds(Delete, keys, st.none() | parts)
    | st.builds(Add, keys, st.integers(0, 3), ttls)
    | st.builds(Bump, keys, st.integers(-2, 2), bounds, bounds, ttls, st.sampled_from([(), ("a", "b")]), st.booleans())
)
limits = st.builds(
    Grant, st.just("slides"), st.sampled_from([2, 2, 2, 2, 3, 1, 0]), st.just(WINDOW_MS), st.just(True)
) | st.builds(Grant, st.just("jumps"), st.integers(0, 3), st.just(WINDOW_MS), st.just(False))
slots = (
    st.builds(LeaseTake, st.just("slot"), holders, st.integers(1, 2), st.sampled_from([10, 30]))
    | st.builds(LeaseRenew, st.just("slot"), holders, st.sampled_from([10, 30]))
    | st.builds(LeaseRelease, st.just("slot"), holders)
)
gatherings = (
    st.builds(SetAdd, sets, st.lists(members, max_size=3).map(tuple), st.sampled_from([None, None, 50]))
    | st.builds(SetRemove, sets, members, st.booleans())
    | st.builds(SetRemove, sets, members, st.booleans())
    | st.builds(SetLook, sets)
    | st.builds(SetDrop, sets)
)
#: Mostly of one kind: what is done to one key counts, not how many keys there are.
operations = st.one_of([st.lists(kind, min_size=1, max_size=4) for kind in (values, limits, slots, gatherings)])


@dataclass
class ModelSet:
    """What the model knows of a set."""

    end_ms: float
    then: list[bytes]
    then_ok: list[bytes]
    parent: tuple[str, str] | None
    outcomes: dict[str, bool | None] = field(default_factory=dict)

    def progress(self) -> Progress:
        outcomes = list(self.outcomes.values())
        return Progress(len(outcomes), outcomes.count(None), outcomes.count(True))


class Model:
    """What a store has to do, in as few words as possible."""

    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        self.values: dict[tuple[str, int], tuple[Any, float]] = {}
        self.grants: dict[tuple[str, bool], list[int]] = {}
        self.slots: dict[tuple[str, str], int] = {}
        self.line: list[tuple[str, LeaseTake]] = []
        self.sets: dict[str, ModelSet] = {}
        self.ready: set[bytes] = set()

    def do(self, op: StoreOp) -> Any:
        return getattr(self, type(op).__name__.lower())(op)

    def end(self, ttl_ms: int | None) -> float:
        return float("inf") if ttl_ms is None else self.clock.now_ms() + ttl_ms

    # --- values

    def value(self, key: str, part: int = 0) -> Any:
        value, end_ms = self.values.get((key, part), (None, 0))
        return value if end_ms > self.clock.now_ms() else None

    def put(self, op: Put) -> None:
        self.values[op.key, op.part] = op.value, self.end(op.ttl_ms)

    def get(self, op: Get) -> Any:
        return self.value(op.key, op.part)

    def getparts(self, op: GetParts) -> list[tuple[int, Any]]:
        known = sorted(part for key, part in self.values if key == op.key and part >= op.start)
        return [(part, self.value(op.key, part)) for part in known if self.value(op.key, part) is not None][: op.limit]

    def putif(self, op: PutIf) -> bool:
        fits = self.value(op.key) == op.expect
        if fits:
            self.put(Put(op.key, op.value, op.ttl_ms))
        return fits

    def delete(self, op: Delete) -> bool:
        meant = [at for at in self.values if at[0] == op.key and op.part in (None, at[1])]
        was_there = any(self.value(*at) is not None for at in meant)
        for at in meant:
            del self.values[at]
        return was_there

    def add(self, op: Add) -> bool:
        fits = self.value(op.key) is None
        if fits:
            self.values[op.key, 0] = op.value, self.end(op.ttl_ms)
        return fits

    def bump(self, op: Bump) -> int | None:
        old = self.value(op.key)
        if isinstance(old, bytes) or (old is None and op.only_existing):
            return None
        new = (old or 0) + op.amount
        others = [self.value(key) for key in {*op.also} - {op.key}]
        judged = new + sum(other for other in others if isinstance(other, int))
        if (op.low is not None and judged < op.low) or (op.high is not None and judged > op.high):
            return None
        self.values[op.key, 0] = new, self.end(op.ttl_ms)
        return int(new)

    # --- windows

    def grant(self, op: Grant) -> int:
        now_ms = self.clock.now_ms()
        granted = self.grants.setdefault((op.key, op.sliding), [])
        start_ms = now_ms - op.window_ms if op.sliding else now_ms // op.window_ms * op.window_ms - 1
        recent = [at_ms for at_ms in granted if at_ms > start_ms]
        if len(recent) < op.limit:
            granted.append(now_ms)
            return 0
        if not op.sliding:
            return start_ms + 1 + op.window_ms
        return (recent[-op.limit] if op.limit else now_ms) + op.window_ms

    # --- slots

    def held(self, key: str) -> list[int]:
        return [end_ms for (of, _), end_ms in self.slots.items() if of == key]

    def serve(self) -> None:
        """Ends what has ended, and lets the line in."""
        self.slots = {at: end_ms for at, end_ms in self.slots.items() if end_ms > self.clock.now_ms()}
        for body, op in list(self.line):
            ahead = next(other for other in self.line if other[1].key == op.key)
            if ahead == (body, op) and len(self.held(op.key)) < op.limit:
                self.line.remove((body, op))
                self.slots[op.key, op.holder] = self.clock.now_ms() + op.ttl_ms
                self.ready.add(body.encode())

    def leasetake(self, op: LeaseTake) -> int:
        """The end of the slot, or minus the time at which to ask again."""
        self.serve()
        at = op.key, op.holder
        if at not in self.slots:
            raised = [LeaseTake(op.key, waiting.holder, op.limit, waiting.ttl_ms) for _, waiting in self.line]
            for (body, waiting), better in zip(list(self.line), raised, strict=True):
                if waiting.key == op.key and len(self.held(op.key)) < op.limit:
                    self.line.remove((body, waiting))
                    self.slots[op.key, better.holder] = self.clock.now_ms() + better.ttl_ms
                    self.ready.add(body.encode())
            if len(self.held(op.key)) >= op.limit:
                return -min(self.held(op.key))
        self.slots[at] = self.clock.now_ms() + op.ttl_ms
        return self.slots[at]

    def leaserenew(self, op: LeaseRenew) -> bool:
        is_held = self.slots.get((op.key, op.holder), 0) > self.clock.now_ms()
        if is_held:
            self.slots[op.key, op.holder] = self.clock.now_ms() + op.ttl_ms
        return is_held

    def leaserelease(self, op: LeaseRelease) -> bool:
        was_held = self.slots.pop((op.key, op.holder), 0) > self.clock.now_ms()
        self.serve()
        return was_held

    # --- sets

    def known(self, key: str) -> ModelSet | None:
        found = self.sets.get(key)
        return found if found is not None and found.end_ms > self.clock.now_ms() else None

    def setadd(self, op: SetAdd) -> Progress:
        found = self.known(op.key)
        made = found is None
        if found is None:
            found = ModelSet(self.end(op.ttl_ms), list(op.then), list(op.then_ok), op.parent)
            self.sets[op.key] = found
        if made or found.progress().left:
            for member in op.members:
                found.outcomes.setdefault(member, None)
        if made and not found.outcomes:
            self.complete(found)
        return found.progress()

    def setremove(self, op: SetRemove) -> Progress | None:
        found = self.known(op.key)
        if found is None:
            return None
        if found.outcomes.get(op.member, True) is None:
            found.outcomes[op.member] = op.failed
            if not found.progress().left:
                self.complete(found)
        return found.progress()

    def complete(self, found: ModelSet) -> None:
        failed = found.progress().failed
        self.ready.update(found.then if failed else found.then + found.then_ok)
        if found.parent is not None:
            self.setremove(SetRemove(*found.parent, failed=failed > 0))

    def setlook(self, op: SetLook) -> Progress | None:
        found = self.known(op.key)
        return None if found is None else found.progress()

    def setdrop(self, op: SetDrop) -> bool:
        was_there = self.known(op.key) is not None
        self.sets.pop(op.key, None)
        return was_there


class StoreMachine(RuleBasedStateMachine):
    """Subclasses say which engine."""

    def make(self, folder: Path, clock: Clock) -> Any:
        raise NotImplementedError

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.clock = ManualClock()
        self.store = self.make(Path(self.folder.name), self.clock)
        self.model = Model(self.clock)
        self.consumer = self._subscribed()
        self.held: list[Delivery] = []
        self.stale: list[Delivery] = []
        self.number = 0

    def _subscribed(self) -> Any:
        consumer = self.store.transport.consumer("machine")
        consumer.subscribe(["default"])
        return consumer

    def teardown(self) -> None:
        self.store.transport.close()
        self.store.close()
        self.folder.cleanup()

    def _envelope(self, writes: tuple[StoreOp, ...] = ()) -> Envelope:
        self.number += 1
        return Envelope("default", str(self.number), str(self.number).encode(), writes=writes)

    def _with_plan(self, op: StoreOp) -> tuple[StoreOp, StoreOp]:
        """A set gets a plan of its own: packed for the engine, as bodies for the model."""
        if not isinstance(op, SetAdd):
            return op, op
        then, then_ok = self._envelope(), self._envelope()
        parent = PARENTS[op.key]
        theirs = SetAdd(op.key, op.members, op.ttl_ms, (pack(then),), (pack(then_ok),), parent)
        return theirs, SetAdd(op.key, op.members, op.ttl_ms, (then.body,), (then_ok.body,), parent)

    def _check(self, op: StoreOp, answer: Any) -> None:
        expected = self.model.do(op)
        if isinstance(op, LeaseTake):
            assert isinstance(answer, Lease)
            assert (answer.until_ms if answer.fence else -answer.until_ms) == expected
            return
        assert answer == expected, op

    @initialize()
    def begin(self) -> None:
        """Some messages are there from the start."""
        self.push(3)

    @rule(count=st.integers(1, 3))
    def push(self, count: int) -> None:
        batch = [self._envelope() for _ in range(count)]
        self.store.transport.push(batch)
        self.model.ready.update(sent.body for sent in batch)

    @rule(ops=operations)
    def push_with_writes(self, ops: list[StoreOp]) -> None:
        pairs = [self._with_plan(op) for op in ops]
        sent = self._envelope(tuple(theirs for theirs, _ in pairs))
        self.store.transport.push([envelope(b"", "elsewhere"), sent])
        self.model.ready.add(sent.body)
        for _, ours in pairs:
            self.model.do(ours)

    @rule(ops=operations)
    def apply(self, ops: list[StoreOp]) -> None:
        pairs = [self._with_plan(op) for op in ops]
        answers = self.store.apply([theirs for theirs, _ in pairs])
        for (_, ours), answer in zip(pairs, answers, strict=True):
            self._check(ours, answer)

    @rule(ms=st.sampled_from([1, 5, 10, 20, 50]))
    def advance(self, ms: int) -> None:
        self.clock.advance_ms(ms)

    @rule(limit=st.integers(1, 5))
    def purge(self, limit: int) -> None:
        """Nobody sees a purge."""
        assert 0 <= self.store.purge(limit) <= limit

    @rule()
    def claim(self) -> None:
        """What is claimed is what the model takes for ready."""
        self.model.serve()
        answer = self.consumer.exchange((), MAX_TRIP)
        found = list(answer.deliveries)
        while answer.more:  # a trip may learn that slots have ended, and then it takes another one
            answer = self.consumer.exchange((), MAX_TRIP)
            found += answer.deliveries
        assert {delivery.body for delivery in found} == self.model.ready
        assert len(found) == len(self.model.ready)
        self.model.ready.clear()
        self.held += found

    @precondition(lambda self: self.held)
    @rule(verdict=st.sampled_from([Verdict.ACK, Verdict.DEAD, Verdict.RELEASE]), ops=operations, data=st.data())
    def settle(self, verdict: Verdict, ops: list[StoreOp], data: st.DataObject) -> None:
        """What a settlement writes is done with it, and once, also if the trip is made again."""
        pairs = [self._with_plan(op) for op in ops]
        delivery = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
        settlement = Settlement(delivery, verdict, writes=tuple(theirs for theirs, _ in pairs))
        repeats = 2 if verdict is not Verdict.RELEASE and data.draw(st.booleans()) else 1
        for _ in range(repeats):
            assert list(self.consumer.exchange([settlement], 0).settled) == [settlement]
        if verdict is Verdict.RELEASE:
            self.model.ready.add(delivery.body)
        for _, ours in pairs:
            self.model.do(ours)
        self.model.serve()  # a trip hands on what has ended

    @precondition(lambda self: self.held)
    @rule(limit=st.integers(1, 2), ttl_ms=st.sampled_from([10, 30]))
    def park(self, limit: int, ttl_ms: int) -> None:
        """A message that is parked is ready if there is a slot for it, else it stands in line."""
        delivery = self.held.pop(0)
        slot = LeaseTake("slot", delivery.id, limit, ttl_ms)
        settlement = Settlement(delivery, Verdict.RELEASE, park=slot)
        assert list(self.consumer.exchange([settlement], 0).settled) == [settlement]
        if self.model.leasetake(slot) > 0:
            self.model.ready.add(delivery.body)
        else:
            self.model.line.append((delivery.body.decode(), slot))
        self.model.serve()

    @precondition(lambda self: self.model.slots)
    @rule(data=st.data())
    def free_a_slot(self, data: st.DataObject) -> None:
        """Whoever has it gives it back."""
        holder = data.draw(st.sampled_from(sorted(holder for _, holder in self.model.slots)))
        release = LeaseRelease("slot", holder)
        self._check(release, self.store.apply([release])[0])

    @rule()
    def give_back(self) -> None:
        """A consumer ends with what it holds; another one goes on."""
        self.consumer.close()
        self.consumer = self._subscribed()
        self.model.ready.update(delivery.body for delivery in self.held)
        self.stale += self.held
        self.held = []

    @precondition(lambda self: self.stale)
    @rule(ops=operations)
    def settle_too_late(self, ops: list[StoreOp]) -> None:
        """What is not held any more writes nothing."""
        writes = tuple(self._with_plan(op)[0] for op in ops)
        settlement = Settlement(self.stale.pop(), Verdict.ACK, writes=writes)
        assert list(self.consumer.exchange([settlement], 0).lost) == [settlement]
        self.model.serve()

    @invariant()
    def nobody_passes_a_limit(self) -> None:
        """In no stretch of a window's length are more granted than the largest limit."""
        for (_, sliding), granted in self.model.grants.items():
            for at_ms in granted:
                stretch = [other for other in granted if at_ms <= other < at_ms + WINDOW_MS]
                assert len(stretch) <= (3 if sliding else 6)


class MemoryStoreMachine(StoreMachine):
    def make(self, folder: Path, clock: Clock) -> Any:
        return MemoryStore(MemoryTransport(clock=clock))


class SqliteStoreMachine(StoreMachine):
    def make(self, folder: Path, clock: Clock) -> Any:
        return SqliteStore(SqliteTransport(folder / "queue.db", clock=clock))


class RedisStoreMachine(StoreMachine):
    url = ""

    def make(self, folder: Path, clock: Clock) -> Any:
        client = redis.Redis.from_url(self.url)
        return RedisStore(RedisTransport(client, namespace=folder.name, clock=clock))


modest = settings(
    max_examples=100,
    stateful_step_count=40,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)


class TestMemoryStoreMachine(MemoryStoreMachine.TestCase):
    settings = modest


class TestSqliteStoreMachine(SqliteStoreMachine.TestCase):
    settings = modest


class TestRedisStoreMachine(RedisStoreMachine.TestCase):
    settings = modest

    @pytest.fixture(autouse=True)
    def _server(self, redis_shared: Any) -> None:
        RedisStoreMachine.url = redis_shared.url
