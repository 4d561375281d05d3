"""The base class of middleware: every hook, with one sentence on when it runs and what an error in it does.

Hooks observe; verdicts decide; ``wrap`` scopes. ``before_*`` hooks run in the order of the list, ``after_*`` hooks in
reverse. In a ``before_*`` hook a ``MiddlewareError`` reaches the caller (an enqueue is vetoed, a message skipped); any
other exception, and every exception in an ``after_*`` hook, is logged as critical and swallowed.

A hook that a subclass does not override costs nothing: the broker compiles the overridden ones into a table.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import MiddlewareError, SkipMessage, StaleLease

if TYPE_CHECKING:
    from ..core.ending import Ending
    from ..ports.nouns import ActorLike, BrokerLike, ThreadLike, WorkerLike
    from ..ports.store import StoreOp

__all__ = ["Middleware", "MiddlewareError", "SkipMessage"]


class Middleware:
    """Base class of middleware. Its hooks do nothing."""

    #: True if the hooks of an async actor may block: they then run on the hook thread instead of the event loop.
    blocking: bool = False

    @property
    def actor_options(self) -> set[str]:
        """The names of the options that this middleware lets an actor have."""
        return set()

    @property
    def message_options(self) -> set[str]:
        """The names of the options that only a message may have."""
        return set()

    @property
    def forks(self) -> list[Callable[[], int]]:
        """Functions that the command line runs in processes of their own, beside the workers."""
        return []

    def idle_hooks(self, actor: ActorLike) -> frozenset[str]:
        """Which of ``before_process_message``, ``after_process_message`` and ``ending`` do nothing for this actor's
        messages, as long as a message carries no options and succeeds. They are then not called: a worker asks once an
        actor."""
        return frozenset()

    # --- the life of a message, on the sender's side

    def before_enqueue(self, broker: BrokerLike, message: Any, delay: int | None) -> None:
        """Before a message is sent; ``delay`` in milliseconds. Raise ``MiddlewareError`` to veto it."""

    def after_enqueue(self, broker: BrokerLike, message: Any, delay: int | None) -> None:
        """After the broker has accepted a message."""

    def before_delay_message(self, broker: BrokerLike, message: Any) -> None:
        """Before a message that is not due yet is put aside."""

    # --- ... and in a worker

    def before_process_message(self, broker: BrokerLike, message: Any) -> None:
        """Before an actor runs. Raise ``SkipMessage`` so that it does not."""

    def after_process_message(
        self, broker: BrokerLike, message: Any, *, result: Any = None, exception: BaseException | None = None
    ) -> None:
        """After an actor has run: with what it returned, or with what it raised."""

    def after_skip_message(self, broker: BrokerLike, message: Any) -> None:
        """After a message was skipped."""

    def before_ack(self, broker: BrokerLike, message: Any) -> None:
        """Before a message is settled as done."""

    def after_ack(self, broker: BrokerLike, message: Any) -> None:
        """After the broker has settled a message as done."""

    def before_nack(self, broker: BrokerLike, message: Any) -> None:
        """Before a message goes to the dead letters."""

    def after_nack(self, broker: BrokerLike, message: Any) -> None:
        """After a message has gone to the dead letters."""

    def after_stale_lease(self, broker: BrokerLike, message: Any, error: StaleLease) -> None:
        """After the broker has refused to settle a message, because it has been given to somebody else meanwhile: this
        worker was taken for dead. Nothing was changed; ``before_ack`` or ``before_nack`` has been called, ``after_ack``
        and ``after_nack`` are not."""

    # --- declarations

    def before_declare_actor(self, broker: BrokerLike, actor: ActorLike) -> None:
        """Before an actor is declared."""

    def after_declare_actor(self, broker: BrokerLike, actor: ActorLike) -> None:
        """After an actor was declared. Also called for the actors that exist when a middleware is added."""

    def before_declare_queue(self, broker: BrokerLike, queue_name: str) -> None:
        """Before a queue is declared."""

    def after_declare_queue(self, broker: BrokerLike, queue_name: str) -> None:
        """After a queue was declared. Also called for the queues that exist when a middleware is added."""

    def after_declare_delay_queue(self, broker: BrokerLike, queue_name: str) -> None:
        """After the delayed side of a queue was declared (``default.DQ``)."""

    # --- the life of a worker

    def after_process_boot(self, broker: BrokerLike) -> None:
        """In a fresh worker process, after its modules were imported and before its worker starts."""

    def before_worker_boot(self, broker: BrokerLike, worker: WorkerLike) -> None:
        """Before a worker starts."""

    def after_worker_boot(self, broker: BrokerLike, worker: WorkerLike) -> None:
        """After a worker has started."""

    def before_worker_shutdown(self, broker: BrokerLike, worker: WorkerLike) -> None:
        """Before a worker stops."""

    def after_worker_shutdown(self, broker: BrokerLike, worker: WorkerLike) -> None:
        """After a worker has stopped."""

    def after_consumer_thread_boot(self, broker: BrokerLike, thread: ThreadLike) -> None:
        """After a worker has begun to consume a queue; ``thread`` is a view with ``queue_name``."""

    def before_consumer_thread_shutdown(self, broker: BrokerLike, thread: ThreadLike) -> None:
        """Before a worker ceases to consume a queue."""

    def after_worker_thread_boot(self, broker: BrokerLike, thread: ThreadLike) -> None:
        """In a worker thread, after it has started."""

    def before_worker_thread_shutdown(self, broker: BrokerLike, thread: ThreadLike) -> None:
        """In a worker thread, before it ends."""

    # --- what is kept beside messages: for the library's own middleware, and not stable

    def envelope_writes(self, broker: BrokerLike, message: Any) -> Sequence[StoreOp]:
        """What the broker's own store is to do in one step with sending this message. Not called for retries, nor by
        brokers that have no store of their own. Keep it short, and raise nothing: it would be the sender's error."""
        return ()

    def ending(self, broker: BrokerLike, ending: Ending) -> None:
        """When it is decided what becomes of a message: says what is to be kept, or sent, in one step with that. In the
        thread that has run it, after all other hooks but ``after_ack`` and its like; on the event loop for an async
        actor. Exceptions are logged."""

    # --- the onion

    def wrap(self, broker: BrokerLike, message: Any, call_next: Callable[[], Any]) -> Any:
        """Around the call of a sync actor, inside the hooks: return ``call_next()``, with what belongs around it."""
        return call_next()

    async def awrap(self, broker: BrokerLike, message: Any, call_next: Callable[[], Any]) -> Any:
        """Around the call of an async actor: return ``await call_next()``, with what belongs around it."""
        return await call_next()
