"""Senders and workers of both libraries under load, while some of the workers are killed."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator

from tests.interop.kit import Fleet, Run
from tests.runtime.cli_kit import wait_until

SEED = 20_261_122
#: How many messages each of the two libraries sends.
MESSAGES = 1_500
KILLS = 6

SEND = """
import random
picks = random.Random({seed})
for i in range({messages}):
    name = f"{library}-{{i}}"
    kind = picks.random()
    if kind < 0.7:
        run.send(name, 0.002)
    elif kind < 0.85:
        run.send_with_options(args=(name + "-late", 0.002), delay=picks.randrange(1_500))
    else:
        fail_first.send(name + "-again")
    print(name, flush=True)
    time.sleep(0.001)
"""


def storm(fleet: Fleet) -> None:
    """Two workers of each kind run what two senders of each kind send: plain, delayed and failing messages. Six times
    one is killed with -9. Then everything has to have run, and what ran more often than it should was running in a
    process that was killed; but for what was about to be moved in two steps."""
    picks = random.Random(SEED)
    workers = [fleet.start(module, threads=4) for module in ("theirs", "ours", "theirs", "ours")]
    senders = [threading.Thread(target=fleet.send, args=arguments) for arguments in _sends()]
    for sender in senders:
        sender.start()
    killed: set[int] = set()
    for number in range(KILLS):
        wanted = (number + 1) * 2 * MESSAGES // (KILLS + 2)
        wait_until(lambda wanted=wanted: len(fleet.runs()) > wanted, "some more have run")
        victim = picks.randrange(len(workers))
        killed |= workers[victim].kill()
        workers[victim] = fleet.start("ours" if victim % 2 else "theirs", threads=4)
    for sender in senders:
        sender.join()
    wait_until(lambda: _lacking(fleet.by_name()) == 0, "all have run as often as they should", step_s=0.1)
    fleet.wait_until_settled()
    check(fleet.by_name(), killed)


def check(runs: dict[str, list[Run]], killed: set[int]) -> None:
    """Nothing is lost, and only what was killed ran again."""
    assert len(runs) == 2 * MESSAGES
    too_many = {name: n for name, some in runs.items() if (n := _unexplained(some, _wanted(name), killed))}
    assert {name: runs[name] for name in too_many if not name.endswith(("-late", "-again"))} == {}
    assert {run.library for some in runs.values() for run in some} == {"dramatiq", "greenroom"}
    assert sum(too_many.values()) <= 8 * KILLS


def _wanted(name: str) -> int:
    return 2 if name.endswith("-again") else 1


def _lacking(runs: dict[str, list[Run]]) -> int:
    """How many runs there are too few."""
    return 2 * MESSAGES - len(runs) + sum(max(0, _wanted(name) - len(some)) for name, some in runs.items())


def _unexplained(runs: list[Run], wanted: int, killed: set[int]) -> int:
    """How many runs there are too many that did not end with a kill."""
    return max(0, sum(run.pid not in killed for run in runs) - wanted)


def _sends() -> Iterator[tuple[str, str]]:
    for module, library in (("theirs", "dramatiq"), ("ours", "greenroom")):
        yield module, SEND.format(seed=SEED, messages=MESSAGES, library=library)
