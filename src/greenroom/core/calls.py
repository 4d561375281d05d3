"""Whether a call failed because it was a wrong one, or because of what it did."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def is_wrong_call(
    function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], exception: BaseException
) -> bool:
    """True if ``exception`` says that ``function`` does not take these arguments: the same call would fail each time.

    A ``TypeError`` says so only if it was raised before the first line of the function ran.
    """
    code = getattr(function, "__code__", None)
    if not isinstance(exception, TypeError) or code is None:
        return False
    trace = exception.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code is code:
            return False
        trace = trace.tb_next
    # What a decorator wraps may take other arguments than the wrapper, and it is the wrapper that is called.
    try:
        inspect.signature(function, follow_wrapped=False).bind(*args, **kwargs)
    except TypeError:
        return True
    return False
