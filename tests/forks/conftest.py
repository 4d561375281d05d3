"""Fixtures of the tests of forks."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.runtime.engine_kit import ENGINES, url_of


@pytest.fixture(params=(*ENGINES, "rabbitmq"))
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where the messages of a test are."""
    return url_of(request.param, tmp_path, request)
