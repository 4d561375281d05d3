"""The errors of results, under the module's name that Dramatiq programs import them from."""

from __future__ import annotations

from ..errors import ResultError, ResultFailure, ResultMissing, ResultPending, ResultTimeout, ResultUnknown

__all__ = ["ResultError", "ResultFailure", "ResultMissing", "ResultPending", "ResultTimeout", "ResultUnknown"]
