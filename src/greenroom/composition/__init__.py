"""What a program builds out of messages: pipelines, groups, and callbacks at the end of groups."""

from __future__ import annotations

from .groups import group, outcome_of
from .pipelines import pipeline

__all__ = ["group", "outcome_of", "pipeline"]
