"""The forms in which results are kept. They are Dramatiq's, so each reads what the other wrote.

* a value: the value itself;
* a failure: ``{"__t": "dramatiq.results.Result", "exn": {"type", "msg", "traceback"}}``; the traceback is ours;
* ours, too: ``{"__t": ..., "pending": {...}}`` while there is no result yet, and ``{"__t": ..., "result": value}`` for
  a value that looks like one of these forms.
"""

from __future__ import annotations

from typing import Any

from ..core.failure import message_of, traceback_of, type_name
from ..errors import ResultFailure
from ..ports.transport import ErrorText

_MARK = "dramatiq.results.Result"


def wrap_result(result: Any) -> Any:
    """A value in the form in which it is kept."""
    if isinstance(result, dict) and result.get("__t") == _MARK:
        return {"__t": _MARK, "result": result}
    return result


def wrap_error(error: ErrorText) -> dict[str, Any]:
    """A failure in the form in which it is kept."""
    return {"__t": _MARK, "exn": {"type": error.type, "msg": error.message, "traceback": error.traceback}}


def wrap_exception(exception: BaseException) -> dict[str, Any]:
    """A failure in the form in which it is kept."""
    return wrap_error(ErrorText(type_name(exception), message_of(exception), traceback_of(exception)))


def wrap_pending(
    state: str, *, attempts: int = 0, last_error: str | None = None, next_attempt_ms: int | None = None
) -> dict[str, Any]:
    """What is kept while there is no result yet. The fields are those of ``ResultPending``."""
    pending = {"state": state, "attempts": attempts, "last_error": last_error, "next_attempt_ms": next_attempt_ms}
    return {"__t": _MARK, "pending": pending}


def pending_of(stored: Any) -> dict[str, Any] | None:
    """The fields of ``ResultPending`` if that is what was kept, else None."""
    if isinstance(stored, dict) and stored.get("__t") == _MARK:
        pending = stored.get("pending")
        if isinstance(pending, dict):
            return pending
    return None


def unwrap_result(stored: Any) -> Any:
    """The value that was kept.

    Raises:
      ResultFailure: If a failure was.
    """
    if not isinstance(stored, dict) or stored.get("__t") != _MARK:
        return stored
    failure = stored.get("exn")
    if isinstance(failure, dict):
        kind, text = str(failure.get("type", "")), str(failure.get("msg", ""))
        raise ResultFailure(f"actor raised {kind}: {text}", kind, text, str(failure.get("traceback", "")))
    return stored.get("result")
