"""The shell of the Redis broker: its keywords, its URLs, and what it needs."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import redis
import redis.asyncio

import greenroom
from greenroom import Broker
from greenroom.brokers import from_url
from greenroom.brokers.redis import RedisBroker
from greenroom.errors import BrokerError, ConnectionFailed
from greenroom.testing.contract.kit import consumer_of, drain, envelopes
from scripts.servers import Redis
from scripts.servers.process import free_port
from tests.runtime.cli_kit import wait_until


def test_dramatiqs_keywords() -> None:
    """All keywords of Dramatiq's broker are taken, and so are those of ``redis.Redis``; nothing is connected."""
    broker = RedisBroker(
        host="nowhere.invalid",
        port=1,
        db=3,
        middleware=[],
        namespace="mine",
        maintenance_chance=1000,
        heartbeat_timeout=30_000,
        dead_message_ttl=1000,
        requeue_deadline=1,
        requeue_interval=1,
    )
    assert broker.transport._retention.ttl_ms == 1000
    assert broker.heartbeat_timeout == 30_000
    assert isinstance(broker.client, redis.Redis)
    assert repr(broker) == "RedisBroker('nowhere.invalid:1/3', namespace='mine')"


def test_a_client_of_ones_own(redis_url: str) -> None:
    """``client=`` takes any client, also one that decodes answers; the broker has connections of its own."""
    client = redis.Redis.from_url(redis_url, decode_responses=True, max_connections=1)
    broker = RedisBroker(client=client, middleware=[])
    assert broker.client is client
    broker.transport.push(envelopes(b"\xff"))
    assert drain(consumer_of(broker.transport)) == [b"\xff"]
    broker.close()


def test_two_ways_to_say_where() -> None:
    """A client and a URL contradict each other, and what is no client is refused at once."""
    with pytest.raises(ValueError, match="not by both"):
        RedisBroker(client=redis.Redis(), url="redis://localhost")
    with pytest.raises(TypeError, match="str"):
        RedisBroker(client="localhost")  # type: ignore[arg-type]  # what is tested


@pytest.mark.parametrize(
    ("url", "where"),
    [
        ("redis://me:secret@host.invalid:7000/2?namespace=n&socket_timeout=3", "host.invalid:7000/2"),
        ("rediss://:secret@host.invalid", "host.invalid:6379/0"),
        ("unix:///tmp/redis.sock?db=4&password=secret", "unix:///tmp/redis.sock?db=4"),
    ],
)
def test_urls(url: str, where: str) -> None:
    """A URL names the server; its password is never shown."""
    broker: Broker = from_url(url, middleware=[])
    assert isinstance(broker, RedisBroker)
    assert broker.transport.where == where
    assert "secret" not in repr(broker)


def test_parameters_of_a_url() -> None:
    """Keywords of the broker may stand in a URL; keywords that are passed beside it win."""
    broker = RedisBroker.from_url(
        "redis://h/0?namespace=a&lease_ms=2000&dead_letter_limit=7", namespace="b", middleware=[]
    )
    assert broker.namespace == "b"
    assert broker.transport._lease_ms == 2000
    assert broker.transport._retention.limit == 7


@pytest.mark.parametrize("query", ["nonsense=1", "lease_ms=soon", "wire=elvish"])
def test_a_bad_parameter_of_a_url(query: str) -> None:
    """A parameter that nobody knows, or that has no such value, is a mistake that is found at once."""
    with pytest.raises(ValueError, match=r".+"):
        from_url(f"redis://h/0?{query}")


def test_dead_letters_for_ever() -> None:
    """``math.inf`` keeps dead letters for ever; a negative time or number means nothing."""
    assert RedisBroker(dead_letter_ttl_ms=math.inf, middleware=[]).transport._retention.ttl_ms is None
    with pytest.raises(ValueError, match="negative"):
        RedisBroker(dead_letter_limit=-1)


def test_a_namespace_with_braces() -> None:
    """Braces would put the keys of a namespace into many slots of a cluster."""
    with pytest.raises(ValueError, match="braces"):
        RedisBroker(namespace="{a}")


def test_an_error_without_the_password() -> None:
    """What cannot be reached is named without its password."""
    broker = RedisBroker(url="redis://me:secret@127.0.0.1:1/0", middleware=[])
    with pytest.raises(ConnectionFailed, match=r"127\.0\.0\.1:1/0") as caught:
        broker.transport.push(envelopes(b"1"))
    assert "secret" not in str(caught.value)


