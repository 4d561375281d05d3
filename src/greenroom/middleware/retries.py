"""Failed messages are tried again, with exponential backoff."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..core.calls import is_wrong_call
from ..core.failure import traceback_of
from ..core.options import check_options
from ..core.retry import (
    DEFAULT_MAX_BACKOFF,
    DEFAULT_MAX_RETRIES,
    DEFAULT_MIN_BACKOFF,
    is_exhausted,
    is_expected,
    retry_delay_ms,
    wanted_delay_ms,
)
from ..errors import RateLimitExceeded, Retry
from ..logging import get_logger
from .middleware import Middleware

if TYPE_CHECKING:
    from ..ports.nouns import ActorLike, BrokerLike

RetryWhen = Callable[[int, "BaseException | None"], bool]


class Retries(Middleware):
    """Plans another attempt for a message whose actor raised.

    Each option of the same name, on a message or an actor, is stronger than the parameter.

    Parameters:
      max_retries: Attempts after the first; 20 by default, None for no end, 0 for none.
      min_backoff: Milliseconds; 15 000 by default.
      max_backoff: Milliseconds; seven days by default, which is also the most that is possible.
      retry_when: ``f(retries so far, exception) -> bool``, asked instead of ``max_retries``.
      retry_wrong_calls: Try again, too, what failed because the actor does not take the message's arguments. False by
        default: such a message fails for good at once, unless a ``retry_when`` decides.

    Options of actors only: ``retry_when``; ``throws``, an exception class or several that are expected and not
    retried; ``on_retry_exhausted``, an actor that is sent ``(message, {"retries", "max_retries"})`` at the end.
    """

    def __init__(
        self,
        *,
        max_retries: int | None = DEFAULT_MAX_RETRIES,
        min_backoff: int | None = None,
        max_backoff: int | None = None,
        retry_when: RetryWhen | None = None,
        retry_wrong_calls: bool = False,
    ) -> None:
        check_options({"max_retries": max_retries, "min_backoff": min_backoff, "max_backoff": max_backoff})
        self.logger = get_logger(__name__, type(self))
        self.max_retries = max_retries
        self.min_backoff = DEFAULT_MIN_BACKOFF if min_backoff is None else min_backoff
        self.max_backoff = DEFAULT_MAX_BACKOFF if max_backoff is None else max_backoff
        self.retry_when = retry_when
        self.retry_wrong_calls = retry_wrong_calls
        #: Where the jitter comes from; tests seed one of their own.
        self.random = random.Random()

    @property
    def actor_options(self) -> set[str]:
        return {"max_retries", "min_backoff", "max_backoff", "retry_when", "throws", "on_retry_exhausted"}

    def idle_hooks(self, actor: ActorLike) -> frozenset[str]:
        return frozenset({"after_process_message"})  # nothing to do after a success

    def after_process_message(
        self, broker: BrokerLike, message: Any, *, result: Any = None, exception: BaseException | None = None
    ) -> None:
        if exception is None:
            return
        actor = broker.actors[message.actor_name]
        options = message.options
        throws = options.get("throws") or actor.options.get("throws")
        if is_expected(exception, throws):
            self.logger.info("Aborting message %r.", message.message_id)
            message.fail()
            return

        retries = options.setdefault("retries", 0)
        max_retries = options.get("max_retries", actor.options.get("max_retries", self.max_retries))
        retry_when = actor.options.get("retry_when", self.retry_when)
        if retry_when is None and not self.retry_wrong_calls and _is_wrong_call(actor, message, exception):
            self.logger.warning(
                "Message %r is not retried: actor %r does not take its arguments.",
                message.message_id,
                message.actor_name,
            )
            message.fail()
            return
        if is_exhausted(retries, exception, max_retries=max_retries, retry_when=retry_when):
            self.logger.warning("Retries exceeded for message %r.", message.message_id)
            message.fail()
            self._tell_exhausted(broker, message, retries, max_retries)
            return

        options["retries"] = retries + 1
        options["traceback"] = traceback_of(exception)
        options["requeue_timestamp"] = broker.clock.now_ms()
        delay_ms = self._delay_ms(exception, retries, options, actor.options)
        level = self.logger.debug if isinstance(exception, RateLimitExceeded) else self.logger.info
        level("Retrying message %r in %d milliseconds.", message.message_id, delay_ms)
        if broker.transport is not None:
            message.plan_retry(delay_ms)
        else:
            self._enqueue_retry(broker, message, delay_ms)

    def _enqueue_retry(self, broker: BrokerLike, message: Any, delay_ms: int) -> None:
        """For a broker of a user's own, where a retry is a message of its own. If it fails the old one is not lost."""
        try:
            broker.enqueue(message.copy(options=message.options), delay=delay_ms)
        except Exception:
            self.logger.exception("The retry of message %r could not be enqueued.", message.message_id)
            message.fail()
        else:
            message.sent_again_ms = delay_ms

    def _delay_ms(
        self, exception: BaseException, retries: int, options: dict[str, Any], actor_options: dict[str, Any]
    ) -> int:
        if isinstance(exception, Retry):
            delay_ms = wanted_delay_ms(exception.delay)
            if delay_ms is not None:
                return delay_ms
        return retry_delay_ms(
            retries,
            min_backoff=_first(options.get("min_backoff"), actor_options.get("min_backoff"), self.min_backoff),
            max_backoff=_first(options.get("max_backoff"), actor_options.get("max_backoff"), self.max_backoff),
            uniform=self.random.uniform,
        )

    def _tell_exhausted(self, broker: BrokerLike, message: Any, retries: int, max_retries: int | None) -> None:
        actor_options = broker.actors[message.actor_name].options
        name = message.options.get("on_retry_exhausted") or actor_options.get("on_retry_exhausted")
        if name:
            broker.get_actor(name).send(message.asdict(), {"retries": retries, "max_retries": max_retries})


def _is_wrong_call(actor: ActorLike, message: Any, exception: BaseException) -> bool:
    return isinstance(exception, TypeError) and is_wrong_call(actor.run, message.args, message.kwargs, exception)


def _first(*values: Any) -> Any:
    """The first that is not None."""
    return next(value for value in values if value is not None)
