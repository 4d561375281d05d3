"""Actors: functions that can be sent."""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from typing import Any, Generic, ParamSpec, Protocol, TypeVar, overload

from .broker import Broker, declare_later, get_broker, peek_broker
from .clock import current_millis
from .core.options import check_options, check_priority
from .logging import get_logger
from .message import Message
from .names import check_actor_name, check_queue_name, new_message_id

P = ParamSpec("P")
R = TypeVar("R")

#: Options whose value may be an actor; what travels is its name.
_ACTOR_VALUED = ("on_success", "on_failure", "on_retry_exhausted")


class Actor(Generic[P, R]):
    """A function and how to run it. Calling the actor calls the function, here and now; ``send`` has a worker do it.

    Parameters:
      fn: The function.
      broker: Where to send to; None means ``get_broker()`` at each send.
      actor_name: Its name on the wire, unique within a broker.
      queue_name: The queue its messages go to.
      priority: -1000 to 1000; lower runs sooner.
      options: What the broker's middleware reads.
    """

    def __init__(
        self,
        fn: Callable[P, R],
        *,
        broker: Broker | None,
        actor_name: str,
        queue_name: str,
        priority: int,
        options: dict[str, Any],
    ) -> None:
        self.logger = get_logger(fn.__module__ or "_", actor_name)
        self.fn = fn
        self.actor_name = check_actor_name(actor_name)
        self.queue_name = check_queue_name(queue_name)
        self.priority = check_priority(priority)
        self.options = _checked(options)
        self.is_async = inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(type(fn).__call__)
        #: What a worker calls: the function itself, unless a subclass has its own way of being called.
        self.run: Callable[..., Any] = fn if type(self).__call__ is Actor.__call__ else self
        self._broker = broker
        if broker is None:
            broker = peek_broker()
        if broker is None:
            declare_later(self)
        else:
            broker.declare_actor(self)

    @property
    def broker(self) -> Broker:
        """The broker this actor was given, or else the default broker of the moment. May be set."""
        return self._broker if self._broker is not None else get_broker()

    @broker.setter
    def broker(self, broker: Broker | None) -> None:
        self._broker = broker

    def message(self, *args: P.args, **kwargs: P.kwargs) -> Message[R]:
        """Builds the message that ``send`` would send."""
        return Message(self.queue_name, self.actor_name, args, kwargs, {}, new_message_id(), self._now_ms())

    def message_with_options(
        self, *, args: Iterable[Any] = (), kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> Message[R]:
        """Builds the message that ``send_with_options`` would send.

        Raises:
          TypeError: If ``on_success`` or its like is neither an actor, nor a name, nor None.
          ValueError: For an option out of its bounds, such as a negative ``max_retries``.
        """
        options = _checked(options)
        return Message(
            self.queue_name,
            self.actor_name,
            tuple(args),
            dict(kwargs or {}),
            options,
            new_message_id(),
            self._now_ms(),
        )

    def send(self, *args: P.args, **kwargs: P.kwargs) -> Message[R]:
        """Sends a message; returns once the broker keeps it, or raises."""
        broker = self._target()
        return broker.enqueue(
            Message(self.queue_name, self.actor_name, args, kwargs, {}, new_message_id(), broker.clock.now_ms())
        )

    def send_with_options(
        self,
        *,
        args: Iterable[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        delay: int | timedelta | None = None,
        **options: Any,
    ) -> Message[R]:
        """Sends a message with options of its own.

        Parameters:
          args: Positional arguments of the actor.
          kwargs: Keyword arguments of the actor.
          delay: Milliseconds or a timedelta; not to be run before then.
          options: Stronger than the actor's.
        """
        message: Message[R] = self.message_with_options(args=args, kwargs=kwargs, **options)
        return self._target().enqueue(message, delay=delay)

    def send_many(
        self, items: Iterable[tuple[Any, ...] | Message[Any]], *, delay: int | timedelta | None = None, **options: Any
    ) -> int:
        """Sends many messages, a thousand at a time; each thousand is accepted as a whole or not at all.

        Parameters:
          items: Tuples of positional arguments, or messages. Read lazily.
          delay: Milliseconds or a timedelta, for all.
          options: For all.

        Returns:
          How many were sent.

        Raises:
          TypeError: For an item that is neither a tuple nor a message.
          Exception: What the broker or a middleware raised, with ``accepted`` (how many messages were accepted) and
            ``index`` (the position of the first item of the chunk that was not) set on it.
        """
        broker = self._target()
        options = _checked(options)
        return broker.enqueue_many(self._messages(items, options), delay=delay)

    async def asend(self, *args: P.args, **kwargs: P.kwargs) -> Message[R]:
        """``send`` for coroutines: does not block the event loop. What many coroutines send at a time goes together."""
        broker = self._target()
        return await broker.aenqueue(
            Message(self.queue_name, self.actor_name, args, kwargs, {}, new_message_id(), broker.clock.now_ms())
        )

    async def asend_with_options(
        self,
        *,
        args: Iterable[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        delay: int | timedelta | None = None,
        **options: Any,
    ) -> Message[R]:
        """``send_with_options`` for coroutines."""
        message: Message[R] = self.message_with_options(args=args, kwargs=kwargs, **options)
        return await self._target().aenqueue(message, delay=delay)

    async def asend_many(
        self, items: Iterable[tuple[Any, ...] | Message[Any]], *, delay: int | timedelta | None = None, **options: Any
    ) -> int:
        """``send_many`` for coroutines."""
        broker = self._target()
        options = _checked(options)
        return await broker.aenqueue_many(self._messages(items, options), delay=delay)

    def _messages(self, items: Iterable[Any], options: dict[str, Any]) -> Iterable[Message[Any]]:
        queue_name, actor_name, now_ms = self.queue_name, self.actor_name, self._now_ms()
        for index, item in enumerate(items):
            if isinstance(item, tuple):
                yield Message(queue_name, actor_name, item, {}, dict(options), new_message_id(), now_ms)
            elif isinstance(item, Message):
                yield item.copy(options=options) if options else item
            else:
                raise TypeError(
                    f"Item {index} of send_many is of type {type(item).__name__}: items must be tuples of positional "
                    f"arguments, as in {self.actor_name}.send_many([(1,), (2,)]), or messages."
                )

    def _now_ms(self) -> int:
        broker = self._broker or peek_broker()
        return broker.clock.now_ms() if broker is not None else current_millis()

    def _target(self) -> Broker:
        """The broker to send to. One that does not know this actor yet is told of it."""
        broker = self._broker
        if broker is None:
            broker = get_broker()
            if broker.actors.get(self.actor_name) is not self:
                broker.declare_actor(self)
        return broker

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Calls the function in the calling thread. For an async actor this returns its coroutine."""
        if self.is_async or not self.logger.isEnabledFor(logging.DEBUG):
            return self.fn(*args, **kwargs)
        self.logger.debug("Received args=%r kwargs=%r.", args, kwargs)
        started = time.perf_counter()
        try:
            return self.fn(*args, **kwargs)
        finally:
            self.logger.debug("Completed after %.02fms.", (time.perf_counter() - started) * 1000)

    def __repr__(self) -> str:
        return f"Actor({self.fn!r}, queue_name={self.queue_name!r}, actor_name={self.actor_name!r})"

    def __str__(self) -> str:
        return f"Actor({self.actor_name})"


class ActorDecorator(Protocol):
    """What ``actor(...)`` returns. It may decorate any number of functions."""

    @overload
    def __call__(self, fn: Callable[P, R]) -> Actor[P, R]: ...
    @overload
    def __call__(self, fn: type[Any]) -> Actor[..., Any]: ...


@overload
def actor(
    fn: Callable[P, R],
    *,
    actor_class: Callable[..., Actor[P, R]] = ...,
    actor_name: str | None = None,
    queue_name: str = "default",
    priority: int = 0,
    broker: Broker | None = None,
    **options: Any,
) -> Actor[P, R]: ...
@overload
def actor(
    fn: None = None,
    *,
    actor_class: Callable[..., Actor[Any, Any]] = ...,
    actor_name: str | None = None,
    queue_name: str = "default",
    priority: int = 0,
    broker: Broker | None = None,
    **options: Any,
) -> ActorDecorator: ...
def actor(
    fn: Callable[..., Any] | None = None,
    *,
    actor_class: Callable[..., Actor[Any, Any]] = Actor,
    actor_name: str | None = None,
    queue_name: str = "default",
    priority: int = 0,
    broker: Broker | None = None,
    **options: Any,
) -> Any:
    """Makes a function an actor; used with or without parentheses.

    Parameters:
      fn: The function.
      actor_class: What to build; ``Actor`` by default.
      actor_name: Its name on the wire; the function's name by default.
      queue_name: The queue its messages go to; ``"default"`` by default.
      priority: -1000 to 1000, lower runs sooner; 0 by default.
      broker: Where it is declared and sent; None means the default broker at each send.
      options: What the broker's middleware reads; one that none of them defines is a ``ValueError``.

    Raises:
      ValueError: For a bad name or priority, an undefined option, or a name that is taken.
    """

    def decorate(function: Callable[..., Any]) -> Actor[Any, Any]:
        return actor_class(
            function,
            actor_name=actor_name or function.__name__,
            queue_name=queue_name,
            priority=priority,
            broker=broker,
            options=dict(options),
        )

    return decorate if fn is None else decorate(fn)


def _checked(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options as they travel: checked, with names in place of actors."""
    if not options:
        return {}
    check_options(options)
    return {name: _actor_to_name(name, value) for name, value in options.items()}


def _actor_to_name(option: str, value: Any) -> Any:
    if option not in _ACTOR_VALUED or value is None or isinstance(value, str):
        return value
    value = getattr(value, "__actor__", value)  # a GenericActor stands for its actor
    if isinstance(value, Actor):
        return value.actor_name
    raise TypeError(f"{option} value must be an Actor")
