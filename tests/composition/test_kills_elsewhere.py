"""Workers that are killed while compositions are kept in a store that is not the broker's: what follows comes, always;
and twice only if a worker was killed between pushing it and noting that."""

from __future__ import annotations

import json
import random
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from greenroom import Message, group, pipeline
from greenroom.brokers.sqlite import SqliteBroker
from greenroom.errors import ResultFailure
from greenroom.ports.store import Progress
from tests.composition.elsewhere import build, lines_of, told, worker
from tests.composition.kit import PATIENCE, leftovers
from tests.runtime.cli_kit import wait_until
from tests.runtime.worker_kit import working

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="workers are taken for dead at once only there")


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[SqliteBroker]:
    yield from opened(build(tmp_path))


@pytest.fixture
def own(tmp_path: Path) -> Iterator[SqliteBroker]:
    """One that keeps compositions itself, and results in a backend of a user's."""
    yield from opened(build(tmp_path, own=True))


def opened(broker: SqliteBroker) -> Iterator[SqliteBroker]:
    yield broker
    broker.composition_store.close()
    broker.close()


def message(actor: str, *args: Any, **options: Any) -> Message[Any]:
    return Message("default", actor, args, {}, options)


def is_empty(broker: SqliteBroker) -> bool:
    counts = broker.transport.counts(["default"])["default"]
    return not (counts.ready or counts.delayed or counts.claimed)


def kill_at(folder: Path, point: str, visit: int, *words: str) -> None:
    """Runs a worker until it dies at a failpoint."""
    with worker(folder, *words, GREENROOM_FAILPOINTS=f"{point}=kill9@{visit}") as process:
        assert process.wait(60) == -signal.SIGKILL


def finish(broker: SqliteBroker) -> None:
    """Has a worker run all that is left."""
    with working(broker, threads=2):
        wait_until(lambda: is_empty(broker), "all is done")


@pytest.mark.parametrize(
    ("point", "visit", "times"),
    [
        ("exec.after_user_return", 2, {1}),
        ("group.after_member_remove", 1, {1}),
        ("group.after_member_remove", 3, {1}),
        ("group.before_push", 1, {1}),
        ("group.after_push", 1, {2}),
        ("group.after_mark", 1, {1}),
        ("ack.before", 1, {1, 2}),  # on another thread than the push, which may be under way then
        ("ack.after_commit_before_reply", 1, {1, 2}),
    ],
)
def test_a_kill_around_completion(
    tmp_path: Path, broker: SqliteBroker, point: str, visit: int, times: set[int]
) -> None:
    """The message of the last member is delivered again, and whoever runs it sees to the callback. Between pushing and
    noting that, and nowhere else, a kill has it sent twice."""
    many = group([message("work", "fail"), message("work", "skip"), message("work", 1)], broker=broker)
    many.add_completion_callback(message("tell", "callback"))
    many.run()
    kill_at(tmp_path, point, visit)
    finish(broker)
    assert set(told(tmp_path)) == {'[[3, 0, 1], "callback"]'}
    assert len(told(tmp_path)) in times
    assert many._progress() == Progress(3, 0, 1)


@pytest.mark.parametrize(
    ("point", "visit"), [("group.after_push", 1), ("group.after_mark", 1), ("group.after_mark", 2)]
)
def test_a_kill_between_groups(tmp_path: Path, broker: SqliteBroker, point: str, visit: int) -> None:
    """A group in a group: the outer one completes, too, whichever of the two steps the kill comes between."""
    inner = group([message("work", "fail")], broker=broker)
    inner.add_completion_callback(message("tell", "inner"))
    outer = group([inner, group([], broker=broker)], broker=broker)
    outer.add_completion_callback(message("tell", "outer"))
    outer.run()
    kill_at(tmp_path, point, visit)
    finish(broker)
    inner_times = 2 if point == "group.after_push" else 1
    assert Counter(told(tmp_path)) == {'[[1, 0, 1], "inner"]': inner_times, '[[2, 0, 1], "outer"]': 1}


