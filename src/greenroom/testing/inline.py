"""Inline mode: a message runs where it is sent, before ``send`` returns.

Depth first: what an actor sends runs inside it. Everything else is as with a worker: the message is encoded and
decoded, hooks run, failures are retried or dead-lettered. Nothing is ever waited for: what is delayed, retries too,
stays in ``broker.queues["default.DQ"]`` until a manual clock ticks.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ..brokers.stub import StubBroker
from ..composition.built_in import built_in
from ..core.ending import Ending, Outcome
from ..core.run import Run
from ..core.verdict import Verdict
from ..errors import ActorNotFound, DecodeError, Retry
from ..message import Message
from ..ports.transport import Delivery, Envelope, ErrorText, Settlement
from ..runtime.endings import ask, readable_part, sealed
from ..runtime.hook_thread import HookThread
from ..runtime.slot import Slot
from ..runtime.steps import Steps, run_sync
from ..runtime.store_writer import write_now


class InlineBroker(StubBroker):
    """A ``StubBroker`` without workers: ``enqueue`` runs the message in the calling thread.

    Parameters are those of ``StubBroker``. With ``fail_fast_default`` (the default) ``send`` raises what the actor
    raised, also if a retry was planned; ``Retry`` itself is never raised.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._consumer = self.transport.consumer("inline")
        self._pushed = threading.local()

    # --- sending

    def enqueue(self, message: Message[Any], *, delay: Any = None) -> Message[Any]:
        """Sends a message and runs it, unless it is delayed.

        Raises:
          RuntimeError: If its actor is async and an event loop runs in this thread; nothing is sent.
          BaseException: What the actor raised, if the broker fails fast.
        """
        self._refuse_to_block(message, delay)
        sent = super().enqueue(message, delay=delay)
        self._run_pushed()
        return sent

    async def aenqueue(self, message: Message[Any], *, delay: Any = None) -> Message[Any]:
        """Sends a message and awaits its run, unless it is delayed. What ``actor.asend`` calls.

        Raises:
          BaseException: What the actor raised, if the broker fails fast.
        """
        sent = super().enqueue(message, delay=delay)
        await self._arun_pushed()
        return sent

    def _enqueue_chunk(self, chunk: list[Message[Any]], delay: Any) -> None:
        for message in chunk:
            self._refuse_to_block(message, delay)
        super()._enqueue_chunk(chunk, delay)
        self._run_pushed()

    async def _aenqueue_chunk(self, chunk: list[Message[Any]], delay: Any) -> None:
        super()._enqueue_chunk(chunk, delay)
        await self._arun_pushed()

    def _hand_over(self, messages: Sequence[Message[Any]], delay_ms: int | None) -> None:
        envelopes = self._envelopes(messages, delay_ms)
        # Hooks and actors send inside of sends, in this thread: what was pushed last is taken first.
        self._stack().append(envelopes)
        self._push(envelopes)

    def _push_body(self, queue_name: str, body: bytes) -> Envelope:
        envelope = super()._push_body(queue_name, body)
        self._stack().append([envelope])
        self._run_pushed()
        return envelope

    def _stack(self) -> list[list[Envelope]]:
        stack: list[list[Envelope]] = self._pushed.__dict__.setdefault("stack", [])
        return stack

    def _refuse_to_block(self, message: Message[Any], delay: Any) -> None:
        actor = self.actors.get(message.actor_name)
        if delay is None and actor is not None and actor.is_async and _loop_runs():
            raise RuntimeError(
                f"Actor {message.actor_name!r} is async and an event loop runs in this thread: inline mode cannot run "
                f"it inside send(). Write `await {message.actor_name}.asend(...)`."
            )

    # --- running

    def _run_pushed(self) -> None:
        """Runs all that was pushed together, and what follows from it; then raises the first exception."""
        with self._one_deeper() as is_outermost:
            failures = [self._run(delivery) for delivery in self._claim_pushed()]
            if is_outermost:
                failures += [self._run(delivery) for delivery in self._claim_followers()]
        self._raise_first(failures)

    async def _arun_pushed(self) -> None:
        with self._one_deeper() as is_outermost:
            failures = [await self._arun(delivery) for delivery in self._claim_pushed()]
            if is_outermost:
                failures += [await self._arun(delivery) for delivery in self._claim_followers()]
        self._raise_first(failures)

    @contextmanager
    def _one_deeper(self) -> Iterator[bool]:
        """Around sends inside of sends; True for the outermost of them."""
        local = self._pushed.__dict__
        local["depth"] = local.get("depth", 0) + 1
        try:
            yield local["depth"] == 1
        finally:
            local["depth"] -= 1

    def _claim_followers(self) -> Iterator[Delivery]:
        """Claims what was sent in one step with the end of another message: stages, members, callbacks. One after the
        other, so that a pipeline may be as long as it likes."""
        while self._pushed.__dict__.pop("has_followers", False):
            self._consumer.subscribe(self.get_declared_queues())
            while deliveries := self._consumer.exchange((), 1).deliveries:
                yield deliveries[0]

    def _claim_pushed(self) -> Iterator[Delivery]:
        """Claims one after the other what was pushed last and is not delayed."""
        for envelope in self._stack().pop():
            delivery = self._consumer.claim(envelope.id, envelope.queue)
            if delivery is not None:
                yield delivery

    def _run(self, delivery: Delivery) -> BaseException | None:
        """Runs a message and settles it; returns what to raise."""
        run = self._run_of(delivery)
        if run is None:
            return self._dead_cause(delivery)
        if run.actor.is_async:
            asyncio.run(_run_async(self, run))
        else:
            run_sync(Steps(self), run, self.clock.monotonic)
        return self._settled(run)

    async def _arun(self, delivery: Delivery) -> BaseException | None:
        run = self._run_of(delivery)
        if run is None:
            return self._dead_cause(delivery)
        if run.actor.is_async:
            await _run_async(self, run)
        else:
            run_sync(Steps(self), run, self.clock.monotonic)
        return self._settled(run)

    def _run_of(self, delivery: Delivery) -> Run | None:
        """The run of a message, or None if it cannot be run and was dead-lettered."""
        try:
            message = Message.decode(delivery.body)
            actor = built_in(self, message) or self.get_actor(message.actor_name)
        except (DecodeError, ActorNotFound) as e:
            reason = ErrorText(type(e).__name__, str(e))
            self._consumer.exchange((self._dead(Settlement(delivery, Verdict.DEAD, error=reason)),), 0)
            return None
        message.options.pop("eta", None)
        self._failures.pop(delivery.id, None)  # of the attempt before: what this run leaves there is its own
        run = Run(message, delivery, actor)
        run.slot = Slot(0)
        return run

    def _dead(self, settlement: Settlement) -> Settlement:
        """With what is kept of the end of a message that cannot be run."""
        hooks = self.hooks.ending
        if not hooks:
            return settlement
        message = readable_part(settlement.delivery.body)
        ending = Ending(self, message, settlement, Outcome.DEAD, error=settlement.error)
        ask(ending, hooks)
        write_now(ending)
        return sealed(ending)

    def _settled(self, run: Run) -> BaseException | None:
        ending = run.ending
        if ending is not None:
            write_now(ending)
            run.settlement = sealed(ending)
        settlement: Settlement = run.settlement
        self._consumer.exchange((settlement,), 0)
        if ending is not None:
            ending.jobs, ending.later = ending.later, []
            write_now(ending)
        if settlement.push or settlement.writes or ending is not None:
            self._pushed.has_followers = True
        HookThread(self).tell(run)
        if settlement.verdict is Verdict.DEAD:
            return self._dead_cause(run.delivery)
        failure = self._failure_of(settlement.retry.id if settlement.retry is not None else run.delivery.id)
        return None if isinstance(failure, Retry) else failure

    def _dead_cause(self, delivery: Delivery) -> BaseException | None:
        letters = self.transport.dead(delivery.queue)
        return next((self._cause(letter) for letter in letters if letter.id == delivery.id), None)

    def _raise_first(self, failures: Iterable[BaseException | None]) -> None:
        failure = next((failure for failure in failures if failure is not None), None)
        if failure is not None and self.fail_fast_default:
            raise failure

    # --- waiting, which is never needed

    def join(self, queue_name: str, *, timeout: float | None = None, fail_fast: bool | None = None) -> None:
        """Returns at once: all that was not delayed has run, and what is delayed is not waited for.

        Parameters:
          queue_name: The queue.
          timeout: Has no meaning here.
          fail_fast: Whether to raise what killed the queue's first dead letter; None for the broker's default.

        Raises:
          QueueNotFound: If the queue was never declared.
          BaseException: With ``fail_fast``, what the actor raised.
        """
        queue_name = self._declared(queue_name)
        letters = self.transport.dead(queue_name, limit=1 << 62)
        if letters and (self.fail_fast_default if fail_fast is None else fail_fast):
            raise self._cause(letters[-1])

    def run_due(self, timeout_s: float) -> None:
        """Runs all that is due, in the calling thread.

        Raises:
          BaseException: What an actor raised, if the broker fails fast.
        """
        self._consumer.subscribe(self.get_declared_queues())
        while deliveries := self._consumer.exchange((), 1).deliveries:
            self._raise_first([self._run(deliveries[0])])


async def _run_async(broker: InlineBroker, run: Run) -> None:
    """Takes an async actor's message through all steps; leaves the settlement on the run."""
    steps = Steps(broker)
    if steps.begin(run):
        result, exception = None, None
        try:
            result = await steps.acall(run)
        except BaseException as e:  # noqa: BLE001  # user code may raise anything: it is the outcome of the run
            exception = e
        steps.finish(run, result, exception)
        exception = None  # or its traceback would keep this frame, and all that it refers to, in a cycle
    run.settlement = steps.settle(run)
    run._exception = None


def _loop_runs() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
