"""Completion callbacks of groups on a backend of the user's own, as Dramatiq counts them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ..core.graph import PIPE_TARGET
from ..message import Message
from ..names import new_message_id
from ..ports.store import StoreFeatures
from ..settings import getenv_int
from .middleware import Middleware

if TYPE_CHECKING:
    from ..ports.nouns import ActorLike, BrokerLike

#: Milliseconds.
DEFAULT_BARRIER_TTL = 86_400_000


class GroupCallbacks(Middleware):
    """Sends the callbacks of groups.

    With a backend on the broker's own store there is nothing to do for it: the engine sends them, exactly once,
    whatever becomes of the members. A backend on another store (``rate_limits.StoreBackend``) keeps groups there: they
    complete whatever becomes of the members, too, and a kill at the wrong moment has callbacks sent twice. With a
    backend of a user's own it counts members that succeed, as Dramatiq does: a member that fails for good leaves the
    callbacks unsent.

    Parameters:
      rate_limiter_backend: What counts.
      barrier_ttl: How long a group is remembered, in milliseconds; a day by default. The environment variable
        ``dramatiq_group_callback_barrier_ttl`` is stronger.
    """

    def __init__(self, rate_limiter_backend: Any, *, barrier_ttl: int = DEFAULT_BARRIER_TTL) -> None:
        self.rate_limiter_backend = rate_limiter_backend
        self.barrier_ttl: int = getenv_int("dramatiq_group_callback_barrier_ttl") or barrier_ttl

    def idle_hooks(self, actor: ActorLike) -> frozenset[str]:
        return frozenset({"after_process_message"})  # members are known by an option

    @property
    def composition_store(self) -> Any:
        """The store under the backend, where groups are kept; None if there is none that could."""
        return store_for_compositions(self.rate_limiter_backend)

    def watched(
        self, children: Sequence[Any], callbacks: Sequence[dict[str, Any]], first: Callable[[Any], Message[Any]]
    ) -> list[Message[Any]]:
        """The first messages of a group's members, made so that each tells of its end; the count begins here.

        Raises:
          NotImplementedError: For a group inside of a group, or a member that is not nested.
        """
        key = new_message_id()
        marks = {"group_completion_uuid": key, "group_completion_callbacks": list(callbacks)}
        messages = [_marked(first(_message_like(child)), marks) for child in children]
        if messages:
            self._barrier(key).create(len(messages))
        return messages

    def after_process_message(
        self, broker: BrokerLike, message: Any, *, result: Any = None, exception: BaseException | None = None
    ) -> None:
        key = message.options.get("group_completion_uuid")
        callbacks = message.options.get("group_completion_callbacks")
        if exception is not None or not (key and callbacks):
            return
        if self._barrier(key).wait(block=False):
            for fields in callbacks:
                broker.enqueue(Message(**fields))

    def _barrier(self, key: str) -> Any:
        from ..rate_limits import Barrier  # most programs have no use for it

        backend = getattr(self.rate_limiter_backend, "counting", self.rate_limiter_backend)
        return Barrier(backend, key, ttl=self.barrier_ttl)


def store_for_compositions(backend: Any) -> Any:
    """The store under a backend of limits or results, if it can keep compositions; else None."""
    store = getattr(backend, "store", None)
    features = getattr(store, "features", None)
    return store if isinstance(features, StoreFeatures) and features.sets and features.leases else None


def _message_like(child: Any) -> Any:
    if hasattr(child, "children"):
        raise NotImplementedError(
            "A group inside of a group that has callbacks needs a store to keep them in: the broker's own, or "
            "GroupCallbacks with a backend on one."
        )
    return child


def _marked(message: Message[Any], marks: dict[str, Any]) -> Message[Any]:
    """The message, with the marks on the last stage of its pipeline."""
    target = message.options.get(PIPE_TARGET)
    if target is None:
        return message.copy(options=marks)
    return message.copy(options={PIPE_TARGET: _marked(Message(**target), marks).asdict()})
