"""``RabbitmqBroker``: Dramatiq's keywords and attributes, and what a program does with it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from typing import Any

import pika
import pytest

import greenroom
from greenroom.brokers import from_url
from greenroom.brokers.rabbitmq import DEAD_MESSAGE_TTL, RabbitmqBroker
from greenroom.errors import QueueJoinTimeout
from greenroom.message import Message
from tests.engines.rabbitmq_kit import stranger, until_at_rest, wait_until


@pytest.fixture
def broker(rabbitmq_url: str) -> Iterator[RabbitmqBroker]:
    with closing(RabbitmqBroker(url=rabbitmq_url)) as broker:
        yield broker


@pytest.mark.parametrize(
    "keywords",
    [
        {"url": "amqp://h/", "parameters": [{"host": "h"}]},
        {"url": "amqp://h/", "host": "h"},
        {"parameters": [{"host": "h"}], "port": 1},
    ],
)
def test_one_way_of_naming_servers(keywords: dict[str, Any]) -> None:
    """A URL, parameters and pika's own keywords exclude each other, as in Dramatiq."""
    with pytest.raises(RuntimeError):
        RabbitmqBroker(**keywords)


@pytest.mark.parametrize(
    "keywords",
    [
        {"max_priority": 0},
        {"max_priority": 256},
        {"queue_type": "stream"},
        {"delay_queue_type": "lazy"},
        {"wire": "celery"},
        {"queue_type": "quorum", "max_priority": 5},
        {"queue_type": "quorum", "wire": "dramatiq"},
        {"dead_letter_ttl_ms": -1},
        {"dead_letter_limit": -1},
        {"url": "http://host/"},
        {"url": []},
    ],
)
def test_mistakes_are_told_at_once(keywords: dict[str, Any]) -> None:
    """What cannot work is refused when the broker is made, before anything connects."""
    with pytest.raises(ValueError, match=r"."):
        RabbitmqBroker(**keywords)


def test_servers_by_url_list_and_keywords() -> None:
    """Servers are named by one URL, by several, by parameters or by pika's keywords; one name is enough for pika's
    defaults."""
    broker = RabbitmqBroker(url="amqp://a:1/;amqps://u:p@b/vhost?heartbeat=7")
    assert [(each.host, each.port) for each in broker.parameters] == [("a", 1), ("b", 5671)]
    assert broker.parameters[1].heartbeat == 7
    assert [each.host for each in RabbitmqBroker(url=["amqp://a/", "amqp://b/"]).parameters] == ["a", "b"]
    assert [each.port for each in RabbitmqBroker(parameters=[{"port": 1}, {"port": 2}]).parameters] == [1, 2]
    broker = RabbitmqBroker(host="h", heartbeat=5, connection_attempts=5, blocked_connection_timeout=30)
    assert (broker.parameters[0].host, broker.parameters[0].blocked_connection_timeout) == ("h", 30)


def test_tls_verifies_by_default() -> None:
    """F68: ``amqps`` checks certificate and host name."""
    import ssl

    (parameters,) = RabbitmqBroker(url="amqps://host/").parameters
    context = parameters.ssl_options.context
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)


def test_no_password_is_shown() -> None:
    """Neither the broker nor its errors show the password."""
    broker = RabbitmqBroker(url="amqp://user:secret@127.0.0.1:1/vhost")
    assert repr(broker) == "RabbitmqBroker('amqp://user@127.0.0.1:1/vhost')"
    with pytest.raises(ValueError, match=r"amqp://user:\*\*\*@host") as refused:
        RabbitmqBroker(url="amqp://user:secret@host:1/?nonsense=1")
    assert "secret" not in str(refused.value)


def test_from_url(rabbitmq_url: str) -> None:
    """A URL names the broker; its query may hold our keywords and pika's."""
    broker = from_url(f"{rabbitmq_url}?queue_type=quorum&heartbeat=9&confirm_delivery=false", max_message_bytes=99)
    assert isinstance(broker, RabbitmqBroker)
    assert broker.transport.layout.queue_type == "quorum"
    assert broker.parameters[0].heartbeat == 9
    assert not broker.confirm_delivery
    assert broker.max_message_bytes == 99


def test_making_a_broker_and_declaring_connects_to_nothing() -> None:
    """Neither a broker nor an actor opens a connection: only sending does."""
    broker = RabbitmqBroker(url="amqp://127.0.0.1:1/")

    @greenroom.actor(broker=broker, queue_name="mail")
    def add() -> None: ...

    assert broker.queues == {"mail"}
    assert broker.get_declared_delay_queues() == {"mail.DQ"}
    assert DEAD_MESSAGE_TTL == 604_800_000


