"""The real Dramatiq and Greenroom on one Redis: what one sends the other runs."""

from __future__ import annotations

import signal

from tests.interop.kit import Fleet

#: Sends one of each, and prints the results when they are there.
SEND_ALL = """
from {library} import group, pipeline
from {library}.results import ResultFailure
run.send("plain")
run.send_with_options(args=("late",), delay=300)
fail_first.send("again")
dead = fail.send("dead")
sum_ = add.send(1, 2)
line = pipeline([add.message(3, 4), double.message(), double.message()]).run()
many = group([add.message(10, i) for i in range(3)])
many.add_completion_callback(run.message("all done"))
many.run()
print(sum_.get_result(block=True, timeout=20_000))
print(line.get_result(block=True, timeout=20_000))
print(list(many.get_results(block=True, timeout=20_000)))
try:
    dead.get_result(block=True, timeout=20_000)
except ResultFailure as e:
    print(e.orig_exc_type, e.orig_exc_msg)
"""
RESULTS = ["3", "28", "[10, 11, 12]", "ValueError no luck"]
NAMES = {"plain", "late", "again", "dead", "add-1-2", "add-3-4", "double-7", "double-14", "add-10-2", "all done"}


def _check_runs(fleet: Fleet, library: str) -> None:
    fleet.wait_for(NAMES)
    fleet.wait_for_retries()
    fleet.wait_until_settled()
    runs = fleet.by_name()
    assert {run.library for some in runs.values() for run in some} == {library}
    assert {name: len(some) for name, some in runs.items() if len(some) > 1} == {"again": 2, "dead": 2}


def test_greenroom_runs_what_dramatiq_sends(fleet: Fleet) -> None:
    """Plain, delayed, retried, failing, piped and grouped messages of a Dramatiq program run in a Greenroom worker,
    each as often as it should, and Dramatiq reads their results."""
    fleet.write()
    fleet.start("ours")
    printed = fleet.send("theirs", SEND_ALL.format(library="dramatiq"))
    assert printed.splitlines() == RESULTS
    _check_runs(fleet, "greenroom")


def test_dramatiq_runs_what_greenroom_sends_on_its_wire(fleet: Fleet) -> None:
    """With wire="dramatiq" all of it is sent by Greenroom, run by Dramatiq, and Greenroom reads the results."""
    fleet.write(wire=True)
    fleet.start("theirs")
    printed = fleet.send("ours", SEND_ALL.format(library="greenroom"))
    assert printed.splitlines() == RESULTS
    _check_runs(fleet, "dramatiq")
    with fleet.client as client:
        assert client.zcard("dramatiq:default.XQ") == 1


def test_greenroom_serves_greenroom_on_the_wire(fleet: Fleet) -> None:
    """With wire="dramatiq" Greenroom's own workers run what its senders send, and leave dead letters where Dramatiq has
    them."""
    fleet.write(wire=True)
    fleet.start("ours")
    printed = fleet.send("ours", SEND_ALL.format(library="greenroom"))
    assert printed.splitlines() == RESULTS
    _check_runs(fleet, "greenroom")
    with fleet.client as client:
        assert client.zcard("dramatiq:default.XQ") == 1
        assert client.hlen("dramatiq:default.XQ.msgs") == 1


def test_a_backlog_of_dramatiqs_is_found(fleet: Fleet) -> None:
    """What Dramatiq's producers and a killed worker have left, waiting, delayed and half done, is run by a Greenroom
    worker that starts when they are gone."""
    fleet.write()
    names = {f"waits-{i}" for i in range(30)} | {"late", "half done"}
    worker = fleet.start("theirs")
    fleet.send("theirs", "run.send('half done', 60)")
    fleet.wait_for({"half done"})
    worker.end(signal.SIGKILL)
    fleet.send(
        "theirs",
        "for i in range(30): run.send(f'waits-{i}')\nrun.send_with_options(args=('late',), delay=1000)\n"
        "notes.delete('runs')",
    )
    with fleet.client as client:
        key = "dramatiq:default.msgs"
        (half,) = (id_ for id_, body in client.hgetall(key).items() if "half done" in body)
        body = client.hget(key, half)
        client.hset(key, half, body.replace('"half done",60', '"half done",0'))
    fleet.start("ours")
    fleet.wait_for(names)
    fleet.wait_until_settled()
    assert all(len(some) == 1 for some in fleet.by_name().values())


def test_a_dramatiq_worker_beside_ours_is_unharmed(fleet: Fleet) -> None:
    """Workers of both kinds share the queue of a Dramatiq program; when ours stops, Dramatiq's runs the rest, and the
    other way round."""
    fleet.write()
    theirs, ours = fleet.start("theirs").wait_until_ready(), fleet.start("ours").wait_until_ready()
    fleet.send("theirs", "for i in range(200): run.send(f'both-{i}', 0.03)")
    fleet.wait_for({f"both-{i}" for i in range(200)})
    fleet.wait_for_both()
    ours.end(signal.SIGTERM)
    fleet.send("theirs", "for i in range(20): run.send(f'theirs-{i}')")
    fleet.wait_for({f"theirs-{i}" for i in range(20)})
    fleet.start("ours").wait_until_ready()
    theirs.end(signal.SIGTERM)
    fleet.send("theirs", "for i in range(20): run.send(f'ours-{i}')")
    fleet.wait_for({f"ours-{i}" for i in range(20)})
    fleet.wait_until_settled()
    assert all(len(some) == 1 for some in fleet.by_name().values())
