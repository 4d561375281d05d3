"""Dramatiq's counters for limits and barriers: bare keys, without a namespace."""

from __future__ import annotations

from collections.abc import Iterable

from ...clock import SYSTEM_CLOCK
from .scripts import load_alone
from .share import ProcessShare
from .transport import RedisTransport

_COUNTER = load_alone("dramatiq_counter")
#: Seconds that one command waits. Between two of them an actor that waits can be interrupted.
_SLICE_S = 1.0


class DramatiqCounters:
    """What limiters and barriers of Dramatiq do, one command or script each. Thread-safe.

    Parameters:
      transport: Whose server and connections it uses.
    """

    def __init__(self, transport: RedisTransport) -> None:
        self._transport = transport

    @property
    def _share(self) -> ProcessShare:
        return self._transport.share

    def add(self, key: str, value: int, ttl_ms: int) -> bool:
        """Sets a key that does not exist; False if it does."""
        return self._share.call(b"SET", key, value, b"PX", ttl_ms, b"NX") is not None

    def bump(
        self,
        key: str,
        amount: int,
        *,
        low: int | None = None,
        high: int | None = None,
        ttl_ms: int,
        also: Iterable[str] = (),
    ) -> bool:
        """Adds to a key, 0 if it does not exist, unless it, or its sum with ``also``, would leave its bounds; False
        then."""
        bounds = ["" if bound is None else bound for bound in (low, high)]
        return bool(self._share.run(_COUNTER, [key, *also], [amount, *bounds, ttl_ms]))

    def tell(self, key: str, ttl_ms: int) -> None:
        """Ends all waits for ``key``, for ``ttl_ms`` from now on."""
        self._share.call(b"LPUSH", key, b"x")
        self._share.call(b"PEXPIRE", key, ttl_ms)

    def wait(self, key: str, timeout_s: float | None) -> bool:
        """Waits until ``tell`` is called, here or by a program of Dramatiq's; False after the timeout."""
        longest_s = min(_SLICE_S, self._share.connector.timeout_s / 2)
        deadline_s = None if timeout_s is None else SYSTEM_CLOCK.monotonic() + timeout_s
        while True:
            left_s = longest_s if deadline_s is None else deadline_s - SYSTEM_CLOCK.monotonic()
            slice_s = max(0.001, min(longest_s, left_s))  # 0 is for ever
            if self._share.call(b"BRPOPLPUSH", key, key, f"{slice_s:.3f}") is not None:
                return True
            if left_s <= 0:
                return False
