"""The real Dramatiq and Greenroom on one RabbitMQ: what one sends the other runs."""

from __future__ import annotations

import signal
from typing import Any

import pytest

from tests.interop.rabbitmq_kit import RabbitmqFleet
from tests.interop.test_redis_workers import NAMES, RESULTS, SEND_ALL
from tests.runtime.cli_kit import wait_until


def _check_runs(fleet: RabbitmqFleet, library: str) -> None:
    fleet.wait_for(NAMES)
    fleet.wait_for_retries()
    fleet.wait_until_settled()
    runs = fleet.by_name()
    assert {run.library for some in runs.values() for run in some} == {library}
    assert {name: len(some) for name, some in runs.items() if len(some) > 1} == {"again": 2, "dead": 2}
    letters: list[Any] = []
    wait_until(lambda: letters.extend(fleet.dead()) or letters, "the dead letter is there", step_s=0.1)
    ((_properties, body),) = letters
    assert b'"dead"' in body


@pytest.mark.parametrize("wire", [False, True])
def test_greenroom_runs_what_dramatiq_sends(rabbitmq_fleet: RabbitmqFleet, wire: bool) -> None:
    """Plain, delayed, retried, failing, piped and grouped messages of a Dramatiq program run in a Greenroom worker,
    each as often as it should, and Dramatiq reads their results and finds the dead letter."""
    rabbitmq_fleet.write(wire=wire)
    rabbitmq_fleet.start("ours")
    printed = rabbitmq_fleet.send("theirs", SEND_ALL.format(library="dramatiq"))
    assert printed.splitlines() == RESULTS
    _check_runs(rabbitmq_fleet, "greenroom")


def test_dramatiq_runs_what_greenroom_sends_on_its_wire(rabbitmq_fleet: RabbitmqFleet) -> None:
    """With wire="dramatiq" all of it is sent by Greenroom, run by Dramatiq, and Greenroom reads the results."""
    rabbitmq_fleet.write(wire=True)
    rabbitmq_fleet.start("theirs")
    printed = rabbitmq_fleet.send("ours", SEND_ALL.format(library="greenroom"))
    assert printed.splitlines() == RESULTS
    _check_runs(rabbitmq_fleet, "dramatiq")


def test_greenroom_serves_greenroom_on_the_wire(rabbitmq_fleet: RabbitmqFleet) -> None:
    """With wire="dramatiq" Greenroom's own workers run what its senders send."""
    rabbitmq_fleet.write(wire=True)
    rabbitmq_fleet.start("ours")
    printed = rabbitmq_fleet.send("ours", SEND_ALL.format(library="greenroom"))
    assert printed.splitlines() == RESULTS
    _check_runs(rabbitmq_fleet, "greenroom")


def test_dramatiq_runs_what_greenroom_delays_in_its_own_way(rabbitmq_fleet: RabbitmqFleet) -> None:
    """Without wire= a delayed message of Greenroom's is kept by RabbitMQ until it is due: then a Dramatiq worker runs
    it, too, once."""
    rabbitmq_fleet.write()
    rabbitmq_fleet.start("theirs")
    rabbitmq_fleet.send("ours", "run.send_with_options(args=('late',), delay=300)\nrun.send('plain')")
    rabbitmq_fleet.wait_for({"late", "plain"})
    rabbitmq_fleet.wait_until_settled()
    runs = rabbitmq_fleet.by_name()
    assert {name: [run.library for run in some] for name, some in runs.items()} == {
        "late": ["dramatiq"],
        "plain": ["dramatiq"],
    }


def test_a_backlog_of_dramatiqs_is_found(rabbitmq_fleet: RabbitmqFleet) -> None:
    """What Dramatiq's producers and a killed worker have left, waiting, delayed and half done, is run by a Greenroom
    worker that starts when they are gone."""
    fleet = rabbitmq_fleet
    fleet.write()
    names = {f"waits-{i}" for i in range(30)} | {"late", "half done"}
    worker = fleet.start("theirs")
    fleet.send("theirs", "run.send('half done', 60)")
    fleet.wait_for({"half done"})
    worker.end(signal.SIGKILL)
    fleet.wait_until_waiting(1)
    fleet.send(
        "theirs",
        "for i in range(30): run.send(f'waits-{i}')\nrun.send_with_options(args=('late',), delay=1000)\n"
        "notes.delete('runs')",
    )
    with fleet.channel() as channel:
        method, properties, body = channel.basic_get("default")
        assert b'"half done",60' in body
        channel.basic_publish("", "default", body.replace(b'"half done",60', b'"half done",0'), properties)
        channel.basic_ack(method.delivery_tag)
    fleet.start("ours")
    fleet.wait_for(names)
    fleet.wait_until_settled()
    assert all(len(some) == 1 for some in fleet.by_name().values())


def test_a_dramatiq_worker_beside_ours_is_unharmed(rabbitmq_fleet: RabbitmqFleet) -> None:
    """Workers of both kinds share a queue; when ours stops, Dramatiq's runs the rest, and the other way round."""
    fleet = rabbitmq_fleet
    fleet.write()
    theirs, ours = fleet.start("theirs").wait_until_ready(), fleet.start("ours").wait_until_ready()
    fleet.send("theirs", "for i in range(100): run.send(f'both-{i}', 0.03)")
    fleet.send("ours", "for i in range(100): run.send(f'ours too-{i}', 0.03)")
    fleet.wait_for({f"both-{i}" for i in range(100)} | {f"ours too-{i}" for i in range(100)})
    fleet.wait_for_both()
    ours.end(signal.SIGTERM)
    fleet.send("ours", "for i in range(20): run.send(f'theirs-{i}')")
    fleet.wait_for({f"theirs-{i}" for i in range(20)})
    fleet.start("ours").wait_until_ready()
    theirs.end(signal.SIGTERM)
    fleet.send("theirs", "for i in range(20): run.send(f'ours-{i}')")
    fleet.wait_for({f"ours-{i}" for i in range(20)})
    fleet.wait_until_settled()
    assert all(len(some) == 1 for some in fleet.by_name().values())
