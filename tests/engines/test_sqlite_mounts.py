"""F56: a queue file on a file system that several hosts share."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from greenroom.engines.sqlite import mounts
from greenroom.engines.sqlite.mounts import file_system_of
from greenroom.engines.sqlite.transport import SqliteTransport
from greenroom.testing.contract.kit import envelopes

MOUNTS = """\
22 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard
23 22 0:21 / /proc rw,nosuid,nodev,noexec - proc proc rw
40 22 0:45 / /mnt/share\\040of\\040ours rw,relatime shared:12 master:3 - nfs4 server:/export rw,vers=4.2
41 22 0:46 / /home/me/host rw - 9p host rw,trans=virtio
broken line
42 22 0:47 /
"""


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        (os.makedev(254, 0), "ext4"),
        (os.makedev(0, 45), "nfs4"),
        (os.makedev(0, 46), "9p"),
        (os.makedev(0, 47), None),
        (os.makedev(8, 1), None),
    ],
)
def test_f56_the_type_of_a_device(device: int, expected: str | None) -> None:
    """It is found by the number of the device, whatever the mount point is called and whatever else is listed."""
    assert file_system_of(device, MOUNTS) == expected


def listed(tmp_path: Path, system: str) -> Path:
    """A list in which the file system of ``tmp_path`` has that type."""
    device = tmp_path.stat().st_dev
    mounts_file = tmp_path / "mounts"
    mounts_file.write_text(f"1 1 {os.major(device)}:{os.minor(device)} / / rw - {system} x rw\n")
    return mounts_file


@pytest.mark.parametrize(("system", "warns"), [("nfs4", True), ("cifs", True), ("9p", True), ("ext4", False)])
def test_f56_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, system: str, warns: bool
) -> None:
    """Whoever opens such a queue is told once, with its path and the type, and goes on."""
    monkeypatch.setattr(mounts, "_MOUNTS", listed(tmp_path, system))
    transport = SqliteTransport(tmp_path / "queue.db")
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            transport.push(envelopes(b"1"))
    transport.close()
    warnings = [message for message in caplog.messages if "local disk" in message]
    assert len(warnings) == warns
    assert all(system in message and "queue.db" in message for message in warnings)


def test_f56_nobody_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system keeps no such list, nothing is said and nothing fails."""
    monkeypatch.setattr(mounts, "_MOUNTS", tmp_path / "not there")
    transport = SqliteTransport(tmp_path / "queue.db")
    transport.push(envelopes(b"1"))
    transport.close()
