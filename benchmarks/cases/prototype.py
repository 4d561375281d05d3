"""The drain case beside the throw-away prototype of the fast path, where its folder is given."""

from __future__ import annotations

from statistics import median

from ..draining import drain
from ..harness import Options, Row, faster, in_turn
from ..systems import greenroom, prototype

TARGET = 1.0


def run(options: Options) -> list[Row]:
    """100 000 messages each; ``send_many`` of the same rounds is shown as well, without a target."""
    messages, yardstick = options.count(100_000, 20_000), prototype(options)
    ours, peer = in_turn(
        options.rounds,
        lambda: drain(options, greenroom(), messages),
        lambda: drain(options, yardstick, messages),
    )
    run_rates = [median(r.run_per_s for r in rounds) for rounds in (ours, peer)]
    sent_rates = [median(r.sent_per_s for r in rounds) for rounds in (ours, peer)]
    ratio = sent_rates[0] / sent_rates[1]
    return [
        faster("prototype drain", run_rates[0], run_rates[1], at_least=TARGET),
        Row("prototype send_many", f"{sent_rates[0]:,.0f}/s", f"{sent_rates[1]:,.0f}/s", f"{ratio:.2f}x", "", None),
    ]
