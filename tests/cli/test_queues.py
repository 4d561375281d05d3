"""``greenroom queues`` and ``greenroom peek``."""

from __future__ import annotations

import pytest

from greenroom import Message
from greenroom.brokers.engine import EngineBroker
from greenroom.clock import SYSTEM_CLOCK
from greenroom.core.verdict import Verdict
from greenroom.names import new_storage_id
from greenroom.ports.transport import Envelope, Settlement
from tests.cli.kit import REFUSED, Desk, rows_of


def test_the_queues_in_a_table(desk: Desk) -> None:
    """One line a queue: ready, delayed, claimed, dead, how long the next one has been waiting, and whether it is
    paused."""
    desk.send(1, queue="b")
    desk.send(2, queue="b", eta=SYSTEM_CLOCK.now_ms() + 3_600_000)
    desk.bury(3, queue="a", count=12)
    desk.run("pause", "b", "c")
    said = desk.run("queues")
    assert (said.code, said.err) == (0, "")
    title, a, b, c = rows_of(said.out)
    assert title == ["QUEUE", "READY", "DELAYED", "CLAIMED", "DEAD", "NEXT", "WAITS", "STATUS"]
    assert a == ["a", "0", "0", "0", "12"]
    assert (b[:5], b[-1]) == (["b", "1", "1", "0", "0"], "paused")
    assert c == ["c", "0", "0", "0", "0", "paused"]


def test_the_queues_for_a_program(desk: Desk) -> None:
    """``--json`` gives one document; its keys are always there."""
    desk.send(1)
    desk.bury(2, queue="other")
    first, second = desk.json("queues")["queues"]
    waited_ms = first.pop("next_waiting_ms")
    assert 0 <= waited_ms < 60_000
    assert first == {"queue": "default", "ready": 1, "delayed": 0, "claimed": 0, "dead": 0, "paused": False}
    assert second == {
        "queue": "other",
        "ready": 0,
        "delayed": 0,
        "claimed": 0,
        "dead": 1,
        "next_waiting_ms": None,
        "paused": False,
    }


def test_how_long_the_next_one_waits(desk: Desk) -> None:
    """A message waits since it was sent, or since it became due if that came later; bytes that are no message do not
    tell."""
    now_ms = SYSTEM_CLOCK.now_ms()
    old = Message("old", "mail", (), {}, {}, "id", now_ms - 7_200_000)
    due = Message("due", "mail", (), {}, {"eta": now_ms - 60_000}, "id", now_ms - 7_200_000)
    with desk.broker() as broker:
        bodies = {"old": old.encode(), "due": due.encode(), "raw": b"\xff"}
        broker.transport.push([Envelope(queue, new_storage_id(), body) for queue, body in bodies.items()])
    waits = {queue["queue"]: queue["next_waiting_ms"] for queue in desk.json("queues")["queues"]}
    assert 7_200_000 <= waits["old"] < 7_260_000
    assert 60_000 <= waits["due"] < 120_000
    assert waits["raw"] is None
    assert "2 h" in desk.run("queues").out


def test_no_queues(desk: Desk) -> None:
    """Where there is nothing, that is said."""
    desk.send(1)
    desk.run("flush", "default")
    assert desk.run("queues").out == "There are no messages, and no queue is paused.\n"
    assert desk.json("queues") == {"queues": []}


def test_a_queue_is_peeked_at(desk: Desk) -> None:
    """The messages stand in the order of their turns, one a line, each with its call cut short; nothing is changed."""
    desk.send("late", eta=SYSTEM_CLOCK.now_ms() + 3_600_000)
    desk.send("second\nline", "x" * 500)
    desk.send("first", priority=-1)
    before = desk.counts()
    said = desk.run("peek", "default")
    title, first, second, late = said.out.splitlines()
    assert title.split()[:5] == ["ID", "STATE", "PRIORITY", "CLAIMS", "CRASHES"]
    assert "mail('first')" in first
    assert " -1 " in first
    assert "mail('second\\nline', 'xxx" in second
    assert second.endswith("...")
    assert len(second) < 200
    assert "in 59 min 59 s" in late or "in 1 h" in late
    assert desk.counts() == before


