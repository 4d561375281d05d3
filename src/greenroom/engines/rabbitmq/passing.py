"""The failpoints that a trip passes."""

from __future__ import annotations

from collections.abc import Sequence

from ... import failpoints
from ...core.verdict import Verdict
from ...ports.transport import Delivery, Settlement


def pass_before(settle: Sequence[Settlement], limit: int) -> None:
    """Those before anything is done."""
    if limit:
        failpoints.hit("claim.before")
    if _says_how_it_went(settle):
        failpoints.hit("ack.before")


def pass_after(settle: Sequence[Settlement], deliveries: Sequence[Delivery]) -> None:
    """Those after all is done, before anybody is told."""
    if _says_how_it_went(settle):
        failpoints.hit("ack.after_commit_before_reply")
    if deliveries:
        failpoints.hit("claim.after_commit_before_register")


def _says_how_it_went(settle: Sequence[Settlement]) -> bool:
    """True unless all is merely given back."""
    return any(s.verdict is not Verdict.RELEASE for s in settle)
