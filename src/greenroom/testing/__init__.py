"""What tests need. Names are loaded on first use, so that a program's tests load only what they use.

For programs:

* ``assert_enqueued`` and ``refute_enqueued`` tell what was sent to a ``StubBroker``;
* ``ManualClock`` moves when it is told to: ``clock.tick("30 days")``;
* ``InlineBroker`` runs messages in the caller;
* ``use_broker`` makes a broker the default one for a while;
* ``greenroom.testing.plugin`` is the pytest plugin: the fixtures ``greenroom_broker``, ``greenroom_worker`` and
  ``greenroom_clock`` and the marker ``greenroom``. It is there as soon as Greenroom is installed.

For those who write an engine: ``greenroom.testing.contract`` (needs pytest).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .assertions import assert_enqueued as assert_enqueued
    from .assertions import refute_enqueued as refute_enqueued
    from .clock import ManualClock as ManualClock
    from .default_broker import use_broker as use_broker
    from .inline import InlineBroker as InlineBroker

_HOMES = {
    "InlineBroker": "inline",
    "ManualClock": "clock",
    "assert_enqueued": "assertions",
    "refute_enqueued": "assertions",
    "use_broker": "default_broker",
}

__all__ = ["InlineBroker", "ManualClock", "assert_enqueued", "refute_enqueued", "use_broker"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value
