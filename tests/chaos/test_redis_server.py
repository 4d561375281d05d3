"""What happens to the Redis server happens to nobody's messages, as far as the server has kept them.

The server of a test is its own: it is killed, stopped, filled and emptied.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from greenroom import Message
from greenroom.brokers.redis import RedisBroker
from greenroom.errors import BrokerBusy, BrokerError, BrokerFull, BrokerTimeout, ConnectionClosed, ConnectionFailed
from scripts.servers import Redis
from tests.chaos.kit import forget, is_empty, judge, note
from tests.chaos.redis_kit import (
    PATIENT_S,
    Sender,
    beat_faster,
    build,
    count,
    open_gate,
    send,
    send_surely,
    starts,
    wait_until_empty,
    wait_until_started,
    worker_process,
    working,
)
from tests.runtime.cli_kit import wait_until

#: How long a server is away, in seconds.
AWAY_S = 0.7


@pytest.fixture(autouse=True)
def _profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    beat_faster(monkeypatch.setattr)
    monkeypatch.setenv("GREENROOM_RUN_FOLDER", str(tmp_path))
    yield
    forget(tmp_path)


def pause(seconds: float) -> None:
    """Lets the time pass that a fault lasts."""
    threading.Event().wait(seconds)


def test_f20_the_server_is_killed_and_has_its_log(tmp_path: Path, start_redis: Callable[..., Redis]) -> None:
    """F20: ``kill -9`` of a server with an append-only file, under load, and its restart a moment later, three times.
    What was accepted is done, once; what was running goes on and is settled afterwards."""
    server = start_redis(appendonly="yes", appendfsync="everysec")
    broker = build(tmp_path, server.url)
    send(tmp_path, broker, ["slow"], "gated")
    with working(broker), Sender(tmp_path, broker) as sender:
        wait_until_started(tmp_path, "slow")
        for _ in range(3):
            sender.wait_for_more(50)
            server.kill()
            pause(AWAY_S)
            server.start()
        sender.wait_for_more(50)
        open_gate(tmp_path)
        wait_until(lambda: count(tmp_path, "ack") > 100, "messages are settled")
        sender.stop()
        wait_until_empty(broker)
    verdict = judge(tmp_path, broker)
    assert verdict.accepted >= 100
    assert verdict.again == 0
    broker.close()


def test_f21_the_server_is_killed_and_has_nothing(
    tmp_path: Path, redis_server: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """F21: ``kill -9`` of a server that keeps nothing. The worker says that the data are lost; what runs ends, and its
    settlement is stale; what is sent later runs."""
    broker = build(tmp_path, redis_server.url)
    send(tmp_path, broker, ["running-1", "running-2"], "gated")
    with working(broker, 2):
        wait_until_started(tmp_path, "running-1", "running-2")
        send(tmp_path, broker, [f"waiting-{n}" for n in range(50)])
        redis_server.kill()
        redis_server.start()
        open_gate(tmp_path)
        wait_until(lambda: count(tmp_path, "end") >= 2, "what was running has ended")
        later = [f"later-{n}" for n in range(20)]
        send_surely(tmp_path, broker, "probe")
        send(tmp_path, broker, later)
        wait_until_started(tmp_path, *later)
        wait_until_empty(broker)
    assert "has lost its data" in caplog.text
    assert [record for record in caplog.records if record.levelno >= logging.CRITICAL] == []
    assert all(len(starts(tmp_path, id)) == 1 for id in ("running-1", "running-2", *later))
    broker.close()


def test_f22_the_server_stands_still(tmp_path: Path, redis_server: Redis) -> None:
    """F22: SIGSTOP of the server for longer than a lease, with workers of two hosts. Sending fails in time, as "not
    known whether"; afterwards nobody was taken for dead, what was accepted is done, and what was not accepted is done
    once or not at all."""
    lease_ms = 2000  # half of it is what a worker has to renew it when the server goes on, also on a busy machine
    broker = build(tmp_path, redis_server.url, lease_ms=lease_ms)
    with (
        worker_process(tmp_path, redis_server.url, queue="theirs", lease_ms=lease_ms) as other,
        working(broker, 1, queues={"default"}),  # else it may be the one who gets theirs
    ):
        send(tmp_path, broker, ["one"], "gated", queue="theirs")
        send(tmp_path, broker, ["two"], "gated")
        wait_until_started(tmp_path, "one", "two")
        assert starts(tmp_path, "one") == [other.pid]
        redis_server.pause()
        began_s = time.monotonic()
        with pytest.raises(BrokerTimeout):
            broker.actors["plain"].send("unsure")
        assert time.monotonic() - began_s < 3
        pause(3 - (time.monotonic() - began_s))
        redis_server.resume()
        sure = [f"m{n}" for n in range(20)]
        pause(1.5)  # those who are mistaken for dead would be so by now
        open_gate(tmp_path)
        send_surely(tmp_path, broker, "probe")
        send(tmp_path, broker, sure)
        wait_until_empty(broker)
    assert all(len(starts(tmp_path, id)) == 1 for id in ("one", "two", *sure))
    assert len(starts(tmp_path, "unsure")) <= 1
    broker.close()


def test_f23_the_server_is_restarted(tmp_path: Path, start_redis: Callable[..., Redis]) -> None:
    """F23: a server that saves its data when it is stopped is restarted under load, three times. Nothing is lost, and
    nothing runs twice."""
    server = start_redis(save="3600 1")
    broker = build(tmp_path, server.url)
    with working(broker), Sender(tmp_path, broker) as sender:
        for _ in range(3):
            sender.wait_for_more(50)
            server.restart()
        sender.wait_for_more(50)
        sender.stop()
        wait_until_empty(broker)
    verdict = judge(tmp_path, broker)
    assert verdict.accepted >= 100
    assert verdict.again == 0
    broker.close()


def test_f24_the_scripts_are_flushed(tmp_path: Path, redis_server: Redis, caplog: pytest.LogCaptureFixture) -> None:
    """F24: SCRIPT FLUSH again and again, under load: nobody notices."""
    broker = build(tmp_path, redis_server.url, timeout_s=PATIENT_S)
    with working(broker), Sender(tmp_path, broker) as sender:
        for _ in range(20):
            sender.wait_for_more(10)
            redis_server.cli("SCRIPT", "FLUSH")
        sender.stop()
        wait_until_empty(broker)
    verdict = judge(tmp_path, broker)
    assert verdict.accepted == sender.count
    assert verdict.again == 0
    warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert [text for text in warnings if "no append-only file" not in text] == []
    broker.close()


def test_f24_all_is_deleted(tmp_path: Path, redis_server: Redis) -> None:
    """F24: FLUSHALL under load, five times: what was there is gone, the worker goes on with what comes."""
    broker = build(tmp_path, redis_server.url, timeout_s=PATIENT_S)
    with working(broker), Sender(tmp_path, broker) as sender:
        for _ in range(5):
            sender.wait_for_more(30)
            redis_server.cli("FLUSHALL")
        sender.wait_for_more(10)
        sender.stop()
        later = [f"later-{n}" for n in range(20)]
        send(tmp_path, broker, later)
        wait_until_started(tmp_path, *later)
        wait_until_empty(broker)
    assert all(len(starts(tmp_path, id)) == 1 for id in later)
    broker.close()


def test_f24_one_structure_is_deleted(tmp_path: Path, redis_server: Redis) -> None:
    """F24: each of the keys is deleted in turn while messages wait, run and are delayed. Whatever that takes away, the
    worker goes on: what is sent afterwards runs, once."""
    broker = build(tmp_path, redis_server.url)
    with working(broker, 1):
        send(tmp_path, broker, ["first"])
        wait_until_started(tmp_path, "first")
        send(tmp_path, broker, ["runs"], "gated")
        wait_until_started(tmp_path, "runs")
        send(tmp_path, broker, [f"waits-{n}" for n in range(5)])
        send(tmp_path, broker, ["delayed"], delay=60_000)
        keys = redis_server.cli("KEYS", "*")
        open_gate(tmp_path)
    assert len(keys) >= 5
    broker.close()
    for number, key in enumerate(keys):
        redis_server.cli("FLUSHALL")
        folder = tmp_path / str(number)
        folder.mkdir()
        _delete_one(folder, redis_server, key)
    for number in range(len(keys)):
        forget(tmp_path / str(number))


def _delete_one(folder: Path, server: Redis, key: bytes) -> None:
    broker = build(folder, server.url)
    name = key.decode()
    with working(broker, 1):
        send(folder, broker, ["runs"], "gated")
        wait_until_started(folder, "runs")
        send(folder, broker, [f"waits-{n}" for n in range(5)])
        send(folder, broker, ["delayed"], delay=60_000)
        server.cli("DEL", *_like(server, name))
        open_gate(folder)
        later = [f"later-{n}" for n in range(5)]
        send(folder, broker, later)
        wait_until_started(folder, *later)
    assert all(len(starts(folder, id)) == 1 for id in later), name
    broker.close()


def _like(server: Redis, name: str) -> list[bytes]:
    """The key of this name, or where the name has an owner in it, those of the owner of now."""
    if server.cli("EXISTS", name):
        return [name.encode()]
    kind = name.split(":")[2]
    return [key for key in server.cli("KEYS", "*") if key.decode().split(":")[2] == kind] or [b"none"]


def test_f25_the_memory_is_full(tmp_path: Path, redis_server: Redis) -> None:
    """F25: a server without memory refuses messages, as full; its worker drains what is there, which takes a claim and
    a settlement; then there is room again, without anybody's doing."""
    broker = build(tmp_path, redis_server.url)
    send(tmp_path, broker, ["warm"])
    used = int(redis_server.cli("INFO", "memory")["used_memory"])
    redis_server.cli("CONFIG", "SET", "maxmemory", used + 3_000_000)
    redis_server.cli("CONFIG", "SET", "maxmemory-policy", "noeviction")
    sent = fill(tmp_path, broker)
    assert 50 < sent < 1000
    with working(broker):
        wait_until_empty(broker)
        send(tmp_path, broker, ["again"])
        wait_until_empty(broker)
    verdict = judge(tmp_path, broker)
    assert verdict.accepted == verdict.started == sent + 2
    assert verdict.again == 0
    broker.close()


