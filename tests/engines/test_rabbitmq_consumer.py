"""Consuming from RabbitMQ: what the contract cannot know, because it is about connections, tags and prefetch."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pika
import pytest

from greenroom.clock import SYSTEM_CLOCK
from greenroom.core.verdict import Verdict
from greenroom.engines.rabbitmq import neighbours
from greenroom.engines.rabbitmq.connection import Targets
from greenroom.engines.rabbitmq.consumer import RabbitmqConsumer
from greenroom.engines.rabbitmq.neighbours import Neighbours
from greenroom.engines.rabbitmq.prefetch import MAX_PREFETCH, MAX_WAITING_BYTES, Prefetch
from greenroom.engines.rabbitmq.settling import MAX_HEADER, fitting
from greenroom.engines.rabbitmq.topology import Layout
from greenroom.engines.rabbitmq.transport import RabbitmqTransport
from greenroom.engines.rabbitmq.unacked import Unacked
from greenroom.engines.rabbitmq.wire import HEADER, Meta
from greenroom.engines.sqlite.store import SqliteStore
from greenroom.engines.sqlite.transport import SqliteTransport
from greenroom.errors import ConnectionFailed
from greenroom.message import Message
from greenroom.ports.store import Put, StoreFeatures
from greenroom.ports.transport import Delivery, ErrorText, Exchange, Incident, Settlement
from greenroom.testing.clock import ManualClock
from greenroom.testing.contract.kit import (
    DEADLINE_S,
    ack,
    bodies,
    claim,
    claim_one,
    consumer_of,
    dead,
    drain,
    drained,
    envelope,
    envelopes,
    killed,
    nothing_comes,
    release,
    retry,
    settle,
)
from scripts.servers import RabbitMQ
from tests.engines.rabbitmq_kit import patient_trips, until_taken_back, wait_until
from tests.proxy import Proxy

QUEUE = "default"


@pytest.fixture
def make(
    rabbitmq_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., RabbitmqTransport]]:
    """Makes transports on one empty virtual host."""
    monkeypatch.setenv("GREENROOM_RUN_FOLDER", str(tmp_path / "run"))
    patient_trips(monkeypatch)
    made: list[RabbitmqTransport] = []

    def make(**options: Any) -> RabbitmqTransport:
        made.append(RabbitmqTransport(Targets(rabbitmq_url), **options))
        return made[-1]

    yield make
    for transport in made:
        transport.close()


@pytest.fixture
def transport(make: Callable[..., RabbitmqTransport]) -> RabbitmqTransport:
    return make()


@pytest.fixture
def stranger(rabbitmq_url: str) -> Iterator[Any]:
    """A channel of another program's."""
    connection = pika.BlockingConnection(pika.URLParameters(rabbitmq_url))
    yield connection.channel()
    if connection.is_open:
        connection.close()


def consumer(transport: RabbitmqTransport, *queues: str) -> RabbitmqConsumer:
    made = consumer_of(transport, *queues)
    assert isinstance(made, RabbitmqConsumer)
    return made


def cut(consumer: RabbitmqConsumer) -> None:
    """The connection breaks, as the network breaks it, and the broker knows it."""
    until_taken_back(consumer, consumer._line.drop)


def drive_until(consumer: RabbitmqConsumer, done: Callable[[], object], what: str) -> None:
    """Makes what a pump makes: trips and waits."""
    deadline = time.monotonic() + DEADLINE_S
    while not done():
        assert time.monotonic() < deadline, what
        consumer.wait(0.02)


def ready(transport: RabbitmqTransport, queue: str = QUEUE) -> int:
    return transport.counts([queue])[queue].ready


# --- tags and epochs


