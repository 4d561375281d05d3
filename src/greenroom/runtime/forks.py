"""Functions that run in processes of their own beside the workers: those named on the command line, and those that
middleware brings along, such as the one that serves metrics.

They are user code, so it is a child that finds them: it imports the function's module, or for one of middleware the
whole program, since such a function may belong to an object that the program has made.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from types import FrameType
from typing import NoReturn

from ..logging import get_logger
from ..settings import Settings
from .application import ApplicationError, forks_of, load_broker, load_function
from .child import begin, explain
from .exit_codes import ExitCode
from .parent_loop import Source
from .reports import ChildEnd


@dataclass(frozen=True, slots=True)
class ForkSpec:
    """What the process of a fork function is told at birth."""

    number: int
    #: ``module:function``. For one of middleware that is only what people know it as.
    name: str
    #: Its place among those of the program's middleware; None if the command line named it.
    index: int | None
    settings: Settings
    #: What ``os.getppid()`` should be; 0 if that is another's business.
    parent_pid: int


def main(spec: ForkSpec, connection: Connection, inherited: Iterable[Source]) -> None:
    """The whole life of the process of a fork function. ``TERM`` ends it with 0.

    Parameters:
      spec: What to run.
      connection: To the parent. Its end means that the parent has died.
      inherited: What the parent waits for, if this is a fork.

    Raises:
      SystemExit: At the end, with what the function has returned.
    """
    pipe = begin(connection, inherited, spec.parent_pid)
    threading.Thread(target=die_with_parent, args=(pipe,), name="ParentWatch", daemon=True).start()
    logger = get_logger("greenroom", f"ForkProcess({spec.number})")
    try:
        function = _find(spec)
    except (Exception, SystemExit) as e:  # noqa: BLE001  # whatever it is, the parent tells the user
        failure = explain(e)
        pipe.report(failure)
        sys.exit(failure.code)
    signal.signal(signal.SIGTERM, _end)
    logger.info("Fork process runs %s.", spec.name)
    try:
        code = function()
    except Exception:
        logger.critical("%s failed.", spec.name, exc_info=True)
        sys.exit(1)
    sys.exit(code)


def _find(spec: ForkSpec) -> Callable[[], int]:
    settings = spec.settings
    if spec.index is None:
        function: Callable[[], int] = load_function(spec.name, settings.path)
        return function
    found = forks_of(load_broker(settings.modules, settings.path))
    if spec.index >= len(found):
        raise ApplicationError(f"the program's middleware has no fork function {spec.name!r} any more")
    return found[spec.index]


def _end(_number: int, _frame: FrameType | None) -> NoReturn:
    """Breaks into whatever the function waits for: that is what its process is told to be for."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(0)


def die_with_parent(pipe: ChildEnd) -> NoReturn:
    """A thread's life: waits for the parent's death, and ends the process then."""
    for _ in pipe.orders():
        pass
    os._exit(ExitCode.KILLED)
