"""Brokers: where actors and queues are declared, and where messages go."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

from . import seams
from .clock import SYSTEM_CLOCK, Clock
from .core.chunks import InChunks
from .core.hooks import HookTable
from .core.options import (
    OWN_ACTOR_OPTIONS,
    OWN_MESSAGE_OPTIONS,
    check_max_crashes,
    near_name,
    undefined_options_error,
)
from .core.run import MessageProxy
from .core.suspects import DEFAULT_MAX_CRASHES
from .core.unknown_actor import DEFAULT_TTL_MS
from .errors import ActorNotFound, MiddlewareError
from .logging import get_logger
from .message import MAX_MESSAGE_BYTES, Message
from .middleware import Middleware, default_middleware
from .middleware.middleware_list import MiddlewareList
from .names import dq_name, q_name
from .ports.transport import Envelope

__all__ = ["Broker", "Consumer", "MessageProxy", "get_broker", "set_broker"]

#: How many messages ``enqueue_many`` hands over at a time.
CHUNK = 1000

#: What workers listen for: brokers of a user's own have to emit these, too.
_DECLARES = frozenset(("declare_queue", "declare_delay_queue"))

#: The default broker; None until one is set or asked for.
global_broker: Broker | None = None
_undeclared: list[weakref.ref[Any]] = []


def get_broker() -> Broker:
    """The default broker. If none was set it is built now: from ``GREENROOM_URL`` if that is set, else a
    ``SqliteBroker`` on ``.greenroom/queue.db``. Building it touches no file."""
    if global_broker is None:
        set_broker(seams.default_broker())
    assert global_broker is not None
    return global_broker


def peek_broker() -> Broker | None:
    """The default broker, or None if none was set; builds nothing."""
    return global_broker


def set_broker(broker: Broker) -> None:
    """Makes ``broker`` the default one. Actors that were declared while there was none are declared on it."""
    global global_broker
    global_broker = broker
    waiting, _undeclared[:] = list(_undeclared), []
    for reference in waiting:
        actor = reference()
        if actor is not None and broker.actors.get(actor.actor_name) is not actor:
            broker.declare_actor(actor)


def declare_later(actor: Any) -> None:
    """Remembers an actor, weakly, for the first default broker that there is."""
    _undeclared.append(weakref.ref(actor))


class Broker:
    """Base class of brokers. What a broker of one's own must bring: ``enqueue``, ``declare_queue`` and ``consume``.

    Such a broker runs under ``Worker`` as it would under Dramatiq's, with the guarantees that it has there.

    Parameters:
      middleware: Instances, in order; None for one of each of ``default_middleware``.
      max_message_bytes: The largest encoded message that is accepted; 16 MiB by default.
      strict_options: If True, a message option that nobody knows raises instead of warning.
      unknown_actor_ttl_ms: How long a message is kept trying whose actor no worker knows; 15 minutes by default.
      max_crashes: After how many crashes of the workers that ran it a message is dead-lettered, for actors and messages
        that say nothing; 3 by default, None for never. Engines that see no crashes count none.
      clock: What the broker and its workers take for the time.
    """

    #: The engine below; None for a broker of a user's own, whose ``consume`` a worker calls.
    transport: Any = None
    #: The engine's own ``Store``, where what is kept beside messages is written in one step with them; None if this
    #: broker has none.
    store: Any = None

    def __init__(
        self,
        middleware: Iterable[Middleware] | None = None,
        *,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        strict_options: bool = False,
        unknown_actor_ttl_ms: int = DEFAULT_TTL_MS,
        max_crashes: int | None = DEFAULT_MAX_CRASHES,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        check_max_crashes("max_crashes", max_crashes)
        self.logger = get_logger(type(self).__module__, type(self))
        self.actors: dict[str, Any] = {}
        self.queues: Any = {}
        self.delay_queues: set[str] = set()
        self.actor_options: set[str] = set(OWN_ACTOR_OPTIONS)
        self.max_message_bytes = max_message_bytes
        self.strict_options = strict_options
        self.unknown_actor_ttl_ms = unknown_actor_ttl_ms
        self.max_crashes = max_crashes
        self.clock = clock
        #: Called with the name of each queue that is declared; workers listen here.
        self.queue_listeners: list[Callable[[str], None]] = []
        #: Actors whose results were discarded, because a warning of it is enough.
        self.returned_in_vain: set[Any] = set()
        self._hooks: HookTable | None = None
        self._middleware = MiddlewareList([], self._forget_hooks)
        if middleware is None:
            middleware = [m() for m in default_middleware]
        for m in middleware:
            self.add_middleware(m)

    # --- middleware

    @property
    def middleware(self) -> list[Middleware]:
        """The middleware, in order. Changing the list takes effect with the next message."""
        return self._middleware

    @middleware.setter
    def middleware(self, middleware: Iterable[Middleware]) -> None:
        self._middleware = MiddlewareList(middleware, self._forget_hooks)
        self._forget_hooks()

    @property
    def hooks(self) -> HookTable:
        """The hooks that this broker's middleware overrides, compiled."""
        hooks = self._hooks
        if hooks is None:
            hooks = self._hooks = HookTable(self._middleware, Middleware)
        return hooks

    @property
    def composition_store(self) -> Any:
        """The ``Store`` that keeps groups and long pipelines: the one that ``GroupCallbacks`` was given a backend on;
        else ``store``, this broker's own; else that of the results. None if there is none of these.

        Where it is not ``store``, what it keeps and what becomes of messages are two steps.
        """
        if self.transport is None:
            return None
        offered = self.hooks.composition_store
        if offered is not None and not offered.is_one_with(self.transport):
            return offered
        return self.hooks.spare_store if self.store is None else self.store

    @property
    def _why_no_store(self) -> str:
        """The rest of an error's sentence, for a composition that needs a store."""
        return f"{type(self).__name__} has none"

    def _forget_hooks(self) -> None:
        self._hooks = None

    def add_middleware(
        self,
        middleware: Middleware,
        *,
        before: type[Middleware] | None = None,
        after: type[Middleware] | None = None,
    ) -> None:
        """Adds a middleware: at the end, or before or after the first one of a class.

        It is told of all actors and queues that are declared already.

        Raises:
          AssertionError: If both ``before`` and ``after`` are given.
          ValueError: If there is no middleware of that class.
        """
        assert not (before and after), "provide either 'before' or 'after', but not both"
        if any(type(m) is type(middleware) for m in self._middleware):
            self.logger.warning(
                "You're adding a middleware of the same type twice: %s. Is this intended?", type(middleware)
            )
        if before or after:
            wanted = before or after
            for index, present in enumerate(self._middleware):  # noqa: B007  # used below
                if wanted is not None and isinstance(present, wanted):
                    break
            else:
                raise ValueError(f"Middleware {wanted!r} not found")
            self._middleware.insert(index if before else index + 1, middleware)
        else:
            self._middleware.append(middleware)
        self.actor_options |= getattr(middleware, "actor_options", set())
        self._tell_declared(HookTable([middleware], Middleware))

    def _tell_declared(self, hooks: HookTable) -> None:
        for hook in hooks.get("after_declare_actor"):
            for name in self.get_declared_actors():
                hook(self, self.actors[name])
        for hook in hooks.get("after_declare_queue"):
            for name in self.get_declared_queues():
                hook(self, name)
        for hook in hooks.get("after_declare_delay_queue"):
            for name in self.get_declared_delay_queues():
                hook(self, name)

    def emit_before(self, signal: str, *args: Any, **kwargs: Any) -> None:
        """Runs the hooks ``before_<signal>``. A ``MiddlewareError`` goes through, other exceptions are logged."""
        for hook in self.hooks.get(f"before_{signal}"):
            try:
                hook(self, *args, **kwargs)
            except MiddlewareError:
                raise
            except Exception:  # noqa: BLE001  # a broken hook must not stop the others
                self._hook_failed("before", signal, hook)

    def emit_after(self, signal: str, *args: Any, **kwargs: Any) -> None:
        """Runs the hooks ``after_<signal>``, in reverse. Exceptions are logged."""
        for hook in self.hooks.get(f"after_{signal}"):
            try:
                hook(self, *args, **kwargs)
            except Exception:  # noqa: BLE001  # a broken hook must not stop the others
                self._hook_failed("after", signal, hook)
        if signal in _DECLARES:
            for listener in list(self.queue_listeners):
                listener(q_name(args[0]))

    def _hook_failed(self, when: str, signal: str, hook: Callable[..., Any]) -> None:
        owner = type(getattr(hook, "__self__", hook)).__name__
        self.logger.critical("Unexpected failure in %s_%s of %s.", when, signal, owner, exc_info=True)

    def note_failure(self, message: MessageProxy, exception: BaseException) -> None:
        """Called in a worker with every exception that an actor raised, before the hooks. Does nothing here; brokers
        for tests keep it, to raise it again where the test can see it."""

    def note_retry(self, message: MessageProxy, envelope: Envelope, delay_ms: int) -> None:
        """Called in a worker when a message that failed is about to be replaced by ``envelope``. Does nothing here."""

    # --- declarations

    def declare_actor(self, actor: Any) -> None:
        """Declares an actor, and its queue. Declaring the same one again does nothing.

        Raises:
          ValueError: If another actor has that name, or it has options that no middleware defines.
        """
        present = self.actors.get(actor.actor_name)
        if present is actor:
            return
        if present is not None:
            raise ValueError(f"An actor named {actor.actor_name!r} is already registered.")
        if undefined := set(actor.options) - self.actor_options:
            raise ValueError(undefined_options_error(undefined, self.actor_options))
        self.emit_before("declare_actor", actor)
        self.declare_queue(actor.queue_name)
        self.actors[actor.actor_name] = actor
        self.emit_after("declare_actor", actor)

    def declare_queue(self, queue_name: str) -> None:
        """Declares a queue, and its delayed side. Declaring it again does nothing."""
        if queue_name in self.queues:
            return
        self.emit_before("declare_queue", queue_name)
        self._add_queue(queue_name)
        self.emit_after("declare_queue", queue_name)
        delayed = dq_name(queue_name)
        self.delay_queues.add(delayed)
        self.emit_after("declare_delay_queue", delayed)

    def _add_queue(self, queue_name: str) -> None:
        if isinstance(self.queues, set):
            self.queues.add(queue_name)
        else:
            self.queues[queue_name] = None

    def get_actor(self, actor_name: str) -> Any:
        """The actor of that name.

        Raises:
          ActorNotFound: If it was never declared; the text suggests the near name.
        """
        try:
            return self.actors[actor_name]
        except KeyError:
            near = near_name(actor_name, self.actors)
            hint = f" Did you mean {near!r}?" if near else ""
            raise ActorNotFound(f"{actor_name}{'.' if hint else ''}{hint}") from None

    def get_declared_actors(self) -> set[str]:
        """The names of all declared actors."""
        return set(self.actors)

    def get_declared_queues(self) -> set[str]:
        """The names of all declared queues."""
        return set(self.queues)

    def get_declared_delay_queues(self) -> set[str]:
        """The names of the delayed sides of all declared queues (``default.DQ``)."""
        return set(self.delay_queues)

    # --- messages

    def enqueue(self, message: Message[Any], *, delay: Any = None) -> Message[Any]:
        """Sends a message, not to be run before ``delay`` milliseconds are over; returns what was sent."""
        raise NotImplementedError

    def enqueue_many(self, messages: Iterable[Message[Any]], *, delay: Any = None) -> int:
        """Sends many messages, read lazily, a thousand at a time. Returns how many were accepted.

        Raises:
          Exception: What the broker or a middleware raised, with ``accepted`` and ``index`` set on it: how many
            messages were accepted, and the position of the first item of the chunk that was not.
        """
        with InChunks(messages, CHUNK) as chunks:
            for chunk in chunks:
                self._enqueue_chunk(chunk, delay)
        return chunks.accepted

    def _enqueue_chunk(self, chunk: list[Message[Any]], delay: Any) -> None:
        for message in chunk:
            self.enqueue(message, delay=delay)

    async def aenqueue(self, message: Message[Any], *, delay: Any = None) -> Message[Any]:
        """``enqueue`` for coroutines: it does not block the event loop."""
        import asyncio  # a quarter of the time that importing this library takes, and most programs never get here

        return await asyncio.get_running_loop().run_in_executor(None, partial(self.enqueue, message, delay=delay))

    async def aenqueue_many(self, messages: Iterable[Message[Any]], *, delay: Any = None) -> int:
        """``enqueue_many`` for coroutines. Raises as that does."""
        with InChunks(messages, CHUNK) as chunks:
            for chunk in chunks:
                await self._aenqueue_chunk(chunk, delay)
        return chunks.accepted

    async def _aenqueue_chunk(self, chunk: list[Message[Any]], delay: Any) -> None:
        for message in chunk:
            await self.aenqueue(message, delay=delay)

    def check_message_options(self, message: Message[Any]) -> None:
        """Warns (or with ``strict_options`` raises ``ValueError``) about options that look misspelt."""
        if OWN_MESSAGE_OPTIONS.issuperset(message.options):
            return
        unknown = message.options.keys() - self.actor_options - OWN_MESSAGE_OPTIONS
        if not unknown:
            return
        known = self.actor_options | OWN_MESSAGE_OPTIONS
        for m in self._middleware:
            known |= getattr(m, "message_options", set())
        for name in unknown - known:
            near = near_name(name, known)
            if self.strict_options or near:
                hint = f" Did you mean {near!r}?" if near else ""
                self._misspelt(message.actor_name, name, f"Unknown option {name!r} of a message.{hint}")

    def _misspelt(self, actor_name: str, option: str, text: str) -> None:
        if self.strict_options:
            raise ValueError(text)
        warned: set[tuple[str, str]] = self.__dict__.setdefault("_warned_options", set())
        if (actor_name, option) not in warned:
            warned.add((actor_name, option))
            self.logger.warning("%s (actor %r)", text, actor_name)

    def consume(self, queue_name: str, prefetch: int = 1, timeout: int = 30000) -> Consumer:
        """An iterator over the messages of a queue.

        Parameters:
          queue_name: The queue.
          prefetch: How many messages may be fetched ahead.
          timeout: Milliseconds after which an idle iteration yields None.
        """
        raise NotImplementedError

    def flush(self, queue_name: str) -> None:
        """Deletes all ready and delayed messages of a queue."""
        raise NotImplementedError

    def flush_all(self) -> None:
        """Deletes all ready and delayed messages of all declared queues."""
        raise NotImplementedError

    def join(self, queue_name: str, *, timeout: int | None = None) -> None:
        """Waits until a queue is empty and nothing of it runs.

        Parameters:
          timeout: Milliseconds; None to wait for ever.

        Raises:
          QueueJoinTimeout: If that took longer.
        """
        raise NotImplementedError

    def wait_for_worker(self, queue_name: str, check: Callable[[], object]) -> None:
        """What ``Worker.join`` calls for each of its queues: ``join``, here. Brokers for tests keep actors' exceptions
        out of it.

        Parameters:
          queue_name: The queue.
          check: Raises when waiting has become vain, because the worker has failed; called now and then by brokers that
            can.
        """
        check()
        self.join(queue_name)

    def get_results_backend(self) -> Any:
        """The backend of the ``Results`` middleware; ``RuntimeError`` if there is none."""
        from .results import Results  # most programs never ask

        for m in self._middleware:
            if isinstance(m, Results):
                return m.backend_for(self)
        raise RuntimeError("The broker doesn't have a results backend: add the Results middleware.")

    def get_result(self, message_id: str, *, block: bool = False, timeout: int | None = None) -> Any:
        """The result of the message of that id, from any process.

        Parameters:
          message_id: The id; or the message, for backends that do not find results by the id alone.
          block: Wait for the result to be there.
          timeout: Milliseconds to wait at the most; 10 000 by default.

        Raises:
          ResultMissing: If ``block`` is False and there is none: ``ResultPending`` if it is to come, ``ResultUnknown``
            if nothing is known of such a message.
          ResultTimeout: If there was none in time.
          ResultFailure: If the actor failed.
          RuntimeError: If there is no result backend, or it cannot do that.
        """
        return self.get_results_backend().get_result(message_id, block=block, timeout=timeout)

    async def aget_result(
        self,
        message_id: str,
        *,
        block: bool = False,
        timeout: int | None = None,  # noqa: ASYNC109  # as in get_result
    ) -> Any:
        """``get_result`` for coroutines: it does not block the event loop."""
        return await self.get_results_backend().aget_result(message_id, block=block, timeout=timeout)

    def close(self) -> None:
        """Closes what this process has opened."""


class Consumer:
    """Base class of consumers: an iterator over the messages of one queue, for brokers of one's own."""

    def __iter__(self) -> Iterator[MessageProxy | None]:
        return self

    def ack(self, message: MessageProxy) -> None:
        """Says that a message is done."""
        raise NotImplementedError

    def nack(self, message: MessageProxy) -> None:
        """Moves a message to the dead letters."""
        raise NotImplementedError

    def requeue(self, messages: Iterable[MessageProxy]) -> None:
        """Gives messages back."""
        raise NotImplementedError

    def __next__(self) -> MessageProxy | None:
        """The next message, or None after the idle timeout."""
        raise NotImplementedError

    def close(self) -> None:
        """Closes the consumer."""
