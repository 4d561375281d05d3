"""Pipelines: each stage gets what the one before it returned."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any

from ..broker import Broker, get_broker
from ..core.graph import PIPE_TARGET, Membership, Position
from ..core.options import delay_to_ms
from ..errors import ResultFailure, ResultMissing
from ..message import Message
from .planning import Planner, check_on_error, is_nestable, leaves_of, set_ttl_ms
from .waiting import Steps, Waiter, steps_of


class pipeline:  # noqa: N801  # the name is Dramatiq's
    """Stages that run one after the other. Each gets what the one before it has returned as its last positional
    argument, unless it says ``pipe_ignore``; a group as a stage hands it to each of its members, and the stage after it
    gets a list of their results.

    Parameters:
      children: Messages, groups and pipelines; the latter are flattened. Messages are copied.
      broker: Where it runs; by default where its groups and pipelines do, else the default broker.
      on_error: What follows when a stage has failed for good. ``"fail"`` (the default): the pipeline has failed, too,
        and nothing more of it runs. ``"skip"``: the next stage gets None. ``"collect"``: the next stage gets
        ``{"type": ..., "message": ...}``. The latter two need a broker with a store of its own.

    Raises:
      ValueError: For another ``on_error``.
    """

    def __init__(self, children: Iterable[Any], *, broker: Broker | None = None, on_error: str = "fail") -> None:
        children = list(children)
        known = (child.broker for child in children if not isinstance(child, Message))
        self.broker: Any = broker or next(known, None) or get_broker()
        self.on_error = check_on_error(on_error)
        #: The stages: messages, and groups.
        self.messages: list[Any] = []
        for child in children:
            if isinstance(child, pipeline):
                self.messages += [_copy(stage) for stage in child.messages]
            else:
                self.messages.append(_copy(child))
        self._link()

    def _link(self) -> None:
        """Has each message of a short pipeline carry the next one, so that the first can be sent by itself, too."""
        is_short = is_nestable(self.messages, self.on_error)
        for stage, after in pairwise(self.messages):
            if isinstance(stage, Message):
                stage.options.pop(PIPE_TARGET, None)
                if is_short:
                    stage.options[PIPE_TARGET] = after.asdict()

    def __len__(self) -> int:
        """How many stages there are."""
        return len(self.messages)

    def __or__(self, other: Any) -> pipeline:
        """This pipeline with one more stage, or with those of another pipeline."""
        return pipeline([self, other], broker=self.broker, on_error=self.on_error)

    def __ror__(self, other: Any) -> pipeline:
        return pipeline([other, self], broker=self.broker, on_error=self.on_error)

    # --- running

    def run(self, *, delay: Any = None) -> pipeline:
        """Starts it; returns itself.

        Parameters:
          delay: Milliseconds or a timedelta until the first stage; or that stage's own ``delay`` if it is longer.

        Raises:
          ValueError: If there are no stages, or too many for a broker without a store.
          Exception: As ``broker.enqueue``.
        """
        planner, first, delay_ms = self._plan(delay)
        planner.run()
        self.broker.enqueue(first, delay=delay_ms)
        return self

    async def arun(self, *, delay: Any = None) -> pipeline:
        """``run`` for coroutines."""
        planner, first, delay_ms = self._plan(delay)
        if planner.ops:
            await asyncio.to_thread(planner.run)
        await self.broker.aenqueue(first, delay=delay_ms)
        return self

    def _plan(self, delay: Any) -> tuple[Planner, Message[Any], int | None]:
        planner = Planner(self.broker, set_ttl_ms(self.broker))
        first = self._first(planner, None)
        return planner, first, longest(delay, first.options.get("delay"))

    def _first(self, planner: Planner, membership: Membership | None, position: Position | None = None) -> Message[Any]:
        if not self.messages:
            raise ValueError("This pipeline has no stages.")
        return planner.pipeline(self.messages, self.on_error, membership)

    def _leaves(self) -> Iterable[Message[Any]]:
        return (leaf for stage in self.messages for leaf in leaves_of(stage))

    # --- results

    @property
    def completed(self) -> bool:
        """True if there is a result of the last stage, or a failure."""
        return has_ended(self.broker, self)

    @property
    def completed_count(self) -> int:
        """How many stages have ended, from the first on."""
        count = 0
        for stage in self.messages:
            if not has_ended(self.broker, stage):
                break
            count += 1
        return count

    def get_result(self, *, block: bool = False, timeout: int | None = None) -> Any:
        """The result of the last stage.

        Parameters:
          block: Wait for it.
          timeout: Milliseconds to wait at the most; 10 000 by default.

        Raises:
          ResultMissing: If ``block`` is False and there is none yet.
          ResultTimeout: If there was none in time.
          ResultFailure: As soon as a stage has failed for good.
        """
        return Waiter(self.broker, block=block, timeout=timeout).drive(self._steps(()))

    async def aget_result(
        self,
        *,
        block: bool = True,
        timeout: int | None = None,  # noqa: ASYNC109  # as in get_result
    ) -> Any:
        """``get_result`` for coroutines; it waits unless told otherwise."""
        return await Waiter(self.broker, block=block, timeout=timeout).adrive(self._steps(()))

    def get_results(self, *, block: bool = False, timeout: int | None = None) -> Iterator[Any]:
        """The results of all stages, in their order. Raises as ``get_result``, with ``timeout`` for all of them."""
        waiter = Waiter(self.broker, block=block, timeout=timeout)
        for stage in self.messages:
            yield waiter.drive(steps_of(stage, self._ends()))

    async def aget_results(
        self,
        *,
        block: bool = True,
        timeout: int | None = None,  # noqa: ASYNC109  # as in get_results
    ) -> list[Any]:
        """The results of all stages, as a list; it waits unless told otherwise."""
        waiter = Waiter(self.broker, block=block, timeout=timeout)
        return [await waiter.adrive(steps_of(stage, self._ends())) for stage in self.messages]

    def _ends(self) -> tuple[str, ...]:
        """Under what the failure of the whole is kept."""
        last = self.messages[-1]
        end = last.message_id if isinstance(last, Message) else last.id
        return (end,) if self.on_error == "fail" and end else ()

    def _steps(self, failures: tuple[str, ...]) -> Steps[Any]:
        if not self.messages:
            raise ResultMissing("This pipeline has no stages.")
        return (yield from steps_of(self.messages[-1], (*failures, *self._ends())))

    def __repr__(self) -> str:
        return f"pipeline({self.messages!r})"

    def __str__(self) -> str:
        return " | ".join(str(stage) for stage in self.messages)


def _copy(stage: Any) -> Any:
    return stage.copy()


def longest(delay: Any, own: Any) -> int | None:
    """The longer of two delays, in milliseconds."""
    delays = [ms for ms in (delay_to_ms(delay), delay_to_ms(own)) if ms is not None]
    return max(delays, default=None)


def has_ended(broker: Any, node: Any) -> bool:
    """Whether there is a result of a stage or a member, or a failure."""
    waiter = Waiter(broker, block=False, timeout=None)
    try:
        waiter.drive(steps_of(node, ()))
    except ResultMissing:
        return False
    except ResultFailure:
        return True
    return True


__all__ = ["pipeline"]
