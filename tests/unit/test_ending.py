"""What is kept beside a message travels with its settlement, or goes before it to a store that is not the broker."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from greenroom import Message, Middleware, actor, errors
from greenroom.brokers.stub import StubBroker
from greenroom.core.ending import Ending, Outcome
from greenroom.core.run import Run
from greenroom.core.verdict import Verdict
from greenroom.engines.memory.store import MemoryStore
from greenroom.engines.memory.transport import MemoryTransport
from greenroom.middleware import AgeLimit, Retries, SkipMessage
from greenroom.names import new_storage_id
from greenroom.ports.store import Get, Put
from greenroom.ports.transport import Delivery, Envelope, Settlement
from greenroom.runtime.endings import readable_part, sealed
from greenroom.runtime.slot import Slot
from greenroom.runtime.steps import Steps, run_sync
from tests.runtime.cli_kit import wait_until
from tests.runtime.worker_kit import EngineTestBroker, working


class Witness(Middleware):
    """Keeps the endings, and a word of each in a store."""

    def __init__(self, store: Any = None, idle: bool = False) -> None:
        self.store = store
        self.endings: list[Ending] = []
        self.threads: list[str] = []
        self.idle = idle

    def idle_hooks(self, actor: Any) -> frozenset[str]:
        return frozenset({"ending"}) if self.idle else frozenset()

    def ending(self, broker: Any, ending: Ending) -> None:
        self.endings.append(ending)
        self.threads.append(threading.current_thread().name)
        ending.keep(self.store or broker.store, Put("last", ending.outcome.value.encode()))

    @property
    def only(self) -> Ending:
        (ending,) = self.endings
        return ending


def run_one(broker: StubBroker, function: Callable[..., Any], **options: Any) -> Run:
    """Takes one message of an actor with this function through all steps."""
    work = actor(function, broker=broker, actor_name="work")
    message = Message("default", "work", (), {}, options)
    run = Run(message, Delivery("default", "id", message.encode(), 1, 1), work)
    run.slot = Slot(0)
    run_sync(Steps(broker), run, broker.clock.monotonic)
    return run


def fail() -> None:
    raise RuntimeError("reason")


class Veto(Middleware):
    def before_process_message(self, broker: Any, message: Any) -> None:
        raise SkipMessage("not now")


class Exits(Middleware):
    def before_ack(self, broker: Any, message: Any) -> None:
        raise SystemExit(3)


def test_a_success() -> None:
    """An ending says what the actor has returned; what is to be kept travels with the settlement."""
    witness = Witness()
    run = run_one(StubBroker([witness]), lambda: 42)
    assert (witness.only.outcome, witness.only.result, witness.only.error) == (Outcome.DONE, 42, None)
    assert run.settlement == Settlement(run.delivery, Verdict.ACK, writes=(Put("last", b"done"),))
    assert run.ending is None


@pytest.mark.parametrize(
    ("middleware", "options", "outcome", "verdict", "error"),
    [
        ([Retries(max_retries=0)], {}, Outcome.FAILED, Verdict.DEAD, "RuntimeError"),
        ([], {}, Outcome.FAILED, Verdict.ACK, "RuntimeError"),
        ([Retries()], {}, Outcome.RETRIED, Verdict.RETRY, "RuntimeError"),
        ([Veto()], {}, Outcome.SKIPPED, Verdict.ACK, None),
        ([AgeLimit()], {"max_age": 0}, Outcome.EXPIRED, Verdict.DEAD, "SkipMessage"),
        ([Exits()], {}, Outcome.FAILED, Verdict.DEAD, "SystemExit"),
    ],
)
def test_every_other_end(
    middleware: list[Middleware], options: dict[str, Any], outcome: Outcome, verdict: Verdict, error: str | None
) -> None:
    """Whatever becomes of a message, its ending says so, with the reason, and is settled with it."""
    witness = Witness()
    run = run_one(StubBroker([*middleware, witness]), fail, **options)
    assert witness.only.outcome is outcome
    assert getattr(witness.only.error, "type", None) == error
    assert run.settlement.verdict is verdict
    assert run.settlement.writes == (Put("last", outcome.value.encode()),)


def test_a_retry_says_when_it_is_due() -> None:
    """And how many attempts have failed."""
    witness = Witness()
    run = run_one(StubBroker([Retries(), witness]), fail)
    assert witness.only.due_ms == run.settlement.retry.due_ms
    assert witness.only.retries == 1
    assert not Outcome.RETRIED.is_final
    assert Outcome.FAILED.is_final


def test_pushes_travel_too() -> None:
    """What a hook wants to be sent next is pushed in one step with the settlement."""
    following = Envelope("default", new_storage_id(), b"next")

    class Next(Middleware):
        def ending(self, broker: Any, ending: Ending) -> None:
            ending.push.append(following)

    assert run_one(StubBroker([Next()]), lambda: None).settlement.push == (following,)


def test_another_store_comes_first() -> None:
    """What is for a store that is not the broker's is not in the settlement; the run says that there is work left."""
    other = MemoryStore(MemoryTransport())
    run = run_one(StubBroker([Witness(other)]), lambda: 1)
    assert run.settlement.writes == ()
    assert [job.ops for job in run.ending.jobs] == [(Put("last", b"done"),)]
    assert other.apply([Get("last")]) == [None]


