"""Programs that fork in the middle of sending."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.forks.kit import FORK, USE, once, run_program, stored

CROWD = """
def enqueue(start, count):
    for number in range(start, start + count):
        send(number)

threads = [threading.Thread(target=enqueue, args=(10_000 + 1_000 * n, 50)) for n in range(2)]
for thread in threads:
    thread.start()
pids = []
for n in range(50):
    pid = os.fork()
    if pid == 0:
        with child():
            enqueue(100 * n, 100)
    pids.append(pid)
for thread in threads:
    thread.join()
wait(*pids)
enqueue(20_000, 1)
"""


def test_f110_many_children_send_while_the_parent_does(tmp_path: Path, url: str) -> None:
    """Fifty children send a hundred messages each while two threads of the parent send: all are stored once, and the
    parent goes on after its children have ended."""
    run_program(tmp_path, FORK, USE, CROWD, url=url)
    expected = {-1, -2, *range(5_000), *range(10_000, 10_050), *range(11_000, 11_050), 20_000}
    assert stored(tmp_path, url) == once(expected)


def test_sending_starts_no_thread(tmp_path: Path, url: str) -> None:
    """Neither importing a program nor sending out of it starts a thread: there is nothing that a fork could lose."""
    run_program(tmp_path, "send(1)\nassert threading.active_count() == 1\n", url=url)
    assert stored(tmp_path, url) == once({1})


IN_A_TRANSACTION = """
inside, goes_on = threading.Event(), threading.Event()

def transact():
    from greenroom.engines.sqlite.rows import INSERT_ONE, row_of
    with broker.transport._process.get().database.transaction() as connection:
        connection.execute(INSERT_ONE, row_of(broker.envelope(note.message(1, 0))))
        inside.set()
        goes_on.wait(0.2)  # the fork waits for this thread meanwhile

thread = threading.Thread(target=transact)
thread.start()
inside.wait()
pid = os.fork()
if pid == 0:
    with child():
        assert not is_open()
        send(2)
        send_from_a_loop(3)
thread.join()
send(4)
wait(pid)
send(5)
"""


def test_f110_a_fork_while_another_thread_is_in_a_transaction(tmp_path: Path) -> None:
    """The fork waits for the transaction; both sides go on with connections of their own."""
    run_program(tmp_path, FORK, USE, IN_A_TRANSACTION)
    assert stored(tmp_path) == once({-1, -2, 1, 2, 3, 4, 5})


SIGNALLED = """
def handler(_number, _frame):
    if os.fork() == 0:
        with child():
            try:
                send(2)
            except greenroom.errors.ConnectionFailed:
                pass
    os.wait()

signal.signal(signal.SIGALRM, handler)
with broker.transport._process.get().database.transaction() as connection:
    from greenroom.engines.sqlite.rows import INSERT_ONE, row_of
    connection.execute(INSERT_ONE, row_of(broker.envelope(note.message(1, 0))))
    signal.raise_signal(signal.SIGALRM)
send(3)
"""


def test_a_signal_handler_forks_in_mid_transaction(tmp_path: Path) -> None:
    """A thread cannot wait for itself: the fork goes on, the child refuses the file, and the parent loses nothing."""
    run_program(tmp_path, FORK, USE, SIGNALLED)
    assert stored(tmp_path) == once({-1, -2, 1, 3})


IN_FLIGHT = """
async def main():
    tasks = [asyncio.create_task(asend(number)) for number in range(300)]
    pids = []
    for n in range(5):
        await asyncio.sleep(0)  # some are in flight, some have not begun
        pid = os.fork()
        if pid == 0:
            with child():
                send_from_a_loop(1_000 + n)
                send(2_000 + n)
        pids.append(pid)
    await asyncio.gather(*tasks)
    wait(*pids)
    await asend(3_000)

