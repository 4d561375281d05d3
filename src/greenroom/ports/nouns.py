"""The public nouns as the floors below them may see them: protocols, so that a hook's annotations import nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from ..clock import Clock


class ActorLike(Protocol):
    """An actor, as a middleware sees it."""

    actor_name: str
    queue_name: str
    priority: int
    options: dict[str, Any]
    #: What a worker calls.
    run: Callable[..., Any]


class BrokerLike(Protocol):
    """A broker, as a middleware sees it."""

    clock: Clock
    actors: dict[str, Any]
    actor_options: set[str]
    transport: Any

    @property
    def store(self) -> Any: ...

    @property
    def composition_store(self) -> Any: ...

    def get_actor(self, actor_name: str) -> Any: ...

    def enqueue(self, message: Any, *, delay: Any = None) -> Any: ...


class WorkerLike(Protocol):
    """A worker, as a middleware sees it."""

    broker: Any
    worker_threads: int


class ThreadLike(Protocol):
    """A consumer or worker thread, as a middleware sees it."""

    broker: Any


Messages = Sequence[Any]
