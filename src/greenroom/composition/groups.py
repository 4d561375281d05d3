"""Groups: messages that run beside each other, and what is sent when all of them have ended."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import groupby
from typing import Any

from ..broker import CHUNK, Broker, get_broker
from ..context import running_messages
from ..core.chunks import in_chunks
from ..core.graph import COMPLETED_GROUP, End, Membership, Position, set_key, then_key
from ..errors import ResultFailure, ResultTimeout
from ..message import Message
from ..middleware import GroupCallbacks
from ..names import new_message_id
from ..ports.store import Delete, Progress, SetDrop, SetLook
from ..ports.watching import await_for, wait_for
from .pipelines import has_ended, longest, pipeline
from .planning import Planner, check_on_error, find_counter, keeps_sets, leaves_of, set_ttl_ms
from .waiting import Steps, Waiter, failure_of, steps_of


class group:  # noqa: N801  # the name is Dramatiq's
    """Messages that run beside each other, and callbacks that are sent when all of them have ended.

    A member has ended when it is done or skipped, has failed for good, has expired, or can never run. On a broker with
    a store of its own callbacks are sent exactly once, in one step with the end of the last member.

    Parameters:
      children: Messages, pipelines and groups.
      broker: Where it runs; the default broker if it is not given.
      on_error: What ``get_results``, and the stage after this group in a pipeline, do with members that have failed.
        ``"fail"`` (the default): they fail, as soon as one of them has. ``"skip"``: failed ones are left out.
        ``"collect"``: they stand among the results, as ``ResultFailure`` in ``get_results`` and as
        ``{"type": ..., "message": ...}`` for a stage.

    Raises:
      ValueError: For another ``on_error``.
    """

    def __init__(self, children: Iterable[Any], *, broker: Broker | None = None, on_error: str = "fail") -> None:
        self.broker: Any = broker or get_broker()
        self.on_error = check_on_error(on_error)
        self.children: list[Any] = list(children)
        self.completion_callbacks: list[dict[str, Any]] = []
        #: What it is known by in the store; None before it has run. Each run has its own.
        self.id: str | None = None

    def __len__(self) -> int:
        """How many members there are."""
        return len(self.children)

    def __or__(self, other: Any) -> pipeline:
        """A pipeline of this group and what comes after it."""
        return pipeline([self, other])

    def __ror__(self, other: Any) -> pipeline:
        return pipeline([other, self])

    def copy(self) -> group:
        """A group of the same members, which has not run."""
        copy = group(self.children, broker=self.broker, on_error=self.on_error)
        copy.completion_callbacks = list(self.completion_callbacks)
        return copy

    def add_completion_callback(self, message: Message[Any]) -> None:
        """Has a message sent when all members have ended. What it runs can ask ``outcome_of`` how they did."""
        self.completion_callbacks.append(message.asdict())

    # --- running

    def run(self, *, delay: Any = None) -> group:
        """Sends all members, a thousand at a time; returns itself.

        Parameters:
          delay: Milliseconds or a timedelta, for all; or a member's own ``delay`` if that is longer.

        Raises:
          RuntimeError: If there are callbacks, and nothing that could send them.
          Exception: As ``broker.enqueue_many``. Nothing is sent then when those members have ended that were accepted.
        """
        planner, messages = self._plan()
        try:
            for chunk in in_chunks(messages, CHUNK):
                for delay_ms, part in _by_delay(chunk, delay):
                    planner.send(list(part), delay_ms)
            planner.run()  # without members nothing has come yet
        except BaseException:
            self._forget()
            raise
        self._send_callbacks_of_none()
        return self

    async def arun(self, *, delay: Any = None) -> group:
        """``run`` for coroutines."""
        planner, messages = self._plan()
        try:
            for chunk in in_chunks(messages, CHUNK):
                if planner.ops:
                    await asyncio.to_thread(planner.run)
                for delay_ms, part in _by_delay(chunk, delay):
                    await self.broker.aenqueue_many(part, delay=delay_ms)
            if planner.ops:
                await asyncio.to_thread(planner.run)
        except BaseException:
            self._forget()
            raise
        await asyncio.to_thread(self._send_callbacks_of_none)
        return self

    def _plan(self) -> tuple[Planner, Iterable[Message[Any]]]:
        planner = Planner(self.broker, set_ttl_ms(self.broker))
        if keeps_sets(self.broker) and not self._counts_down():
            return planner, self._open(planner, None)
        self.id = None
        callbacks = self.completion_callbacks
        if not callbacks:
            return planner, [message for child in self.children for message in self._plain(planner, child)]
        counter = _counter(self.broker)
        return planner, counter.watched(self.children, callbacks, partial(planner.first, membership=None))

    def _plain(self, planner: Planner, child: Any) -> Iterable[Message[Any]]:
        return child._plan()[1] if isinstance(child, group) else [planner.first(child, None)]

    def _open(self, planner: Planner, parent: tuple[str, str] | None) -> Iterator[Message[Any]]:
        self.id = new_message_id()
        return planner.open(self.id, self.children, self._callbacks(), parent)

    def _callbacks(self) -> list[Message[Any]]:
        told = {COMPLETED_GROUP: self.id}
        return [Message(**fields).copy(options=told) for fields in self.completion_callbacks]

    def _counts_down(self) -> bool:
        """True if callbacks are the business of a backend of a user's own."""
        if not self.completion_callbacks:
            return False
        counter = find_counter(self.broker)
        return counter is not None and counter.composition_store is None

    def _send_callbacks_of_none(self) -> None:
        if self.children or not self.completion_callbacks or self.id is not None:
            return
        for fields in self.completion_callbacks:
            self.broker.enqueue(Message(**fields))

    def _forget(self) -> None:
        """Nothing is told when those members have ended that were sent all the same."""
        if self.id is not None:
            self.broker.composition_store.apply([SetDrop(set_key(self.id)), Delete(then_key(self.id))])

    def _first(self, planner: Planner, membership: Membership | None, position: Position | None = None) -> Message[Any]:
        if position is None:
            self._end()
        assert self.id is not None  # the pipeline that it is a stage of has asked for the end
        return planner.group(self.id, self.children, self._callbacks(), self.on_error, membership, position)

    def _end(self) -> End:
        """Itself as the end of a pipeline, under the name that it has in the run which begins."""
        self.id = new_message_id()
        return End("", "", self.id)

    def _leaves(self) -> Iterable[Message[Any]]:
        return (leaf for child in self.children for leaf in leaves_of(child))

    # --- results

    @property
    def completed(self) -> bool:
        """True if all members have ended."""
        progress = self._progress()
        return self.completed_count == len(self) if progress is None else progress.is_complete

    @property
    def completed_count(self) -> int:
        """How many members have ended."""
        progress = self._progress()
        if progress is not None:
            return progress.total - progress.left
        return sum(has_ended(self.broker, child) for child in self.children)

    def _progress(self) -> Progress | None:
        store = self.broker.composition_store
        if self.id is None or store is None:
            return None
        progress: Progress | None = store.apply([SetLook(set_key(self.id))])[0]
        return progress

    def wait(self, *, timeout: int | None = None) -> None:
        """Blocks until all members have ended.

        Parameters:
          timeout: Milliseconds to wait at the most; 10 000 by default where results are waited for, else for ever.

        Raises:
          ResultTimeout: If that took longer.
          ResultFailure: As soon as a member has failed for good, unless ``on_error`` says otherwise.
        """
        if self._progress() is None:
            for _ in self.get_results(block=True, timeout=timeout):
                pass
            return
        timeout_s = None if timeout is None else timeout / 1000
        if wait_for(self.broker.composition_store, [set_key(self.id or "")], self._look, timeout_s) is None:
            raise self._timeout(timeout)

    async def await_(self, *, timeout: int | None = None) -> None:  # noqa: ASYNC109  # as in wait
        """``wait`` for coroutines."""
        if await asyncio.to_thread(self._progress) is None:
            await self.aget_results(timeout=timeout)
            return
        timeout_s = None if timeout is None else timeout / 1000
        store, keys = self.broker.composition_store, [set_key(self.id or "")]
        if await await_for(store, keys, lambda: asyncio.to_thread(self._look), timeout_s) is None:
            raise self._timeout(timeout)

    def _look(self) -> bool | None:
        """True if all members have ended; None if not."""
        progress = self._progress()
        if progress is None or (progress.failed and self.on_error == "fail"):
            failure = failure_of(self.broker.composition_store, (self.id or "",))
            if failure is not None:
                raise failure
            text = "nothing is known of it any more" if progress is None else f"{progress.failed} members failed"
            raise ResultFailure(f"group {self.id}: {text}", "GroupFailed", text)
        return True if progress.is_complete else None

    def _timeout(self, timeout: int | None) -> ResultTimeout:
        return ResultTimeout(f"Not all of {len(self)} members had ended within {timeout} ms.")

    def get_results(self, *, block: bool = False, timeout: int | None = None) -> Iterator[Any]:
        """The results of all members, in their order; a list for a nested group.

        Parameters:
          block: Wait for them.
          timeout: Milliseconds to wait at the most for all of them; 10 000 for each by default.

        Raises:
          ResultMissing: If ``block`` is False and there is one missing.
          ResultTimeout: If one was missing in time.
          ResultFailure: As soon as a member has failed for good, unless ``on_error`` says otherwise.
        """
        waiter = Waiter(self.broker, block=block, timeout=timeout)
        for child in self.children:
            yield from waiter.drive(self._member(child, ()))

    async def aget_results(
        self,
        *,
        block: bool = True,
        timeout: int | None = None,  # noqa: ASYNC109  # as in get_results
    ) -> list[Any]:
        """The results of all members, as a list; it waits unless told otherwise."""
        return await Waiter(self.broker, block=block, timeout=timeout).adrive(self._steps(()))

    def _steps(self, failures: tuple[str, ...]) -> Steps[list[Any]]:
        values: list[Any] = []
        for child in self.children:
            values += yield from self._member(child, failures)
        return values

    def _member(self, child: Any, failures: tuple[str, ...]) -> Steps[list[Any]]:
        """The value of one member, or none, by the policy."""
        if self.on_error == "fail" and self.id is not None:
            failures = (*failures, self.id)
        try:
            return [(yield from steps_of(child, failures))]
        except ResultFailure as e:
            if self.on_error == "fail":
                raise
            return [e] if self.on_error == "collect" else []

    def __repr__(self) -> str:
        return f"group({self.children!r})"

    def __str__(self) -> str:
        return f"group([{', '.join(str(child) for child in self.children)}])"