asyncio.run(main())
"""


def test_f110_coroutines_are_sending_at_the_fork(tmp_path: Path, url: str) -> None:
    """What is in flight at a fork is sent by the parent alone; its children send out of loops of their own."""
    run_program(tmp_path, FORK, IN_FLIGHT, url=url)
    assert stored(tmp_path, url) == once({*range(300), *range(1_000, 1_005), *range(2_000, 2_005), 3_000})


GENERATIONS = """
send(0)
pid = os.fork()
if pid == 0:
    with child():
        send(1)
        pid = os.fork()
        if pid == 0:
            with child():
                send_from_a_loop(2)
        wait(pid)
        send(3)
wait(pid)
send(4)
"""


def test_f110_a_grandchild_sends(tmp_path: Path, url: str) -> None:
    """It works in every generation."""
    run_program(tmp_path, FORK, GENERATIONS, url=url)
    assert stored(tmp_path, url) == once(range(5))


EXITS = """
import subprocess
send(1)
code = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('select 1 from message').fetchone(); c.close()"
for how in ("unused", "used"):
    pid = os.fork()
    if pid == 0:
        if how == "used":
            send(2)
        sys.exit(0)  # with all that an interpreter does at its end
    wait(pid)
    subprocess.run([sys.executable, "-c", code, str(HERE / "queue.db")], check=True)
    send(3 if how == "used" else 4)
"""


def test_f57_children_that_end_as_programs_do(tmp_path: Path) -> None:
    """A child's interpreter cleans up at its end: the parent's connection and its write-ahead log survive that."""
    run_program(tmp_path, FORK, EXITS)
    assert stored(tmp_path) == once({1, 2, 3, 4})


def test_f110_the_first_send_imports_nothing(tmp_path: Path, redis_url: str) -> None:
    """A fork in the middle of an import, on another thread, leaves the child with half a module. So a thread that
    connects imports nothing."""
    known = "known = set(sys.modules)\nsend(1)\nassert set(sys.modules) == known, set(sys.modules) - known\n"
    run_program(tmp_path, known, url=redis_url)


EXITS_BESIDE_A_SERVER = """
send(1)
mine = broker.transport.share.call("CLIENT", "ID")
for how in ("unused", "used"):
    for fork in (os.fork, fork_from_c):
        pid = fork()
        if pid == 0:
            if how == "used":
                assert broker.transport.share.call("CLIENT", "ID") != mine
                send(2)
            sys.exit(0)  # with all that an interpreter does at its end
        wait(pid)
        assert broker.transport.share.call("CLIENT", "ID") == mine, "the parent's connection was closed"
"""


def test_f110_children_leave_the_parents_connection_open(tmp_path: Path, redis_url: str) -> None:
    """A child says nothing on the connection that it has inherited, and does not close it at its end: the parent goes
    on with it. Also a child that Python was told nothing of."""
    run_program(tmp_path, FORK, EXITS_BESIDE_A_SERVER, url=redis_url)
    assert stored(tmp_path, redis_url) == {1: 1, 2: 2}


PROCESSES = """
import multiprocessing
from concurrent.futures import ProcessPoolExecutor

def enqueue(start):
    for number in range(start, start + 20):
        send(number)
    return start

if __name__ == "__main__":
    send(-1)
    context = multiprocessing.get_context(sys.argv[1])
    processes = [context.Process(target=enqueue, args=(100 * n,)) for n in range(3)]
    for process in processes:
        process.start()
    enqueue(1_000)
    for process in processes:
        process.join()
        assert process.exitcode == 0
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        assert list(pool.map(enqueue, range(2_000, 2_600, 100))) == list(range(2_000, 2_600, 100))
    send(-2)
"""


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_f113_multiprocessing(tmp_path: Path, url: str, method: str) -> None:
    """Processes of ``multiprocessing`` and of ``concurrent.futures`` send, however they are started."""
    run_program(tmp_path, PROCESSES, arguments=(method,), url=url)
    starts = (*range(0, 300, 100), 1_000, *range(2_000, 2_600, 100))
    assert stored(tmp_path, url) == once({-1, -2, *(start + n for start in starts for n in range(20))})
