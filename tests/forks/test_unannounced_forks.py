"""Forks that nobody tells Python of, as uWSGI makes them: the child inherits open connections."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.forks.kit import FORK, USE, once, run, run_program, stored, write_program

#: ``visit`` is a process that opens the file, reads and closes it: if it takes itself for the last one, the WAL goes.
#: ``die_writing`` is one that commits something and is killed: its WAL stays, and has the only copy.
OTHERS = """
import gc, sqlite3, subprocess

PATH = str(HERE / "queue.db")
VISIT = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); "
VISIT += "print(c.execute('select count(*) from message').fetchone()[0]); c.close()"
DIE = "import os, signal, app; app.send(int(os.sys.argv[1])); os.kill(os.getpid(), signal.SIGKILL)"

def visit():
    return int(subprocess.run([sys.executable, "-c", VISIT, PATH], check=True, capture_output=True).stdout)

def die_writing(number):
    assert subprocess.run([sys.executable, "-c", DIE, str(number)], cwd=HERE).returncode == -signal.SIGKILL
"""

#: The child goes on once the parent has done something.
TWO = """
reader, writer = os.pipe()
def parent_is_done():
    os.write(writer, b"!")
def wait_for_parent():
    os.read(reader, 1)
"""

RAW = """
if __name__ == "__main__":
    from greenroom.engines.sqlite.inheritance import close_inherited
    from greenroom.engines.sqlite.database import Database

    inherited = Database(Path(PATH), durable=False, mode=0o600)
    inherited.run(lambda connection: None)
    pid = fork_from_c()
    if pid == 0:
        with child():
            wait_for_parent()
            if sys.argv[1] == "closed":
                close_inherited([inherited])
            mine = sqlite3.connect(PATH, isolation_level=None)
            insert = "insert into message (id, queue, priority, state, body) values (?, 'q', 0, 2, x'00')"
            mine.execute(insert, "1")
            assert visit() == 1
            mine.execute(insert, "2")  # SQLite reports a success
            print(visit(), flush=True)
    inherited.close()
    parent_is_done()
    wait(pid)
"""


@pytest.mark.parametrize(("how", "seen"), [("kept", 1), ("closed", 2)])
def test_f57_why_a_child_closes_what_it_inherited(tmp_path: Path, how: str, seen: int) -> None:
    """A child that keeps an inherited connection trusts locks that it does not have: another process closes the file as
    the last one, and what the child commits afterwards vanishes. If it closes the connection first, nothing does."""
    assert int(run_program(tmp_path, FORK, OTHERS, TWO, RAW, arguments=(how,))) == seen


CHILD_SENDS = """
pid = fork_from_c()
if pid == 0:
    with child():
        wait_for_parent()
        send(1)
        assert is_open()
        assert visit() == 3
        assert is_open(), "the WAL was deleted under this process"
        send_from_a_loop(2)
        assert visit() == 4
broker.close()
parent_is_done()
wait(pid)
assert visit() == 4
"""


def test_f57_a_child_sends_after_its_parent_has_closed(tmp_path: Path) -> None:
    """The child's connection holds locks of its own: another process that opens and closes the file takes nothing away
    from under it."""
    run_program(tmp_path, FORK, USE, OTHERS, TWO, CHILD_SENDS)
    assert stored(tmp_path) == once({-1, -2, 1, 2})


OLD_KNOWLEDGE = """
if __name__ == "__main__":
    send(0)
    pid = fork_from_c()
    if pid == 0:
        signal.alarm(30)
        wait_for_parent()
        if sys.argv[1] == "closes":
            broker.transport.__dict__["_process"]._value.database.close()
            os._exit(0)
        if sys.argv[1] == "sends":
            send(2)
        elif sys.argv[1] == "forks":
            pid = os.fork()  # the first that Python hears of
            if pid == 0:
                os._exit(0)
            wait(pid)
        elif sys.argv[1] == "throws it away":
            greenroom.set_broker(None)
            del note, broker
            gc.collect()
        sys.exit(0)  # with all that an interpreter does at its end
    broker.close()
    die_writing(1)
    parent_is_done()
    wait(pid)
    print(visit())
"""


@pytest.mark.parametrize(
    ("what", "seen"), [("closes", 1), ("sends", 3), ("forks", 2), ("throws it away", 2), ("ends", 2)]
)
def test_an_inherited_connection_that_knows_of_an_old_wal(tmp_path: Path, what: str, seen: int) -> None:
    """The parent has closed the file, and another process has written to it and was killed, so that its WAL has the
    only copy. A child that simply closed what it inherited would delete that WAL, as the last one to close the file.
    It does not, whether it sends, forks itself, throws the broker away or ends without having used it."""
    assert int(run_program(tmp_path, FORK, OTHERS, TWO, OLD_KNOWLEDGE, arguments=(what,))) == seen


MID_TRANSACTION = """
from greenroom.engines.sqlite.rows import INSERT_ONE, row_of
inside, goes_on = threading.Event(), threading.Event()