def test_a_tag_of_an_earlier_connection_is_never_sent(transport: RabbitmqTransport) -> None:
    """The connection drops while L runs; on the next one P gets the very tag that L had. When L finishes it is answered
    as lost and counted, and P is still the broker's to hand out when this process dies, too."""
    consuming = consumer(transport)
    transport.push(envelopes(b"L"))
    late = claim_one(consuming)
    cut(consuming)
    assert consuming.exchange((), 1).reset
    transport.push(envelopes(b"P"))
    again, other = claim(consuming, 2)
    assert (again.body, other.body) == (b"L", b"P")
    settle(consuming, ack(again))
    assert late.token[1] in {again.token[1], other.token[1]}
    assert settle(consuming, ack(late)).lost == [ack(late)]
    assert consuming.stale == 1
    until_taken_back(consuming, consuming.abandon)
    assert drained(transport) == [b"P"]


@pytest.mark.parametrize("verdict", list(Verdict))
def test_nothing_settles_by_an_old_tag(transport: RabbitmqTransport, verdict: Verdict) -> None:
    """Whatever it says, a settlement of an earlier connection changes and publishes nothing."""
    consuming = consumer(transport)
    transport.push(envelopes(b"1"))
    old = claim_one(consuming)
    cut(consuming)
    instead = envelope(b"no") if verdict is Verdict.RETRY else None
    late = Settlement(old, verdict, retry=instead, push=(envelope(b"no"),))
    assert settle(consuming, late).lost == [late]
    assert drain(consuming) == [b"1"]


def test_a_lost_connection_says_so_once(transport: RabbitmqTransport) -> None:
    """The first trip after a loss says that all that was claimed is lost; the next ones go on as before."""
    consuming = consumer(transport)
    transport.push(envelopes(b"1", b"2", b"3"))
    claim(consuming, 2)
    cut(consuming)
    first = consuming.exchange((), 10)
    assert first.reset
    assert not first.deliveries
    answers = [consuming.exchange((), 10) for _ in range(3)]
    assert not any(answer.reset for answer in answers)
    assert bodies([delivery for answer in answers for delivery in answer.deliveries]) == [b"1", b"2", b"3"]


def test_what_was_open_when_the_connection_ended_is_lost(transport: RabbitmqTransport) -> None:
    """A retry that is published but not confirmed yet when the connection ends is answered as lost. The old message
    comes again; the new one may come, too; and nothing is lost."""
    consuming = consumer(transport)
    transport.push(envelopes(b"1"))
    settlement = retry(claim_one(consuming), envelope(b"2"))
    consuming.exchange([settlement], 0)
    consuming._line.drop()
    answer = consuming.exchange((), 0)
    assert [*answer.lost, *answer.settled] == [settlement]
    wait_until(lambda: answer.settled or b"1" in {m.body for m in transport.peek(QUEUE)}, "the old one's coming back")


def test_a_closed_channel_is_opened_again(transport: RabbitmqTransport, caplog: pytest.LogCaptureFixture) -> None:
    """The broker closes the channel (here: over a tag that it does not know). The trip that finds out says why, and the
    next ones have a new channel; the connection stays."""
    consuming = consumer(transport)
    transport.push(envelopes(b"1"))
    claim_one(consuming)
    consuming._line._channel.basic_ack(4711)
    drive_until(consuming, lambda: consuming._line.epoch is None, "the channel was not closed")
    assert consuming.exchange((), 1).reset
    with pytest.raises(Exception, match="unknown delivery tag 4711"):
        consuming.exchange((), 1)
    assert drain(consuming) == [b"1"]
    assert "closed the consuming channel: 406" in caplog.text


def test_an_operator_closes_all_connections(transport: RabbitmqTransport, rabbitmq_shared: Any) -> None:
    """An operator closes every connection. The consumer says so, connects anew, and gets what it held."""
    consuming = consumer(transport)
    transport.push(envelopes(b"1", b"2"))
    claim(consuming, 2)
    vhost = transport.targets.configs[0].virtual_host
    rabbitmq_shared.ctl("close_all_connections", "--vhost", vhost, "maintenance")
    drive_until(consuming, lambda: consuming._line.epoch is None, "the connection was not closed")
    assert consuming.exchange((), 1).reset
    assert drain(consuming) == [b"1", b"2"]


def test_a_server_that_is_not_there() -> None:
    """Where no server answers there is no consumer, and the error says where it was looked for."""
    transport = RabbitmqTransport(Targets("amqp://guest:guest@127.0.0.1:1"))
    with pytest.raises(ConnectionFailed, match=r"127\.0\.0\.1:1"):
        transport.consumer("owner")
    transport.close()


