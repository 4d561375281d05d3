"""A loop of single sends to a file that nobody reads, beside Huey's."""

from __future__ import annotations

from ..harness import Options, Row
from ..sending import sent_per_s

TARGET = 0.9


def run(options: Options) -> list[Row]:
    """20 000 messages each."""
    return [sent_per_s("send", options, "loop", options.count(20_000, 5_000), TARGET)]
