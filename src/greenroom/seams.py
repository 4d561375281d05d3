"""Three calls of the public API have to go up a floor. These are the slots, filled by ``greenroom/__init__``.

Nothing else may cross the floors upward.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def _unfilled(*_args: Any, **_kwargs: Any) -> Any:
    raise RuntimeError("import greenroom before using its parts")


#: Builds the broker that ``get_broker()`` returns when none was set: ``() -> Broker``.
default_broker: Callable[[], Any] = _unfilled

#: ``Message.__or__``: ``(left, right) -> pipeline``.
make_pipeline: Callable[[Any, Any], Any] = _unfilled

#: Where ``Message.get_result`` looks: ``() -> ResultBackend``, that of the default broker.
results_backend: Callable[[], Any] = _unfilled
