"""A fleet of workers of both libraries, on an empty server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.interop.kit import Fleet, fleet_in


@pytest.fixture
def fleet(tmp_path: Path, redis_url: str) -> Iterator[Fleet]:
    """The program, and its processes, which end with the test."""
    with fleet_in(tmp_path, redis_url) as fleet:
        yield fleet
