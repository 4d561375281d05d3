"""The shop's data, in one SQLite file that the web application and the workers share."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

#: The file; tests use one of their own.
PATH = Path(os.environ.get("BOOKSHOP_DATA", ".greenroom/bookshop.db"))

SCHEMA = """
CREATE TABLE IF NOT EXISTS book (id INTEGER PRIMARY KEY, title TEXT NOT NULL, cents INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS purchase (
    id INTEGER PRIMARY KEY, book INTEGER NOT NULL REFERENCES book, address TEXT NOT NULL,
    state TEXT NOT NULL DEFAULT 'new',  -- new, paid, cancelled
    created TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP
);
CREATE TABLE IF NOT EXISTS picture (
    book INTEGER NOT NULL REFERENCES book, width INTEGER NOT NULL, data BLOB NOT NULL, PRIMARY KEY (book, width)
);
CREATE TABLE IF NOT EXISTS subscriber (address TEXT PRIMARY KEY);
CREATE TABLE IF NOT EXISTS partner (url TEXT PRIMARY KEY);
INSERT OR IGNORE INTO book VALUES (1, 'The Art of the Queue', 2400), (2, 'At Least Once', 1800);
"""


@contextmanager
def connected() -> Iterator[sqlite3.Connection]:
    """A transaction on a connection of its own: it is kept if the block ends well."""
    PATH.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(PATH, timeout=10)) as connection:
        connection.row_factory = sqlite3.Row
        connection.executescript(SCHEMA)
        with connection:
            yield connection


def books() -> list[dict[str, Any]]:
    """All books."""
    return _all("SELECT * FROM book")


def add_order(book: int, address: str) -> int:
    """Writes an order down; returns its id. ``sqlite3.IntegrityError`` if there is no such book."""
    with connected() as connection:
        connection.execute("PRAGMA foreign_keys = ON")
        cursor = connection.execute("INSERT INTO purchase (book, address) VALUES (?, ?)", (book, address))
        return int(cursor.lastrowid or 0)


def order(order_id: int) -> dict[str, Any] | None:
    """An order with its book's title and price, or None."""
    found = _all("SELECT o.*, title, cents FROM purchase o JOIN book b ON b.id = o.book WHERE o.id = ?", order_id)
    return found[0] if found else None


def move_order(order_id: int, state: str) -> bool:
    """Moves a new order on; False if it was no longer new. Whoever gets True is the only one."""
    with connected() as connection:
        moved = connection.execute("UPDATE purchase SET state = ? WHERE id = ? AND state = 'new'", (state, order_id))
        return moved.rowcount == 1


def forget_unpaid_orders(days: int) -> int:
    """Deletes orders that were not paid for so many days; returns how many."""
    with connected() as connection:
        statement = "DELETE FROM purchase WHERE state <> 'paid' AND created < datetime('now', ?)"
        return connection.execute(statement, (f"-{days} days",)).rowcount


def put_picture(book: int, width: int, data: bytes) -> None:
    """Keeps a picture of a book; width 0 is the original."""
    with connected() as connection:
        connection.execute("INSERT OR REPLACE INTO picture VALUES (?, ?, ?)", (book, width, data))


def picture(book: int, width: int) -> bytes | None:
    """A picture of a book, or None."""
    found = _all("SELECT data FROM picture WHERE book = ? AND width = ?", book, width)
    return bytes(found[0]["data"]) if found else None


def subscribe(address: str) -> bool:
    """Adds a reader of the newsletter; False if there was one of that address."""
    with connected() as connection:
        return connection.execute("INSERT OR IGNORE INTO subscriber VALUES (?)", (address,)).rowcount == 1


def subscribers() -> list[str]:
    """The addresses of all readers of the newsletter."""
    return [row["address"] for row in _all("SELECT address FROM subscriber ORDER BY address")]


def add_partner(url: str) -> None:
    """Adds a partner who wants to hear of sales."""
    with connected() as connection:
        connection.execute("INSERT OR IGNORE INTO partner VALUES (?)", (url,))


def remove_partner(url: str) -> None:
    """Removes a partner."""
    with connected() as connection:
        connection.execute("DELETE FROM partner WHERE url = ?", (url,))


def partners() -> list[str]:
    """The URLs of all partners."""
    return [row["url"] for row in _all("SELECT url FROM partner ORDER BY url")]


def _all(statement: str, *values: Any) -> list[dict[str, Any]]:
    with connected() as connection:
        return [dict(row) for row in connection.execute(statement, values)]
