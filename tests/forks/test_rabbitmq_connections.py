"""Whose the connections to RabbitMQ are, and how many a process has, as the server lists them."""

from __future__ import annotations

import re
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest

from greenroom import Message
from greenroom.brokers import from_url
from scripts.servers import RabbitMQ
from tests.forks.kit import FORK, run_program, stored
from tests.runtime.cli_kit import Program, wait_until

#: As promised: one that sends, one that consumes, one that looks.
MOST = 3

EXITS = """
send(1)
link = broker.transport.publisher._link
mine, epoch = link.connection, link.epoch
for how in ("unused", "used"):
    for fork in (os.fork, fork_from_c):
        pid = fork()
        if pid == 0:
            if how == "used":
                assert broker.transport.publisher._link is not link
                send(2)
            sys.exit(0)  # with all that an interpreter does at its end
        wait(pid)
        send(1)
        assert link.connection is mine and link.epoch == epoch, "the parent's connection was closed"
"""


def test_f110_children_leave_the_parents_connection_open(tmp_path: Path, rabbitmq_url: str) -> None:
    """A child says nothing on the connection that it has inherited, and does not close it at its end: the parent goes
    on with it. Also a child that Python was told nothing of."""
    run_program(tmp_path, FORK, EXITS, url=rabbitmq_url)
    assert stored(tmp_path, rabbitmq_url) == {1: 5, 2: 2}


WORKER = """
import os, pathlib, threading
import greenroom
from greenroom.brokers import from_url

HERE = pathlib.Path(__file__).parent
broker = from_url(os.environ["RABBITMQ"])
greenroom.set_broker(broker)

@greenroom.actor(queue_name="second")
def follow(name):
    broker.get_queue_message_counts("default")
    if name == "last":
        (HERE / "mark-last").touch()

@greenroom.actor
def lead(name):
    follow.send(name)
    follow.send_with_options(args=(name,), delay=100)
    if name == "last":
        (HERE / "mark-leads").touch()
        while not (HERE / "mark-seen").exists():
            threading.Event().wait(0.01)

for number in range(10):
    @greenroom.actor(actor_name=f"idle{number}", queue_name=f"idle{number}")
    def idle():
        pass
"""


def connections(server: RabbitMQ, url: str) -> Counter[int]:
    """How many connections each process has to a virtual host."""
    vhost = url.rpartition("/")[2]
    lines = server.ctl("list_connections", "vhost", "client_properties", "--no-table-headers").splitlines()
    pids = (re.search(r"\(pid (\d+)\)", line) for line in lines if line.split("\t")[0] == vhost)
    return Counter(int(found[1]) if found else 0 for found in pids)


def test_a_worker_process_has_three_connections_at_the_most(
    tmp_path: Path, rabbitmq_url: str, rabbitmq_shared: RabbitMQ, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes with eight threads, twelve queues, actors that send, delay and look: three connections each, and
    none for the parent."""
    monkeypatch.setenv("RABBITMQ", rabbitmq_url)
    program = Program(tmp_path).write("", head=WORKER)
    with closing(from_url(rabbitmq_url)) as broker:
        broker.enqueue_many(Message("default", "lead", (name,), {}, {}) for name in [*range(100), "last"])
    with program.start("worker", "app", "-p", "2", "-t", "8") as running:
        program.wait_for_mark("last")
        running.wait_until_ready()  # both, for one alone may have done all of it
        found = connections(rabbitmq_shared, rabbitmq_url)
        program.let_go("seen")
        running.stop()
    assert len(found) == 2
    assert running.process.pid not in found
    assert max(found.values()) <= MOST
    wait_until(lambda: not connections(rabbitmq_shared, rabbitmq_url), "all are closed")


def test_connecting_imports_nothing(tmp_path: Path, rabbitmq_url: str) -> None:
    """pika looks addresses up on a thread of its own. If that imported something, a child that is forked meanwhile
    would wait for the import for ever: so all of it is there before."""
    run_program(
        tmp_path,
        "before = set(sys.modules)\n"
        "broker.transport.publisher._link.connect(10)\n"
        "assert set(sys.modules) == before, set(sys.modules) - before\n",
        url=rabbitmq_url,
    )
