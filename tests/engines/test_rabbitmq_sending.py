"""Sending to RabbitMQ: confirms, many threads on one connection, what breaks and what vanishes meanwhile."""

from __future__ import annotations

import os
import statistics
import threading
import time
from typing import Any

import pytest

from greenroom.engines.rabbitmq.errors import QueueMismatch
from greenroom.engines.rabbitmq.topology import Layout
from greenroom.errors import BrokerTimeout, ConnectionClosed, ConnectionFailed, MessageTooLarge
from tests.engines.rabbitmq_kit import LAYOUTS, bodies, sent, stranger, transport_at, wait_until
from tests.services import fresh_vhost


@pytest.mark.parametrize("confirm", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.queue_type)
def test_what_is_pushed_is_there_in_order(rabbitmq_url: str, layout: Layout, confirm: bool) -> None:
    """A batch stands in its queue in its order, with or without confirms, in classic and in quorum queues."""
    expected = [b"%d" % number for number in range(1500)]
    with transport_at(rabbitmq_url, layout=layout, confirm=confirm) as transport:
        transport.push([sent(body) for body in expected])
        wait_until(lambda: transport.counts(["default"])["default"].ready == len(expected), "arriving")
        assert bodies(transport) == expected


def test_queues_are_declared_as_dramatiq_declares_them(rabbitmq_url: str) -> None:
    """A classic queue, its delayed side and its dead letters have exactly Dramatiq's arguments: declaring them with
    these is no conflict."""
    with transport_at(rabbitmq_url, layout=Layout(max_priority=10)) as transport:
        transport.push([sent()])
    dead_letters = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "default.XQ"}
    with stranger(rabbitmq_url) as channel:
        channel.queue_declare("default", durable=True, arguments={**dead_letters, "x-max-priority": 10})
        channel.queue_declare("default.DQ", durable=True, arguments={**dead_letters, "x-max-priority": 10})
        channel.queue_declare("default.XQ", durable=True, arguments={"x-message-ttl": 604_800_000})


def test_what_dramatiq_sees_of_a_message(rabbitmq_url: str) -> None:
    """On the wire stands the body alone, persistent; our own metadata is the message id, and no header."""
    with transport_at(rabbitmq_url, layout=Layout(max_priority=10)) as transport:
        plain, urgent = sent(b'{"a": 1}'), sent(b"2", priority=-7)
        transport.push([plain, urgent])
    with stranger(rabbitmq_url) as channel:
        _, first, body = channel.basic_get("default", auto_ack=True)
        assert (body, first.delivery_mode, first.priority, first.message_id) == (b"2", 2, 7, urgent.id)
        _, second, body = channel.basic_get("default", auto_ack=True)
        assert (body, second.priority, second.headers) == (b'{"a": 1}', None, None)