def test_a_server_that_is_away(rabbitmq_shared: RabbitMQ, rabbitmq_url: str) -> None:
    """While no server answers trips and waits say so, and where it was looked for."""
    with Proxy(rabbitmq_shared.port) as proxy:
        transport = RabbitmqTransport(Targets(proxy.url(rabbitmq_url)))
        consuming = consumer(transport)
        proxy.refuse()
        proxy.reset()
        for ask in (lambda: consuming.exchange((), 1), lambda: consuming.wait(1.0)):
            with pytest.raises(ConnectionFailed, match=str(urlsplit(proxy.url(rabbitmq_url)).port)):
                ask()
        transport.close()


# --- acknowledgements


def test_one_frame_for_the_settled_beginning() -> None:
    """What was settled up to the oldest that is still held goes by one frame, the others by one each."""
    unacked = Unacked(dict.fromkeys(range(1, 11)))
    for tag in (1, 2, 3, 5, 9):
        del unacked[tag]
    assert unacked.plan([5, 2, 9, 1, 3]) == (3, [5, 9])
    del unacked[4]
    assert unacked.plan([4]) == (4, [])
    for tag in (10, 8, 7, 6):
        del unacked[tag]
    assert unacked.plan([10, 8, 7, 6]) == (10, [])
    assert unacked.plan([]) == (0, [])


@pytest.mark.parametrize("step", [1, 2, 3, 7])
def test_acks_out_of_order_touch_nobody_else(transport: RabbitmqTransport, step: int) -> None:
    """However settlements come out of order, exactly what was not settled is handed out again."""
    transport.push(envelopes(*(b"%d" % i for i in range(60))))
    consuming = consumer(transport)
    held = claim(consuming, 60)
    done = [delivery for i, delivery in enumerate(held) if i % 7 in (0, 2, 3, 6)]
    for start in range(step):
        settle(consuming, *(ack(delivery) for delivery in done[start::step][::-1]))
    consuming.close()
    assert sorted(drained(transport)) == sorted({d.body for d in held} - {d.body for d in done})


# --- prefetch


def test_the_steps_of_the_prefetch() -> None:
    """It begins at what the process runs at a time and grows in few steps; without a board it is what is asked for."""
    prefetch = Prefetch()
    assert [prefetch.step_for(wanted) for wanted in (0, 1, 7, 2000)] == [1, 1, 7, 2000]
    prefetch.set_places(8)
    assert [prefetch.step_for(wanted) for wanted in (0, 8, 9, 64, 65, 501, 5000)] == [8, 8, 64, 64, 500, 1000, 1000]
    prefetch.set_places(2000)
    assert prefetch.step_for(1) == 2000


