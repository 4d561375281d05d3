"""Telling other processes that a key has changed, for nothing while nobody watches one.

In the wake folder (``wake``) lies a file ``watches``: a byte for each of 64 watching processes, 1 while it watches
anything, and for each a map of 4 096 bits, one for all keys of one hash. Beside it a FIFO a process, ``w0`` to ``w63``.
Who has changed keys commits, then looks: 64 zeros are one comparison. Else it writes the number of each changed key's
bit to the FIFOs of those whose map has it, and their listener calls the watches of that number. So a process that waits
for one result among thousands a second is hardly ever woken for another's.

Both sides pass through SQLite's file locks between their write and their look, as with the wake board: either the
writer sees the watch, or the look that follows it sees the change.
"""

from __future__ import annotations

import mmap
import os
import select
import threading
import zlib
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Self

from ...host.descriptor import Descriptor
from ...host.liveness import LockFile, close_lock_file, open_lock_file

#: How many processes can be told; more may watch, and look once a second.
SLOTS = 64
_BITS = 4096
_MAP_BYTES = _BITS // 8
_FILE_BYTES = SLOTS + SLOTS * _MAP_BYTES
_NOBODY = bytes(SLOTS)
_WATCHES, _MISSED = 1, 2
#: The bytes of the lock file from here on say which of the 64 are alive; those before it belong to owners of messages.
_FIRST_LOCK = 1 << 20
#: A write of so many bytes goes into a FIFO as a whole or not at all (POSIX: 512 at least).
_ATOMIC_BYTES = 512


def bit_of(key: str) -> int:
    """The number of the bit that stands for a key."""
    return zlib.crc32(key.encode("utf-8", "surrogatepass")) % _BITS


class _Watches:
    """The file ``watches``, mapped."""

    def __init__(self, folder: Path, mode: int) -> None:
        descriptor = os.open(folder / "watches", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, mode)
        try:
            if os.fstat(descriptor).st_size < _FILE_BYTES:
                os.fchmod(descriptor, mode)
                # Written, not merely made as long: where the disk is full this fails, and a store later would kill.
                os.write(descriptor, bytes(_FILE_BYTES))
            self.map = mmap.mmap(descriptor, _FILE_BYTES)
        finally:
            os.close(descriptor)

    def has(self, slot: int, bit: int) -> bool:
        return bool(self.map[SLOTS + slot * _MAP_BYTES + (bit >> 3)] & (1 << (bit & 7)))

    def set(self, slot: int, bit: int, value: bool) -> None:
        """By the process that the slot belongs to, one thread at a time."""
        index, mask = SLOTS + slot * _MAP_BYTES + (bit >> 3), 1 << (bit & 7)
        self.map[index] = self.map[index] | mask if value else self.map[index] & ~mask

    def clear(self, slot: int) -> None:
        self.map[slot] = 0
        start = SLOTS + slot * _MAP_BYTES
        self.map[start : start + _MAP_BYTES] = bytes(_MAP_BYTES)


class Bell:
    """The writers' side. One a process and queue file; any thread may ``ring``. Opens its files when first rung."""

    def __init__(self, folder: Path, mode: int) -> None:
        self._folder = folder
        self._mode = mode
        self._watches: _Watches | None = None
        self._writers: dict[int, Descriptor] = {}
        # guards: no thread writes to a descriptor that another one closes. The writes never block.
        self._writing = threading.Lock()

    def ring(self, keys: Iterable[str]) -> None:
        """After a commit: tells those who watch any of these keys. Never blocks, and never fails."""
        watches = self._watches
        if watches is None:
            try:
                watches = self._watches = _Watches(self._folder, self._mode)
            except OSError:  # no room: nobody could begin to watch, either
                return
        flags = watches.map[:SLOTS]
        if flags == _NOBODY:
            return
        bits = {bit_of(key) for key in keys}
        for slot, flag in enumerate(flags):
            if flag:
                hit = b"".join([bit.to_bytes(2, "little") for bit in bits if watches.has(slot, bit)])
                if hit:
                    self._write(watches, slot, hit)

    def _write(self, watches: _Watches, slot: int, bits: bytes) -> None:
        if len(bits) > _ATOMIC_BYTES:
            watches.map[slot] = _MISSED
            bits = bits[:2]
        with self._writing:
            try:
                self._write_or_flag(watches, slot, bits)
            except OSError:  # nobody reads: died without clearing its place, which the next listener will take
                stale = self._writers.pop(slot, None)
                if stale is not None:
                    stale.close()

    def _write_or_flag(self, watches: _Watches, slot: int, bits: bytes) -> None:
        writer = self._writer(slot)
        try:
            os.write(writer.number, bits)
        except BlockingIOError:  # full: it finds the flag when it reads, and if it has read by now, what follows
            watches.map[slot] = _MISSED
            with suppress(BlockingIOError):
                os.write(writer.number, bits)

    def _writer(self, slot: int) -> Descriptor:
        writer = self._writers.get(slot)
        if writer is None:
            flags = os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC
            writer = self._writers[slot] = Descriptor(os.open(self._folder / f"w{slot}", flags))
        return writer

    def close(self) -> None:
        """Closes the descriptors."""
        with self._writing:
            for writer in self._writers.values():
                writer.close()
            self._writers.clear()