def test_ensure_declares_now(broker: RabbitmqBroker, rabbitmq_url: str) -> None:
    """``declare_queue(ensure=True)`` makes the queue in RabbitMQ; without it, it waits."""
    broker.declare_queue("later")
    broker.declare_queue("now", ensure=True)
    with stranger(rabbitmq_url) as channel:
        assert channel.queue_declare("now", passive=True).method.message_count == 0
        assert channel.queue_declare("now.XQ", passive=True).method.message_count == 0
        with pytest.raises(pika.exceptions.ChannelClosedByBroker):
            channel.queue_declare("later", passive=True)
    assert "later" in broker.queues_pending


def test_counts_flush_and_join(broker: RabbitmqBroker) -> None:
    """What is sent is counted; ``flush`` deletes what is ready and delayed; ``join`` waits for both."""

    @greenroom.actor(broker=broker)
    def add(number: int) -> None: ...

    add.send(1)
    add.send_with_options(args=(2,), delay=timedelta(days=30))
    until_at_rest(broker.transport, 1)
    assert broker.get_queue_message_counts("default") == (1, 0, 0)
    with pytest.raises(QueueJoinTimeout, match="1 ready, 1 delayed"):
        broker.join("default", timeout=150)
    broker.flush("default")
    broker.join("default", min_successes=2, idle_time=1, timeout=30_000)
    add.send(3)
    broker.flush_all()
    assert broker.get_queue_message_counts(queue_name="default") == (0, 0, 0)


def test_send_many_tells_how_far_it_came(broker: RabbitmqBroker) -> None:
    """``send_many`` sends all, in order, and confirmed."""

    @greenroom.actor(broker=broker)
    def add(number: int) -> None: ...

    assert add.send_many([(number,) for number in range(2500)]) == 2500
    head = broker.transport.peek("default", limit=2500)
    assert [Message.decode(message.body).args for message in head] == [(number,) for number in range(2500)]


def test_broker_priority(rabbitmq_url: str) -> None:
    """``broker_priority`` decides in queues that know priorities: higher runs sooner. Ours is none of RabbitMQ's."""
    with closing(RabbitmqBroker(url=rabbitmq_url, max_priority=10)) as broker:

        @greenroom.actor(broker=broker, priority=5)
        def add(number: int) -> None: ...

        add.send(1)
        add.send_with_options(args=(2,), broker_priority=9)
        add.send_with_options(args=(3,), priority=-100)
        head = broker.transport.peek("default")
        assert [Message.decode(message.body).args for message in head] == [(2,), (1,), (3,)]
        with pytest.raises(ValueError, match="broker_priority"):
            add.send_with_options(args=(4,), broker_priority=256)


def test_wire_dramatiq_delays_in_its_own_queue(rabbitmq_url: str) -> None:
    """With ``wire="dramatiq"`` a delayed message lies where Dramatiq's workers look for it, as they wrote it."""
    with closing(RabbitmqBroker(url=rabbitmq_url, wire="dramatiq")) as broker:

        @greenroom.actor(broker=broker)
        def add(number: int) -> None: ...

        add.send_with_options(args=(1,), delay=60_000)
        assert broker.get_queue_message_counts("default") == (0, 1, 0)
        assert broker.transport.delayed() == 0
    with stranger(rabbitmq_url) as channel:
        _, properties, body = channel.basic_get("default.DQ", auto_ack=True)
    message = Message.decode(body)
    assert (message.queue_name, properties.delivery_mode, properties.headers) == ("default.DQ", 2, None)
    assert isinstance(message.options["eta"], int)


def test_connection_and_channel(broker: RabbitmqBroker, rabbitmq_url: str) -> None:
    """Programs get a connection and a channel of pika's for each thread; deleting them closes them, and the next look
    opens others. Sending goes on all the while."""
    channel = broker.channel
    assert channel.connection is broker.connection
    channel.queue_declare("mine")
    assert (broker.connections, broker.channels) == ({broker.connection}, {channel})
    old = broker.connection
    del broker.channel
    assert not channel.is_open
    del broker.connection
    assert not old.is_open
    del broker.connection
    assert broker.connections == set()
    assert broker.connection.is_open
    broker.declare_queue("default")
    broker.enqueue(Message("default", "nobody", (), {}, {}))
    del broker.connection
    broker.enqueue(Message("default", "nobody", (), {}, {}))
    wait_until(lambda: broker.get_queue_message_counts("default")[0] == 2, "both messages arriving")


def test_three_connections_at_most(broker: RabbitmqBroker, rabbitmq_url: str) -> None:
    """Whatever the number of threads and queues, sending and looking take two connections."""
    import threading

    def send(number: int) -> None:
        broker.declare_queue(f"queue{number}")
        broker.enqueue(Message(f"queue{number}", "nobody", (), {}, {}))

    threads = [threading.Thread(target=send, args=(number,)) for number in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    broker.transport.counts()
    share = broker.transport.share
    assert (share.publisher._link.epoch, share.control._link.epoch) == (1, 1)


def test_without_pika() -> None:
    """Without pika the error names what to install."""
    program = "import sys; sys.modules['pika'] = None; import greenroom.brokers.rabbitmq"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "pip install 'greenroom[rabbitmq]'" in done.stderr