def test_peeking_for_a_program(desk: Desk) -> None:
    """``--json`` has the arguments in full, what befell the message last, and who has claimed it."""
    sent = desk.send("a", "x" * 500, subject=1)
    with desk.broker() as broker:
        retry_it(broker)
        consumer = broker.transport.consumer("somebody")
        consumer.subscribe(["default"])
        consumer.exchange((), 1)
        found = desk.json("peek", "default")
    (message,) = found["messages"]
    assert found["more"] is False
    assert (message["message_id"], message["actor"], message["args"]) == (sent.message_id, "mail", ["a", "x" * 500])
    assert (message["state"], message["attempt"], message["crashes"]) == ("claimed", 1, 0)
    assert message["last"]["error"]["type"] == "ConnectionError"
    assert message["last"]["attempt"] == 1
    assert "somebody" in message["owner"]
    assert message["body_base64"] is None


def retry_it(broker: EngineBroker) -> None:
    """Lets the one message of the queue fail once, by a consumer that ends."""
    consumer = broker.transport.consumer("before")
    consumer.subscribe(["default"])
    (delivery,) = consumer.exchange((), 1).deliveries
    retry = Envelope("default", new_storage_id(), delivery.body)
    consumer.exchange([Settlement(delivery, Verdict.RETRY, retry=retry, error=REFUSED)], 0)
    consumer.close()


def test_what_is_no_message_is_shown_as_well(desk: Desk) -> None:
    """Bytes that cannot be decoded are shown as what they are, and are given to programs in full."""
    with desk.broker() as broker:
        broker.transport.push([Envelope("default", new_storage_id(), b"\xff\x00")])
    assert "2 bytes that are not a message" in desk.run("peek", "default").out
    (message,) = desk.json("peek", "default")["messages"]
    assert (message["actor"], message["args"], message["body_base64"]) == (None, None, "/wA=")


def test_numbers_that_json_does_not_have(desk: Desk) -> None:
    """NaN, which a message may hold, becomes null: the document can be read by everybody."""
    body = b'{"queue_name":"default","actor_name":"a","args":[NaN,{"x":[Infinity]}],"kwargs":{},"options":{}}'
    with desk.broker() as broker:
        broker.transport.push([Envelope("default", new_storage_id(), body)])
    (message,) = desk.json("peek", "default")["messages"]
    assert message["args"] == [None, {"x": [None]}]


def test_the_limit_of_a_look(desk: Desk) -> None:
    """No more are shown than asked for, and it is said that there are more."""
    for number in range(5):
        desk.send(number)
    said = desk.run("peek", "default", "--limit", "3")
    assert [f"mail({n})" in said.out for n in range(5)] == [True, True, True, False, False]
    assert "There are more" in said.out
    found = desk.json("peek", "default", "--limit", "4")
    assert ([message["args"] for message in found["messages"]], found["more"]) == ([[0], [1], [2], [3]], True)
    assert "There are more" not in desk.run("peek", "default", "--limit", "5").out


def test_one_state(desk: Desk) -> None:
    """``--state`` shows one state; where there is nothing, that is said."""
    desk.send(1)
    desk.send(2, eta=SYSTEM_CLOCK.now_ms() + 3_600_000)
    assert [m["state"] for m in desk.json("peek", "default", "--state", "delayed")["messages"]] == ["delayed"]
    assert (
        desk.run("peek", "default", "--state", "claimed").out == "There are no claimed messages in queue 'default'.\n"
    )
    assert desk.run("peek", "nowhere").out == "There are no messages in queue 'nowhere'.\n"


@pytest.mark.parametrize("words", [["--limit", "0"], ["--limit", "x"], ["--state", "dead"]], ids=" ".join)
def test_a_mistake_in_what_to_show(desk: Desk, words: list[str]) -> None:
    """A limit that is none, or a state that is none, is told in one line."""
    with pytest.raises(SystemExit) as e:
        desk.run("peek", "default", *words)
    assert e.value.code == 2
