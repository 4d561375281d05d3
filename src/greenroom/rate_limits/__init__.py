"""Limits on how often, or how many at a time, something is done; and barriers."""

from __future__ import annotations

from ..errors import RateLimitExceeded
from .backend import RateLimiterBackend, StoreBackend
from .barrier import Barrier
from .bucket import BucketRateLimiter
from .concurrent import ConcurrentRateLimiter
from .rate_limiter import RateLimiter
from .window import WindowRateLimiter

__all__ = [
    "Barrier",
    "BucketRateLimiter",
    "ConcurrentRateLimiter",
    "RateLimitExceeded",
    "RateLimiter",
    "RateLimiterBackend",
    "StoreBackend",
    "WindowRateLimiter",
]