def transact():
    with broker.transport._process.get().database.transaction() as connection:
        connection.execute(INSERT_ONE, row_of(broker.envelope(note.message(1, 0))))
        inside.set()
        goes_on.wait()

thread = threading.Thread(target=transact, daemon=True)
thread.start()
inside.wait()
pids = []
for how in ("sends", "ends"):
    pid = fork_from_c()
    if pid == 0:
        signal.alarm(30)
        if how == "sends":
            for _ in range(2):
                try:
                    send(2)
                except greenroom.errors.ConnectionFailed as e:
                    assert "py-call-uwsgi-fork-hooks" in str(e)
                else:
                    os._exit(1)
            other = from_url(f"sqlite:///{HERE}/other.db")  # SQLite as such is usable
            other.declare_queue("default")
            other.enqueue(note.message(3, 0))
        sys.exit(0)
    pids.append(pid)
wait(*pids)
goes_on.set()
thread.join()
send(4)
"""


def test_another_thread_was_in_a_transaction(tmp_path: Path) -> None:
    """What SQLite remembers of that transaction cannot be put right in the child: it refuses the file and says what to
    do, it ends as programs do, and the parent loses nothing."""
    run_program(tmp_path, FORK, USE, MID_TRANSACTION)
    assert stored(tmp_path) == once({-1, -2, 1, 4})


MADE_BEFORE = """
messages = [note.message(number, 0) for number in range(4)]
pid = fork_from_c()
if pid == 0:
    with child():
        broker.enqueue_many(messages[:2])
broker.enqueue_many(messages[2:])
wait(pid)
"""


def test_messages_that_were_made_before(tmp_path: Path) -> None:
    """Messages may be made before a fork and sent after it: what is pushed has an identifier of its own."""
    run_program(tmp_path, FORK, USE, MADE_BEFORE)
    assert stored(tmp_path) == once({-1, -2, *range(4)})


THREADS = """
second = from_url(URL)  # the same file, by another connection
second.declare_queue("default")
second.enqueue(note.message(0, 0))
pid = fork_from_c()
if pid == 0:
    with child():
        together = threading.Barrier(8)

        def enqueue(n):
            together.wait()
            send(100 * n)
            second.enqueue(note.message(100 * n + 1, 0))

        threads = [threading.Thread(target=enqueue, args=(n,)) for n in range(1, 9)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
send(1)
second.enqueue(note.message(2, 0))
wait(pid)
send(3)
"""


def test_threads_of_a_child_begin_at_once(tmp_path: Path) -> None:
    """Several threads notice the fork together, with two brokers on one file: all that they and the parent send is
    stored once, and no identifier is used by both."""
    run_program(tmp_path, FORK, USE, OTHERS, THREADS)
    expected = {-1, -2, *range(4), *(100 * n + m for n in range(1, 9) for m in (0, 1))}
    assert stored(tmp_path) == once(expected)


NO_SUCH_LOCKS = """
from greenroom.engines.sqlite import inheritance
inheritance._SET_LOCK = 0
pid = fork_from_c()
if pid == 0:
    with child():
        try:
            send(1)
        except greenroom.errors.ConnectionFailed:
            pass
        else:
            os._exit(1)
wait(pid)
send(2)
"""


def test_a_system_without_locks_that_belong_to_a_descriptor(tmp_path: Path) -> None:
    """Where the child cannot close what it inherited without harm, it refuses the file."""
    run_program(tmp_path, FORK, USE, NO_SUCH_LOCKS)
    assert stored(tmp_path) == once({-1, -2, 2})


def test_a_system_that_wipes_no_memory(tmp_path: Path) -> None:
    """There the process's number tells that a process is new."""
    elsewhere = "import sys\nplatform, sys.platform = sys.platform, 'elsewhere'\n"
    program = write_program(tmp_path, FORK, USE, OTHERS, TWO, CHILD_SENDS)
    program.write_text(f"{elsewhere}import greenroom.forksafe\nsys.platform = platform\n{program.read_text()}")
    run(program)
    assert stored(tmp_path) == once({-1, -2, 1, 2})


ANNOUNCED_LATER = """
pid = fork_from_c()
if pid == 0:
    with child():
        pid = os.fork()  # the first thing that Python hears of
        if pid == 0:
            with child():
                send(1)
        send(2)
        wait(pid)
        broker.close()
send(3)
wait(pid)
send(4)
"""


def test_a_child_that_nobody_announced_forks(tmp_path: Path) -> None:
    """A fork that is announced, by a child that was not, brings nothing of the first parent's to rest."""
    run_program(tmp_path, FORK, USE, ANNOUNCED_LATER)
    assert stored(tmp_path) == once({-1, -2, 1, 2, 3, 4})