class KeyWatch:
    """One watch: some keys and whom to tell. Made by ``Listener.watch``."""

    def __init__(self, listener: Listener, bits: frozenset[int], notify: Callable[[], None]) -> None:
        self._listener = listener
        self.bits = bits
        self.notify = notify

    def close(self) -> None:
        """Ends it; closing again does nothing."""
        self._listener.forget(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class Listener:
    """The watchers' side: one slot, one FIFO and one thread a process, from its first watch on.

    The thread owns nothing; ``_lock`` puts it and those who watch in order.
    """

    def __init__(self, folder: Path, mode: int) -> None:
        self._lock = threading.Lock()  # guards: the watches, and this process's part of the file, agree
        self._by_bit: dict[int, set[KeyWatch]] = {}
        self._locks = open_lock_file(folder / "lock", mode)
        self._watches = _Watches(folder, mode)
        self._slot = self._take_slot(self._locks)
        #: False once it is told nothing any more: it was closed, or somebody else has closed its descriptors.
        self.is_usable = True
        self._listens = self._slot < SLOTS  # else all places are taken, and its watches are told nothing
        if self._listens:
            self._fifo = self._open_fifo(folder / f"w{self._slot}", mode)
            self._reader, self._writer = map(Descriptor, os.pipe())
            threading.Thread(target=self._main, name="store-listener", daemon=True).start()

    def _take_slot(self, locks: LockFile) -> int:
        for slot in range(SLOTS):
            if locks.try_lock(_FIRST_LOCK + slot, self):
                self._watches.clear(slot)
                return slot
        return SLOTS

    @staticmethod
    def _open_fifo(path: Path, mode: int) -> Descriptor:
        if not path.is_fifo():
            with suppress(FileExistsError):
                os.mkfifo(path, mode)
                path.chmod(mode)
        # Opened for writing, too, so that it never reports an end of file between two writers.
        fifo = Descriptor(os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC))
        with suppress(BlockingIOError):
            os.read(fifo.number, 65536)  # what a predecessor left
        return fifo

    def watch(self, keys: Collection[str], notify: Callable[[], None]) -> KeyWatch:
        """A watch on keys, in force when this returns."""
        watch = KeyWatch(self, frozenset(map(bit_of, keys)), notify)
        with self._lock:
            for bit in watch.bits:
                others = self._by_bit.setdefault(bit, set())
                others.add(watch)
                if len(others) == 1 and self._listens:
                    self._watches.set(self._slot, bit, True)
            if self._listens and not self._watches.map[self._slot]:
                self._watches.map[self._slot] = _WATCHES
        return watch

    def forget(self, watch: KeyWatch) -> None:
        """Ends a watch."""
        with self._lock:
            for bit in watch.bits:
                others = self._by_bit.get(bit)
                if others is None or watch not in others:
                    continue
                others.discard(watch)
                if not others:
                    del self._by_bit[bit]
                    if self._listens:
                        self._watches.set(self._slot, bit, False)
            if not self._by_bit and self._listens:
                self._watches.map[self._slot] = 0

    def _main(self) -> None:
        poll = select.poll()
        poll.register(self._fifo, select.POLLIN)
        poll.register(self._reader, select.POLLIN)
        while True:
            found = poll.poll()
            if any(event & select.POLLNVAL for _, event in found):  # somebody else has closed them
                self.close()
            with self._lock:
                if not self._listens:
                    break
                told = self._read()
            for watch in told:
                watch.notify()
        self._fifo.close()
        self._reader.close()

    def _read(self) -> set[KeyWatch]:
        """Whom to tell: the watches of the bits in the FIFO; all, if it was too full for some."""
        try:
            data = os.read(self._fifo.number, 65536)
        except OSError:  # nothing there any more
            data = b""
        if self._watches.map[self._slot] == _MISSED:
            self._watches.map[self._slot] = _WATCHES
            return {watch for watches in self._by_bit.values() for watch in watches}
        bits = {int.from_bytes(data[i : i + 2], "little") for i in range(0, len(data), 2)}
        return {watch for bit in bits for watch in self._by_bit.get(bit, ())}

    def close(self) -> None:
        """Ends the thread and gives the slot back. The watches that are left are told nothing more."""
        with self._lock:
            if not self.is_usable:
                return
            self.is_usable = False
            if self._listens:
                self._listens = False
                self._watches.clear(self._slot)
                self._locks.unlock(_FIRST_LOCK + self._slot, self)
                self._writer.close()  # wakes the thread, which closes the rest
        close_lock_file(self._locks)
