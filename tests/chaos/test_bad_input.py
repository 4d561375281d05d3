"""Bad input: garbage, wrong types, wrong arguments, too much and too deep. The verdict is the same on all engines.

Rows F80, F81, F84, F85 and F86, and what of the security corpus meets a decoder. Everything is seeded.
"""

from __future__ import annotations

import ast
import gzip
import json
import math
import pickle
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import greenroom
from greenroom import Message, actor
from greenroom.errors import DecodeError, EncodeError, InvalidMessage, MessageTooLarge
from greenroom.message import MAX_MESSAGE_BYTES
from greenroom.middleware import Retries
from greenroom.names import new_storage_id
from greenroom.ports.admin import DeadLetter
from greenroom.ports.transport import Envelope
from greenroom.runtime import admission
from tests.runtime.cli_kit import wait_until
from tests.runtime.engine_kit import letters_in
from tests.runtime.worker_kit import ALL_ENGINES, EngineTestBroker, collector, make_broker, make_broker_of, working

MODEST = settings(
    max_examples=300, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)
WIRE: dict[str, Any] = {
    "queue_name": "default",
    "actor_name": "collect",
    "args": [1],
    "kwargs": {},
    "options": {},
    "message_id": "id",
    "message_timestamp": 5,
}
KINDS: dict[str, tuple[type, ...]] = {
    "queue_name": (str,),
    "actor_name": (str,),
    "args": (list,),
    "kwargs": (dict,),
    "options": (dict,),
    "message_id": (str,),
    "message_timestamp": (int,),
}


@pytest.fixture(params=ALL_ENGINES)
def broker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[EngineTestBroker]:
    broker = make_broker_of(request, request.param, tmp_path, [Retries(max_retries=3)])
    yield broker
    broker.close()


def push(broker: EngineTestBroker, *raw: bytes, queue: str = "default") -> None:
    """Puts bytes into a queue past everything that looks at them."""
    for start in range(0, len(raw), 1000):
        broker.transport.push([Envelope(queue, new_storage_id(), body) for body in raw[start : start + 1000]])


def wire(**fields: Any) -> bytes:
    """A message for the collector as it is written, with some fields replaced."""
    return json.dumps({**WIRE, **fields}).encode()


def run_all(broker: EngineTestBroker, threads: int = 2) -> None:
    with working(broker, threads=threads):
        broker.wait_until_empty()


def reason(letter: DeadLetter) -> tuple[str, str]:
    assert letter.error is not None
    return letter.error.type, letter.error.message


# --- F80: garbage


def garbage(count: int, seed: int = 80) -> list[bytes]:
    """Bodies that are no messages, each different."""
    chance = random.Random(seed)
    good = wire(args=["x" * 40])
    makers: list[Callable[[], bytes]] = [
        lambda: chance.randbytes(chance.randrange(200)),
        lambda: good[: chance.randrange(len(good))],
        lambda: good[chance.randrange(1, len(good)) :],
        lambda: good.decode().encode("utf-16"),
        lambda: gzip.compress(good, mtime=0)[: chance.randrange(80)],
        lambda: b"",
        lambda: json.dumps([chance.random()]).encode(),
        lambda: wire(args=chance.random()),
        lambda: wire(**{f"field{chance.random()}": 1}),
        lambda: b"\xff" + good,
    ]
    return [chance.choice(makers)() for _ in range(count)]


def test_f80_garbage_among_good_messages(broker: EngineTestBroker, caplog: pytest.LogCaptureFixture) -> None:
    """Ten thousand bodies that are no messages, mixed one to one with good ones: all the good ones are run, once each,
    all the bad ones are dead letters, byte for byte and with a reason; the log says so once a second, with a count that
    adds up, and one consumer does it all."""
    _collect, notes = collector(broker)
    bad = garbage(10_000)
    assert all(_is_refused(body) for body in bad)
    mixed = [body for number, raw in enumerate(bad) for body in (raw, wire(args=[number]))]
    push(broker, *mixed)
    consumers = Counter[str]()
    make_consumer = broker.transport.consumer

    def consumer(owner: str) -> Any:
        consumers[owner] += 1
        return make_consumer(owner)

    broker.transport.consumer = consumer
    begun = time.monotonic()
    run_all(broker, threads=4)
    elapsed_s = time.monotonic() - begun
    assert Counter(notes) == Counter(range(10_000))
    letters = letters_in(broker)
    assert Counter(letter.body for letter in letters) == Counter(bad)
    assert all(reason(letter)[0] in ("DecodeError", "InvalidMessage") and reason(letter)[1] for letter in letters)
    assert sum(consumers.values()) == 1
    assert 0 < sum("dead-lettered" in line for line in caplog.messages) <= elapsed_s + 3
    assert 0 < _named(caplog) <= len(bad)


