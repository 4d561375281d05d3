"""Loggers, and how data gets into a line of a log: escaped, on one line, cut short."""

from __future__ import annotations

import logging

#: The format of the command line's log lines, the same as Dramatiq's.
LOG_FORMAT = "[%(asctime)s] [PID %(process)d] [%(threadName)s] [%(name)s] [%(levelname)s] %(message)s"

_MAX_CHARACTERS = 8192


def get_logger(module: str, name: str | type | None = None) -> logging.Logger:
    """The logger of a module, or of a class in it: ``get_logger(__name__, type(self))``."""
    if name is None:
        return logging.getLogger(module)
    if isinstance(name, type):
        name = name.__qualname__
    return logging.getLogger(f"{module}.{name}")


def one_line(data: object, limit: int = _MAX_CHARACTERS) -> str:
    """``data`` as text that cannot forge a log line: control characters escaped, at most ``limit`` characters."""
    try:
        text = str(data)
    except BaseException:  # noqa: BLE001  # whatever it is, its line must come out
        text = f"<unprintable {type(data).__name__}>"
    if not text.isprintable():
        text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text[: limit + 1])
    return text if len(text) <= limit else text[: limit - 3] + "..."