def test_a_second_store_object_on_the_same_engine_is_the_broker_itself() -> None:
    """What matters is where things are kept, not which object says so."""
    broker = StubBroker([])
    broker.add_middleware(Witness(MemoryStore(broker.transport)))
    assert run_one(broker, lambda: 1).settlement.writes == (Put("last", b"done"),)


def test_a_broken_hook_costs_nobody_else() -> None:
    """It is logged; the others are asked all the same, and the message is settled."""

    class Broken(Middleware):
        def ending(self, broker: Any, ending: Ending) -> None:
            raise RuntimeError("broken")

    run = run_one(StubBroker([Broken(), Witness()]), lambda: 1)
    assert run.settlement.writes == (Put("last", b"done"),)


def test_an_ending_that_exits_does_not_lose_the_message() -> None:
    """A hook that raises what is no ``Exception`` has its message dead-lettered with that."""

    class Broken(Middleware):
        def ending(self, broker: Any, ending: Ending) -> None:
            raise SystemExit(1)

    run = run_one(StubBroker([Broken()]), lambda: 1)
    assert run.settlement.verdict is Verdict.DEAD
    assert run.settlement.error.type == "SystemExit"


def test_an_idle_hook_is_asked_when_something_happened() -> None:
    """A middleware that has nothing to do for an actor's plain successes is asked about options and failures only."""
    for function, options, asked in ((lambda: 1, {}, 0), (lambda: 1, {"store_results": True}, 1), (fail, {}, 1)):
        witness = Witness(idle=True)
        run_one(StubBroker([witness]), function, **options)
        assert len(witness.endings) == asked


def test_nothing_is_done_where_nobody_asks() -> None:
    """Without such a middleware no ending is made and no result is kept."""
    run = run_one(StubBroker([Retries()]), lambda: [1])
    assert run.settlement == Settlement(run.delivery, Verdict.ACK)
    assert run.result is None


def test_what_is_written_with_a_message() -> None:
    """``envelope_writes`` go to the broker's own store in one step with the push, not with retries."""

    class Marks(Middleware):
        def envelope_writes(self, broker: Any, message: Any) -> tuple[Put, ...]:
            return (Put(message.message_id, b"sent"),)

    broker = StubBroker([Retries(), Marks()])
    run = run_one(broker, fail)
    assert run.settlement.verdict is Verdict.RETRY
    assert run.settlement.retry.writes == ()
    messages = [Message("default", "work", (), {}, {}) for _ in range(3)]
    broker.enqueue(messages[0])
    broker.enqueue_many(messages[1:])
    assert broker.store.apply([Get(message.message_id) for message in messages]) == [b"sent"] * 3


def test_a_settlement_without_anything_stays_what_it_is() -> None:
    """``sealed`` makes a new settlement only if something was added."""
    settlement = Settlement(Delivery("default", "id", b"", 1, 1), Verdict.ACK)
    ending = Ending(StubBroker([]), None, settlement, Outcome.DONE)
    assert sealed(ending) is settlement


@pytest.mark.parametrize(
    ("body", "message_id"),
    [
        (b'{"message_id":"a","queue_name":"q","actor_name":"x","options":{"k":1},"args":7}', "a"),
        (b'{"message_id":"a"}', "a"),
        (b'{"message_id":1}', None),
        (b"garbage", None),
        (b"[" * 100_000, None),
        (b'{"message_id":"a","options":[]}', None),
    ],
)
def test_what_can_be_read_of_a_message_that_is_none(body: bytes, message_id: str | None) -> None:
    """Id, names and options are enough to tell others of its end."""
    found = readable_part(body)
    assert (None if found is None else found.message_id) == message_id


