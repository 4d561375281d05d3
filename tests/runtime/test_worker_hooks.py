"""The hooks of middleware: which are called when, in what order, and what their errors do."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from greenroom import Message, Middleware, actor
from greenroom.core.hooks import HOOK_NAMES
from greenroom.errors import MiddlewareError
from greenroom.middleware import Retries, SkipMessage
from greenroom.ports.admin import Counts
from tests.runtime.cli_kit import Program, wait_until
from tests.runtime.worker_kit import ENGINES, EngineTestBroker, collector, make_broker, working

Notes = list[tuple[str, str]]
MakeBroker = Callable[..., EngineTestBroker]


@pytest.fixture(params=ENGINES)
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MakeBroker]:
    brokers = []

    def make(*middleware: Middleware) -> EngineTestBroker:
        brokers.append(make_broker(request.param, tmp_path, middleware))
        return brokers[-1]

    yield make
    for broker in brokers:
        broker.close()


def note_all(name: str, notes: Notes, raises: type[Exception] | None = None) -> Middleware:
    """A middleware that overrides all hooks: each notes its name, and raises if it is told to."""

    def hook_of(hook: str) -> Callable[..., None]:
        def note(_self: Any, _broker: Any, *_args: Any, **_kwargs: Any) -> None:
            notes.append((name, hook))
            if raises is not None:
                raise raises(f"{name} broke in {hook}")

        return note

    return type(name, (Middleware,), {hook: hook_of(hook) for hook in HOOK_NAMES})()


def live(broker: EngineTestBroker) -> None:
    """A whole life: a success, a retry after a failure, a dead letter and a skipped message."""
    runs = []

    @actor(broker=broker, max_retries=1, min_backoff=0, max_backoff=0)
    def work(what: str) -> None:
        runs.append(what)
        if what == "die" or (what == "retry" and runs.count("retry") == 1):
            raise RuntimeError(what)

    work.send("succeed")
    work.send_with_options(args=("retry",), delay=1)
    work.send("die")
    with working(broker, threads=1):  # the hooks of two could be called in turns
        broker.wait_until_empty()
    assert sorted(runs) == ["die", "die", "retry", "retry", "succeed"]


class Skip(Middleware):
    """Skips a message of an actor of this name."""

    def before_process_message(self, broker: Any, message: Any) -> None:
        if message.actor_name == "skipped":
            raise SkipMessage


def test_every_hook_is_called(make: MakeBroker) -> None:
    """Of all hooks those of a process's boot and of a lost lease alone are not called in the life of a worker."""
    notes: Notes = []
    broker = make(note_all("A", notes), Retries(), Skip())
    actor(lambda: None, broker=broker, actor_name="skipped").send()
    live(broker)
    assert set(HOOK_NAMES) - {hook for _, hook in notes} == {"after_process_boot", "after_stale_lease"}


def test_a_process_says_that_it_has_booted(tmp_path: Path) -> None:
    """``after_process_boot`` is called in each worker process, before its worker boots."""
    program = Program(tmp_path).write("""
class Watch(greenroom.Middleware):
    def after_process_boot(self, broker):
        self.booted = True

    def before_worker_boot(self, broker, worker):
        mark("booted-first" if self.booted else "booted-late")

broker.add_middleware(Watch())
""")
    with program.start("worker", "app", "-p", "1") as running:
        program.wait_for_mark("booted-first")
        running.wait_until_ready()


