"""Damaged, alien, deleted and replaced queue files under real workers, and what comes back of them.

Rows F50, F52 and F54; 20 seeds. Whatever happens to a file: nothing hangs, nothing is made anew in silence, and what
can be read comes back.
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from greenroom import Message
from greenroom.brokers.sqlite import SqliteBroker
from greenroom.engines.sqlite import database
from greenroom.engines.sqlite.opening import PAGE_BYTES
from greenroom.engines.sqlite.recover import Recovery, recover
from greenroom.engines.sqlite.transport import SqliteTransport
from greenroom.errors import BrokerCorrupt, DecodeError
from greenroom.testing.contract.kit import consumer_of, drain
from greenroom.testing.contract.processes import in_child
from tests.engines.kit import other_process, query
from tests.runtime.cli_kit import PATIENCE_S, Program, environment, wait_until
from tests.runtime.worker_kit import collector, make_broker, working

MESSAGES = 2000
SEEDS = range(20)

MAKES_A_QUEUE = """
import os, sys
from greenroom import Message
from greenroom.brokers.sqlite import SqliteBroker
from greenroom.ports.transport import ErrorText, Settlement
from greenroom.core.verdict import Verdict

broker = SqliteBroker(sys.argv[1])
broker.declare_queue("default")
first, last = int(sys.argv[2]), int(sys.argv[3])
broker.enqueue_many(Message("default", "note", (n,), {}, {}, f"{n:06}", n) for n in range(first, last))
consumer = broker.transport.consumer("test")
consumer.subscribe(["default"])
claimed = consumer.exchange([], 60).deliveries
consumer.exchange([Settlement(d, Verdict.DEAD, error=ErrorText("ValueError", "no")) for d in claimed[:20]], 0)
if sys.argv[4] == "late log":  # what the log has, begins in the middle
    broker.transport._process.get().database.checkpoint()
    broker.enqueue_many(Message("default", "note", (n,), {}, {}, f"{n:06}", n) for n in range(last, last + 200))
if sys.argv[4] != "close":
    os._exit(0)
broker.close()
"""

#: Notes which messages it has run.
APP = """
@greenroom.actor
def note(number):
    with (HERE / "notes").open("a") as notes:
        notes.write(f"{number}\\n")
"""


def make_queue(path: Path, first: int, last: int, *, how: str = "close") -> Path:
    """A queue of numbered messages, some dead and some claimed, made by a process that is gone."""
    command = [sys.executable, "-c", MAKES_A_QUEUE, str(path), str(first), str(last), how]
    subprocess.run(command, env=environment({}), timeout=PATIENCE_S, check=True)
    return path


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound queue in one file. Not to be changed."""
    return make_queue(tmp_path_factory.mktemp("sound") / "queue.db", 0, MESSAGES)


# --- damage, seeded


def cut(data: bytearray, chance: random.Random) -> None:
    del data[chance.randrange(PAGE_BYTES, len(data)) :]


def flip_bits(data: bytearray, chance: random.Random) -> None:
    for _ in range(10):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)