def _is_refused(body: bytes) -> bool:
    try:
        Message.decode(body)
    except DecodeError:
        return True
    return False


def test_f80_what_the_log_left_out_is_told(broker: EngineTestBroker, caplog: pytest.LogCaptureFixture) -> None:
    """When garbage stops coming, a worker that has nothing to do says how many it has not named."""
    collector(broker)
    push(broker, *[b"garbage"] * 50)
    begun = time.monotonic()
    with working(broker, worker_timeout=50):
        broker.wait_until_empty()
        wait_until(lambda: _named(caplog) == 50, "all are named or counted")
    assert sum("dead-lettered" in line for line in caplog.messages) <= time.monotonic() - begun + 3


def _named(caplog: pytest.LogCaptureFixture) -> int:
    """How many messages the log has named or counted."""
    named = 0
    for line in caplog.messages:
        if line.startswith("Message "):
            named += 1 + (int(line.rpartition(" (")[2].split()[0]) if "more since" in line else 0)
        elif "more messages" in line:
            named += int(line.split()[0])
    return named


# --- F81: valid JSON, wrong types

anything = (
    st.none()
    | st.booleans()
    | st.integers(min_value=-(2**70), max_value=2**70)
    | st.floats()
    | st.text(max_size=20)
    | st.lists(st.integers(), max_size=3)
    | st.dictionaries(st.text(max_size=3), st.integers(), max_size=3)
    | st.just("x" * 100_000)
    | st.just(list(range(10_000)))
)


@pytest.mark.parametrize("field", WIRE)
@MODEST
@given(value=anything)
def test_f81_a_field_of_any_type(field: str, value: Any) -> None:
    """A field of another type than its own is refused by its name; one of its own type is read."""
    raw = wire(**{field: value})
    if isinstance(value, KINDS[field]) and not isinstance(value, bool):
        assert json.loads(Message.decode(raw).encode())[field] == value
        return
    with pytest.raises(InvalidMessage) as e:
        Message.decode(raw)
    assert e.value.field == field
    assert repr(field) in str(e.value)


WRONG_FIELDS: list[tuple[str, Any]] = [
    (field, value)
    for field in WIRE
    for value in (None, True, 5, -1.5, "x", [], {}, math.nan)
    if not isinstance(value, KINDS[field]) or isinstance(value, bool)
]


def check_refused(broker: EngineTestBroker, bad: list[tuple[str, bytes]]) -> None:
    """Each of these messages, among good ones, becomes a dead letter that names what is wrong with it."""
    _collect, notes = collector(broker)
    for number, (_name, body) in enumerate(bad):
        push(broker, body, wire(args=[number]))
    run_all(broker)
    assert sorted(notes) == list(range(len(bad)))
    reasons = {letter.body: reason(letter) for letter in broker.transport.dead("default", limit=1000)}
    assert reasons.keys() == {body for _name, body in bad}
    for name, body in bad:
        kind, text = reasons[body]
        assert kind == "InvalidMessage", body[:200]
        assert name in text, body[:200]


def test_f81_fields_on_the_engines(broker: EngineTestBroker) -> None:
    """In a worker such a message becomes a dead letter that says which field is wrong; those around it are run."""
    check_refused(broker, [(field, wire(**{field: value})) for field, value in WRONG_FIELDS])


BAD_OPTIONS: list[tuple[str, Any]] = [
    (name, value)
    for name in ("max_age", "max_backoff", "max_retries", "min_backoff", "priority", "retries", "time_limit")
    for value in (True, "x", [], {}, -1, math.nan, 10**400)
    if (name, value) != ("priority", -1)
]