def test_large_bodies_bound_the_prefetch() -> None:
    """What waits in memory is bounded by bytes; but each place has its message."""
    prefetch = Prefetch()
    prefetch.set_places(8)
    prefetch.saw(4, 4 * MAX_WAITING_BYTES // 100)
    assert prefetch.step_for(MAX_PREFETCH) == 100
    prefetch.saw(1, 64 * MAX_WAITING_BYTES)
    assert prefetch.step_for(MAX_PREFETCH) == 8


def test_a_worker_fetches_as_much_as_it_wants(transport: RabbitmqTransport) -> None:
    """A process that asks for few has few sent to it, and leaves the rest to others; one that asks for more gets it."""
    transport.push(envelopes(*(b"%d" % i for i in range(200))))
    consuming = consumer(transport)
    consuming.board(4)
    held = claim(consuming, 4)
    assert ready(transport) == 196
    held += claim(consuming, 16)
    assert ready(transport) == 200 - 32
    held += claim(consuming, 180)
    assert bodies(held) == [b"%d" % i for i in range(200)]


def test_what_is_not_wanted_any_more_is_given_back(
    transport: RabbitmqTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When a process has wanted less for a while, it asks for less and gives back what has not started; without a
    crash, and what runs goes on."""
    monkeypatch.setattr("greenroom.engines.rabbitmq.line.DOWN_EVERY_S", 0.0)
    transport.push(envelopes(*(b"%d" % i for i in range(100))))
    consuming = consumer(transport)
    consuming.board(2)
    held = claim(consuming, 40)
    settle(consuming, *map(ack, held[2:]))
    assert ready(transport) == 0
    _extend_until(consuming, lambda: not consuming._line.taps[QUEUE].prefetch)  # what runs is all that is wanted
    others = claim(consumer(transport), 60)
    assert {delivery.crashes for delivery in others} == {0}
    assert len(settle(consuming, *map(ack, held[:2])).settled) == 2


def test_a_pause_gives_back_what_was_fetched(transport: RabbitmqTransport) -> None:
    """What a paused queue has sent ahead goes to others."""
    transport.push(envelopes(*(b"%d" % i for i in range(8))))
    consuming = consumer(transport)
    consuming.board(8)
    claim_one(consuming)
    assert ready(transport) == 0
    consuming.pause([QUEUE])
    assert len(claim(consumer(transport), 7)) == 7
    assert nothing_comes(consuming)


def test_skip_holds_back_what_has_arrived(transport: RabbitmqTransport) -> None:
    """A queue that is left out of a trip hands out nothing, though its messages are here; and ends no wait."""
    transport.push([*envelopes(b"1", b"2", queue="a")])
    consuming = consumer(transport, "a")
    consuming.board(4)
    claim_one(consuming)
    assert not consuming.exchange((), 4, frozenset("a")).deliveries
    drive_until(consuming, lambda: consuming._line.taps["a"].arrived, "the other one did not arrive")
    started = time.monotonic()
    consuming.wait(0.1)
    assert time.monotonic() - started >= 0.09
    assert bodies(consuming.exchange((), 4).deliveries) == [b"2"]


def test_what_is_released_does_not_come_straight_back(transport: RabbitmqTransport) -> None:
    """What a process gives back in a trip that claims nothing goes to others."""
    transport.push(envelopes(b"1", b"2", b"3"))
    consuming = consumer(transport)
    consuming.board(4)
    settle(consuming, *map(release, claim(consuming, 3)))
    assert bodies(claim(consumer(transport), 3)) == [b"1", b"2", b"3"]


# --- the ticker


def test_extend_settles_while_the_pump_is_elsewhere(transport: RabbitmqTransport) -> None:
    """While all threads are busy nobody makes a trip. A retry that was published before is confirmed meanwhile, and the
    ticker acknowledges the old message."""
    transport.push(envelopes(b"1"))
    consuming = consumer(transport)
    settlement = retry(claim_one(consuming), envelope(b"2"))
    consuming.exchange([settlement], 0)
    ticker = threading.Thread(target=lambda: _extend_until(consuming, lambda: not consuming._settler.is_busy))
    ticker.start()
    ticker.join()
    assert settlement.delivery.token[1] not in consuming._line.unacked  # the retry itself may have arrived
    assert consuming.exchange((), 0).settled == [settlement]


def _extend_until(consumer: RabbitmqConsumer, done: Callable[[], object]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not done() and time.monotonic() < deadline:
        consumer.extend()


def test_extend_does_not_wait_for_the_pump(transport: RabbitmqTransport) -> None:
    """While the pump waits for messages it drives the connection itself, and the ticker goes on at once."""
    consuming = consumer(transport)
    consuming.exchange((), 1)
    pump = threading.Thread(target=lambda: consuming.wait(DEADLINE_S))
    pump.start()
    started = time.monotonic()
    for _ in range(20):
        consuming.extend()
    assert time.monotonic() - started < DEADLINE_S / 2
    consuming.wake()
    pump.join()


# --- what is deleted, refused, or of another kind


def test_a_deleted_queue_is_declared_again(transport: RabbitmqTransport, stranger: Any) -> None:
    """Somebody deletes the queue under a consumer. It is made again, and what is sent then arrives."""
    consuming = consumer(transport)
    assert not consuming.exchange((), 1).deliveries
    stranger.queue_delete(QUEUE)
    drive_until(consuming, lambda: not consuming._line.taps[QUEUE].prefetch, "the deletion was not noticed")
    transport.push(envelopes(b"1"))
    assert claim_one(consuming).body == b"1"


def test_a_queue_of_another_kind_leaves_the_others_alone(
    transport: RabbitmqTransport, stranger: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """A queue that exists with other arguments cannot be consumed, and the log names it and the argument; the other
    queues go on."""
    stranger.queue_declare("odd", durable=True, arguments={"x-max-length": 5})
    transport.push(envelopes(b"1"))
    consuming = consumer(transport, "odd", QUEUE)
    assert drain(consuming) == [b"1"]
    (record,) = [record for record in caplog.records if "odd" in record.getMessage()]
    assert record.levelno == logging.ERROR
    assert "inequivalent arg" in record.getMessage()


def test_a_bare_message_of_another_program(transport: RabbitmqTransport, stranger: Any) -> None:
    """A message without properties has an id all the same, and the same one when it is handed out again."""
    stranger.queue_declare("strange", durable=True, arguments=_arguments("strange"))
    stranger.basic_publish("", "strange", b"bare")
    consuming = consumer(transport, "strange")
    first = claim_one(consuming)
    settle(consuming, release(first))
    again = claim_one(consuming)
    assert (first.body, again.id, again.attempt) == (b"bare", first.id, 2)
    assert first.id
    assert settle(consuming, dead(again)).settled
    assert [letter.body for letter in transport.dead("strange")] == [b"bare"]


@pytest.mark.parametrize(
    "headers",
    [
        {HEADER: "{"},
        {HEADER: 5},
        {HEADER: '{"crashes": "many"}'},
        {"x-delivery-count": "x"},
        {"x-delivery-count": -4},
        {"x-death": [{"count": 3}]},
        {"other": None},
    ],
    ids=repr,
)
def test_headers_that_say_nothing(transport: RabbitmqTransport, stranger: Any, headers: dict[str, Any]) -> None:
    """A message whose headers cannot be read is an ordinary message."""
    stranger.queue_declare("strange", durable=True, arguments=_arguments("strange"))
    stranger.basic_publish("", "strange", b"1", pika.BasicProperties(headers=headers, message_id="abc"))
    consuming = consumer(transport, "strange")
    delivery = claim_one(consuming)
    assert (delivery.id, delivery.attempt, delivery.crashes, delivery.redelivered) == ("abc", 1, 0, False)
    assert list(consuming.history(delivery)) == []
    assert settle(consuming, ack(delivery)).settled


def _arguments(queue: str) -> dict[str, Any]:
    return {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": f"{queue}.XQ"}


def test_what_belongs_to_a_store_is_refused(transport: RabbitmqTransport) -> None:
    """There is no store that is one with RabbitMQ: a settlement that asks for it is refused, with the reason, and the
    message can be settled otherwise."""
    transport.push(envelopes(b"1"))
    consuming = consumer(transport)
    delivery = claim_one(consuming)
    bad = ack(delivery, writes=(Put("key", b"value"),))
    ((refused, error),) = settle(consuming, bad).refused
    assert refused is bad
    assert "store" in str(error)
    assert settle(consuming, ack(delivery)).settled


# --- delays


def test_a_release_for_later_comes_when_it_is_due(transport: RabbitmqTransport) -> None:
    """A released message waits in the broker, not here, and keeps its id; its attempts go on."""
    sent = envelope(b"1")
    transport.push([sent])
    consuming = consumer(transport)
    first = claim_one(consuming)
    due_ms = SYSTEM_CLOCK.now_ms() + 150
    error = ErrorText("Busy", "later")
    settle(consuming, Settlement(first, Verdict.RELEASE, due_ms=due_ms, error=error))
    assert first.token[1] not in consuming._line.unacked
    again = claim_one(consuming)
    assert SYSTEM_CLOCK.now_ms() >= due_ms
    assert (again.id, again.attempt, again.redelivered) == (sent.id, 2, True)
    assert [incident.error for incident in consuming.history(again)] == [error]


def test_a_delay_longer_than_the_levels_reach_is_delayed_again(transport: RabbitmqTransport, stranger: Any) -> None:
    """What arrives with a rest of its delay is not handed out, but delayed once more."""
    consuming = consumer(transport)
    assert not consuming.exchange((), 1).deliveries
    header = json.dumps({"rest_ms": 100})
    stranger.basic_publish("", QUEUE, b"1", pika.BasicProperties(headers={HEADER: header}, message_id="abc"))
    started = time.monotonic()
    delivery = claim_one(consuming)
    assert time.monotonic() - started >= 0.1
    assert (delivery.id, delivery.body, delivery.attempt) == ("abc", b"1", 1)
    assert settle(consuming, ack(delivery)).settled


def test_what_dramatiq_has_delayed_is_taken_over(transport: RabbitmqTransport, stranger: Any) -> None:
    """A message that a Dramatiq sender has put into ``default.DQ`` moves into the broker's keeping at once, and comes
    when it is due; what cannot be read there goes to the dead letters."""
    consuming = consumer(transport)
    assert not consuming.exchange((), 1).deliveries
    eta = SYSTEM_CLOCK.now_ms() + 300
    late: Message[Any] = Message("default.DQ", "act", (1,), {}, {"eta": eta})
    soon: Message[Any] = Message("default.DQ", "act", (2,), {}, {"eta": 5})
    for body in (late.encode(), b"garbage", soon.encode()):
        stranger.basic_publish("", "default.DQ", body, pika.BasicProperties(delivery_mode=2))
    came_ms: dict[int, int] = {}
    for _ in range(2):
        message: Message[Any] = Message.decode(claim_one(consuming).body)
        came_ms[message.args[0]] = SYSTEM_CLOCK.now_ms()
        assert message.queue_name == "default"
    assert came_ms.keys() == {1, 2}
    assert came_ms[1] >= eta
    drive_until(consuming, lambda: transport.counts([QUEUE])[QUEUE].dead, "what cannot be read did not die")
    (letter,) = transport.dead(QUEUE)
    assert letter.body == b"garbage"
    assert letter.error is not None
    assert stranger.queue_declare("default.DQ", passive=True).method.message_count == 0


# --- headers


def test_a_history_fits_into_a_header() -> None:
    """Of many long incidents as many of the latest are kept as a frame has room for."""
    long = ErrorText("E" * 10, "m" * 4096, "\\" * 16_384)
    meta = Meta(history=tuple(Incident(i, i, long) for i in range(25)), error=long)
    kept = fitting(meta)
    assert kept.history[-1].attempt == 24
    import msgspec

    assert len(msgspec.json.encode(kept)) < MAX_HEADER + 40_000 < 131_072
    assert kept.error == long


def test_a_dead_letter_with_a_long_history_is_kept(transport: RabbitmqTransport) -> None:
    """The longest history that there can be is published without tearing the connection down."""
    (sent,) = killed(transport, b"1", error=ErrorText("E", "m" * 4096, "\\" * 16_384))
    assert [letter.id for letter in transport.dead(QUEUE)] == [sent.id]


# --- quorum queues


def test_quorum_queues_tell_how_often(make: Callable[..., RabbitmqTransport]) -> None:
    """A quorum queue counts how often a message came back, and attempts follow it; that alone is no crash."""
    transport = make(layout=Layout(queue_type="quorum"))
    transport.push(envelopes(b"1"))
    for expected in range(1, 4):
        consuming = consumer(transport)
        delivery = claim_one(consuming)
        assert (delivery.attempt, delivery.crashes) == (expected, 0)
        settle(consuming, release(delivery))
        consuming.close()
    assert drained(transport) == [b"1"]


def test_quorum_queues_settle_like_others(make: Callable[..., RabbitmqTransport]) -> None:
    """All verdicts work on quorum queues, too."""
    transport = make(layout=Layout(queue_type="quorum"))
    transport.push(envelopes(b"ack", b"dead", b"retry", b"release"))
    consuming = consumer(transport)
    one, two, three, four = claim(consuming, 4)
    answer: Exchange = settle(consuming, ack(one), dead(two), retry(three, envelope(b"again")), release(four))
    assert len(answer.settled) == 4
    assert sorted(drain(consuming)) == [b"again", b"release"]
    assert [letter.body for letter in transport.dead(QUEUE)] == [b"dead"]


# --- dying


def test_a_crash_is_carried_along(transport: RabbitmqTransport) -> None:
    """What ran when a process died is charged with a crash; when it is released it is sent anew, so that the crash is
    known wherever it goes, and when the dead one's board is gone."""
    transport.push(envelopes(b"1"))
    dying = consumer(transport)
    board = dying.board(1)
    board.cells[0] = claim_one(dying).mark
    dying.abandon()
    heir = consumer(transport)
    delivery = claim_one(heir)
    assert delivery.crashes == 1
    settle(heir, release(delivery))
    assert board.path is not None
    board.path.unlink()
    again: Delivery = claim_one(consumer(transport))
    assert (again.crashes, again.attempt) == (1, 3)


def test_who_only_lost_its_connection_is_not_charged(transport: RabbitmqTransport) -> None:
    """A process whose connection broke lives on: what it runs is handed out again after a moment, without a crash."""
    transport.push(envelopes(b"1"))
    living = consumer(transport)
    board = living.board(1)
    board.cells[0] = claim_one(living).mark
    cut(living)
    delivery = claim_one(consumer(transport))
    assert (delivery.crashes, delivery.redelivered) == (0, True)


class Hurried(ManualClock):
    """A clock that goes on by some milliseconds whenever somebody looks at it."""

    def monotonic(self) -> float:
        self.advance_ms(7)
        return super().monotonic()


def test_who_died_is_charged_however_slow_the_look_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A parent that says nothing is waited for, and then its child is charged: the message is not handed out between
    the two."""
    monkeypatch.setenv("GREENROOM_RUN_FOLDER", str(tmp_path))
    monkeypatch.setattr(neighbours, "SYSTEM_CLOCK", Hurried())
    dying, heir = Neighbours(SYSTEM_CLOCK), Neighbours(SYSTEM_CLOCK)
    place = dying.place("dying")
    place.board(1, os.getpid()).cells[0] = 7
    place.unlock()
    while (found := heir.crashes(7)) is None:
        pass
    assert [fallen.marks for fallen in found] == [{7}]
    for one in (dying, heir):
        one.close()


def test_a_ledger_tells_other_hosts(
    make: Callable[..., RabbitmqTransport], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a ledger a crash on one host is counted on another, which cannot see the boards there; and once only."""
    transport = make(ledger=SqliteStore(SqliteTransport(tmp_path / "ledger.db")))
    transport.push(envelopes(b"1"))
    dying = consumer(transport)
    board = dying.board(1)
    board.cells[0] = claim_one(dying).mark
    sibling = consumer(transport, "other")
    dying.abandon()
    sibling.extend()
    consumer(transport, "other").extend()
    monkeypatch.setenv("GREENROOM_RUN_FOLDER", str(tmp_path / "another host"))
    heir = consumer(transport)
    delivery = claim_one(heir)
    assert delivery.crashes == 1
    (incident,) = heir.history(delivery)
    assert incident.error is not None
    assert "another host" in incident.error.message
    transport.ledger.close()


def test_a_ledger_without_sets_is_refused(make: Callable[..., RabbitmqTransport]) -> None:
    """A store that cannot keep a ledger is a mistake of the program's."""

    class Plain:
        features = StoreFeatures(sets=False)

    with pytest.raises(ValueError, match="no sets"):
        make(ledger=Plain()).consumer("x")


def test_no_run_folder(
    make: Callable[..., RabbitmqTransport],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Where the folder in which processes meet cannot be used, the log says so and all else works."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("GREENROOM_RUN_FOLDER", str(tmp_path / "file" / "run"))
    transport = make()
    transport.push(envelopes(b"1"))
    consuming = consumer(transport)
    consuming.board(2)
    assert drain(consuming) == [b"1"]
    assert "Crashes are not counted" in caplog.text
