"""The results of actors are kept, for those who ask."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..core.ending import Ending, Outcome
from ..core.failure import message_of
from ..core.options import MAX_DELAY_MS, check_options
from ..errors import BrokerError
from ..logging import get_logger, one_line
from ..message import MAX_MESSAGE_BYTES
from ..middleware import Middleware
from ..middleware.group_callbacks import store_for_compositions
from ..ports.store import Get, Put, PutIf, StoreOp
from ..ports.transport import ErrorText
from .backend import ResultBackend
from .backends.store import StoreBackend
from .result import wrap_error, wrap_pending, wrap_result

if TYPE_CHECKING:
    from ..ports.nouns import ActorLike, BrokerLike

#: Milliseconds.
DEFAULT_RESULT_TTL = 600_000
#: How long it is remembered that a message is to have a result, after the time at which it is due; in milliseconds.
PENDING_TTL = 7 * 24 * 60 * 60 * 1000

#: The names of errors that stand for a result which cannot be kept.
NOT_ENCODABLE = "ResultEncodeError"
TOO_LARGE = "ResultTooLarge"


# Looking a member up is slow, and these are wanted once a message.
_DONE, _SKIPPED, _RETRIED, _RELEASED = Outcome.DONE, Outcome.SKIPPED, Outcome.RETRIED, Outcome.RELEASED


class Results(Middleware):
    """Keeps what actors return, and what they fail with for good.

    Without a backend results are kept by the broker itself, in one step with what becomes of the message: either both
    have happened or neither. Then it is also noted when a message is sent, and when it is to be retried: whoever asks
    learns what it waits for.

    Parameters:
      backend: Where results are kept; None for the broker itself, which has to be able to.
      store_results: Whether the results of actors are kept that say nothing; False by default.
      result_ttl: How long results are kept, in milliseconds; 600 000 by default.
      strict: What to do if a backend that is not the broker cannot be written. False (the default): try three times
        within ten seconds, then give the result up and log ``result_lost``. True: the message waits until it can.
      max_result_bytes: A result that is larger, encoded, is kept as an error in its place; 16 MiB by default.

    Options of actors and messages: ``store_results``, ``result_ttl``.
    """

    def __init__(
        self,
        *,
        backend: ResultBackend | None = None,
        store_results: bool = False,
        result_ttl: int | None = None,
        strict: bool = False,
        max_result_bytes: int = MAX_MESSAGE_BYTES,
    ) -> None:
        check_options({"result_ttl": result_ttl})
        self.logger = get_logger(__name__, type(self))
        self.backend = backend
        self.store_results = store_results
        self.result_ttl = DEFAULT_RESULT_TTL if result_ttl is None else result_ttl
        self.strict = strict
        self.max_result_bytes = self._limit = max_result_bytes
        #: The backend that is in use, and the broker that it is in use for.
        self._bound: tuple[ResultBackend, Any] | None = None
        #: What is kept of a message that was sent and is due at once.
        self._mark = b""
        #: What ``ttl_of`` answers for messages without options.
        self._ttls: dict[ActorLike | None, int | None] = {}

    @property
    def spare_store(self) -> Any:
        """The store under the backend: compositions are kept there if there is no better place."""
        return store_for_compositions(self.backend)

    @property
    def actor_options(self) -> set[str]:
        return {"store_results", "result_ttl"}

    def idle_hooks(self, actor: ActorLike) -> frozenset[str]:
        return frozenset() if self.ttl_of({}, actor) is not None else frozenset({"ending"})

    def backend_for(self, broker: BrokerLike) -> ResultBackend:
        """Where the results of a broker's messages are kept.

        Raises:
          RuntimeError: If no backend was given and the broker has no store of its own.
        """
        bound = self._bound
        if bound is not None and bound[1] is broker:
            return bound[0]
        store = broker.store
        backend = self.backend
        if backend is None:
            if store is None:
                raise RuntimeError(
                    f"{type(broker).__name__} has no store of its own. Say where to keep results: Results(backend=...)."
                )
            backend = StoreBackend(store)
        if isinstance(backend, StoreBackend):
            backend.bind(broker)
            self._limit = min(self.max_result_bytes, backend.store.features.max_value or self.max_result_bytes)
            self._mark = backend.mark()
        self._bound = (backend, broker)
        return backend

    def is_kept(self, broker: BrokerLike, message: Any) -> bool:
        """Whether the result of a message is kept."""
        return self._is_kept(message.options, broker.actors.get(message.actor_name))

    def ttl_of(self, options: dict[str, Any], actor: ActorLike | None) -> int | None:
        """How long the result of a message with these options is kept, in milliseconds; None if it is not."""
        if options:
            return self._ttl(options, actor) if self._is_kept(options, actor) else None
        try:
            return self._ttls[actor]
        except KeyError:
            ttl = self._ttls[actor] = self._ttl({}, actor) if self._is_kept({}, actor) else None
            return ttl

    def _is_kept(self, options: dict[str, Any], actor: ActorLike | None) -> bool:
        kept = options.get("store_results")
        if kept is None and actor is not None:
            kept = actor.options.get("store_results")
        return bool(self.store_results if kept is None else kept)

    def _ttl(self, options: dict[str, Any], actor: ActorLike | None) -> int:
        ttl = options.get("result_ttl")
        if isinstance(ttl, bool) or not isinstance(ttl, (int, float)) or not ttl >= 0:  # it may come from anywhere
            ttl = None if actor is None else actor.options.get("result_ttl")
        if ttl is None:
            ttl = self.result_ttl
        return MAX_DELAY_MS if ttl == math.inf else min(int(ttl), MAX_DELAY_MS)

    # --- while there is none

    def envelope_writes(self, broker: BrokerLike, message: Any) -> Sequence[StoreOp]:
        options = message.options
        if self.ttl_of(options, broker.actors.get(message.actor_name)) is None:
            return ()
        backend = self.backend_for(broker)
        if not isinstance(backend, StoreBackend) or not backend.knows_what_is_sent:
            return ()
        eta = options.get("eta") if options else None
        if isinstance(eta, (int, float)) and math.isfinite(eta):
            return (self._pending(broker, backend, message, wrap_pending("delayed", next_attempt_ms=int(eta))),)
        return (Put(backend.build_message_key(message), self._mark, PENDING_TTL),)

    def forget_results(self, broker: BrokerLike, messages: Sequence[Any]) -> None:
        """Forgets that these messages are to have results, because they will not run: at most a thousand. What has come
        out of one that ran all the same is kept."""
        backend = self.backend_for(broker)
        if not isinstance(backend, StoreBackend) or not backend.knows_what_is_sent or not messages:
            return
        keys = [backend.build_message_key(message) for message in messages]
        found = backend.store.apply([Get(key) for key in keys])
        marks = [(key, value) for key, value in zip(keys, found, strict=True) if backend.is_mark(value)]
        # There is no operation that deletes a value if it is still this one, so it is kept for no longer.
        backend.store.apply([PutIf(key, value, value, ttl_ms=1) for key, value in marks])

    def _pending(self, broker: BrokerLike, backend: StoreBackend, message: Any, pending: dict[str, Any]) -> Put:
        due_ms = pending["pending"]["next_attempt_ms"]
        wait_ms = 0 if due_ms is None else max(0, due_ms - broker.clock.now_ms())
        return backend.put(message, pending, PENDING_TTL + wait_ms)

    # --- at the end

    def ending(self, broker: BrokerLike, ending: Ending) -> None:
        message, outcome = ending.message, ending.outcome
        if message is None or outcome is _RELEASED:
            return
        actor = ending.actor or broker.actors.get(message.actor_name)
        backend = self.backend_for(broker)
        ttl = self.ttl_of(message.options, actor)
        if ttl is None and actor is None and _knows_what_is_sent(backend):
            ttl = self._ttl({}, None)  # whoever has sent a message whose actor is not known here knows it, and may wait
        if ttl is None:
            return
        if not isinstance(backend, StoreBackend):
            self._call(backend, ending, ttl)
        elif outcome is _RETRIED:
            ending.keep(backend.store, self._retried(broker, backend, ending))
        else:
            ending.keep(backend.store, self._stored(backend, ending, ttl), strict=self.strict)

    def _retried(self, broker: BrokerLike, backend: StoreBackend, ending: Ending) -> Put:
        error = ending.error
        pending = wrap_pending(
            "retrying",
            attempts=ending.retries,
            last_error=None if error is None else f"{error.type}: {error.message}",
            next_attempt_ms=ending.due_ms,
        )
        return self._pending(broker, backend, ending.message, pending)

    def _stored(self, backend: StoreBackend, ending: Ending, ttl: int) -> Put:
        """The operation that keeps what has come out. What cannot be kept is kept as an error that says so."""
        message = ending.message
        if _is_failure(ending):
            return backend.put(message, wrap_error(_error_of(ending)), ttl)
        result, limit = ending.result, self._limit
        if isinstance(result, str) and len(result) > limit:  # not even encoded
            size = len(result)
        else:
            try:
                put = backend.put(message, wrap_result(result), ttl)
            except Exception as e:  # noqa: BLE001  # an encoder may raise anything; the task is done all the same
                return self._instead(backend, message, _not_encodable(result, e), ttl)
            size = len(put.value)
            if size <= limit:
                return put
        text = f"the result has {size} bytes; at most {limit} are kept"
        return self._instead(backend, message, ErrorText(TOO_LARGE, text), ttl)

    def _instead(self, backend: StoreBackend, message: Any, error: ErrorText, ttl: int) -> Put:
        self.logger.warning(
            "The result of message %s is not kept: %s", one_line(message.message_id, 255), error.message
        )
        return backend.put(message, wrap_error(error), ttl)

    def _call(self, backend: ResultBackend, ending: Ending, ttl: int) -> None:
        """For a backend of a user's own: it is called on a thread beside those that run actors."""
        if ending.outcome is _RETRIED:
            return
        message, result = ending.message, ending.result

        def store() -> None:
            if _is_failure(ending):
                backend.store_exception(message, _exception_of(ending), ttl)
                return
            try:
                backend.store_result(message, result, ttl)
            except (TypeError, ValueError, RecursionError, BrokerError) as e:
                backend.store_exception(message, _named(NOT_ENCODABLE, _not_encodable(result, e).message), ttl)

        ending.call(backend, store, strict=self.strict)


def _knows_what_is_sent(backend: ResultBackend) -> bool:
    return isinstance(backend, StoreBackend) and backend.knows_what_is_sent


def _is_failure(ending: Ending) -> bool:
    outcome = ending.outcome
    return outcome is not _DONE and outcome is not _SKIPPED


def _error_of(ending: Ending) -> ErrorText:
    return ending.error or ErrorText("Exception", "unknown")


def _exception_of(ending: Ending) -> BaseException:
    """What was raised, or something that looks like it."""
    error = _error_of(ending)
    return ending.exception or _named(error.type, error.message)


def _named(name: str, text: str) -> Exception:
    """An exception whose class is called so: for backends that keep exceptions, not texts."""
    kind: type[Exception] = type(name, (Exception,), {})
    return kind(text)


def _not_encodable(result: Any, error: Exception) -> ErrorText:
    if inspect.iscoroutine(result):
        result.close()  # or Python complains that nobody awaits it
    return ErrorText(NOT_ENCODABLE, f"a result of type {type(result).__name__} cannot be encoded: {message_of(error)}")