def test_f81_options_on_the_engines(broker: EngineTestBroker) -> None:
    """An option that the library reads and that makes no sense is refused before the actor runs: what read it
    afterwards could only fail, and a message whose failure nobody can handle would be lost."""
    check_refused(broker, [(name, wire(options={name: value})) for name, value in BAD_OPTIONS])


@pytest.mark.parametrize("eta", ["x", None, [], True, math.nan, math.inf, -1, 10**400])
def test_f81_an_eta_that_is_none(broker: EngineTestBroker, eta: Any) -> None:
    """An ``eta`` says when a message is due, and nothing after that: whatever it is, the message is run."""
    _collect, notes = collector(broker)
    push(broker, wire(options={"eta": eta}))
    run_all(broker)
    assert notes == [1]


def test_f81_arguments_that_the_actor_does_not_take(broker: EngineTestBroker) -> None:
    """A call that the actor does not take fails for good at once: it would fail twenty times otherwise, over days."""
    ran = []

    @actor(broker=broker)
    def add(a: int, b: int) -> None:
        ran.append((a, b))

    @actor(broker=broker)
    async def aadd(a: int, b: int) -> None:
        ran.append((a, b))

    @actor(broker=broker, max_retries=1, min_backoff=1)
    def broken(a: int) -> None:
        ran.append((a, -1))
        raise TypeError("from inside")

    for name in ("add", "aadd"):
        push(broker, wire(actor_name=name, args=[1]), wire(actor_name=name, args=[1, 2, 3]))
        push(broker, wire(actor_name=name, args=[1], kwargs={"c": 2}), wire(actor_name=name, args=[1, 2]))
    push(broker, wire(actor_name="broken"))
    run_all(broker)
    assert Counter(ran) == {(1, 2): 2, (1, -1): 2}
    letters = broker.dead()
    assert Counter(Message.decode(letter.body).actor_name for letter in letters) == {"add": 3, "aadd": 3, "broken": 1}
    for letter in letters:
        kind, text = reason(letter)
        assert kind == "TypeError"
        assert "argument" in text or text == "from inside"


def test_f81_wrong_calls_may_be_retried(broker: EngineTestBroker) -> None:
    """With ``retry_wrong_calls`` they are failures like all others: for programs whose workers are deployed late."""
    broker.middleware = [Retries(max_retries=2, min_backoff=1, retry_wrong_calls=True)]
    collector(broker)
    push(broker, wire(args=[1, 2, 3]))
    run_all(broker)
    (letter,) = broker.dead()
    assert Message.decode(letter.body).options["retries"] == 2


# --- F84: too large


def test_f84_a_large_message(broker: EngineTestBroker) -> None:
    """A message of more than one MiB is a message like all others."""
    collect, notes = collector(broker)
    text = "x" * (1 << 20) + "y"
    collect.send(text)
    run_all(broker)
    assert notes == [text]


def test_f84_too_large_a_message_is_not_sent(broker: EngineTestBroker) -> None:
    """One byte more than 16 MiB is refused where it is sent, and nothing is written; 16 MiB are fine."""
    collect, _notes = collector(broker)
    least = len(collect.message("").encode())
    with pytest.raises(MessageTooLarge) as e:
        collect.send("x" * (MAX_MESSAGE_BYTES - least + 1))
    assert (e.value.size, e.value.limit) == (MAX_MESSAGE_BYTES + 1, MAX_MESSAGE_BYTES)
    assert broker.counts().ready == 0
    collect.send("x" * (MAX_MESSAGE_BYTES - least))
    assert broker.counts().ready == 1


