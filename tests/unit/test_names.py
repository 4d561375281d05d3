"""Names of queues and actors, and identifiers."""

from __future__ import annotations

import json
import os
import threading
import uuid

import pytest

from greenroom import names
from greenroom.names import (
    MAX_NAME_LENGTH,
    check_actor_name,
    check_queue_name,
    dq_name,
    new_message_id,
    new_storage_id,
    q_name,
    xq_name,
)


@pytest.mark.parametrize("name", ["default", "_", "a", "A9", "a.b-c_d", "default.DQ", "q" * MAX_NAME_LENGTH])
def test_a_queue_name_is_returned(name: str) -> None:
    """A valid queue name comes back as it is."""
    assert check_queue_name(name) == name


@pytest.mark.parametrize("name", ["", "9a", ".a", "-a", "a b", "a/b", "a\n", "\u00e9", "a:b", None, 5, b"default"])
def test_what_no_queue_may_be_called(name: object) -> None:
    """A name that Dramatiq would refuse is refused, and the error shows it."""
    with pytest.raises(ValueError, match="queue names must start with") as e:
        check_queue_name(name)  # type: ignore[arg-type]  # that is the mistake
    assert repr(name) in str(e.value)


def test_too_long_a_queue_name() -> None:
    """A name over the limit is refused without being repeated in full."""
    with pytest.raises(ValueError, match="256 characters, at most 255") as e:
        check_queue_name("q" * (MAX_NAME_LENGTH + 1))
    assert len(str(e.value)) < 200


@pytest.mark.parametrize("name", ["add", "module.add", "\u00fcber", "a b", "x" * MAX_NAME_LENGTH])
def test_an_actor_may_be_called_anything(name: str) -> None:
    """Any text that is not empty may name an actor."""
    assert check_actor_name(name) == name


@pytest.mark.parametrize("name", ["", None, 3, "x" * (MAX_NAME_LENGTH + 1)])
def test_what_no_actor_may_be_called(name: object) -> None:
    """What is empty, not text or too long names no actor."""
    with pytest.raises(ValueError, match="Invalid actor name"):
        check_actor_name(name)  # type: ignore[arg-type]  # that is the mistake


@pytest.mark.parametrize("given", ["jobs", "jobs.DQ", "jobs.XQ"])
def test_the_three_names_of_a_queue(given: str) -> None:
    """From each of the names of a queue the others follow."""
    assert q_name(given) == "jobs"
    assert dq_name(given) == "jobs.DQ"
    assert xq_name(given) == "jobs.XQ"


def test_only_a_suffix_counts() -> None:
    """``.DQ`` means something at the end of a name only."""
    assert q_name("a.DQ.b") == "a.DQ.b"
    assert dq_name("a.DQ.b") == "a.DQ.b.DQ"


def test_message_ids_are_random_uuids() -> None:
    """A message id is a version 4 UUID in its usual form, and no two are alike."""
    ids = [new_message_id() for _ in range(1000)]
    assert len(set(ids)) == 1000
    for text in ids:
        parsed = uuid.UUID(text)
        assert (str(parsed), parsed.version, parsed.variant) == (text, 4, uuid.RFC_4122)


def test_message_ids_begin_with_their_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was sent together has ids that lie together, so that results are written close to each other."""
    now_ms = 1_700_000_000_000
    monkeypatch.setattr(names, "current_millis", lambda: now_ms)
    monkeypatch.setattr(names, "_message_ids", [])
    earlier = [new_message_id() for _ in range(256)]
    now_ms += 1
    later = [new_message_id() for _ in range(256)]
    assert max(earlier) < min(later)
    assert {uuid.UUID(text).int >> 80 for text in later} == {now_ms}


def test_storage_ids_are_short_and_unlike() -> None:
    """A storage id is short ASCII text, and no two are alike."""
    ids = [new_storage_id() for _ in range(1000)]
    assert len(set(ids)) == 1000
    assert all(text.isalnum() and 21 <= len(text) <= 40 for text in ids)


def test_ids_of_many_threads_are_unlike() -> None:
    """Threads that ask at the same time get different ids."""
    ids: list[str] = []

    def ask() -> None:
        ids.extend([new_message_id() for _ in range(1000)])
        ids.extend([new_storage_id() for _ in range(1000)])

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(ids)) == 8000


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform cannot fork")
def test_ids_of_a_child_are_unlike() -> None:
    """A forked child does not hand out the ids that its parent will."""
    new_message_id()
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(reading)
            with os.fdopen(writing, "w") as pipe:
                json.dump([[new_message_id() for _ in range(100)], [new_storage_id() for _ in range(100)]], pipe)
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        message_ids, storage_ids = json.load(pipe)
    os.waitpid(pid, 0)
    assert not {new_message_id() for _ in range(300)} & set(message_ids)
    assert not {new_storage_id() for _ in range(300)} & set(storage_ids)