def outcome_of(message: Any = None, *, broker: Broker | None = None) -> Progress | None:
    """How the members of a group have ended, for a message that was sent because they have: ``total``, ``left`` (0) and
    ``failed``. None if it was not sent for that, or too long ago.

    Parameters:
      message: The message; by default the one that the calling actor runs for, which the ``CurrentMessage`` middleware
        knows.
      broker: Where the group ran; the default broker if it is not given.
    """
    if message is None:
        messages = running_messages.get()
        message = messages[-1] if messages else None
    known = None if message is None else message.options.get(COMPLETED_GROUP)
    store = (broker or get_broker()).composition_store
    if not isinstance(known, str) or store is None:
        return None
    progress: Progress | None = store.apply([SetLook(set_key(known))])[0]
    return progress


def _counter(broker: Any) -> GroupCallbacks:
    counter = find_counter(broker)
    if counter is None:
        raise RuntimeError(
            "Completion callbacks need the GroupCallbacks middleware on a broker that has no store of its own."
        )
    return counter


def _by_delay(messages: Iterable[Message[Any]], delay: Any) -> Iterable[tuple[int | None, Iterable[Message[Any]]]]:
    """Messages in their order, those of one delay together."""
    for_all = longest(delay, None)

    def key(message: Message[Any]) -> int | None:
        own = message.options.get("delay")
        return for_all if own is None else longest(delay, own)

    return groupby(messages, key=key)
