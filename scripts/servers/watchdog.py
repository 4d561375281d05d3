"""Ends the servers of a folder when nobody uses it any more: ``python -S -E watchdog.py FOLDER``. See ``nest``.

Imports little: a test run starts one in each of its processes.
"""

import fcntl
import json
import os
import signal
import subprocess
import sys


def started(pid: int) -> str | None:
    """When a process was started, by /proc; None if it is gone, or there is no /proc."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as stat:
            return stat.read().rpartition(")")[2].split()[19]
    except OSError:
        return None


def end(record: dict[str, object]) -> None:
    """Ends what a record names, unless the process id belongs to another one by now."""
    for pid, start in record["processes"]:  # type: ignore[attr-defined]  # as Server.to_record has written it
        if started(pid) == start:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
    if record.get("end_command"):
        subprocess.run(record["end_command"], stdin=subprocess.DEVNULL, capture_output=True, check=False)  # type: ignore[call-overload]  # see above


def main(folder: str) -> None:
    """Waits, ends, and ends."""
    users = os.open(os.path.join(folder, "users"), os.O_RDWR | os.O_CREAT, 0o600)
    name = os.path.join(folder, "watchdog.pid")
    with open(name + ".unfinished", "w", encoding="ascii") as file:
        file.write(str(os.getpid()))
    os.rename(name + ".unfinished", name)
    fcntl.lockf(users, fcntl.LOCK_EX)
    for entry in os.scandir(folder):
        try:
            with open(os.path.join(entry.path, "record.json"), encoding="utf-8") as file:
                record = json.load(file)
        except (OSError, ValueError):
            continue
        end(record)
        os.unlink(os.path.join(entry.path, "record.json"))
    os.unlink(name)


if __name__ == "__main__":
    main(sys.argv[1])
