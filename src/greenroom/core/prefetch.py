"""How much a process claims: all that is free, and as much again as its executors will finish in about 50 ms.

Short tasks are fed in hundreds; a long task keeps nothing behind it.
"""

from __future__ import annotations

#: What the executors should have at hand, in seconds of work.
HORIZON_S = 0.05
#: Bounds of one claim and of what a process holds, in messages and bytes. Claims of 500 and not of 1 000: executors
#: still have work while the next one is made, and others wait half as long for their turn to write.
MAX_CLAIM = 500
MAX_HELD = 1000
MAX_HELD_BYTES = 64 * 1024 * 1024


def hold_target(previous: int, *, slots: int, mean_run_s: float, mean_body: float, cap: int = MAX_HELD) -> int:
    """How many messages the process should hold, given the mean run time and body size of late.

    The mean is wall time, which grows when threads contend; batches would shrink and contention grow. So the target
    falls by at most a half at a time, but for tasks so long that nothing should wait behind them.
    """
    if mean_run_s >= HORIZON_S:
        wanted = slots
    else:
        ahead = cap if mean_run_s <= 0 else int(slots * HORIZON_S / mean_run_s)
        wanted = max(slots + ahead, previous >> 1)
    if mean_body > 0:
        wanted = min(wanted, int(MAX_HELD_BYTES / mean_body))
    return max(slots, min(cap, wanted))


def claim_limit(target: int, held: int, *, busy: bool) -> int:
    """How many to claim now. While executors still have ready work (``busy``) a claim waits until a quarter of the
    target is free: it keeps trips large. A free slot with nothing ready never waits."""
    free = target - held
    if free <= 0 or (busy and free < (target >> 2)):
        return 0
    return min(free, MAX_CLAIM)
