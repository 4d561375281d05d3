"""What the SQLite transport tells an operator about its file."""

from __future__ import annotations

from pathlib import Path

import pytest

from greenroom.engines.sqlite.transport import SqliteTransport
from greenroom.ports.transport import Envelope


def test_a_worker_says_that_its_file_is_new(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A consumer that finds its file just made says so, once, with the absolute path: senders may use another one."""
    transport = SqliteTransport(tmp_path / "queue.db")
    transport.consumer("first").close()
    transport.consumer("second").close()
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 1
    assert str(tmp_path / "queue.db") in warnings[0]
    transport.close()


def test_a_file_that_was_there_is_not_worth_a_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A consumer on a file that a sender has made says nothing of the kind."""
    sender = SqliteTransport(tmp_path / "queue.db")
    sender.push([Envelope("default", "1", b"{}")])
    sender.consumer("beside it").close()
    sender.close()
    transport = SqliteTransport(tmp_path / "queue.db")
    transport.consumer("worker").close()
    assert [record for record in caplog.records if record.levelname == "WARNING"] == []
    transport.close()