PROGRAM = """
import sys
for name in sys.argv[2].split(","):
    sys.modules[name] = None
from greenroom.brokers.redis import RedisBroker
from greenroom.testing.contract.kit import consumer_of, drain, envelopes

broker = RedisBroker(url=sys.argv[1], middleware=[])
broker.transport.push(envelopes(*(b"%d" % i for i in range(1000))))
broker.transport.push(envelopes(b"\\xff\\r\\n"))
assert drain(consumer_of(broker.transport)) == [*(b"%d" % i for i in range(1000)), b"\\xff\\r\\n"]
broker.close()
"""


def run(url: str, without: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs a program that sends and receives where some modules are not installed."""
    environment = {**os.environ, "GREENROOM_RUN_FOLDER": str(folder)}
    command = [sys.executable, "-c", PROGRAM, url, without]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)


def test_without_hiredis(redis_url: str, tmp_path: Path) -> None:
    """hiredis makes it faster, and is not needed."""
    ended = run(redis_url, "hiredis", tmp_path)
    assert ended.returncode == 0, ended.stderr


def test_without_redis_py(redis_url: str, tmp_path: Path) -> None:
    """Who has no redis-py is told what to install."""
    ended = run(redis_url, "redis", tmp_path)
    assert "pip install 'greenroom[redis]'" in ended.stderr


SENDER = """
import select, sys
sys.modules["fcntl"] = None
del select.poll
from greenroom.brokers.redis import RedisBroker
from greenroom.engines.redis import connection
from greenroom.testing.contract.kit import envelopes

connection.FRESH_S = 0
broker = RedisBroker(url=sys.argv[1], middleware=[])
for count in range(3):
    broker.transport.push(envelopes(b"1"))
assert broker.transport.counts()["default"].ready == 3
broker.close()
"""


def test_a_sender_without_locks_on_files(redis_url: str) -> None:
    """A system that has neither ``fcntl`` nor ``poll`` can send."""
    command = [sys.executable, "-c", SENDER, redis_url]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize(
    "url", ["redis://:top/secret@host:6379", "redis://u:top#secret@host", "redis://:top?secret@h:1"]
)
def test_a_url_that_is_none_is_not_quoted(url: str) -> None:
    """A password with characters that are not encoded is not shown, nor a part of it."""
    with pytest.raises(ValueError, match="percent-encoded") as caught:
        RedisBroker(url=url)
    assert "top" not in str(caught.value)
    assert "secret" not in str(caught.value)
    assert caught.value.__suppress_context__


def test_a_client_for_coroutines() -> None:
    """It is refused at once."""
    with pytest.raises(TypeError, match="coroutines"):
        RedisBroker(client=redis.asyncio.Redis())


def test_a_node_of_a_cluster_that_has_other_keys(start_redis: Callable[..., Redis]) -> None:
    """A Cluster's node that does not have the keys says so in words that a user understands."""
    node, other = (start_redis(cluster_enabled="yes", cluster_port=free_port()) for _ in range(2))
    broker = RedisBroker(url=node.url, namespace="here")
    slot = node.cli("CLUSTER", "KEYSLOT", "{here}")
    node.cli("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
    node.cli("CLUSTER", "MEET", "127.0.0.1", other.port, other.settings["cluster_port"])
    them = other.cli("CLUSTER", "MYID")
    wait_until(lambda: them in node.cli("CLUSTER", "NODES"), "the nodes know each other")
    for server in (other, node):
        server.cli("CLUSTER", "SETSLOT", slot, "NODE", them)
    wait_until(lambda: b"cluster_state:ok" in node.cli("CLUSTER", "INFO"), "the Cluster works")
    with closing(broker), pytest.raises(ConnectionFailed, match="node of a Cluster that has these keys elsewhere"):
        broker.get_queue_message_counts("default")


def test_a_key_of_another_program(redis_url: str) -> None:
    """Where another program has a key of another type under one of our names, the error says what to do."""
    broker = RedisBroker(url=redis_url, namespace="taken")
    actor = greenroom.actor(print, broker=broker)
    with closing(broker):
        actor.send()
        broker.client.delete("{taken}:g1:m:default")
        broker.client.set("{taken}:g1:m:default", "theirs")
        with pytest.raises(BrokerError, match="has keys of another program in the namespace"):
            actor.send()