def overwrite_a_page(data: bytearray, chance: random.Random) -> None:
    at = chance.randrange(len(data) // PAGE_BYTES) * PAGE_BYTES
    data[at : at + PAGE_BYTES] = chance.randbytes(PAGE_BYTES)


def overwrite_the_head(data: bytearray, chance: random.Random) -> None:
    data[:PAGE_BYTES] = chance.randbytes(PAGE_BYTES)


def clear_pages(data: bytearray, chance: random.Random) -> None:
    at = chance.randrange(len(data) // PAGE_BYTES) * PAGE_BYTES
    data[at : at + 8 * PAGE_BYTES] = bytes(8 * PAGE_BYTES)


KINDS: list[Callable[[bytearray, random.Random], None]] = [
    cut,
    flip_bits,
    overwrite_a_page,
    overwrite_the_head,
    clear_pages,
]


def damaged(sound: Path, folder: Path, seed: int) -> tuple[Path, set[int]]:
    """A damaged copy, and the numbers of the messages whose bytes are all there still."""
    data = bytearray(sound.read_bytes())
    KINDS[seed % len(KINDS)](data, random.Random(seed))
    path = folder / "queue.db"
    path.write_bytes(data)
    found = bytes(data)
    return path, {n for n in range(MESSAGES) if body_of(n) in found}


def body_of(number: int) -> bytes:
    """The message as ``MAKES_A_QUEUE`` sends it."""
    return Message("default", "note", (number,), {}, {}, f"{number:06}", number).encode()


def numbers_in(path: Path) -> list[int]:
    """The numbers of all messages of a sound queue, dead ones too."""
    rows = query(path, "select cast(body as blob) from message union all select cast(body as blob) from dead")
    return sorted(json.loads(body)["args"][0] for (body,) in rows if is_message(body))


def is_message(body: bytes) -> bool:
    try:
        return isinstance(Message.decode(body).args[0], int)
    except (DecodeError, LookupError):  # a bit of it was flipped
        return False


def work_on(path: Path, notes: Path) -> None:
    """Runs a worker on a queue until it is empty or the worker gives up; notes what was run, and why it ended."""
    broker = SqliteBroker(path)
    ran: list[int] = []
    _collect, ran = collector(broker, "note")
    try:
        with working(broker, threads=2) as worker:
            wait_until(lambda: worker.is_stuck or is_empty(broker), "it is empty, or the worker has given up")
            error = worker.fatal_error
    except BrokerCorrupt as e:
        error = e
    kind = "BrokerCorrupt" if isinstance(error, BrokerCorrupt) else type(error).__name__
    path_told = getattr(error, "path", "")
    notes.write_text(json.dumps({"ran": ran, "error": kind, "path": path_told}))


def is_empty(broker: SqliteBroker) -> bool:
    try:
        counts = broker.transport.counts(["default"])["default"]
    except BrokerCorrupt:
        return False  # the worker will meet it, too
    return not (counts.ready or counts.claimed)


@pytest.mark.parametrize("seed", SEEDS)
def test_f52_a_damaged_file(sound: Path, tmp_path: Path, seed: int) -> None:
    """A worker either runs what is intact or ends with ``BrokerCorrupt`` and the path; it never hangs and never begins
    a new file. ``recover`` brings back what is intact, and leaves the damaged file as it is."""
    path, intact = damaged(sound, tmp_path, seed)
    before = path.read_bytes()
    recovery = recover(path, tmp_path / "new.db")
    assert path.read_bytes() == before
    check_recovery(recovery, tmp_path / "new.db", intact, seed)

    inode = path.stat().st_ino
    in_child(lambda: work_on(path, tmp_path / "notes"))
    outcome = json.loads((tmp_path / "notes").read_text())
    assert path.stat().st_ino == inode
    assert len(outcome["ran"]) == len(set(outcome["ran"]))
    if outcome["error"] == "NoneType":
        dead = {n for n in numbers_in(path) if n not in outcome["ran"]}
        assert intact <= set(outcome["ran"]) | dead
    else:
        assert (outcome["error"], outcome["path"]) == ("BrokerCorrupt", str(path))


def check_recovery(recovery: Recovery, new: Path, intact: set[int], seed: int) -> None:
    """What is intact came back, once each; a flipped bit may cost the row around it, or a page of rows."""
    numbers = numbers_in(new)
    assert len(numbers) == len(set(numbers))
    lost = intact - set(numbers)
    if KINDS[seed % len(KINDS)] is flip_bits:
        assert len(lost) <= 50
    else:
        assert lost == set()
    assert query(new, "pragma integrity_check") == [("ok",)]
    transport = SqliteTransport(new)
    assert len(drain(consumer_of(transport))) == recovery.ready
    transport.close()


@pytest.mark.parametrize(("how", "verdict"), [("late log", "left out"), ("kill", "used")])
def test_f52_the_log_of_another_queue(sound: Path, tmp_path: Path, how: str, verdict: str) -> None:
    """A log that belongs to another file makes a sound file a damaged one; or, if all of that other file is in it, it
    hides the file. A worker then ends, or runs what it sees. ``recover`` leaves such a log out if the file is sound
    without it and not with it; where it cannot tell it says what the file holds, and does as it is told."""
    path = tmp_path / "queue.db"
    shutil.copyfile(sound, path)
    other = make_queue(tmp_path / "other.db", MESSAGES, MESSAGES + 500, how=how)
    other.with_name("other.db-wal").rename(tmp_path / "queue.db-wal")
    recovery = recover(path, tmp_path / "new.db")
    assert path.read_bytes() == sound.read_bytes()
    assert recovery.log == verdict
    if verdict == "used":
        assert recovery.without_log == MESSAGES
        recover(path, tmp_path / "alone.db", ignore_log=True)
        (tmp_path / "alone.db").replace(tmp_path / "new.db")
    assert numbers_in(tmp_path / "new.db") == list(range(MESSAGES))
    in_child(lambda: work_on(path, tmp_path / "notes"))
    assert json.loads((tmp_path / "notes").read_text())["error"] in ("BrokerCorrupt", "NoneType")


def test_f52_a_log_with_flipped_bits(tmp_path: Path) -> None:
    """SQLite reads a log up to the first frame whose checksum is wrong. What stands before that comes back."""
    path = make_queue(tmp_path / "queue.db", 0, 500, how="kill")
    log = path.with_name("queue.db-wal")
    data = bytearray(log.read_bytes())
    data[len(data) // 2] ^= 1
    log.write_bytes(data)
    recovery = recover(path, tmp_path / "new.db")
    assert recovery.log == "used"
    numbers = numbers_in(tmp_path / "new.db")
    assert numbers == list(range(len(numbers)))
    in_child(lambda: work_on(path, tmp_path / "notes"))
    assert json.loads((tmp_path / "notes").read_text())["error"] in ("BrokerCorrupt", "NoneType")


# --- the command


@pytest.fixture
def program(tmp_path: Path) -> Program:
    return Program(tmp_path).write(APP)


def numbers_run(program: Program) -> list[int]:
    notes = program.folder / "notes"
    return [int(line) for line in notes.read_text().split()] if notes.exists() else []


@pytest.mark.parametrize(
    "content", [b"not a database " * 500, b"SQLite format 3\0" + b"\xff" * 8000], ids=["text", "head"]
)
def test_f52_the_command_at_start(program: Program, content: bytes) -> None:
    """``greenroom worker`` on something that is no queue ends with code 5 and names it; nothing is changed."""
    path = program.folder / "queue.db"
    path.write_bytes(content)
    done = program.run("worker", "app", "-p", "1")
    assert done.returncode == 5, done.stderr
    assert str(path) in done.stderr
    assert "Traceback" not in done.stderr
    assert path.read_bytes() == content


def test_f52_from_damage_to_work(program: Program, sound: Path) -> None:
    """What an operator does: a worker ends with code 5 when it meets the damage, ``greenroom sqlite recover`` salvages
    the rest to a new file and says with code 5 that something is lost, and a worker on that file runs it all."""
    path, intact = damaged(sound, program.folder, 2)
    done = program.run("worker", "app", "-p", "1")
    assert done.returncode == 5, done.stderr
    assert f"greenroom sqlite recover {path}" in done.stderr
    before = numbers_run(program)
    salvaged = program.run("sqlite", "recover", "queue.db", "-o", "new.db", "--json")
    assert salvaged.returncode == 5, salvaged.stderr
    report = json.loads(salvaged.stdout)
    assert report["damage"]
    path.rename(program.folder / "damaged.db")
    for suffix in ("-wal", "-shm"):
        program.folder.joinpath(f"queue.db{suffix}").unlink(missing_ok=True)
    (program.folder / "new.db").rename(path)
    dead = {json.loads(body)["args"][0] for (body,) in query(path, "select cast(body as blob) from dead")}
    with program.start("worker", "app", "-p", "1"):
        wait_until(lambda: intact <= dead.union(before, numbers_run(program)), "all that is intact has run")


# --- F50: locked

HOLDS = """
connection = sqlite3.connect(path, isolation_level=None)
connection.execute("begin exclusive")
say("locked")
hear()
"""


def test_f50_a_worker_outlasts_a_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker whose trips all fail, because another process holds the file for longer than the budget, goes on when
    the file is free: what ran meanwhile is settled once."""
    monkeypatch.setattr(database, "BUSY_BUDGET_S", 0.05)
    broker = make_broker("sqlite", tmp_path)
    started, gate = threading.Event(), threading.Event()
    ran: list[int] = []

    def work(number: int) -> None:
        started.set()
        gate.wait(PATIENCE_S)
        ran.append(number)

    import greenroom

    actor = greenroom.actor(work, broker=broker)
    actor.send(1)
    with working(broker) as worker:
        assert started.wait(PATIENCE_S)
        with other_process(HOLDS, tmp_path / "q.db") as other:
            assert other.hear() == "locked"
            gate.set()
            wait_until(lambda: worker._pump._trips._failures >= 3, "three trips have failed")
            other.kill()
        actor.send(2)
        broker.wait_until_empty()
        assert not worker.is_stuck
    assert ran == [1, 2]
    broker.close()


# --- F54: gone and replaced, with the real times


def test_f54_the_file_goes_away_under_a_worker(program: Program) -> None:
    """Within five seconds, and the time that ending takes, the command says what happened and ends with code 5. No new
    file lies at the path."""
    with program.start("worker", "app", "-p", "1") as worker:
        worker.wait_until_ready()
        path = program.folder / "queue.db"
        for file in program.folder.glob("queue.db*"):
            if file.is_file():
                file.rename(program.folder / f"old{file.name}")
        wait_until(lambda: "deleted or renamed" in worker.text, "it is noticed", patience_s=7)
        assert worker.wait() == 5, worker.text
        assert not path.exists()


def test_f54_a_queue_is_restored_under_a_worker(program: Program) -> None:
    """A worker goes on with another queue that takes the place of its file, within five seconds."""
    make_queue(program.folder / "new.db", 100, 160)
    waiting = {json.loads(body)["args"][0] for (body,) in query(program.folder / "new.db", "select body from message")}
    with program.start("worker", "app", "-p", "1") as worker:
        worker.wait_until_ready()
        program.send("note", 1)
        wait_until(lambda: numbers_run(program) == [1], "the first one was run")
        for file in program.folder.glob("queue.db*"):
            if file.is_file():
                file.rename(program.folder / f"old{file.name}")
        (program.folder / "new.db").rename(program.folder / "queue.db")
        wait_until(lambda: len(numbers_run(program)) > 1, "the new file is used", patience_s=7)
        wait_until(lambda: set(numbers_run(program)) == {1} | waiting, "all of it is run, what was claimed there too")
        program.send("note", 2)
        wait_until(lambda: 2 in numbers_run(program), "what is sent now is run")
        assert "goes on in the new file" in worker.text
