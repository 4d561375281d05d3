"""A server process in a folder of its own: started, watched, paused, killed and started again."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, ClassVar, NamedTuple

HOST = "127.0.0.1"
#: Below the ports that a system gives to outgoing connections: nobody takes the port of a server that is down.
PORTS = range(20_000, 32_000)
#: How often other ports are tried if somebody was faster.
TRIES = 5
STEP_S = 0.005


class ServerFailed(Exception):
    """A server did not start or did not do as it was told; the text has its last words."""


class Process(NamedTuple):
    """A process, told from a later one with the same id by its start time (Linux; elsewhere None)."""

    pid: int
    started: str | None

    def is_running(self) -> bool:
        """Whether it runs; one that merely waits to be reaped does not. One of whose threads some still end does: its
        ports are open until the last has ended."""
        with suppress(ChildProcessError):
            os.waitpid(self.pid, os.WNOHANG)
        try:
            os.kill(self.pid, 0)
        except (ProcessLookupError, PermissionError):
            return False
        state, started = stat_of(self.pid)
        return started == self.started and (state != "Z" or _has_threads(self.pid))

    def signal(self, number: int) -> None:
        """Sends a signal, if it runs."""
        if self.is_running():
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def wait(self, timeout_s: float) -> bool:
        """Waits for its end; False if that did not come in time."""
        return wait_for(lambda: not self.is_running(), timeout_s)


def _has_threads(pid: int) -> bool:
    """Whether others than the first thread are left."""
    try:
        return len(os.listdir(f"/proc/{pid}/task")) > 1
    except OSError:
        return False


def stat_of(pid: int) -> tuple[str, str | None]:
    """State and start time of a process, from /proc; without that, nothing that tells processes apart."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ("Z", None) if Path("/proc/self").exists() else ("?", None)
    return fields[0], fields[19]


def wait_for(condition: Callable[[], object], timeout_s: float) -> bool:
    """Whether a condition came true in time."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline_s:
            return False
        time.sleep(STEP_S)
    return True


def spawn(command: Sequence[str | Path], output: int | IO[bytes] = subprocess.DEVNULL, **options: Any) -> Process:
    """Starts a process apart from the terminal's signals, that may outlive this one."""
    child = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True, **options
    )
    child.returncode = 0  # we wait for it by its id, and Popen need not warn that it still runs
    return Process(child.pid, stat_of(child.pid)[1])


def free_port() -> int:
    """A port of the loopback that nobody listens on."""
    while True:
        port = random.choice(PORTS)
        with socket.socket() as probe, suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((HOST, port))
            return port


class Server:
    """A server of one kind. Not thread-safe: one owner at a time.

    Parameters:
      folder: Its data, log and record; made if it is not there.
      settings: Of the server's own configuration; underscores stand for what the server has instead.

    Attributes:
      port: Where it listens. It keeps it over restarts.
    """

    kind: ClassVar[str]
    #: Seconds from the start to the first answer, on a busy machine.
    patience_s: ClassVar[float] = 60.0

    def __init__(self, folder: Path, **settings: object) -> None:
        self.folder = folder
        self.settings: Mapping[str, object] = settings
        self.port = 0
        self.processes: list[Process] = []

    # --- what each kind says

    @property
    def url(self) -> str:
        """How clients call it."""
        raise NotImplementedError

    def prepare(self) -> None:
        """Writes what it needs into its folder, and starts its helpers."""

    def command(self) -> list[str]:
        """The command line."""
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        """The variables that it is started with."""
        return dict(os.environ)

    def answers(self) -> bool:
        """Whether it is ready for clients."""
        raise NotImplementedError

    def choose_ports(self) -> None:
        """Picks free ports."""
        self.port = free_port()

    # --- what all of them can

    @property
    def pid(self) -> int:
        """The process id of the server itself."""
        return self._main.pid

    @property
    def log(self) -> str:
        """What it has written so far."""
        file = self.folder / "server.log"
        return file.read_text(errors="replace") if file.exists() else ""

    @property
    def _main(self) -> Process:
        return self.processes[-1]

    def is_running(self) -> bool:
        """Whether its process lives, be it paused."""
        return bool(self.processes) and self._main.is_running()

    def start(self) -> Any:
        """Starts it and waits until it is ready; returns itself.

        Raises:
          ServerFailed: With its last words.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        for _ in range(TRIES):
            is_first = not self.port
            if is_first:
                self.choose_ports()
            if self._launch():
                return self
            self.kill()
            if not (is_first and ("in use" in self.log or "eaddrinuse" in self.log)):
                break
            self.port = 0
        raise ServerFailed(f"{self.kind} did not start: {self.last_words()}")

    def _launch(self) -> bool:
        self.processes = [process for process in self.processes[:-1] if process.is_running()]
        self.prepare()
        self.spawn(self.command())
        self.record()
        wait_for(lambda: self.answers() or not self._main.is_running(), self.patience_s)
        return self._main.is_running() and self.answers()

    def spawn(self, command: Sequence[str]) -> None:
        """Starts a process of this server; what it writes goes to the log."""
        with (self.folder / "server.log").open("ab") as log:
            self.processes.append(spawn(command, log, cwd=self.folder, env=self.environment()))

    def stop(self, grace_s: float = 10.0) -> None:
        """Ends it as it wants to be ended, and its helpers."""
        if self.is_running():
            self._main.signal(signal.SIGCONT)
            self._main.signal(signal.SIGTERM)
            self._main.wait(grace_s)
        self.end()

    def kill(self) -> None:
        """``kill -9`` of the server itself, which may be started again. Returns when it is dead."""
        if self.processes:
            self._main.signal(signal.SIGKILL)
            if not self._main.wait(10.0):
                raise ServerFailed(f"{self.kind} (PID {self.pid}) does not die")

    def end(self) -> None:
        """Kills the server and its helpers."""
        for process in self.processes:
            process.signal(signal.SIGKILL)
        for process in self.processes:
            process.wait(10.0)
        self.processes = []
        (self.folder / "record.json").unlink(missing_ok=True)

    def pause(self) -> None:
        """SIGSTOP: it neither answers nor hangs up."""
        self._main.signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        self._main.signal(signal.SIGCONT)

    def restart(self) -> None:
        """Starts it again, on its port and its data; stops it first if it runs."""
        if self.is_running():
            self._main.signal(signal.SIGTERM)
            self._main.wait(self.patience_s)
        self.kill()
        self.start()

    def last_words(self) -> str:
        """The end of its log, in a line."""
        lines = [line.strip() for line in self.log.splitlines() if line.strip()]
        return " | ".join(lines[-4:])[-1000:] or "it wrote nothing"

    # --- what others need to know to use it and to end it

    def record(self) -> None:
        """Writes down how to find it again, at once and as a whole."""
        unfinished = self.folder / "record.unfinished"
        unfinished.write_text(json.dumps(self.to_record()))
        unfinished.replace(self.folder / "record.json")

    def to_record(self) -> dict[str, Any]:
        """What ``attach`` needs."""
        return {"kind": self.kind, "port": self.port, "url": self.url, "processes": self.processes}

    def attach(self, record: Mapping[str, Any]) -> Any:
        """Takes over a server that another process has started; returns itself."""
        self.port = record["port"]
        self.processes = [Process(*process) for process in record["processes"]]
        return self


def read_record(folder: Path) -> dict[str, Any] | None:
    """The record of the server in a folder; None if there is none."""
    try:
        return dict(json.loads((folder / "record.json").read_text()))
    except (FileNotFoundError, ValueError):
        return None
