"""``greenroom sqlite``: what it prints, and how it ends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from greenroom import Message
from greenroom.brokers.sqlite import SqliteBroker
from greenroom.cli import main
from greenroom.engines.sqlite.opening import PAGE_BYTES
from tests.engines.kit import other_process, query

HOLDS = """
connection = sqlite3.connect(path)
connection.execute("select count(*) from message").fetchone()
say("open")
hear()
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a queue in it."""
    monkeypatch.chdir(tmp_path)
    broker = SqliteBroker(tmp_path / "queue.db")
    broker.declare_queue("default")
    broker.enqueue_many(Message("default", "work", ("x" * 100,), {}, {}) for _ in range(500))
    broker.close()
    return tmp_path


def damage(path: Path) -> None:
    """Overwrites some pages in the middle."""
    data = bytearray(path.read_bytes())
    data[40 * PAGE_BYTES : 43 * PAGE_BYTES] = b"\xff" * 3 * PAGE_BYTES
    path.write_bytes(data)


def test_backup(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line says what was copied."""
    assert main(["sqlite", "backup", "queue.db", "copy.db"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("copy.db: ")
    assert "500 ready, 0 delayed, 0 running, 0 dead" in out
    assert err == ""
    assert query(folder / "copy.db", "select count(*) from message") == [(500,)]


def test_backup_for_programs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With ``--json`` the same as a document; ``--force`` replaces."""
    (folder / "copy.db").write_bytes(b"an older one")
    assert main(["sqlite", "backup", "queue.db", "copy.db", "--force", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["source"], document["target"], document["ready"]) == ("queue.db", "copy.db", 500)
    assert document["bytes"] == (folder / "copy.db").stat().st_size


def test_backup_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A copy that is there stays, and exit code 2 says that the call was wrong; 5, that the queue is damaged."""
    (folder / "copy.db").write_bytes(b"mine")
    assert main(["sqlite", "backup", "queue.db", "copy.db"]) == 2
    assert capsys.readouterr().err == "greenroom: error: There is something at copy.db already.\n"
    assert main(["sqlite", "backup", "nothing.db", "new.db"]) == 2
    assert capsys.readouterr().err == "greenroom: error: There is no file nothing.db.\n"
    damage(folder / "queue.db")
    assert main(["sqlite", "backup", "queue.db", "new.db"]) == 5
    assert "greenroom sqlite recover queue.db" in capsys.readouterr().err
    assert not (folder / "new.db").exists()
    assert (folder / "copy.db").read_bytes() == b"mine"


def test_recover(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A sound file comes through whole, beside the old one if nothing else is said; exit code 0."""
    assert main(["sqlite", "recover", "queue.db"]) == 0
    out, err = capsys.readouterr()
    assert out == (
        "queue-recovered.db: 500 ready, 0 delayed, 0 dead, 0 other rows.\n"
        "The file was sound.\n"
        "To use it: stop all that use the old one, move queue.db, queue.db-wal and queue.db-shm away, rename "
        "queue-recovered.db to queue.db.\n"
    )
    assert err == ""
    assert query(folder / "queue-recovered.db", "select count(*) from message") == [(500,)]


def test_recover_what_is_damaged(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 5 and a line on standard error say that something is lost; what was wrong is printed."""
    damage(folder / "queue.db")
    assert main(["sqlite", "recover", "queue.db", "-o", "new.db"]) == 5
    out, err = capsys.readouterr()
    assert "Damage: " in out
    assert "are lost" in err
    assert main(["sqlite", "recover", "queue.db", "-o", "again.db", "--json"]) == 5
    document = json.loads(capsys.readouterr().out)
    assert document["ready"] + document["lost"] == 500
    assert document["lost"] > 0
    assert document["is_complete"] is False
    assert document["damage"]


def test_recover_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is overwritten (2), nothing is read while others write (3), and of nothing nothing is made (5)."""
    assert main(["sqlite", "recover", "nothing.db"]) == 2
    assert main(["sqlite", "recover", "queue.db", "-o", "queue.db"]) == 2
    with other_process(HOLDS, folder / "queue.db") as other:
        assert other.hear() == "open"
        assert main(["sqlite", "recover", "queue.db"]) == 3
        assert f"in use by process {other.pid}" in capsys.readouterr().err
    (folder / "noise.db").write_bytes(b"noise" * 1000)
    assert main(["sqlite", "recover", "noise.db"]) == 5
    assert not (folder / "noise-recovered.db").exists()
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("words", [["sqlite"], ["sqlite", "backup"], ["sqlite", "recover"]])
def test_help_has_examples(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """``--help`` says what it takes, and shows it."""
    with pytest.raises(SystemExit) as e:
        main([*words, "--help"])
    assert e.value.code == 0
    out = capsys.readouterr().out
    assert f"usage: greenroom {' '.join(words)}" in out
    assert f"examples:\n  greenroom {' '.join(words)}" in out


@pytest.mark.parametrize("words", [["sqlite"], ["sqlite", "nonsense"], ["sqlite", "backup", "queue.db"]])
def test_usage(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A mistake is told in one line."""
    with pytest.raises(SystemExit) as e:
        main(words)
    assert e.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("greenroom: error: ")
    assert err.count("\n") == 1
