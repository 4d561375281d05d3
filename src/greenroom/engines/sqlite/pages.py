"""The rows of a damaged database, read from its pages by hand, where SQLite itself does not find the way any more.

A page of rows (a leaf) says by itself what is on it. So rows can be read although the file's header, the schema, or the
pages that lead to the leaf are gone. The format is SQLite's: https://sqlite.org/fileformat2.html.

For private copies only: see ``database`` for why nobody else may open such a file.
"""

from __future__ import annotations

from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any, Self

Row = tuple[int, list[Any]]

_MAGIC = b"SQLite format 3\0"
_HEADER_BYTES = 100
_LEAF = 13
_LOG_MAGIC = (0x377F0682, 0x377F0683)
_LOG_HEADER_BYTES = 32
_FRAME_HEADER_BYTES = 24
#: Bytes of an integer by its serial type.
_INTEGERS = {1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8}


class Damaged(Exception):
    """Raised where bytes are not what they should be."""


class PageFile:
    """A database file and its write-ahead log, as numbered pages. To be closed.

    Parameters:
      path: A private copy.
      page_bytes: The size of a page, for when the header does not tell.
    """

    def __init__(self, path: Path, page_bytes: int) -> None:
        self._file = path.open("rb")
        log = path.with_name(f"{path.name}-wal")
        self._log = log.open("rb") if log.exists() else None
        header = self._file.read(_HEADER_BYTES)
        #: False if the header is damaged: what is free is not known then.
        self.has_header = header.startswith(_MAGIC)
        self.page_bytes = page_bytes
        self._frames = self._find_frames()
        self._pages = max([-(-self._file.seek(0, 2) // page_bytes), *self._frames])
        self._free = self._find_free() if self.has_header else frozenset()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._file.close()
        if self._log is not None:
            self._log.close()

    def rows(self) -> Iterator[Row]:
        """The row numbers and the columns of all rows of all tables, page by page."""
        for number in range(1, self._pages + 1):
            if number not in self._free:
                yield from self._rows_of(number)

    def page(self, number: int) -> bytes:
        """The latest content of a page that was committed; zeros where the file was cut."""
        if number < 1:
            raise Damaged
        at = self._frames.get(number)
        if at is not None and self._log is not None:
            return _read(self._log, at, self.page_bytes)
        return _read(self._file, (number - 1) * self.page_bytes, self.page_bytes)

    # --- the log

    def _find_frames(self) -> dict[int, int]:
        """By page: where its last committed content stands in the log."""
        committed: dict[int, int] = {}
        if self._log is None:
            return committed
        header = self._log.read(_LOG_HEADER_BYTES)
        if int.from_bytes(header[:4]) not in _LOG_MAGIC or int.from_bytes(header[8:12]) != self.page_bytes:
            return committed
        pending: dict[int, int] = {}
        at = _LOG_HEADER_BYTES
        while True:
            self._log.seek(at)
            frame = self._log.read(_FRAME_HEADER_BYTES)
            if len(frame) < _FRAME_HEADER_BYTES or frame[8:16] != header[16:24]:  # of an earlier round
                return committed
            pending[int.from_bytes(frame[:4])] = at + _FRAME_HEADER_BYTES
            at += _FRAME_HEADER_BYTES + self.page_bytes
            if int.from_bytes(frame[4:8]):
                committed |= pending
                pending.clear()

    # --- what is free

    def _find_free(self) -> frozenset[int]:
        """The pages that are not in use, as far as they can be read: what is on them was deleted."""
        free: set[int] = set()
        try:
            trunk = int.from_bytes(self.page(1)[32:36])
            while trunk and trunk not in free:
                page = self.page(trunk)
                count = min(int.from_bytes(page[4:8]), self.page_bytes // 4 - 2)
                free.add(trunk)
                free.update(int.from_bytes(page[8 + 4 * i : 12 + 4 * i]) for i in range(count))
                trunk = int.from_bytes(page[:4])
        except Damaged:
            pass
        return frozenset(free)

    # --- rows

    def _rows_of(self, number: int) -> Iterator[Row]:
        try:
            page = self.page(number)
        except Damaged:
            return
        start = _HEADER_BYTES if number == 1 else 0
        if page[start] != _LEAF:
            return
        cells = int.from_bytes(page[start + 3 : start + 5])
        for i in range(min(cells, self.page_bytes // 4)):
            pointer = start + 8 + 2 * i
            try:
                yield self._row_at(page, int.from_bytes(page[pointer : pointer + 2]))
            except (Damaged, IndexError, UnicodeDecodeError):
                continue

    def _row_at(self, page: bytes, at: int) -> Row:
        size, at = _varint(page, at)
        number, at = _varint(page, at)
        if not 0 < size <= self._pages * self.page_bytes:
            raise Damaged
        local = self._local_bytes(size)
        payload = page[at : at + local]
        if size > local:
            payload += self._overflow(int.from_bytes(page[at + local : at + local + 4]), size - local)
        if len(payload) != size:
            raise Damaged
        return number, _columns(payload)

    def _local_bytes(self, size: int) -> int:
        """How much of a row of ``size`` bytes stands on the leaf itself."""
        most = self.page_bytes - 35
        if size <= most:
            return size
        least = (self.page_bytes - 12) * 32 // 255 - 23
        local = least + (size - least) % (self.page_bytes - 4)
        return local if local <= most else least

    def _overflow(self, number: int, size: int) -> bytes:
        parts = []
        while size > 0:
            page = self.page(number)
            parts.append(page[4 : 4 + size])
            size -= self.page_bytes - 4
            number = int.from_bytes(page[:4])
        return b"".join(parts)


def _read(file: BufferedReader, at: int, size: int) -> bytes:
    file.seek(at)
    data = file.read(size)
    if not data:
        raise Damaged
    return data.ljust(size, b"\0")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number of variable length, and where the next thing begins."""
    value = 0
    for i in range(at, at + 8):
        value = value << 7 | data[i] & 0x7F
        if data[i] < 0x80:
            return value, i + 1
    value = value << 8 | data[at + 8]
    return value - (value >> 63 << 64), at + 9


def _columns(payload: bytes) -> list[Any]:
    end, at = _varint(payload, 0)
    body = end
    columns = []
    while at < end:
        kind, at = _varint(payload, at)
        size = _size_of(kind)
        if body + size > len(payload):
            raise Damaged
        columns.append(_value(kind, payload[body : body + size]))
        body += size
    return columns


def _size_of(kind: int) -> int:
    if kind >= 12:
        return (kind - 12) // 2
    if kind == 7:
        return 8
    return _INTEGERS.get(kind, 0)


def _value(kind: int, data: bytes) -> Any:
    if kind >= 12:
        return data.decode("utf-8") if kind % 2 else data
    if kind in _INTEGERS:
        return int.from_bytes(data, signed=True)
    if kind in (8, 9):
        return kind - 8
    if kind == 0:
        return None
    raise Damaged  # no number with a fraction is kept in a queue, and 10 and 11 mean nothing
