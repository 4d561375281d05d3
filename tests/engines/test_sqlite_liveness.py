"""Who is alive: an owner holds a lock on one byte of a file, and the kernel gives it back when its process dies."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from greenroom.engines.sqlite.liveness import LockFile, close_lock_file, open_lock_file
from greenroom.testing.contract.processes import in_child
from tests.engines.kit import Other, other_process
from tests.runtime.cli_kit import wait_until

HOLDS = """
from greenroom.engines.sqlite.liveness import open_lock_file

locks = open_lock_file(path, 0o600)
say(locks.try_lock(7))
while word := hear():
    if word == "unlock":
        locks.unlock(7)
    elif word == "fork":
        if os.fork() == 0:
            os.close(1)
            hear()
            os._exit(0)
    elif word == "probe":
        say(locks.is_alive(3))
        continue
    say("done")
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "lock"


@pytest.fixture
def locks(path: Path) -> Iterator[LockFile]:
    file = open_lock_file(path, 0o600)
    yield file
    close_lock_file(file)


@pytest.fixture
def holder(path: Path) -> Iterator[Other]:
    """Another process that holds byte 7."""
    with other_process(HOLDS, path) as other:
        assert other.hear() == "True"
        yield other


def test_an_owner_of_this_process_is_alive(locks: LockFile) -> None:
    """``F_GETLK`` calls the locks of one's own process free, so owners of this process are known without asking."""
    assert not locks.is_alive(3)
    assert locks.try_lock(3)
    assert locks.is_alive(3)
    assert not locks.try_lock(3), "a byte is held once, in the same process, too"
    locks.unlock(3)
    assert not locks.is_alive(3)


def test_an_owner_of_another_process_is_alive(locks: LockFile, holder: Other) -> None:
    """Processes see each other's locks, and only one of them gets a byte."""
    assert locks.is_alive(7)
    assert not locks.try_lock(7)
    assert not locks.is_alive(3)
    locks.try_lock(3)
    holder.say("probe")
    assert holder.hear() == "True"


def test_an_owner_that_gave_its_byte_back_is_not_alive(locks: LockFile, holder: Other) -> None:
    """Unlocking frees the byte for others."""
    holder.say("unlock")
    assert holder.hear() == "done"
    assert not locks.is_alive(7)
    assert locks.try_lock(7)


def test_a_killed_process_is_dead_at_once(locks: LockFile, holder: Other) -> None:
    """No lease has to expire: the kernel has released the lock when the process is gone."""
    holder.kill()
    assert not locks.is_alive(7)


def test_a_forked_child_does_not_keep_its_dead_parent_alive(locks: LockFile, holder: Other) -> None:
    """A grandchild that a task forked lives on with the descriptors of the worker, but without its locks."""
    holder.say("fork")
    assert holder.hear() == "done"
    assert locks.is_alive(7)
    os.kill(holder.pid, signal.SIGKILL)
    wait_until(lambda: not locks.is_alive(7), "the worker is taken for dead, although its child lives", patience_s=5.0)


def test_closing_one_user_leaves_the_locks_of_the_others(path: Path, locks: LockFile) -> None:
    """Two users in one process share one descriptor: closing a second one would drop the locks of the first."""
    assert locks.try_lock(1)
    second = open_lock_file(path, 0o600)
    assert second is locks
    assert second.try_lock(2)
    second.unlock(2)
    close_lock_file(second)
    gc.collect()
    with other_process(
        "from greenroom.engines.sqlite.liveness import *; say(open_lock_file(path, 0).is_alive(1))", path
    ) as o:
        assert o.hear() == "True"


def test_the_last_user_closes_the_file(path: Path) -> None:
    """The locks end with the last user; whoever opens the file then gets a new one."""
    first, second = open_lock_file(path, 0o600), open_lock_file(path, 0o600)
    assert first.try_lock(1)
    close_lock_file(first)
    assert second.is_alive(1)
    close_lock_file(second)
    third = open_lock_file(path, 0o600)
    assert third is not first
    assert not third.is_alive(1)
    close_lock_file(third)


def test_a_file_is_known_by_what_it_is(path: Path, locks: LockFile, tmp_path: Path) -> None:
    """Another path to the same file gives the same locks: what counts is the inode."""
    link = tmp_path / "link"
    link.hardlink_to(path)
    same = open_lock_file(link, 0o600)
    assert same is locks
    close_lock_file(same)
    other = open_lock_file(tmp_path / "other", 0o600)
    assert other is not locks
    close_lock_file(other)


def test_a_child_begins_with_locks_of_its_own(path: Path, locks: LockFile) -> None:
    """A fork inherits no lock: the child opens the file again, and sees its parent as another process."""
    assert locks.try_lock(1)

    def look() -> None:
        mine = open_lock_file(path, 0o600)
        assert mine is not locks
        assert mine.is_alive(1)
        assert not mine.try_lock(1)
        assert mine.try_lock(2)
        close_lock_file(mine)

    in_child(look)
    assert locks.is_alive(1)
    assert not locks.is_alive(2)
    in_child(look)  # what the first child did has not touched the parent's lock


def test_the_file_has_the_mode_that_was_asked_for(tmp_path: Path) -> None:
    """The mode holds whatever the umask is, and only for a file that is made."""
    before = os.umask(0o077)
    try:
        close_lock_file(open_lock_file(tmp_path / "lock", 0o660))
        close_lock_file(open_lock_file(tmp_path / "lock", 0o600))
    finally:
        os.umask(before)
    assert (tmp_path / "lock").stat().st_mode & 0o777 == 0o660
