"""Where processes of one host meet that share a broker without a file of its own: a private folder a user and broker.

It is looked for in this order: where the caller says, ``GREENROOM_RUN_FOLDER``, the user's ``XDG_RUNTIME_DIR``, the
folder for temporary files. What lies in it says who is alive, so it must be nobody else's: where another user could
write, or has put a folder of theirs, it is refused.
"""

from __future__ import annotations

import errno
import os
import platform
import stat
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path

from .. import settings

#: The kernel's own word for its present run: the same in all containers of a host, another one after a restart.
_BOOT_ID = "/proc/sys/kernel/random/boot_id"
_MODE = 0o700


def make_run_folder(name: str, base: str | Path | None = None) -> Path:
    """The folder for the broker that is known as ``name``; made if it is not there.

    Parameters:
      name: Letters and digits that tell this broker from all others.
      base: The folder to make it in; the user's own if None.

    Raises:
      OSError: It cannot be made, or is somebody else's.
    """
    base = base or settings.run_folder()
    folder = (Path(base).absolute() if base else _folder_of_user()) / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    return _make_private(folder)


def _folder_of_user() -> Path:
    found = settings.runtime_dir()
    if found is not None:
        with suppress(OSError):  # left over from another user (su), or from a session that has ended
            _check_private(Path(found))
            return Path(found) / "greenroom"
    return _make_private(Path(tempfile.gettempdir()) / f"greenroom-{os.geteuid()}")


def _make_private(path: Path) -> Path:
    path.mkdir(mode=_MODE, exist_ok=True)
    _check_private(path)
    return path


def _check_private(path: Path) -> None:
    found = path.lstat()  # a link that another user has laid is no folder of ours
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise PermissionError(errno.EPERM, "it is not a folder that only this user may enter", str(path))


def place_of(folder: Path) -> str:
    """What tells this very folder from all others, of other hosts, containers and earlier runs of this host as well.
    Who knows a folder of the same place can see who is alive.

    Raises:
      OSError: It is not there.
    """
    found = folder.stat()
    return f"{_run_of_host()}:{found.st_dev:x}:{found.st_ino:x}"


@cache
def _run_of_host() -> str:
    try:
        return Path(_BOOT_ID).read_text("ascii").strip()
    except OSError:  # not Linux
        return platform.node()
