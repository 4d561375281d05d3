"""Sending from coroutines: beside the loop, many together, and each with its own answer."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from greenroom import Actor, Middleware, actor
from greenroom.errors import BrokerTimeout, MessageTooLarge, MiddlewareError
from greenroom.ports.admin import Counts
from greenroom.ports.transport import Envelope
from tests.runtime.cli_kit import wait_until
from tests.runtime.worker_kit import ENGINES, EngineTestBroker, make_broker


class Counting:
    """A transport that counts its pushes, and asks ``before`` about each."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.pushes: list[int] = []
        self.before: Callable[[Sequence[Envelope]], object] = lambda _batch: None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def push(self, batch: Sequence[Envelope]) -> None:
        self.pushes.append(len(batch))
        self.before(batch)
        self.inner.push(batch)


@pytest.fixture(params=ENGINES)
def broker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[EngineTestBroker]:
    broker = make_broker(request.param, tmp_path)
    broker.transport = Counting(broker.transport)
    yield broker
    broker.close()


@pytest.fixture
def work(broker: EngineTestBroker) -> Actor[..., Any]:
    """An actor that is only sent."""
    return actor(lambda *args: None, broker=broker, actor_name="work")


def test_it_does_not_block_the_loop(broker: EngineTestBroker, work: Actor[..., Any]) -> None:
    """While the engine takes its time, other coroutines run."""
    entered, go_on = threading.Event(), threading.Event()
    broker.transport.before = lambda _batch: (entered.set(), go_on.wait(30))

    async def main() -> Any:
        sending = asyncio.create_task(work.asend(1))
        assert await asyncio.to_thread(entered.wait, 10)  # would never be seen if the loop were blocked
        assert not sending.done()
        go_on.set()
        return await sending

    message = asyncio.run(main())
    assert message.args == (1,)
    assert broker.counts() == Counts(ready=1)


def test_what_is_sent_together_goes_together(broker: EngineTestBroker, work: Actor[..., Any]) -> None:
    """A hundred coroutines that send at the same time need few pushes, and each gets its own message back."""

    async def main() -> list[Any]:
        return await asyncio.gather(*(work.asend(number) for number in range(100)))

    messages = asyncio.run(main())
    assert [message.args for message in messages] == [(number,) for number in range(100)]
    assert sum(broker.transport.pushes) == 100
    assert len(broker.transport.pushes) <= 20
    assert broker.counts() == Counts(ready=100)


def test_only_the_guilty_one_fails(broker: EngineTestBroker, work: Actor[..., Any]) -> None:
    """What the engine refuses on behalf of one message reaches the coroutine that sent it, and the others are kept."""
    hold, held = threading.Event(), threading.Event()

    def before(batch: Sequence[Envelope]) -> None:
        held.set()
        hold.wait(30)
        if any(b"guilty" in envelope.body for envelope in batch):
            raise MessageTooLarge("too large", size=2, limit=1)

    broker.transport.before = before

    async def main() -> list[Any]:
        first = asyncio.create_task(work.asend("first"))
        assert await asyncio.to_thread(held.wait, 10)
        rest = [asyncio.create_task(work.asend(name)) for name in ("a", "guilty", "b")]
        await asyncio.sleep(0)
        hold.set()
        return await asyncio.gather(first, *rest, return_exceptions=True)

    outcomes = asyncio.run(main())
    assert [type(outcome).__name__ for outcome in outcomes] == ["Message", "Message", "MessageTooLarge", "Message"]
    assert broker.counts() == Counts(ready=3)


def test_an_engine_that_does_not_answer_is_asked_once(broker: EngineTestBroker, work: Actor[..., Any]) -> None:
    """A timeout says nothing about any one message: all that went together learn of it, and nothing is sent again."""
    hold, held = threading.Event(), threading.Event()

    def before(_batch: Sequence[Envelope]) -> None:
        held.set()
        hold.wait(30)
        raise BrokerTimeout("no answer")

    broker.transport.before = before

    async def main() -> list[Any]:
        first = asyncio.create_task(work.asend(0))
        assert await asyncio.to_thread(held.wait, 10)
        rest = [asyncio.create_task(work.asend(number)) for number in range(50)]
        await asyncio.sleep(0)
        hold.set()
        return await asyncio.gather(first, *rest, return_exceptions=True)

    outcomes = asyncio.run(main())
    assert {type(outcome) for outcome in outcomes} == {BrokerTimeout}
    assert broker.transport.pushes == [1, 50]