def test_f84_too_large_a_body_is_not_read(broker: EngineTestBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    """A body over the limit that is in the queue all the same becomes a dead letter; no parser sees it."""
    broker.max_message_bytes = 1000
    parsed = []

    def decode(body: bytes) -> Message[Any]:
        parsed.append(len(body))
        return Message.decode(body)

    monkeypatch.setattr(admission, "decode_message", decode)
    _collect, notes = collector(broker)
    large = wire(args=["x" * 1000])
    push(broker, large, wire(args=["good"]))
    run_all(broker)
    assert notes == ["good"]
    assert len(parsed) == 1
    (letter,) = broker.dead()
    assert letter.body == large
    assert reason(letter)[0] == "MessageTooLarge"
    assert str(len(large)) in reason(letter)[1]


def test_f84_many_large_messages(tmp_path: Path) -> None:
    """More bytes than one claim may hold are claimed in turns, however many messages were asked for."""
    broker = make_broker("sqlite", tmp_path)
    push(broker, *[b"%d" % number + b"x" * (8 << 20) for number in range(20)])
    consumer = broker.transport.consumer("test")
    consumer.subscribe(["default"])
    claimed = []
    while len(claimed) < 20:
        deliveries = consumer.exchange([], 500).deliveries
        assert 0 < sum(len(delivery.body) for delivery in deliveries) <= 64 << 20
        claimed += [delivery.body[:2] for delivery in deliveries]
    assert [int(body.strip(b"x")) for body in claimed] == list(range(20))
    broker.close()


# --- F85, F86: deep, and odd


@pytest.mark.parametrize("depth", [65, 1000, 100_000])
@pytest.mark.parametrize("brackets", ["[]", "{}"])
def test_f85_too_deep(broker: EngineTestBroker, depth: int, brackets: str) -> None:
    """Arguments nested too deep are refused where they are sent, and a dead letter where they come in all the same."""
    collect, notes = collector(broker)
    opening = '{"x":' if brackets == "{}" else "["
    raw = (opening * depth + "1" + brackets[1] * depth).encode()
    push(broker, wire(args=["HERE"]).replace(b'"HERE"', raw), wire(args=["good"]))
    run_all(broker)
    assert notes == ["good"]
    (letter,) = broker.dead()
    assert reason(letter)[0] in ("DecodeError", "InvalidMessage")
    value: Any = 1
    for _ in range(depth):
        value = {"x": value} if brackets == "{}" else [value]
    with pytest.raises(EncodeError):
        collect.send(value)


ODD_VALUES: list[tuple[str, Any]] = [
    ("surrogate", "\ud800"),
    ("surrogates", "a\udfffb\ud83d"),
    ("nul", "a\u0000b"),
    ("separators", "\u2028\u2029\u0085\r\n\x1b[31m"),
    ("astral", "\U0001f33f"),
    ("proto", {"__proto__": {"x": 1}, "constructor": 1, "__class__": "os.system"}),
    ("empty key", {"": 1}),
    ("nul key", {"\u0000": 1}),
    ("many keys", {str(number): number for number in range(100_000)}),
    ("digits", 10**4299),
    ("large", [2**53 + 1, -(2**63), 2**64, 1.7976931348623157e308, 5e-324, -0.0]),
    ("format", "{0.__init__.__globals__} %s %(x)s ${x}"),
    ("sql", "'; drop table message; --"),
]


@pytest.mark.parametrize("value", [value for _, value in ODD_VALUES], ids=[name for name, _ in ODD_VALUES])
def test_f86_odd_values_come_through(broker: EngineTestBroker, value: Any) -> None:
    """What JSON can say arrives as it was sent, as an argument and as a key, on every engine."""
    collect, notes = collector(broker)
    collect.send(value)
    run_all(broker)
    assert notes == [value]
    assert json.dumps(notes) == json.dumps([value])


@pytest.mark.parametrize(
    "value",
    [math.nan, math.inf, -math.inf, 10**5000, -(10**4300)],
    ids=lambda v: f"{v:.3e}"[:8] if isinstance(v, float) else "digits",
)
def test_f86_what_json_cannot_say(broker: EngineTestBroker, value: Any) -> None:
    """NaN, infinity and numbers of too many digits are refused where they are sent, with their place."""
    collect, _notes = collector(broker)
    with pytest.raises(EncodeError) as e:
        collect.send({"a": [1, value]})
    assert e.value.path == "$.args[0].a[1]"
    assert broker.counts().ready == 0


def test_f86_numbers_of_other_writers(broker: EngineTestBroker) -> None:
    """NaN and infinity that others wrote are read; a number of too many digits makes a dead letter; of a key that comes
    twice the last one counts."""
    _collect, notes = collector(broker)
    for text in (b"NaN", b"-Infinity", b"1e400", b"1" * 5000, b'{"a":1,"a":2}'):
        push(broker, wire(args=["HERE"]).replace(b'"HERE"', text))
    run_all(broker, threads=1)
    assert [str(note) for note in notes] == ["nan", "-inf", "inf", "{'a': 2}"]
    (letter,) = broker.dead()
    assert reason(letter)[0] == "DecodeError"


# --- security: data stays data


class Bomb:
    """Leaves a trace when its pickle is loaded."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return Path.touch, (self.trace,)


def test_a_pickle_is_never_loaded(broker: EngineTestBroker, tmp_path: Path) -> None:
    """A body that is a pickle is garbage, whatever the message says of its encoding."""
    trace = tmp_path / "trace"
    _collect, notes = collector(broker)
    bomb = pickle.dumps(Bomb(trace))
    push(broker, bomb, wire(options={"encoder": "pickle", "content_type": "application/x-python-serialize"}))
    push(broker, wire(args=[bomb.decode("latin-1")], options={"serializer": "pickle"}))
    run_all(broker)
    assert len(notes) == 2
    assert not trace.exists()
    assert [letter.body for letter in broker.dead()] == [bomb]


@pytest.mark.parametrize(
    "data",
    [
        {"exc_type": "system", "exc_message": "id", "exc_module": "os"},
        {"__class__": "subprocess.Popen", "__init__": ["id"]},
        {"__reduce__": ["os.system", ["id"]]},
        {"py/object": "os.system"},
        {"!!python/object/apply:os.system": ["id"]},
        {"__type__": "datetime", "value": "2024-01-01"},
    ],
)
def test_payloads_stay_data(broker: EngineTestBroker, data: dict[str, Any]) -> None:
    """What other decoders turn into objects or calls arrives as the dict that it is; as a name it names nothing."""
    _collect, notes = collector(broker)
    push(broker, wire(args=[data]), wire(actor_name=json.dumps(data)))
    with working(broker):
        wait_until(lambda: notes and broker.counts().delayed == 1, "one was run and one put aside")
    assert notes == [data]


@pytest.mark.parametrize("name", ["os.system", "collect.__class__", "../../etc/passwd", "__import__('os')", "{0.fn}"])
def test_names_are_looked_up_and_nothing_else(broker: EngineTestBroker, name: str) -> None:
    """An actor is found in the broker's own table, by its whole name."""
    collector(broker)
    broker.unknown_actor_ttl_ms = 0
    push(broker, wire(actor_name=name))
    run_all(broker)
    (letter,) = broker.dead()
    assert reason(letter)[0] == "ActorNotFound"


def test_nobody_forges_the_log(broker: EngineTestBroker, caplog: pytest.LogCaptureFixture) -> None:
    """Line ends and control characters of a message are escaped wherever the log names them."""
    evil = "x\r\n[CRITICAL] all is lost\x1b[2J\u2028\x85"
    collector(broker)
    broker.unknown_actor_ttl_ms = 0
    push(broker, wire(**{evil: 1}), wire(message_id=evil, actor_name=evil), wire(actor_name=evil + "2"))
    run_all(broker)
    assert len(broker.dead()) == 3
    assert any("all is lost" in message for message in caplog.messages)
    assert all(message.isprintable() for message in caplog.messages)
    assert all(text.isprintable() for _, text in map(reason, broker.dead()))


def test_no_decoder_imports_or_evaluates() -> None:
    """On the way from bytes to a run nothing is imported, evaluated or looked up by a name that a message brings. The
    pickle encoder is an explicit choice."""
    source = Path(greenroom.__file__).parent
    forbidden = {"eval", "exec", "compile", "__import__", "import_module", "globals"}
    for name in ("message.py", "encoder.py", "runtime/admission.py", "runtime/intake.py", "engines/sqlite/claims.py"):
        tree = ast.parse((source / name).read_text("utf-8"))
        names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        attributes = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        assert not forbidden & (names | attributes), name
        users = [node.name for node in tree.body if isinstance(node, ast.ClassDef) and "pickle" in ast.unparse(node)]
        assert users == (["PickleEncoder"] if name == "encoder.py" else [])