def test_threads_share_one_connection(rabbitmq_url: str) -> None:
    """Many threads that send at the same time open one connection, and each message arrives once."""
    with transport_at(rabbitmq_url) as transport:

        def send(thread: int) -> None:
            for number in range(50):
                transport.push([sent(b"%d" % (100 * thread + number))])

        threads = [threading.Thread(target=send, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        found = bodies(transport)
        assert sorted(map(int, found)) == sorted(100 * t + n for t in range(8) for n in range(50))
        for thread_number in range(8):
            own = [int(body) % 100 for body in found if int(body) // 100 == thread_number]
            assert own == list(range(50)), "each thread's messages stand in its order"
        assert transport.publisher._link.epoch == 1


def test_a_single_message_does_not_wait_for_a_bulk(rabbitmq_url: str) -> None:
    """Beside a thread that sends thousands, another one's single message is accepted while the bulk goes on."""
    with transport_at(rabbitmq_url) as transport:
        transport.push([sent()])
        goes_on = threading.Event()
        batches = []

        def bulk() -> None:
            while not goes_on.is_set():
                transport.push([sent(queue="bulk") for _ in range(1000)])
                batches.append(None)

        thread = threading.Thread(target=bulk)
        thread.start()
        try:
            wait_until(lambda: batches, "the first bulk")
            meanwhile = []
            for _ in range(10):
                before = len(batches)
                transport.push([sent()])
                meanwhile.append(len(batches) - before)
            assert statistics.median(meanwhile) <= 3
        finally:
            goes_on.set()
            thread.join()
        assert transport.counts(["default"])["default"].ready == 11


def test_sending_starts_no_thread(rabbitmq_url: str) -> None:
    """Sending and declaring leave no thread behind."""
    before = set(threading.enumerate())
    with transport_at(rabbitmq_url) as transport:
        transport.push([sent()])
        wait_until(lambda: set(threading.enumerate()) <= before, "the end of pika's thread that looks addresses up")


def test_a_deleted_queue_is_declared_again(rabbitmq_url: str) -> None:
    """F36: What RabbitMQ returns because its queue was deleted is sent once more, after the queue was declared."""
    with transport_at(rabbitmq_url) as transport, stranger(rabbitmq_url) as channel:
        transport.push([sent(b"1")])
        channel.queue_delete("default")
        transport.push([sent(b"2"), sent(b"3")])
        assert bodies(transport) == [b"2", b"3"]


def test_deleted_exchanges_are_declared_again(rabbitmq_url: str) -> None:
    """F36: So is what was to be delayed when the exchange of its level is gone."""
    with transport_at(rabbitmq_url) as transport, stranger(rabbitmq_url) as channel:
        transport.push([sent(b"1", due_ms=transport.clock.now_ms() + 100)])
        wait_until(lambda: transport.counts(["default"])["default"].ready == 1, "the first message arriving")
        for level in range(6):
            channel.exchange_delete(f"{transport.levels.base}.{level}")
        transport.push([sent(b"2", due_ms=transport.clock.now_ms() + 100)])
        wait_until(lambda: transport.counts(["default"])["default"].ready == 2, "both messages arriving")


def test_other_arguments_are_told_clearly(rabbitmq_url: str) -> None:
    """F33: A queue that exists with other arguments is a permanent error that names the queue and the argument; other
    queues go on."""
    with stranger(rabbitmq_url) as channel:
        channel.queue_declare("taken", durable=True)
    with transport_at(rabbitmq_url) as transport:
        for _ in range(2):
            with pytest.raises(QueueMismatch, match=r"x-dead-letter-exchange.*'taken'"):
                transport.push([sent(queue="taken")])
        transport.push([sent(b"1")])
        assert bodies(transport) == [b"1"]
        with pytest.raises(QueueMismatch):
            transport.ensure(["taken"])


def test_a_body_that_is_too_large(rabbitmq_url: str) -> None:
    """F37: A body over the limit is refused before anything is sent."""
    with transport_at(rabbitmq_url, max_body=1000) as transport:
        with pytest.raises(MessageTooLarge) as refused:
            transport.push([sent(b"fine"), sent(b"x" * 1001)])
        assert (refused.value.size, refused.value.limit) == (1001, 1000)
        assert transport.publisher._link.epoch == 0


def test_a_closed_connection_is_replaced_without_a_word(rabbitmq_url: str) -> None:
    """A connection that ended while nobody was sending is replaced by the next send, which knows nothing of it."""
    with transport_at(rabbitmq_url) as transport:
        transport.push([sent(b"1")])
        transport.publisher._link.loop.cut()
        transport.publisher._looked_at_s = 0.0  # as if it had been idle for long
        transport.push([sent(b"2")])
        assert bodies(transport) == [b"1", b"2"]
        assert transport.publisher._link.epoch == 2


def test_a_connection_that_breaks_while_confirms_are_out(rabbitmq_url: str) -> None:
    """What was written and not confirmed when the connection broke raises, for nobody knows whether it arrived; the
    next send works."""
    with transport_at(rabbitmq_url) as transport:
        transport.push([sent(b"1")])
        publisher = transport.publisher
        parcel = publisher.submit([transport.routes.of(sent(b"2"), 0)])
        if not parcel.done:
            publisher._link.loop.cut()
        wait_until(lambda: publisher.turn() or parcel.done, "an answer")
        transport.push([sent(b"3")])
        assert {b"1", b"3"} <= set(bodies(transport))


def test_nobody_answers() -> None:
    """F31: With no server there, sending raises at once, and says where."""
    with transport_at("amqp://guest:secret@127.0.0.1:1/%2F") as transport:
        with pytest.raises(ConnectionFailed, match=r"guest@127\.0\.0\.1:1 could not be reached") as failed:
            transport.push([sent()])
        assert "secret" not in str(failed.value)


def test_a_wrong_password(rabbitmq_url: str) -> None:
    """A wrong password is said to be one, and is not shown."""
    with (
        transport_at(rabbitmq_url.replace("guest:guest@", "guest:wrong@")) as transport,
        pytest.raises(ConnectionFailed, match="the user name or the password") as failed,
    ):
        transport.push([sent()])
    assert "wrong" not in str(failed.value)


def test_servers_are_tried_in_turn(rabbitmq_url: str) -> None:
    """The first server of the list that answers is used."""
    with transport_at(f"amqp://guest:guest@127.0.0.1:1/;{rabbitmq_url}") as transport:
        transport.push([sent(b"1")])
        assert bodies(transport) == [b"1"]


class _Silent:
    """A server that accepts connections and says nothing."""

    def __enter__(self) -> str:
        import socket

        self._socket = socket.create_server(("127.0.0.1", 0))
        return f"amqp://guest:guest@127.0.0.1:{self._socket.getsockname()[1]}/"

    def __exit__(self, *_e: object) -> None:
        self._socket.close()


def test_a_server_that_says_nothing() -> None:
    """F22: A server that accepts and then hangs costs the time that was allowed, and nothing was sent. Others who send
    meanwhile do not add their times up."""
    senders, timeout_s = 30, 0.3
    with _Silent() as url, transport_at(url, publish_timeout_s=timeout_s) as transport:
        outcomes: list[str] = []

        def send() -> None:
            try:
                transport.push([sent()])
            except BrokerTimeout as e:
                outcomes.append(e.outcome)
            except ConnectionFailed:  # who began later learns from who has given up that there is no server
                outcomes.append("none")

        threads = [threading.Thread(target=send) for _ in range(senders)]
        begun_s = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert time.monotonic() - begun_s < senders * timeout_s / 2
        assert outcomes == ["none"] * senders


def test_submitting_does_not_wait(rabbitmq_url: str) -> None:
    """For a loop of somebody else's: ``submit`` returns at once, ``turn`` goes on, the descriptor says when, and
    whoever asked is woken."""
    import select

    with transport_at(rabbitmq_url) as transport:
        woken: list[None] = []
        parcel = transport.publisher.submit(
            [transport.routes.of(sent(b"%d" % n), 0) for n in range(10)], lambda: woken.append(None)
        )
        deadline_s = time.monotonic() + 10
        while not parcel.done:
            assert time.monotonic() < deadline_s
            select.select([transport.publisher.fileno()], [], [], 0.5)
            transport.publisher.turn()
        assert (parcel.error, woken) == (None, [None])
        assert len(bodies(transport)) == 10


def test_a_parcel_nobody_waits_for_is_not_written() -> None:
    """A parcel that was cancelled before it was written never is."""
    with _Silent() as url, transport_at(url) as transport:
        transport.routes.of(sent(), 0)
        parcel = transport.publisher.submit([transport.routes.of(sent(), 0)])
        parcel.cancel()
        assert not transport.publisher._turns.claim(parcel)


def test_a_child_opens_a_connection_of_its_own(rabbitmq_url: str) -> None:
    """F110: A forked child forgets the parent's connection without closing it: both send, each message once."""
    with transport_at(rabbitmq_url) as transport:
        transport.push([sent(b"parent 1")])
        pids = []
        for number in range(3):
            pid = os.fork()
            if pid == 0:
                try:
                    for turn in range(20):
                        transport.push([sent(b"child %d.%d" % (number, turn))])
                    transport.close()
                finally:
                    os._exit(0)
            pids.append(pid)
        transport.push([sent(b"parent 2")])
        for pid in pids:
            assert os.waitpid(pid, 0)[1] == 0
        transport.push([sent(b"parent 3")])
        assert transport.publisher._link.epoch == 1
        found = bodies(transport)
        assert sorted(found) == sorted(
            [b"parent 1", b"parent 2", b"parent 3", *(b"child %d.%d" % (n, t) for n in range(3) for t in range(20))]
        )


def test_a_child_forked_while_others_send(rabbitmq_url: str) -> None:
    """A fork in the middle of another thread's send leaves the child free to send: no lock of the parent's holds it."""
    with transport_at(rabbitmq_url) as transport:
        stop = threading.Event()
        counted: list[None] = []

        def send() -> None:
            while not stop.is_set():
                transport.push([sent(queue="parent")])
                counted.append(None)

        thread = threading.Thread(target=send)
        thread.start()
        wait_until(lambda: counted, "the first send")
        pids = []
        for _ in range(10):
            pid = os.fork()
            if pid == 0:
                try:
                    transport.push([sent(b"child")])
                finally:
                    os._exit(0)
            pids.append(pid)
        for pid in pids:
            assert os.waitpid(pid, 0)[1] == 0
        stop.set()
        thread.join()
        counts = transport.counts(["default", "parent"])
        assert (counts["default"].ready, counts["parent"].ready) == (10, len(counted))


def test_the_limits_of_a_server(rabbitmq_troubled: Any, request: pytest.FixtureRequest) -> None:
    """F37: What RabbitMQ itself finds too large is the same error as ours, with its limit, and the connection stays.
    F35: While it is short of memory, sending waits as long as it may, then says so, and nothing was written; looking at
    queues works meanwhile; and sending goes on when the alarm is over."""
    server = rabbitmq_troubled
    largest = server.ctl("eval", "{ok, M} = application:get_env(rabbit, max_message_size), M.").strip()
    server.ctl("eval", "application:set_env(rabbit, max_message_size, 1000).")
    request.addfinalizer(lambda: server.ctl("eval", f"application:set_env(rabbit, max_message_size, {largest})."))
    with transport_at(fresh_vhost(server)) as transport:
        transport.push([sent(b"1")])
        with pytest.raises(MessageTooLarge) as refused:
            transport.push([sent(b"x" * 2000)])
        assert (refused.value.size, refused.value.limit) == (2000, 1000)
        transport.push([sent(b"2")])
        assert bodies(transport) == [b"1", b"2"]
        assert transport.publisher._link.epoch == 1

        transport._publish_timeout_s = 1.0
        server.ctl("set_vm_memory_high_watermark", "0")
        # RabbitMQ tells of an alarm when something is sent: what is sent first may have been written by then.
        wait_until(lambda: _is_refused(transport), "the refusal")
        assert transport.counts(["default"])["default"].ready >= 2
        server.ctl("set_vm_memory_high_watermark", "0.4")
        wait_until(lambda: _sends(transport), "the end of the alarm")


def _is_refused(transport: Any) -> bool:
    try:
        transport.push([sent(b"late")])
    except BrokerTimeout as e:
        return e.outcome == "none" and "takes no messages" in str(e)
    return False


def _sends(transport: Any) -> bool:
    try:
        transport.push([sent(b"2")])
    except BrokerTimeout:
        return False
    return True


def test_an_error_of_our_own_is_told(
    rabbitmq_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What one of our callbacks raises ends the connection, as pika has it; the log has the error and where it was."""
    with transport_at(rabbitmq_url) as transport:
        transport.push([sent(b"1")])
        with monkeypatch.context() as patch:
            patch.setattr(transport.publisher, "_answered", lambda *_a, **_kw: 1 / 0)
            with pytest.raises(ConnectionClosed, match="ZeroDivisionError"):
                transport.push([sent(b"2")])
        transport.push([sent(b"3")])
    assert "An error of Greenroom's own ends a connection" in caplog.text
    assert "ZeroDivisionError" in caplog.text
