"""What children say, on its way to where it is read: whole lines, bounded, in no one's way."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from multiprocessing import Pipe
from pathlib import Path

import pytest

from greenroom.runtime.log_output import (
    MAX_PENDING_BYTES,
    LineFormatter,
    LogOutput,
    OutputHandler,
    PatientWriter,
    can_write,
)
from greenroom.runtime.log_pipe import MAX_LINE_BYTES, LineReader, PipeHandler


class Pair:
    """A reader, what it has taken, and the descriptor that feeds it."""

    def __init__(self) -> None:
        ours, self.theirs = Pipe(duplex=False)
        self.lines: list[str] = []
        self.reader = LineReader(ours, self.lines.append)

    def write(self, data: bytes) -> None:
        os.write(self.theirs.fileno(), data)

    def read(self) -> list[str]:
        self.reader.read()
        return self.lines


@pytest.fixture
def pair() -> Iterator[Pair]:
    pair = Pair()
    yield pair
    pair.theirs.close()
    pair.reader.close()


def record(message: str, *args: object, error: Exception | None = None) -> logging.LogRecord:
    info = None if error is None else (type(error), error, error.__traceback__)
    return logging.LogRecord("name", logging.INFO, "", 0, message, args, info)


# --- reading


def test_lines_are_taken_whole(pair: Pair) -> None:
    """What has no end yet is kept until it has one."""
    pair.write(b"one\ntw")
    assert pair.read() == ["one"]
    pair.write(b"o\n\nthree\n")
    assert pair.read() == ["one", "two", "", "three"]


def test_a_long_line_is_cut_and_says_so(pair: Pair) -> None:
    """A line of any length takes 8 KiB, and what follows it is not harmed."""
    for _ in range(50):
        pair.write(b"x" * 60_000)
        pair.read()
    pair.write(b"\nnext\n")
    long, following = pair.read()
    assert long == "x" * MAX_LINE_BYTES + f"... ({3_000_000 - MAX_LINE_BYTES} bytes cut)"
    assert following == "next"


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        (b"\xff\x00\x01", r"\xff\x00\x01"),
        (b"\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m"),
        ("a\u2028b\x85c".encode(), r"a\u2028b\x85c"),
        (b"10%\r20%\r\n", r"10%\r20%"),
        ("tab\tgrün €".encode(), "tab\tgrün €"),
    ],
    ids=["binary", "colours", "separators", "carriage returns", "text"],
)
def test_what_could_move_a_cursor_is_shown_as_what_it_is(pair: Pair, data: bytes, shown: str) -> None:
    """Control characters are escaped, bytes that are no text too; text stays as it is."""
    pair.write(data + (b"" if data.endswith(b"\n") else b"\n"))
    assert pair.read() == [shown]


def test_the_last_words_of_the_dead_are_read_though_others_hold_the_pipe(pair: Pair) -> None:
    """Draining ends with what is there, takes an unfinished line too, and does not wait for the pipe's end."""
    pair.write(b"".join(b"line %d\n" % n for n in range(5000)) + b"unfinished")
    pair.reader.drain()
    assert len(pair.lines) == 5001
    assert pair.lines[-1] == "unfinished"
    pair.write(b"a grandchild goes on\n")
    assert pair.read()[-1] == "a grandchild goes on"


def test_the_end_of_a_pipe_is_seen(pair: Pair) -> None:
    """Once nobody holds it any more, reading says so; the last line needs no end."""
    pair.write(b"bye")
    pair.theirs.close()
    assert pair.reader.read()
    assert not pair.reader.read()
    assert pair.lines == ["bye"]
    pair.reader.close()
    pair.reader.drain()  # harmless


# --- records


def test_no_data_can_pass_for_a_record() -> None:
    """Further lines of a message and of a traceback are indented; what moves the cursor is escaped."""
    try:
        raise ValueError("x\n[2024-01-01] forged")
    except ValueError as e:
        text = LineFormatter().format(record("got\r\n[2024-01-01] \x1b[31mforged", error=e))
    first, *others = text.split("\n")
    assert first.startswith("[")
    assert first.endswith(r"got\r")
    assert all(line.startswith("    ") for line in others)
    assert r"    [2024-01-01] \x1b[31mforged" in others
    assert "    ValueError: x" in others


def test_a_long_message_is_cut() -> None:
    """A record's message is cut after 8 KiB; a format string is never made of data."""
    text = LineFormatter().format(record("%s", "%s" * 5_000_000))
    assert len(text) < 10_000
    assert text.endswith(f"... ({10_000_000 - 8192} characters cut)")


