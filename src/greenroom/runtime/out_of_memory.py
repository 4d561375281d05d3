"""Whether the kernel's out-of-memory killer has struck: the counter of our control group, as far as it can be read."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

_COUNTER = re.compile(r"^oom_kill (\d+)$", re.MULTILINE)


class OomCounter:
    """Notices that the counter has grown. Owned by the parent's main thread.

    Parameters:
      mount: Where control groups are mounted.
      own: The file that says which are ours.
    """

    def __init__(self, mount: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> None:
        self._file = next((file for file in _candidates(mount, own) if _read(file) is not None), None)
        self._count = self._now()

    def has_grown(self) -> bool:
        """True if a process of the group was killed for memory since this was asked last."""
        before, self._count = self._count, self._now()
        return self._count > before

    def _now(self) -> int:
        return 0 if self._file is None else _read(self._file) or 0


def _candidates(mount: Path, own: Path) -> Iterator[Path]:
    """The counters of version 2 and 1; also those at the mount, which is where a container finds its own."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _number, controllers, group = line.split(":", 2)
        if not controllers:
            folder, name = mount, "memory.events"
        elif "memory" in controllers.split(","):
            folder, name = mount / "memory", "memory.oom_control"
        else:
            continue
        yield folder / group.lstrip("/") / name
        yield folder / name


def _read(file: Path) -> int | None:
    try:
        found = _COUNTER.search(file.read_text())
    except OSError:
        return None
    return None if found is None else int(found[1])
