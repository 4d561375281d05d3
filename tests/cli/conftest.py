"""Fixtures of the commands' tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.kit import Desk


@pytest.fixture(params=["sqlite", "redis"])
def desk(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> Desk:
    """A broker that holds no messages yet."""
    url = None if request.param == "sqlite" else request.getfixturevalue(f"{request.param}_url")
    return Desk(tmp_path, capsys, monkeypatch, url)


@pytest.fixture
def file_desk(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Desk:
    """A queue file that does not exist yet."""
    return Desk(tmp_path, capsys, monkeypatch)
