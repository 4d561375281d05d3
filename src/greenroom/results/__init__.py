"""Results: what actors return, kept for those who ask."""

from __future__ import annotations

from .backend import Missing, ResultBackend
from .errors import (
    ResultError,
    ResultFailure,
    ResultMissing,
    ResultPending,
    ResultTimeout,
    ResultUnknown,
)
from .middleware import Results

__all__ = [
    "Missing",
    "ResultBackend",
    "ResultError",
    "ResultFailure",
    "ResultMissing",
    "ResultPending",
    "ResultTimeout",
    "ResultUnknown",
    "Results",
]
