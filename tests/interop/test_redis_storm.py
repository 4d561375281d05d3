"""Both libraries on one Redis, under load, while some of their workers are killed."""

from __future__ import annotations

import pytest

from tests.interop.kit import Fleet
from tests.interop.storm_kit import storm


@pytest.mark.parametrize("wire", [True, False])
def test_nothing_is_lost_and_only_what_was_killed_runs_again(fleet: Fleet, wire: bool) -> None:
    """Whatever is killed, everything runs, and what runs more often than it should was running in a process that was
    killed; but for what Dramatiq was about to move, which takes it two steps."""
    fleet.write(wire=wire)
    storm(fleet)
