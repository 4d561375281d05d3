"""One bulk send of 100 000 messages to a file that nobody reads, beside Huey's loop of single sends."""

from __future__ import annotations

from ..harness import Options, Row
from ..sending import sent_per_s

TARGET = 3.0


def run(options: Options) -> list[Row]:
    """100 000 messages for us, 20 000 for Huey."""
    return [sent_per_s("send_many", options, "bulk", options.count(100_000, 20_000), TARGET)]