def fill(folder: Path, broker: RedisBroker) -> int:
    """Sends large messages until there is no room; how many there was room for."""
    for sent in range(1000):
        note(folder, "sent", f"m{sent}")
        try:
            broker.enqueue(Message("default", "plain", (f"m{sent}",), {}, {"note": "x" * 20_000}))
        except BrokerFull:
            note(folder, "refused", f"m{sent}")
            return sent
        note(folder, "accepted", f"m{sent}")
    return 1000


def test_f26_a_server_that_evicts_is_refused(
    tmp_path: Path, redis_server: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """F26: where the server deletes any keys when its memory is full, no worker starts, and the error says what to do;
    unless that was asked for, and then with a warning. Where it deletes only what has a time to live, one starts."""
    redis_server.cli("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    broker = build(tmp_path, redis_server.url)
    with pytest.raises(ConnectionFailed, match=r"allkeys-lru.*noeviction.*allow_eviction=True"), working(broker):
        pytest.fail("a worker has started")
    broker.close()
    broker = build(tmp_path, redis_server.url + "?allow_eviction=true", from_url=True)
    with working(broker):
        assert "deletes messages when its memory is full" in caplog.text
    broker.close()
    redis_server.cli("CONFIG", "SET", "maxmemory-policy", "volatile-lru")
    broker = build(tmp_path, redis_server.url)
    with working(broker):
        send(tmp_path, broker, ["one"])
        wait_until_empty(broker)
    broker.close()


@pytest.mark.parametrize("kept", ["no", "yes"])
def test_f21_a_server_without_a_log_is_named(
    tmp_path: Path, start_redis: Callable[..., Redis], caplog: pytest.LogCaptureFixture, kept: str
) -> None:
    """F21: a worker warns, once, where the server has no append-only file; else it says nothing."""
    broker = build(tmp_path, start_redis(appendonly=kept).url)
    for _ in range(2):
        with working(broker):
            pass
    assert caplog.text.count("has no append-only file") == (kept == "no")
    broker.close()


def test_f28_connections_are_killed(tmp_path: Path, redis_server: Redis) -> None:
    """F28: an operator kills all connections, again and again, under load. Nothing is lost, nothing runs twice, and
    what was lost is made again without anybody's doing."""
    broker = build(tmp_path, redis_server.url, timeout_s=PATIENT_S)
    with working(broker), Sender(tmp_path, broker) as sender:
        for _ in range(20):
            sender.wait_for_more(10)
            redis_server.cli("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        sender.wait_for_more(10)
        sender.stop()
        wait_until_empty(broker)
    verdict = judge(tmp_path, broker)
    assert verdict.accepted >= sender.count - 2 * 20
    assert verdict.again == 0
    broker.close()


def test_f28_idle_connections_are_closed(tmp_path: Path, redis_server: Redis) -> None:
    """F28: the server closes what is idle for a second. The first message after that is sent and runs at once."""
    broker = build(tmp_path, redis_server.url)
    with working(broker, 1):
        send(tmp_path, broker, ["before"])
        wait_until_empty(broker)
        redis_server.cli("CONFIG", "SET", "timeout", 1)
        pause(2.5)  # the server looks once a second
        began_s = time.monotonic()
        broker.actors["plain"].send("after")
        wait_until_started(tmp_path, "after")
        assert time.monotonic() - began_s < 2
    broker.close()


def test_f28_too_many_clients(tmp_path: Path, redis_server: Redis) -> None:
    """F28: a server that takes no more connections says so to who comes anew; who is there works on."""
    broker, late = build(tmp_path, redis_server.url), build(tmp_path, redis_server.url)
    with working(broker, 1):
        send(tmp_path, broker, ["one"])
        wait_until_empty(broker)
        open_now = redis_server.cli("INFO", "clients")["connected_clients"]
        redis_server.cli("CONFIG", "SET", "maxclients", open_now - 1)  # without the one that asks
        with pytest.raises((ConnectionClosed, ConnectionFailed, BrokerBusy), match="max number of clients"):
            late.actors["plain"].send("late")
        broker.actors["plain"].send("two")
        wait_until_started(tmp_path, "two")
    broker.close()
    late.close()


def test_f29_the_server_is_slow(tmp_path: Path, start_redis: Callable[..., Redis]) -> None:
    """F29: the server sleeps for longer than anybody waits for it, in the middle of claims. What it does late is not
    done twice: nothing is lost, and nothing starts twice."""
    server = start_redis(enable_debug_command="yes")
    broker = build(tmp_path, server.url, timeout_s=0.2)
    with working(broker), Sender(tmp_path, broker) as sender:
        for _ in range(4):
            sender.wait_for_more(30)
            server.cli("DEBUG", "SLEEP", "0.4")
        sender.wait_for_more(30)
        sender.stop()
        wait_until_empty(broker)
    verdict = judge(tmp_path, broker)
    assert verdict.again == 0
    broker.close()


def test_f29_a_script_blocks_the_server(tmp_path: Path, start_redis: Callable[..., Redis]) -> None:
    """F29: somebody's endless script: sending says that the server is busy, and afterwards all goes on."""
    server = start_redis(busy_reply_threshold=100)
    broker = build(tmp_path, server.url)
    send(tmp_path, broker, ["before"])
    blocker = threading.Thread(target=_block, args=(server,))
    with working(broker):
        wait_until_empty(broker)
        blocker.start()
        wait_until(lambda: _is_busy(broker), "the server is busy")
        server.cli("SCRIPT", "KILL")
        blocker.join()
        send(tmp_path, broker, ["after"])
        wait_until_empty(broker)
    assert judge(tmp_path, broker).started >= 2
    broker.close()


def _block(server: Redis) -> None:
    with pytest.raises(redis.RedisError):
        server.cli("EVAL", "while true do end", 0)


def _is_busy(broker: RedisBroker) -> bool:
    try:
        is_empty(broker)
    except BrokerBusy:
        return True
    except BrokerError:
        return False
    return False


def test_f31_the_server_comes_later(tmp_path: Path, redis_server: Redis) -> None:
    """F31: the server is not there yet when senders start: sending fails at once, as not connected; once it is there
    the same broker can send, and a worker runs it."""
    redis_server.kill()
    broker = build(tmp_path, redis_server.url)
    began_s = time.monotonic()
    with pytest.raises((ConnectionClosed, ConnectionFailed)):
        broker.actors["plain"].send("too soon")
    assert time.monotonic() - began_s < 2
    redis_server.start()
    send(tmp_path, broker, ["now"])
    with working(broker):
        wait_until_empty(broker)
    assert starts(tmp_path, "now") != []
    broker.close()


def test_f34_the_queue_is_deleted(tmp_path: Path, redis_server: Redis) -> None:
    """F34: somebody deletes all keys of a queue, or flushes it by our own means, while a worker consumes it. It goes
    on, at once."""
    broker = build(tmp_path, redis_server.url)
    with working(broker, 1):
        for number in range(3):
            send(tmp_path, broker, [f"before-{number}"])
            wait_until_started(tmp_path, f"before-{number}")
            for key in redis_server.cli("KEYS", "*:default"):
                redis_server.cli("DEL", key)
            broker.flush("default")
            began_s = time.monotonic()
            broker.actors["plain"].send(f"after-{number}")
            wait_until_started(tmp_path, f"after-{number}")
            assert time.monotonic() - began_s < 5
        wait_until_empty(broker)
    broker.close()
