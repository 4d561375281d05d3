"""Watches a folder, in a process of its own: the parent of the workers has no thread, and ``watchfiles`` needs some.

What counts as a change is decided here, so that the parent wakes up for nothing else: a file of the patterns, no
editor's scratch file, nothing in folders that hold no source (``.git``, ``__pycache__``, ``.venv`` and the like). What
changes together is told together.
"""

from __future__ import annotations

import importlib.util
import os
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from multiprocessing.connection import Connection

from ..logging import get_logger
from ..settings import Settings
from .child import begin
from .forks import die_with_parent
from .parent_loop import Source
from .reports import Changed

#: Changes are told once nothing has changed for the first time, or after the second at the latest, in milliseconds.
QUIET_MS, LONGEST_MS = 100, 1600
#: So often it is asked in vain, in milliseconds.
NOTHING_MS = 200
#: No more paths are told.
MAX_PATHS = 100
#: What to say to who asks for it in vain.
MISSING = "--watch needs watchfiles. Install it with: pip install 'greenroom[watch]'"

logger = get_logger("greenroom", "Watcher")


def is_available() -> bool:
    """Whether ``watchfiles`` is installed."""
    try:
        return importlib.util.find_spec("watchfiles") is not None
    except ValueError:  # somebody has put a stand-in into its place
        return False


class Patterns:
    """Which files count: those that match a pattern of ``include`` and none of ``exclude``.

    A pattern is compared with the path below the watched folder, in which ``*`` also stands for slashes, and with the
    file's name alone. One of ``exclude`` may also name a folder, with all that is in it.
    """

    def __init__(self, folder: str, include: Iterable[str], exclude: Iterable[str]) -> None:
        self._folder = os.path.realpath(folder)
        self._include = tuple(include)
        self._exclude = tuple(exclude)

    def relative(self, path: str) -> str:
        """The path as patterns see it."""
        return os.path.relpath(path, self._folder).replace(os.sep, "/")

    def match(self, path: str) -> bool:
        """Whether the file at ``path`` counts."""
        relative = self.relative(path)
        if not _matches(relative, self._include):
            return False
        parts = relative.split("/")
        return not any(_matches("/".join(parts[: n + 1]), self._exclude) for n in range(len(parts)))


def _matches(relative: str, patterns: Iterable[str]) -> bool:
    name = relative.rpartition("/")[2]
    return any(fnmatchcase(relative, pattern) or fnmatchcase(name, pattern) for pattern in patterns)


def watch(settings: Settings, tell: Callable[[list[str]], object]) -> None:
    """Calls ``tell`` with the paths of what has changed below ``settings.watch``, for ever."""
    import watchfiles

    folder = os.path.realpath(settings.watch or ".")
    patterns = Patterns(folder, settings.watch_include, settings.watch_exclude)
    is_source = watchfiles.DefaultFilter()

    def counts(change: watchfiles.Change, path: str) -> bool:
        return patterns.match(path) and is_source(change, os.path.join("/", patterns.relative(path)))

    changes = watchfiles.watch(
        folder,
        watch_filter=counts,
        step=QUIET_MS,
        debounce=LONGEST_MS,
        force_polling=settings.watch_use_polling or None,
        raise_interrupt=False,
        rust_timeout=NOTHING_MS,
        yield_on_timeout=True,
    )
    has_told = False
    for change in changes:
        if not has_told:  # it does not watch before
            has_told = True
            logger.info("Watching %s.", folder)
        if change:
            tell(sorted({patterns.relative(path) for _, path in change}))


@dataclass(frozen=True, slots=True)
class WatchSpec:
    """What the process that watches is told at birth."""

    settings: Settings
    #: What ``os.getppid()`` should be; 0 if that is another's business.
    parent_pid: int
    name: str = "watcher"


def main(spec: WatchSpec, connection: Connection, inherited: Iterable[Source]) -> None:
    """The whole life of the process that watches: it reports changes until it is killed.

    Parameters:
      spec: What to watch.
      connection: To the parent. Its end means that the parent has died.
      inherited: What the parent waits for, if this is a fork.
    """
    pipe = begin(connection, inherited, spec.parent_pid)
    threading.Thread(target=die_with_parent, args=(pipe,), name="ParentWatch", daemon=True).start()
    watch(spec.settings, lambda paths: pipe.report(Changed(tuple(paths[:MAX_PATHS]))))