# --- messages that never run have endings, too


def ends_as(broker: EngineTestBroker, witness: Witness) -> tuple[Outcome, str, str]:
    """Outcome, error and message id of the one message that there is, once a worker has dead-lettered it."""
    with working(broker):
        wait_until(broker.dead, "there is a dead letter")
    ending = witness.only
    assert broker.store.apply([Get("last")]) == [b"dead"]
    assert "store-writer" in witness.threads
    return ending.outcome, ending.error.type, ending.message.message_id if ending.message else ""


def memory_broker(*middleware: Middleware) -> EngineTestBroker:
    broker = EngineTestBroker(MemoryTransport(max_body=10_000), middleware, unknown_actor_ttl_ms=0)
    broker.declare_queue("default")
    return broker


def push(broker: EngineTestBroker, body: bytes) -> None:
    broker.transport.push([Envelope("default", new_storage_id(), body)])


def test_the_actor_is_unknown() -> None:
    """The ending is asked for beside the pump, and settled with the dead letter."""
    witness = Witness()
    broker = memory_broker(witness)
    broker.enqueue(Message("default", "nobody", (), {}, {}, "m"))
    assert ends_as(broker, witness) == (Outcome.DEAD, "ActorNotFound", "m")


@pytest.mark.parametrize(
    ("body", "error", "message_id"),
    [
        (b'{"message_id":"m","actor_name":"x","args":"wrong"}', "DecodeError", "m"),
        (b"\xff\x00", "DecodeError", ""),
        (b'{"message_id":"m"' + b" " * 2000 + b"}", "MessageTooLarge", ""),
    ],
)
def test_it_is_no_message(body: bytes, error: str, message_id: str) -> None:
    """Of what cannot be decoded others learn what can be read of it; what is too large is not even read."""
    witness = Witness()
    broker = memory_broker(witness)
    broker.max_message_bytes = 1000
    push(broker, body)
    outcome, kind, found_id = ends_as(broker, witness)
    assert outcome is Outcome.DEAD
    assert issubclass(getattr(errors, kind), getattr(errors, error))
    assert found_id == message_id


def test_the_engine_refuses() -> None:
    """A settlement that the engine can never apply becomes a dead letter, and the hook is asked again."""
    seen = []

    class TooMuch(Middleware):
        def ending(self, broker: Any, ending: Ending) -> None:
            seen.append(ending.outcome)
            if ending.outcome is Outcome.DONE:
                ending.push.append(Envelope("default", new_storage_id(), b"x" * 20_000))
            ending.keep(broker.store, Put("last", ending.outcome.value.encode()))

    broker = memory_broker(TooMuch())
    actor(lambda: None, broker=broker, actor_name="work").send()
    with working(broker):
        wait_until(broker.dead, "there is a dead letter")
    assert seen == [Outcome.DONE, Outcome.DEAD]
    assert broker.store.apply([Get("last")]) == [b"dead"]


def test_the_engine_refuses_that_too() -> None:
    """Where what is kept of a dead letter is what cannot be applied, the message is dead-lettered without it."""

    class TooMuch(Middleware):
        def ending(self, broker: Any, ending: Ending) -> None:
            ending.push.append(Envelope("default", new_storage_id(), b"x" * 20_000))

    broker = memory_broker(TooMuch())
    actor(lambda: None, broker=broker, actor_name="work").send()
    with working(broker):
        wait_until(broker.dead, "there is a dead letter")


def test_it_has_crashed_too_many_workers() -> None:
    """A message that is condemned for its crashes is told of as the others are, and its ``after_nack`` runs."""
    nacked = []

    class Nacks(Middleware):
        def after_nack(self, broker: Any, message: Any) -> None:
            nacked.append(message.message_id)

    witness = Witness()
    broker = memory_broker(witness, Nacks())
    message = actor(lambda: None, broker=broker, actor_name="work", max_crashes=1).send()
    victim = broker.transport.consumer("victim")
    victim.subscribe(["default"])
    (delivery,) = victim.exchange((), 1).deliveries
    victim.board(1).cells[0] = delivery.mark
    victim.abandon()
    assert ends_as(broker, witness)[::2] == (Outcome.DEAD, message.message_id)
    assert nacked == [message.message_id]