def test_what_cannot_be_encoded(broker: EngineTestBroker, work: Actor[..., Any]) -> None:
    """Errors before the push are raised in the coroutine that caused them."""

    async def main() -> list[Any]:
        return await asyncio.gather(work.asend(object()), work.asend(1), return_exceptions=True)

    bad, good = asyncio.run(main())
    assert isinstance(bad, TypeError)
    assert good.args == (1,)
    assert broker.counts() == Counts(ready=1)


def test_cancelling_a_send(broker: EngineTestBroker, work: Actor[..., Any]) -> None:
    """A coroutine may stop waiting. Its message may be kept all the same, and the sends of others are not disturbed."""
    hold, held = threading.Event(), threading.Event()
    broker.transport.before = lambda _batch: (held.set(), hold.wait(30))

    async def main() -> Any:
        cancelled = asyncio.create_task(work.asend("cancelled"))
        assert await asyncio.to_thread(held.wait, 10)
        other = asyncio.create_task(work.asend("other"))
        await asyncio.sleep(0)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        hold.set()
        return await other

    assert asyncio.run(main()).args == ("other",)
    assert broker.counts() == Counts(ready=2)


def test_a_loop_that_ended(broker: EngineTestBroker, work: Actor[..., Any]) -> None:
    """A loop that is closed while something is being sent harms nobody: the next loop sends as before."""
    hold, held = threading.Event(), threading.Event()
    broker.transport.before = lambda _batch: (held.set(), hold.wait(30))

    async def leave() -> None:
        task = asyncio.create_task(work.asend(1))
        assert await asyncio.to_thread(held.wait, 10)
        task.cancel()

    asyncio.run(leave())
    hold.set()
    assert asyncio.run(work.asend(2)).args == (2,)
    assert broker.counts() == Counts(ready=2)


class Veto(Middleware):
    """Lets nothing through that says no."""

    def before_enqueue(self, broker: Any, message: Any, delay: int | None) -> None:
        if "no" in message.args:
            raise MiddlewareError("vetoed")


def test_a_veto(broker: EngineTestBroker, work: Actor[..., Any]) -> None:
    """``before_enqueue`` may veto what a coroutine sends; nothing is pushed then."""
    broker.add_middleware(Veto())

    async def main() -> list[Any]:
        return await asyncio.gather(work.asend("no"), work.asend("yes"), return_exceptions=True)

    vetoed, sent = asyncio.run(main())
    assert isinstance(vetoed, MiddlewareError)
    assert sent.args == ("yes",)
    assert sum(broker.transport.pushes) == 1


def test_options_and_delay(broker: EngineTestBroker, work: Actor[..., Any]) -> None:
    """``asend_with_options`` takes what ``send_with_options`` takes."""
    message = asyncio.run(work.asend_with_options(args=(1,), delay=60_000, max_retries=3))
    assert message.options["max_retries"] == 3
    assert message.options["eta"] >= message.message_timestamp + 60_000
    assert broker.counts() == Counts(delayed=1)


def test_asend_many(broker: EngineTestBroker, work: Actor[..., Any]) -> None:
    """``asend_many`` sends a thousand at a time. If a chunk fails the exception tells how many were accepted, and where
    to go on."""
    broker.add_middleware(Veto())
    assert asyncio.run(work.asend_many((number,) for number in range(2500))) == 2500
    assert broker.transport.pushes == [1000, 1000, 500]
    items = [(number,) for number in range(1500)]
    items[1200] = ("no",)
    with pytest.raises(MiddlewareError) as caught:
        asyncio.run(work.asend_many(items))
    assert (caught.value.accepted, caught.value.index) == (1000, 1000)
    assert broker.counts() == Counts(ready=3500)


def test_several_loops(broker: EngineTestBroker, work: Actor[..., Any]) -> None:
    """Coroutines of several loops send through one broker at the same time."""

    async def main() -> None:
        await asyncio.gather(*(work.asend(number) for number in range(50)))

    threads = [threading.Thread(target=asyncio.run, args=(main(),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert broker.counts() == Counts(ready=200)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_fork_after_use(tmp_path: Path) -> None:
    """A child of a process that has sent from coroutines does so itself, with a thread of its own."""
    broker = make_broker("sqlite", tmp_path)
    work = actor(lambda *args: None, broker=broker, actor_name="work")
    asyncio.run(work.asend("parent"))
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            asyncio.run(asyncio.wait_for(work.asend("child"), 20))
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    asyncio.run(work.asend("parent again"))
    wait_until(lambda: broker.counts() == Counts(ready=3), "all are there")
    broker.close()