def test_a_parent_that_does_not_read_stalls_nobody() -> None:
    """When the pipe is full records wait a moment, once; then they are dropped, counted, and the count comes first."""
    pair = Pair()
    handler = PipeHandler(pair.theirs.fileno())
    try:
        for number in range(20_000):
            handler.emit(record("record %d %s", number, "x" * 100))
        pair.reader.drain()
        handler.emit(record("the next one"))
        pair.reader.drain()
    finally:
        handler._writer.close()
        pair.theirs.close()
        pair.reader.close()
    kept = [line for line in pair.lines if "] record " in line]
    *_, notice, following = pair.lines
    assert following.endswith("the next one")
    assert "log lines were dropped: the parent process did not read them in time." in notice
    whole = [line for line in kept if line.endswith("x" * 100)]
    assert len(kept) - len(whole) <= 1  # the one that the full pipe has cut
    assert len(whole) + int(notice.split("] ")[-1].split()[0]) == 20_000


def test_records_that_fit_into_no_pipe_come_whole_if_they_are_read() -> None:
    """A traceback is longer than what a pipe takes at once; it is written in pieces."""
    pair = Pair()
    handler = PipeHandler(pair.theirs.fileno())
    text = "\n".join("y" * 100 for _ in range(80))
    try:
        for _ in range(20):
            handler.emit(record("%s", text))
            pair.reader.drain()
    finally:
        handler._writer.close()
        pair.theirs.close()
        pair.reader.close()
    assert sum(line.endswith("y" * 100) for line in pair.lines) == 20 * 80


# --- writing


@pytest.mark.parametrize("kind", ["pipe", "socket", "terminal"])
def test_a_writer_waits_for_nobody(kind: str) -> None:
    """Into a pipe, a socket and a terminal that nobody reads it writes what there is room for, then nothing; and the
    descriptor blocks for others as before."""
    if kind == "socket":
        ends = socket.socketpair()
        reader, descriptor = (end.detach() for end in ends)
    else:
        reader, descriptor = os.pipe() if kind == "pipe" else os.openpty()
    writer = PatientWriter(descriptor)
    try:
        while writer.write(b"x" * 1000) or can_write(descriptor, 0.1):
            pass  # a terminal makes room for a little more when it has had the time
        assert writer.write(b"x" * 1000) == 0
        assert os.get_blocking(descriptor)
    finally:
        writer.close()
        os.close(reader)
        os.close(descriptor)


def test_a_writer_without_proc_asks_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a pipe cannot be opened a second time, it is asked before each small write."""
    reader, descriptor = os.pipe()
    real_open = os.open

    def no_proc(path: str, *args: int) -> int:
        if str(path).startswith("/proc"):
            raise FileNotFoundError(path)
        return real_open(path, *args)

    monkeypatch.setattr(os, "open", no_proc)
    writer = PatientWriter(descriptor)
    try:
        while writer.write(b"x" * 1000):
            pass
        assert len(os.read(reader, 100_000)) > 10_000
    finally:
        writer.close()
        os.close(reader)
        os.close(descriptor)


def test_a_log_file_that_was_rotated_is_followed(tmp_path: Path) -> None:
    """When the file was renamed or removed, lines go into a new one of the old name; it is UTF-8 and appended to."""
    path = tmp_path / "greenroom.log"
    path.write_text("before\n")
    output = LogOutput(str(path))
    output.write("grün")
    output.flush()
    path.rename(tmp_path / "greenroom.log.1")
    output._looked_s = 0.0
    output.write("new")
    output.flush()
    path.unlink()
    output._looked_s = 0.0
    output.write("newest")
    output.close()
    assert (tmp_path / "greenroom.log.1").read_text("utf-8") == "before\ngrün\n"
    assert path.read_text("utf-8") == "newest\n"


def test_a_log_file_whose_folder_has_gone_goes_on(tmp_path: Path) -> None:
    """Where no new file can be made the old one is written to."""
    folder = tmp_path / "logs"
    folder.mkdir()
    output = LogOutput(str(folder / "greenroom.log"))
    (folder / "greenroom.log").rename(tmp_path / "kept.log")
    folder.rmdir()
    output._looked_s = 0.0
    output.write("still here")
    output.close()
    assert (tmp_path / "kept.log").read_text() == "still here\n"


def test_what_nobody_reads_is_dropped_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Beyond 4 MiB nothing is kept; when there is room again the number of lost lines is logged, and asks for the
    next attempt meanwhile."""
    path = tmp_path / "fifo"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    output = LogOutput(str(path))
    asked: list[bool] = []
    output.when_pending = lambda: asked.append(True)
    try:
        lines = MAX_PENDING_BYTES // 1000 + 100
        for _ in range(lines):
            output.write("z" * 999)
        output.flush()
        assert asked
        received = 0
        while data := _read_some(reader):
            received += len(data)
            output.flush()
        assert f"{lines - received // 1000} log lines were dropped: nobody read them in time." in caplog.messages
    finally:
        output.close(0.0)
        os.close(reader)


def _read_some(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65_536)
    except BlockingIOError:
        return b""


def test_a_reader_that_has_gone_is_nobodys_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    """``greenroom worker app 2>&1 | head -1``: what nobody will ever read is forgotten."""
    reader, descriptor = os.pipe()
    output = LogOutput()
    output._writer = PatientWriter(descriptor)
    os.close(reader)
    handler = OutputHandler(output)
    for _ in range(3):
        handler.emit(record("hello"))
    output.close()
    os.close(descriptor)
