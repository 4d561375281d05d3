"""A look at a queue file that makes and changes nothing, for ``greenroom check``."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

from ...errors import BrokerReadOnly, ConnectionFailed
from .errors import translate, translate_os
from .migrations import APPLICATION_ID, SCHEMA_VERSION, check_version, not_ours, version_of


def inspect_file(path: Path) -> dict[str, object]:
    """What there is to know of the file, also if it is not there yet.

    Raises:
      BrokerError: If it could not be used, or not be made.
    """
    try:
        exists = path.exists()
    except OSError as e:
        raise translate_os(e, path) from e
    facts: dict[str, object] = {"file": str(path), "exists": exists, "sqlite": sqlite3.sqlite_version}
    if not exists:
        _check_writable(path, _first_there(path.parent))
        return facts
    if not path.is_file():
        raise ConnectionFailed(f"The queue file {path} cannot be opened: it is no file.")
    _check_writable(path, path, path.parent)
    facts["bytes"] = path.stat().st_size
    facts["schema_version"] = _schema_version(path) or SCHEMA_VERSION  # an empty file gets the newest
    return facts


def _schema_version(path: Path) -> int:
    # Where there is no log, SQLite would make one to read it; what cannot change needs none.
    options = "mode=ro" if Path(f"{path}-wal").exists() else "mode=ro&immutable=1"
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?{options}", uri=True, timeout=1.0)) as connection:
            found = version_of(connection)
            check_version(connection, path, found)
            if found and connection.execute("pragma application_id").fetchone()[0] != APPLICATION_ID:
                raise not_ours(path)
            return found
    except sqlite3.Error as e:
        raise translate(e, path) from e


def _first_there(folder: Path) -> Path:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder


def _check_writable(path: Path, *needed: Path) -> None:
    for place in needed:
        if not os.access(place, os.W_OK | (os.X_OK if place.is_dir() else 0)) or not (place.is_dir() or place == path):
            raise BrokerReadOnly(f"The queue file {path} cannot be written: {place} does not let this user write.")
