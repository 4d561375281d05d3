"""The failpoints that a trip of any engine passes."""

from __future__ import annotations

from collections.abc import Sequence

from .. import failpoints
from ..core.verdict import Verdict
from .transport import Settlement


def pass_before(settle: Sequence[Settlement], limit: int) -> None:
    """Those before anything is done."""
    if limit:
        failpoints.hit("claim.before")
    if says_how_it_went(settle):
        failpoints.hit("ack.before")


def pass_after(settle: Sequence[Settlement], deliveries: Sequence[object]) -> None:
    """Those after all is done, before anybody is told."""
    if says_how_it_went(settle):
        failpoints.hit("ack.after_commit_before_reply")
    if deliveries:
        failpoints.hit("claim.after_commit_before_register")


def says_how_it_went(settle: Sequence[Settlement]) -> bool:
    """True unless all is merely given back."""
    return any(s.verdict is not Verdict.RELEASE for s in settle)
