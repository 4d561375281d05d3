"""Storms: many things go wrong one after the other, and every promise holds. ``make soak`` runs them for longer."""

from __future__ import annotations

import sys
from itertools import product
from pathlib import Path

import pytest

from tests.chaos.places import Place, RabbitmqPlace, RedisPlace
from tests.chaos.storm import Storm, in_a_file
from tests.services import fresh_vhost

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")


def place_of(engine: str, folder: Path, request: pytest.FixtureRequest) -> Place:
    """Where a storm is, empty."""
    if engine == "sqlite":
        return in_a_file(folder)
    if engine == "redis":
        return RedisPlace(request.getfixturevalue("redis_server"))
    server = request.getfixturevalue("rabbitmq_shared")
    return RabbitmqPlace(server, fresh_vhost(server).rpartition("/")[2])


@pytest.mark.parametrize(("engine", "seed"), [*product(("sqlite", "redis"), range(3)), ("rabbitmq", 0)])
def test_no_promise_is_broken_in_a_storm(
    tmp_path: Path, request: pytest.FixtureRequest, engine: str, seed: int
) -> None:
    """Workers are killed, stalled, reloaded and replaced, and connections cut, while messages come in: nothing is lost,
    nothing runs that was not sent, nothing starts again without a reason, and nothing is settled twice."""
    storm = Storm(tmp_path, place_of(engine, tmp_path, request), seed, faults=4)
    verdict = storm.run()
    assert verdict.is_valid, f"{verdict} after {dict(storm.happened)}"
    assert verdict.accepted > 0
    assert sum(storm.happened.values()) == 4
