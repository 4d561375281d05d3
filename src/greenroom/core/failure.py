"""A failure as text: safe to make from any exception, capped, on its way to a dead letter or a history."""

from __future__ import annotations

import traceback

MAX_MESSAGE = 4_096
MAX_TRACEBACK = 16_384
#: How many frames of a traceback are kept.
TRACEBACK_LIMIT = 30


def type_name(exception: BaseException) -> str:
    """The name of the exception's class."""
    return type(exception).__name__


def message_of(exception: BaseException, limit: int = MAX_MESSAGE) -> str:
    """``str(exception)``, cut to ``limit`` characters; a placeholder if that raises."""
    try:
        text = _storable(str(exception)[: limit + 1])
        return text if len(text) <= limit else text[: limit - 3] + "..."
    except BaseException as e:  # noqa: BLE001  # an exception whose own methods raise must still be reported
        return f"<unprintable: {type(e).__name__}>"


def traceback_of(exception: BaseException, limit: int = MAX_TRACEBACK) -> str:
    """The traceback as text; of a long one the end, where the cause is."""
    try:
        text = _storable("".join(traceback.format_exception(exception, limit=TRACEBACK_LIMIT))[-limit - 1 :])
    except BaseException as e:  # noqa: BLE001  # see message_of
        return f"{type_name(exception)}: <traceback unavailable: {type(e).__name__}>\n"
    return text if len(text) <= limit else "..." + text[3 - limit :]


def _storable(text: str) -> str:
    r"""``text`` as UTF-8 can hold it: a file's name may contain half of a surrogate pair, which becomes ``\udcff``."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
