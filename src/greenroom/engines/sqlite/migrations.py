"""The versions of a queue file, and how an older file is brought up to date while others use it.

The law of this module:

* **One script.** ``schema.sql`` has a marker at the head of each version's part. A new file gets all parts, a file of
  version N those behind it, in one transaction: whoever comes first does it, the others find it done.
* **A new version only adds.** A process of an older version that has the file open goes on with it: what it knows is
  still there. It refuses the file the next time that it opens it, and says which versions it met.
* **Adding twice is harmless.** Processes of version 1 write their own version number whenever they checkpoint, so the
  next process of a newer one migrates once more: the statements say ``if not exists``.
* **A newer file is refused**, with both versions named: what this version does not know it could damage.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import TypeVar

from ...errors import BrokerCorrupt, SchemaMismatch
from ...logging import get_logger

T = TypeVar("T")

SCHEMA_VERSION = 2
#: "Grnr", so that a file of another program is not taken for a queue.
APPLICATION_ID = 0x47726E72

_MARKER = re.compile(r"^-- Version (\d+)", re.MULTILINE)

logger = get_logger(__name__)


def statements_after(version: int) -> list[str]:
    """What brings a file of ``version`` up to date; 0 is an empty file."""
    script = files(__package__).joinpath("schema.sql").read_text("utf-8")
    _head, *parts = _MARKER.split(script)
    return [
        statement
        for number, part in zip(parts[::2], parts[1::2], strict=True)
        if int(number) > version
        for statement in _statements(f"-- {part}")
    ]


def version_of(connection: sqlite3.Connection) -> int:
    """The version that is written in a file."""
    version: int = connection.execute("pragma user_version").fetchone()[0]
    return version


def not_ours(path: Path) -> BrokerCorrupt:
    """The error for a file of something else."""
    return BrokerCorrupt(f"{path} is not a Greenroom queue.", path=str(path))


def bring_up_to_date(
    connection: sqlite3.Connection, path: Path, patiently: Callable[[Callable[[], object]], object]
) -> None:
    """Gives an empty file its tables, and an older one what has been added since.

    Parameters:
      connection: Outside of a transaction.
      path: For error texts.
      patiently: Runs a statement until other processes let it.

    Raises:
      SchemaMismatch: If the file is of a newer version.
      BrokerCorrupt: If the file has tables, but no version.
      sqlite3.Error: Nothing was changed.
    """
    patiently(lambda: connection.execute("begin immediate"))
    try:
        found = version_of(connection)
        check_version(connection, path, found)
        if found < SCHEMA_VERSION:  # or another process was faster
            for statement in statements_after(found):
                connection.execute(statement)
            connection.execute(f"pragma application_id = {APPLICATION_ID}")
            connection.execute(f"pragma user_version = {SCHEMA_VERSION}")
            patiently(connection.commit)
            if found:
                logger.info("The queue file %s was brought from version %d to %d.", path, found, SCHEMA_VERSION)
    finally:
        if connection.in_transaction:
            connection.rollback()


def check_version(connection: sqlite3.Connection, path: Path, found: int) -> None:
    """Raises ``SchemaMismatch`` for a file of a newer version, and ``BrokerCorrupt`` for tables without a version."""
    if found > SCHEMA_VERSION or found < 0:
        raise SchemaMismatch(
            f"The queue file {path} has schema version {found}; this Greenroom reads versions up to {SCHEMA_VERSION}. "
            "Use the version of Greenroom that wrote it, or another file.",
            found=found,
            supported=SCHEMA_VERSION,
        )
    if found == 0 and connection.execute("select 1 from sqlite_master limit 1").fetchone() is not None:
        raise BrokerCorrupt(f"The queue file {path} is damaged: it has tables, but no version.", path=str(path))


def _statements(script: str) -> Iterator[str]:
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