@pytest.mark.parametrize(
    ("point", "visit"), [("exec.after_user_return", 2), ("ack.before", 2), ("ack.after_commit_before_reply", 2)]
)
def test_a_kill_in_a_long_pipeline(tmp_path: Path, broker: SqliteBroker, point: str, visit: int) -> None:
    """The plan is read from the store, the next stage is pushed with the settlement: each stage comes once, and nothing
    of the plan is left."""
    pipe = pipeline([*(message("add", 1) for _ in range(25)), message("tell")], broker=broker).run()
    kill_at(tmp_path, point, visit)
    finish(broker)
    assert told(tmp_path) == ["[null, 25]"]
    assert pipe.messages[24].get_result(backend=broker.get_results_backend()) == 25
    wait_until(lambda: not leftovers(broker), "nothing of it is left in the store")


@pytest.mark.parametrize(
    ("point", "visit", "most"),
    [("group.before_push", 1, 1), ("group.after_push", 1, 2), ("group.after_mark", 1, 1), ("ack.before", 3, 2)],
)
def test_a_kill_in_a_group_between_stages(
    tmp_path: Path, broker: SqliteBroker, point: str, visit: int, most: int
) -> None:
    """The stage after the group comes with the results of all members, also if these were joined twice."""
    stage = group([message("add", 1), message("add", 2), message("add", 3)], broker=broker)
    pipeline([message("add", 10), stage, message("tell")], broker=broker).run()
    kill_at(tmp_path, point, visit)
    finish(broker)
    assert set(told(tmp_path)) == {"[null, [11, 12, 13]]"}
    assert len(told(tmp_path)) <= most


@pytest.mark.parametrize("seed", range(3))
def test_a_storm(tmp_path: Path, broker: SqliteBroker, seed: int) -> None:
    """Workers that are killed at any time: the callback comes at least once, more often only after kills, and knows how
    many have failed."""
    random_ = random.Random(seed)
    kinds = [random_.choice(["fail", "skip", 1, 1]) for _ in range(200)]
    many = group([message("work", kind) for kind in kinds], broker=broker)
    many.add_completion_callback(message("tell"))
    many.run()
    for share in sorted(random_.sample(range(10, 100), 3)):
        with worker(tmp_path, threads=2):
            wait_until(lambda share=share: len(lines_of(tmp_path, "start")) >= share, "some have started")
    finish(broker)
    assert set(told(tmp_path)) == {json.dumps([[200, 0, kinds.count("fail")]])}
    assert len(told(tmp_path)) <= 4


# --- a backend of results that a user has written


@pytest.mark.parametrize(
    ("point", "visit"), [("exec.after_user_return", 2), ("ack.before", 1), ("ack.after_commit_before_reply", 1)]
)
def test_results_in_a_backend_of_ones_own(tmp_path: Path, own: SqliteBroker, point: str, visit: int) -> None:
    """A result is written before its message is settled, so none is missing after a kill; the group's callback comes
    exactly once, because groups are the engine's own business."""
    many = group([message("work", number) for number in range(5)], broker=own)
    many.add_completion_callback(message("tell"))
    many.run()
    kill_at(tmp_path, point, visit, "own")
    finish(own)
    assert list(many.get_results()) == list(range(5))
    assert told(tmp_path) == ["[[5, 0, 0]]"]


def test_failures_with_a_backend_of_ones_own(own: SqliteBroker) -> None:
    """A failed stage or member ends the wait at once, too."""
    with working(own):
        pipe = pipeline([message("work", "fail"), message("add", 1)], broker=own).run()
        with pytest.raises(ResultFailure, match="fail"):
            pipe.get_result(block=True, timeout=PATIENCE)
        long = pipeline([message("work", "fail"), *(message("add", 1) for _ in range(30))], broker=own).run()
        with pytest.raises(ResultFailure, match="fail"):
            long.get_result(block=True, timeout=PATIENCE)
        many = group([message("add", 1), message("work", "fail")], broker=own).run()
        with pytest.raises(ResultFailure, match="fail"):
            list(many.get_results(block=True, timeout=PATIENCE))
