"""Who is alive: an owner holds a lock on one byte of a file, and the kernel gives it back when its process dies."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from greenroom.host import liveness
from greenroom.host.liveness import FOLLOW_MS, LockFile, close_lock_file, open_lock_file
from greenroom.testing.clock import ManualClock
from greenroom.testing.contract.processes import in_child
from tests.engines.kit import Other, other_process
from tests.runtime.cli_kit import wait_until

HOLDS = """
from greenroom.host.liveness import open_lock_file

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
    with other_process("from greenroom.host.liveness import *; say(open_lock_file(path, 0).is_alive(1))", path) as o:
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


def test_a_file_that_is_closed_is_not_opened_again(path: Path) -> None:
    """A heartbeat that comes while the last user closes the file finds it closed, and leaves it so."""
    locks = open_lock_file(path, 0o600)
    close_lock_file(locks)
    before = set(os.listdir("/proc/self/fd"))
    locks.renew()
    assert set(os.listdir("/proc/self/fd")) <= before
    assert locks.closings == 0


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


# --- what drops locks, and how they are taken again


@pytest.fixture
def probe(path: Path) -> Iterator[Callable[[], str]]:
    """Asks another process whether byte 3 is held."""
    with other_process(HOLDS, path) as other:
        other.hear()

        def ask() -> str:
            other.say("probe")
            return other.hear()

        yield ask


def test_a_closed_descriptor_drops_the_lock(path: Path, locks: LockFile, probe: Callable[[], str]) -> None:
    """Whoever in this process opens and closes the file drops its locks, and cannot see it; renewing takes them
    again."""
    assert locks.try_lock(3)
    assert probe() == "True"
    path.open().close()
    assert locks.is_held(3)
    assert probe() == "False", "the trap is gone: then renewing is not needed"
    locks.renew()
    assert probe() == "True"
    assert locks.closings == 0


def test_a_descriptor_that_somebody_else_closed(path: Path, locks: LockFile, probe: Callable[[], str]) -> None:
    """The file is opened anew, and the locks are taken again. That it happened is counted."""
    assert locks.try_lock(3)
    os.close(locks._file.number)
    assert probe() == "False"
    locks.renew()
    assert probe() == "True"
    assert locks.closings == 1
    locks.renew()
    assert locks.closings == 1


def test_a_number_that_means_another_file_by_now(path: Path, locks: LockFile, tmp_path: Path) -> None:
    """A stranger's file has got the number of the closed descriptor: it is neither locked nor closed."""
    assert locks.try_lock(3)
    number = locks._file.number
    os.close(number)
    strange = os.open(tmp_path / "strange", os.O_CREAT | os.O_RDWR)
    assert strange == number
    locks.unlock(3)
    locks.renew()
    assert locks._file.number != strange
    os.write(strange, b"still open")
    os.close(strange)


def test_a_byte_that_somebody_else_took_meanwhile(path: Path, locks: LockFile) -> None:
    """The lock was dropped and another process has the byte now: it is held no longer, and its end is its own."""
    assert locks.try_lock(7)
    path.open().close()
    with other_process(HOLDS, path) as other:
        assert other.hear() == "True"
        assert locks.is_held(7)
        locks.renew()
        assert not locks.is_held(7)
        assert locks.is_alive(7)
        locks.unlock(7)
        assert locks.is_alive(7)
        other.kill()
    assert not locks.is_alive(7)


def test_one_owner_does_not_give_back_the_byte_of_another(locks: LockFile) -> None:
    """Two owners of this process have had the same byte, one after the other: the first one's end is not the
    second one's."""
    first, second = object(), object()
    assert locks.try_lock(3, first)
    locks.unlock(3, first)
    assert locks.try_lock(3, second)
    locks.unlock(3, first)
    assert locks.is_held(3, second)
    assert not locks.is_held(3, first)
    assert not locks.try_lock(3, first)
    locks.unlock(3, second)
    assert not locks.is_alive(3)


def test_a_file_that_was_made_anew(path: Path, locks: LockFile, probe: Callable[[], str]) -> None:
    """The file was deleted, and lies there anew: the locks are taken in the new one. They stay in the old one, too, for
    those who still look there."""
    assert locks.try_lock(3)
    path.unlink()
    locks.renew()
    assert path.exists()
    with other_process(
        "from greenroom.host.liveness import *; say(open_lock_file(path, 0o600).is_alive(3))", path
    ) as o:
        assert o.hear() == "True"
    assert probe() == "True"


def test_who_opens_the_path_gets_what_lies_there(path: Path, locks: LockFile) -> None:
    """One file a path and process, whatever has become of it meanwhile: what is open follows the path."""
    assert locks.try_lock(3)
    path.unlink()
    second = open_lock_file(path, 0o600)
    assert second is locks
    assert second.is_held(3)
    assert locks._file.file_id[1] == path.stat().st_ino
    close_lock_file(second)


def test_only_owners_of_before_are_given_time(path: Path, locks: LockFile, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has registered before the file was made may have locked its byte in an earlier one, and may come over for two
    seconds. All others are what their locks say."""
    born_ms = locks._born_ms
    monkeypatch.setattr(liveness, "SYSTEM_CLOCK", ManualClock(born_ms + FOLLOW_MS - 1))
    assert locks.may_follow(born_ms - 1)
    assert not locks.may_follow(born_ms)
    monkeypatch.setattr(liveness, "SYSTEM_CLOCK", ManualClock(born_ms + FOLLOW_MS))
    assert not locks.may_follow(born_ms - 1)
    monkeypatch.setattr(liveness, "SYSTEM_CLOCK", ManualClock(born_ms - 1))
    assert not locks.may_follow(born_ms - 2), "the clock was set back: nobody is waited for without end"


def test_a_file_that_cannot_be_locked(locks: LockFile, path: Path) -> None:
    """Where the file cannot be opened that is an error, and nobody is taken for dead."""
    os.close(locks._file.number)
    path.unlink()
    path.mkdir()
    with pytest.raises(IsADirectoryError):
        locks.renew()
    with pytest.raises(OSError, match="Bad file descriptor"):
        locks.try_lock(3)
    assert locks.is_alive(3)
    path.rmdir()
    locks.renew()
    assert not locks.is_alive(3)