def test_the_order_of_hooks(make: MakeBroker) -> None:
    """``before_*`` hooks run in the order of the list and ``after_*`` hooks in reverse, for every hook."""
    notes: Notes = []
    broker = make(note_all("A", notes), note_all("B", notes), Retries())
    live(broker)
    for hook in {hook for _, hook in notes}:
        names = [name for name, noted in notes if noted == hook]
        if "worker_thread" not in hook and "process" not in hook and "ack" not in hook and "nack" not in hook:
            expected = ["A", "B"] if hook.startswith("before_") else ["B", "A"]
            assert names == expected * (len(names) // 2), hook


def test_the_life_of_one_message(make: MakeBroker) -> None:
    """From the sender's side to the settlement, in this order."""
    notes: Notes = []
    broker = make(note_all("A", notes), Retries())
    collect, _ = collector(broker)
    notes.clear()
    collect.send(1)
    assert [hook for _, hook in notes] == ["before_enqueue", "after_enqueue"]
    with working(broker):
        broker.wait_until_empty()
        notes_of_message = [hook for _, hook in notes if "message" in hook or "ack" in hook]
        wait_until(lambda: ("A", "after_ack") in notes, "the message is acked")
    notes_of_message = [hook for _, hook in notes if "message" in hook or "ack" in hook]
    assert notes_of_message == ["before_process_message", "after_process_message", "before_ack", "after_ack"]


def test_the_life_of_a_retry(make: MakeBroker) -> None:
    """A retry is enqueued and delayed anew, and the failed attempt is acked; the end of a message that stays failed is
    a nack."""
    notes: Notes = []
    broker = make(Retries(max_retries=1, min_backoff=0, max_backoff=0), note_all("A", notes))

    @actor(broker=broker)
    def fail() -> None:
        raise RuntimeError

    fail.send()
    notes.clear()
    with working(broker):
        broker.wait_until_empty()
    hooks = [hook for _, hook in notes if "enqueue" in hook or "delay_message" in hook or "ack" in hook]
    before = [hook for hook in hooks if hook.startswith("before")]
    after = [hook for hook in hooks if hook.startswith("after")]
    assert before == ["before_enqueue", "before_delay_message", "before_ack", "before_nack"]
    assert after == ["after_enqueue", "after_ack", "after_nack"]


def test_after_hooks_come_after_the_settlement(make: MakeBroker) -> None:
    """When ``after_ack``, ``after_nack`` and the ``after_enqueue`` of a retry run the engine has settled the message;
    they run neither on the pump nor on a worker thread."""
    seen = []

    class Look(Middleware):
        def look(self, broker: Any, hook: str) -> None:
            seen.append((hook, broker.counts(), threading.current_thread().name))

        def after_ack(self, broker: Any, message: Any) -> None:
            self.look(broker, "ack")

        def after_nack(self, broker: Any, message: Any) -> None:
            self.look(broker, "nack")

        def after_enqueue(self, broker: Any, message: Any, delay: int | None) -> None:
            if message.options.get("retries"):
                self.look(broker, "enqueue")

    broker = make(Retries(max_retries=1, min_backoff=3_600_000), Look())

    @actor(broker=broker)
    def work(error: type[Exception] | None = None, **_options: Any) -> None:
        pass

    @actor(broker=broker)
    def fail() -> None:
        raise RuntimeError

    def run(message: Message[Any], hooks: int) -> list[tuple[str, Counts]]:
        seen.clear()
        broker.enqueue(message)
        wait_until(lambda: len(seen) == hooks, "the hooks have run")
        assert {thread for _, _, thread in seen} == {"hooks"}
        return [(hook, counts) for hook, counts, _ in seen]

    with working(broker):
        assert run(work.message(), 1) == [("ack", Counts())]
        assert run(fail.message_with_options(max_retries=0), 1) == [("nack", Counts(dead=1))]
        assert run(fail.message(), 2) == [("enqueue", Counts(delayed=1, dead=1)), ("ack", Counts(delayed=1, dead=1))]


def test_broken_hooks_stop_nothing(make: MakeBroker, caplog: pytest.LogCaptureFixture) -> None:
    """Exceptions of any hook are logged as critical, with the hook and the middleware; the other middleware's hooks and
    everything else go on."""
    notes: Notes = []
    broker = make(Retries(), note_all("Broken", notes, RuntimeError), note_all("Well", notes))
    live(broker)
    hooks = {name: [hook for noted, hook in notes if noted == name] for name in ("Broken", "Well")}
    assert sorted(hooks["Broken"]) == sorted(hooks["Well"])
    for hook in set(hooks["Broken"]):
        if hook not in ("after_declare_queue", "after_declare_actor", "after_declare_delay_queue"):
            assert f"Unexpected failure in {hook} of Broken." in caplog.text


@pytest.mark.parametrize("hook", ["before_ack", "before_nack", "after_process_message", "after_ack", "after_nack"])
def test_a_veto_that_comes_too_late(make: MakeBroker, hook: str) -> None:
    """What happened has happened: a ``MiddlewareError`` around a settlement changes nothing; the thread lives on."""

    def veto(_self: Any, _broker: Any, *_args: Any, **_kwargs: Any) -> None:
        raise MiddlewareError("too late")

    broker = make(Retries(max_retries=0), type("Veto", (Middleware,), {hook: veto})())
    collect, notes = collector(broker)

    @actor(broker=broker)
    def fail() -> None:
        raise RuntimeError

    for _ in range(3):
        fail.send()
        collect.send(1)
    with working(broker):
        broker.wait_until_empty()
    assert notes == [1, 1, 1]
    assert len(broker.dead()) == 3


def test_the_onion(make: MakeBroker) -> None:
    """``wrap`` surrounds the call of the actor, the first of the list outermost, inside the other hooks."""
    notes: list[str] = []

    class Layer(Middleware):
        def __init__(self, name: str) -> None:
            self.name = name

        def before_process_message(self, broker: Any, message: Any) -> None:
            notes.append(f"before {self.name}")

        def after_process_message(
            self, broker: Any, message: Any, *, result: Any = None, exception: Any = None
        ) -> None:
            notes.append(f"after {self.name}: {result}")

        def wrap(self, broker: Any, message: Any, call_next: Callable[[], Any]) -> Any:
            notes.append(f"into {self.name} of {message.actor_name}")
            try:
                return f"{self.name}({call_next()})"
            finally:
                notes.append(f"out of {self.name}")

    broker = make(Layer("A"), Layer("B"))

    @actor(broker=broker)
    def work() -> str:
        notes.append("work")
        return "x"

    work.send()
    with working(broker):
        broker.wait_until_empty()
    assert notes == [
        "before A",
        "before B",
        "into A of work",
        "into B of work",
        "work",
        "out of B",
        "out of A",
        "after B: A(B(x))",
        "after A: A(B(x))",
    ]


@pytest.mark.parametrize("where", ["before", "after"])
def test_an_error_in_the_onion(make: MakeBroker, where: str) -> None:
    """What ``wrap`` raises is a failure of the message, as if the actor had raised it."""

    class Break(Middleware):
        def wrap(self, broker: Any, message: Any, call_next: Callable[[], Any]) -> Any:
            if where == "after":
                call_next()
            raise ValueError("broken layer")

    broker = make(Retries(max_retries=0), Break())
    collect, notes = collector(broker)
    collect.send(1)
    with working(broker):
        broker.wait_until_empty()
    assert notes == ([1] if where == "after" else [])
    assert [letter.error.message for letter in broker.dead()] == ["broken layer"]


def test_the_onion_sees_the_actors_exception(make: MakeBroker) -> None:
    """A layer may handle what the actor raises: the message has then succeeded."""

    class Forgive(Middleware):
        def wrap(self, broker: Any, message: Any, call_next: Callable[[], Any]) -> Any:
            with pytest.raises(RuntimeError, match="bad"):
                call_next()

    broker = make(Retries(max_retries=0), Forgive())

    @actor(broker=broker)
    def fail() -> None:
        raise RuntimeError("bad")

    fail.send()
    with working(broker):
        broker.wait_until_empty()
    assert broker.dead() == []


def test_middleware_that_is_added_while_a_worker_runs(make: MakeBroker) -> None:
    """It takes effect with the next message, and so does taking it away."""
    notes: Notes = []
    broker = make(Retries())
    collect, _ = collector(broker)
    late = note_all("late", notes)
    with working(broker) as worker:
        collect.send(1)
        broker.wait_until_empty()
        broker.add_middleware(late)
        collect.send(2)
        broker.wait_until_empty()
        assert ("late", "before_process_message") in notes
        worker.join()  # what comes after a settlement is called by another thread
        broker.middleware.remove(late)
        notes.clear()
        collect.send(3)
        broker.wait_until_empty()
    assert notes == []


def test_what_was_left_for_the_hooks_runs_before_the_end(make: MakeBroker) -> None:
    """Stopping a worker waits for the after-hooks of all that it has settled."""
    acked = []

    class Count(Middleware):
        def after_ack(self, broker: Any, message: Any) -> None:
            acked.append(message.message_id)

    broker = make(Count())
    collect, _ = collector(broker)
    collect.send_many((n,) for n in range(500))
    with working(broker):
        broker.wait_until_empty()
    assert len(acked) == len(set(acked)) == 500
