"""The parent's side of logging: one output, fed by a pipe a child."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

from ..settings import Settings
from .log_output import LogOutput, OutputHandler
from .log_pipe import LineReader, speak_into
from .parent_loop import ParentLoop, Source

#: What a full disk did not take is offered again so soon, in seconds.
_AGAIN_S = 0.05


class Logs:
    """Where the output of all children comes together. Owned by the parent's main thread."""

    def __init__(self, output: LogOutput, loop: ParentLoop, level: int) -> None:
        self.level = level
        self._output = output
        self._loop = loop
        self._is_planned = False
        #: Our ends, as long as somebody may write into them; in the order of starts.
        self._readers: dict[LineReader, None] = {}
        output.when_pending = self._plan

    def open(self, context: Any) -> tuple[LineReader, Connection]:
        """A pipe for a child that is about to start: our end, which is in the loop, and its end."""
        ours, theirs = context.Pipe(duplex=False)
        reader = LineReader(ours, self._output.write)
        self._loop.add(reader, partial(self._read, reader))
        self._readers[reader] = None
        return reader, theirs

    def not_started(self, reader: LineReader) -> None:
        """There is no child after all."""
        self._close(reader)

    def catch_up(self) -> None:
        """Takes what children have said until now. A wait that tells of a child's report may have looked at its lines
        just before it wrote them, and then the report; this keeps their order."""
        for reader in self._readers:
            reader.catch_up()
        self._output.flush()

    def ended(self, reader: LineReader, on_exit: Callable[[int], object], exit_code: int) -> None:
        """A child has died: its last words come before the word of its death. What it has started may still speak."""
        reader.drain()
        self._output.flush()
        on_exit(exit_code)

    def _read(self, reader: LineReader) -> None:
        if not reader.read():
            self._close(reader)
        self._output.flush()

    def _close(self, reader: LineReader) -> None:
        self._readers.pop(reader, None)
        self._loop.remove(reader)
        reader.close()

    def _plan(self) -> None:
        """Something could not be written: there was no room in a pipe, or on the disk."""
        if self._is_planned:
            return
        self._is_planned = True
        descriptor = self._output.waitable
        if descriptor is None:
            self._loop.call_at(self._loop.clock.monotonic() + _AGAIN_S, self._flush_again)
        else:
            room = _Room(descriptor, self._output)
            self._loop.add(room, partial(self._there_is_room, room), writes=True)

    def _flush_again(self) -> None:
        self._is_planned = False
        self._output.flush()

    def _there_is_room(self, room: _Room) -> None:
        self._loop.remove(room)
        self._flush_again()


class _Room:
    """What becomes writable when somebody reads."""

    def __init__(self, descriptor: int, output: LogOutput) -> None:
        self._descriptor = descriptor
        self._output = output

    def fileno(self) -> int:
        return self._descriptor

    def close(self) -> None:
        """In a fork."""
        self._output.forget()


def run_in_child(
    theirs: Connection, level: int, target: Callable[..., None], args: tuple[Any, ...], inherited: Iterable[Source]
) -> None:
    """What a child runs first: from here on all that it says goes into the pipe. Then it calls ``target``."""
    speak_into(theirs.fileno(), level)
    theirs.close()
    target(*args, inherited)


def level_of(settings: Settings) -> int:
    """The level of the root logger."""
    return logging.DEBUG if settings.verbose else logging.INFO


@contextmanager
def log_output(settings: Settings) -> Iterator[LogOutput | None]:
    """The output of a program, until the block ends; None with ``skip_logging``. The parent's own records go there,
    too, unless the root logger has handlers already.

    Raises:
      OSError: If the log file cannot be opened.
    """
    if settings.skip_logging:
        yield None
        return
    _occupy_standard_streams()
    output = LogOutput(settings.log_file)
    handler = OutputHandler(output)
    root = logging.getLogger()
    level = root.level
    if not root.handlers:
        root.addHandler(handler)
        root.setLevel(level_of(settings))
    try:
        yield output
    finally:
        if handler in root.handlers:
            root.removeHandler(handler)
            root.setLevel(level)
        output.close()


def _occupy_standard_streams() -> None:
    """Opens those that were closed (``2>&-``), else a pipe of ours would get their number, and what a child prints."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
