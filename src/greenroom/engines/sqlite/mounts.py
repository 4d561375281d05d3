"""Warns of file systems on which SQLite's locks and its shared memory cannot be relied on."""

from __future__ import annotations

import os
from pathlib import Path

from ...logging import get_logger

#: What is shared over a network, or between a virtual machine and its host.
_NETWORK = frozenset(
    "9p afs ceph cifs drvfs fuse.glusterfs fuse.grpcfuse fuse.s3fs fuse.sshfs nfs nfs4 prl_fs smb3 smbfs vboxsf "
    "vmhgfs".split()
)
_MOUNTS = Path("/proc/self/mountinfo")

logger = get_logger(__name__)


def file_system_of(device: int, mounts: str) -> str | None:
    """The type of the file system on ``device`` (``st_dev``), or None if it is not listed.

    Parameters:
      mounts: The text of ``/proc/self/mountinfo``.
    """
    number = f"{os.major(device)}:{os.minor(device)}"
    for line in mounts.splitlines():
        mount, _, system = line.partition(" - ")
        fields = mount.split()
        if len(fields) > 2 and fields[2] == number:
            return system.split()[0] if system else None
    return None


def warn_of_network(path: Path, device: int) -> None:
    """Logs a warning if the queue file ``path`` lies on a file system that several hosts share."""
    try:
        mounts = _MOUNTS.read_text("utf-8", "replace")
    except OSError:  # not Linux
        return
    system = file_system_of(device, mounts)
    if system in _NETWORK:
        logger.warning(
            "The queue file %s lies on a file system of type %s. SQLite needs locks and shared memory that such file "
            "systems do not give: use a local disk, and one host.",
            path,
            system,
        )
