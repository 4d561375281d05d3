"""Storms: many things go wrong one after the other, and every promise holds. ``make soak`` runs them for longer."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.chaos.storm import Storm
from tests.runtime.engine_kit import ENGINES, url_of

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("engine", ENGINES)
def test_no_promise_is_broken_in_a_storm(
    tmp_path: Path, request: pytest.FixtureRequest, engine: str, seed: int
) -> None:
    """Workers are killed, stalled, reloaded and replaced while messages come in: nothing is lost, nothing runs that was
    not sent, nothing starts again without a reason, and nothing is settled twice."""
    storm = Storm(tmp_path, url_of(engine, tmp_path, request), seed, faults=4)
    verdict = storm.run()
    assert verdict.is_valid, f"{verdict} after {dict(storm.happened)}"
    assert verdict.accepted > 0
    assert sum(storm.happened.values()) == 4
