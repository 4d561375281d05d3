"""One message through a worker, as steps: begin, (call), finish. Only the call exists twice, for threads and the loop.

Whatever a step meets, the run leaves it with a settlement: nothing that a message does can keep it from being settled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from msgspec import structs

from .. import failpoints
from ..core.ending import Ending, Outcome
from ..core.failure import message_of, traceback_of, type_name
from ..core.graph import MARKS, MEMBER_ONLY
from ..core.retry import is_expected
from ..core.run import Run
from ..core.verdict import Verdict
from ..core.waiting import due_ms
from ..errors import MiddlewareError, RateLimitExceeded, Retry, SkipMessage
from ..forksafe import new_witness
from ..logging import get_logger, one_line
from ..middleware.composing import departure_of
from ..middleware.pipelines import Pipelines
from ..ports.transport import ErrorText, Settlement
from .coroutines import call_async_actor
from .endings import ask, sealed
from .interrupts import call_actor
from .strays import leave

logger = get_logger("greenroom.worker", "WorkerThread")

_ACK = Verdict.ACK  # looking a member up is slow, and these are wanted once a message
_DONE = Outcome.DONE

#: The hooks that one run passes: ``before_process_message``, ``after_process_message`` and ``ending``; and for how many
#: options that holds.
Course = tuple[Sequence[Any], Sequence[Any], Sequence[Any], int]

#: In place of hooks ``ending``: nothing is to be done but to take the message out of the set of its group.
_DEPARTS: Sequence[Any] = ("departs",)


class Steps:
    """The steps, compiled for the hooks that a broker has now. Immutable; used by any thread."""

    __slots__ = (
        "_before_ack",
        "_broker",
        "_composes",
        "_ending",
        "_full",
        "_lean",
        "_members",
        "_results",
        "awrap",
        "blocking",
        "home",
        "hooks",
        "wrap",
    )

    def __init__(self, broker: Any) -> None:
        self._broker = broker
        #: False in a process that an actor has forked.
        self.home = new_witness()
        self.hooks = hooks = broker.hooks
        self._before_ack = hooks.before_ack
        self._ending = hooks.ending
        #: The course of messages with options, and of all that do not simply succeed.
        self._full: Course = (hooks.before_process_message, hooks.after_process_message, hooks.ending, -1)
        #: True if members of groups are taken out of their sets in one step with their settlement.
        self._composes = broker.composition_store is broker.store and any(
            type(getattr(hook, "__self__", None)) is Pipelines for hook in hooks.ending
        )
        #: By actor, the courses of messages without options, and of members of groups that are nothing else.
        self._lean: dict[Any, Course] = {}
        self._members: dict[Any, Course] = {}
        self.wrap = hooks.wrap
        self.awrap = hooks.awrap
        self._results = next((m for m in broker.middleware if hasattr(m, "ttl_of")), None)
        #: True if a hook around an async actor may block, so that it must not run on the loop.
        self.blocking = any(
            getattr(getattr(hook, "__self__", None), "blocking", False) for hook in (*self._full[0], *self._full[1])
        )

    def begin(self, run: Run) -> bool:
        """Runs ``before_process_message``; False if the actor is not to be called."""
        broker = self._broker
        options = run._message.options
        if not options:
            course = self._lean.get(run.actor) or self._learn(run.actor)
        elif options.keys() != MEMBER_ONLY:
            course = self._full
        else:
            course = self._members.get(run.actor) or self._learn_members(run.actor)
        run.course = course
        try:
            for hook in course[0]:
                try:
                    hook(broker, run)
                except MiddlewareError:
                    raise
                except Exception:  # noqa: BLE001  # a broken hook must not stop the message
                    broker._hook_failed("before", "process_message", hook)
        except SkipMessage as e:
            logger.debug("Message %s was skipped: %s", one_line(run.message_id, 255), e)
            run.skipped = True
            run.course = self._full
            if run.failed:
                run.error = ErrorText(type_name(e), message_of(e))
            broker.emit_after("skip_message", run)
            return False
        except BaseException as e:  # noqa: BLE001  # an interrupt or a veto: the message failed, the thread lives on
            self.finish(run, None, e)
            return False
        return True

    def call(self, run: Run) -> tuple[Any, BaseException | None]:
        """Calls a sync actor, inside the onion if there is one; returns what it returned, or what was raised."""
        if not self.wrap:
            return call_actor(run)
        try:
            return self._wrapped(run, 0), None
        except BaseException as e:  # noqa: BLE001  # whatever an actor raises is its failure
            return None, e

    def _wrapped(self, run: Run, layer: int) -> Any:
        if layer < len(self.wrap):
            return self.wrap[layer](self._broker, run, lambda: self._wrapped(run, layer + 1))
        result, exception = call_actor(run)
        try:
            if exception is not None:
                raise exception
        finally:
            del exception  # or its traceback would keep this frame, and all that it refers to, in a cycle
        return result

    async def acall(self, run: Run) -> Any:
        """Calls an async actor, inside the onion if there is one."""
        return await (self._awrapped(run, 0) if self.awrap else call_async_actor(run))

    async def _awrapped(self, run: Run, layer: int) -> Any:
        if layer < len(self.awrap):
            return await self.awrap[layer](self._broker, run, lambda: self._awrapped(run, layer + 1))
        return await call_async_actor(run)

    def _learn(self, actor: Any) -> Course:
        """The hooks around a message of ``actor`` that has no options and succeeds. The hot path does no work for what
        is not in use: of the default middleware one hook is left."""
        hooks = self.hooks
        course = self._lean[actor] = (
            hooks.lean("before_process_message", actor),
            hooks.lean("after_process_message", actor),
            hooks.lean("ending", actor),
            0,
        )
        return course

    def _learn_members(self, actor: Any) -> Course:
        """The same around a member of a group. No hook but ``ending`` looks at its one option."""
        before, after, ending, _ = self._lean.get(actor) or self._learn(actor)
        course = self._members[actor] = (before, after, self._ending if ending or not self._composes else _DEPARTS, 1)
        return course

    def finish(self, run: Run, result: Any, exception: BaseException | None) -> None:
        """Runs ``after_process_message``, in reverse, with what the actor returned or raised."""
        broker = self._broker
        if exception is not None and isinstance(exception, RateLimitExceeded) and self._waits(run):
            self._postpone(run, exception)
            return
        course = run.course
        if exception is not None or len(run._message.options) != course[3]:  # hooks may have written into them
            course = run.course = self._full
        if result is not None:
            self._warn_of_lost_result(run)
            if self._ending:
                run.result = result
        if exception is not None:
            run.stuff_exception(exception)
            broker.note_failure(run, exception)
            _log_failure(run, exception)
        for hook in course[1]:
            try:
                hook(broker, run, result=result, exception=exception)
            except Exception:  # noqa: BLE001  # a broken hook must not stop the message
                broker._hook_failed("after", "process_message", hook)

    def _waits(self, run: Run) -> bool:
        policy = run.options.get("limit_policy") or run.actor.options.get("limit_policy")
        return policy == "wait" and self._broker.transport is not None

    def _postpone(self, run: Run, refusal: RateLimitExceeded) -> None:
        """The message goes back until there is room. To hooks it was skipped, it has not failed."""
        logger.debug("Rate limit exceeded in message %s: it waits.", one_line(run.message_id, 255))
        run.refused_by = refusal.with_traceback(None)
        self._broker.emit_after("skip_message", run)

    def _release(self, run: Run) -> Settlement:
        refusal: RateLimitExceeded = run.refused_by
        broker = self._broker
        if refusal.slot is not None and refusal.store.is_one_with(broker.transport):
            return Settlement(run.delivery, Verdict.RELEASE, park=refusal.slot)
        due = due_ms(refusal.retry_at_ms, broker.clock.now_ms(), is_slot=refusal.slot is not None)
        return Settlement(run.delivery, Verdict.RELEASE, due_ms=due)

    def _warn_of_lost_result(self, run: Run) -> None:
        """A value that nobody keeps is probably a mistake; said once an actor."""
        actor, results = run.actor, self._results
        if not MARKS.isdisjoint(run._message.options) or actor in self._broker.returned_in_vain:
            return
        if results is not None and results.ttl_of(run._message.options, actor) is not None:
            return
        self._broker.returned_in_vain.add(actor)
        if results is not None:
            logger.warning(
                "Actor %r returned a value that is not None, but its store_results option is not True: the value has "
                "been discarded.",
                actor.actor_name,
            )
            return
        logger.warning(
            "Actor %r returned a value that is not None, but this broker has no Results middleware: the value has been "
            "discarded. Consider adding the Results middleware, or let the actor return None.",
            actor.actor_name,
        )

    def settle(self, run: Run) -> Settlement:
        """What becomes of the message, by what the hooks left on its proxy."""
        hooks = self._ending
        if run.failed:
            settlement = self._bury(run)
        elif run.retry_delay_ms is not None:
            settlement = self._retry(run)
        elif run.refused_by is not None:
            settlement = self._release(run)
        else:
            if self._before_ack:
                self._emit_before("ack", run)
            course = run.course
            if len(run._message.options) == course[3]:
                hooks = course[2]
                if hooks is _DEPARTS and (departure := departure_of(run._message.options)) is not None:
                    return Settlement(run.delivery, _ACK, writes=(departure,))
            settlement = Settlement(run.delivery, _ACK)
        if hooks is _DEPARTS:
            hooks = self._ending
        return self._end(run, settlement, hooks) if hooks else settlement  # of nearly every message nothing is kept

    def _end(self, run: Run, settlement: Settlement, hooks: Sequence[Any]) -> Settlement:
        """The settlement with all that is kept besides. What has to be done before it stays on the run."""
        exception = run._exception
        outcome = _outcome_of(run, settlement)
        error = settlement.error or run.error
        due_ms = None
        if outcome is not _DONE:
            error = error or _error_text(exception)
            due_ms = self._due_ms(run, settlement)
        ending = Ending(self._broker, run, settlement, outcome, run.result, error, exception, due_ms, run.actor)
        ask(ending, hooks)
        if ending.jobs:
            run.ending = ending
            return settlement
        run.result = None
        return sealed(ending)

    def _due_ms(self, run: Run, settlement: Settlement) -> int | None:
        if settlement.retry is not None:
            return settlement.retry.due_ms
        if run.sent_again_ms is not None:
            now_ms: int = self._broker.clock.now_ms()
            return now_ms + run.sent_again_ms
        return settlement.due_ms

    def rescue(self, run: Run, error: BaseException) -> None:
        """Settles a message around which something broke that no hook should raise: it is dead-lettered with that."""
        logger.critical(
            "Message %s is dead-lettered: a hook around it failed.", one_line(run.message_id, 255), exc_info=error
        )
        run.fail()
        run.settlement = Settlement(run.delivery, Verdict.DEAD, error=_error_text(error))
        try:
            run.settlement = self._end(run, run.settlement, self._ending)
        except BaseException:  # it may be what broke in the first place
            logger.critical("Nothing is kept of the end of message %s.", one_line(run.message_id, 255), exc_info=True)

    def _bury(self, run: Run) -> Settlement:
        self._emit_before("nack", run)
        return Settlement(run.delivery, Verdict.DEAD, error=run.error or _error_text(run._exception))

    def _retry(self, run: Run) -> Settlement:
        """A retry replaces the message in one settlement. If a hook vetoes it, or it cannot be encoded any more, the
        message is dead-lettered with that as its reason."""
        broker = self._broker
        delay_ms: int = run.retry_delay_ms or 0
        message = run._message.copy(options={**run.options, "eta": broker.clock.now_ms() + delay_ms})
        try:
            broker.emit_before("enqueue", message, delay_ms)
            broker.emit_before("delay_message", message)
            envelope = broker.envelope(message)
        except Exception as e:  # noqa: BLE001  # whatever refuses the retry, the message is buried with the reason
            logger.error("The retry of message %s was refused: %s", one_line(run.message_id, 255), message_of(e))
            run.fail()
            run.error = _error_text(e)
            return self._bury(run)
        if envelope.writes:  # those of a message that is new; the ending knows better
            envelope = structs.replace(envelope, writes=())
        self._emit_before("ack", run)
        broker.note_retry(run, envelope, delay_ms)
        return Settlement(run.delivery, Verdict.RETRY, retry=envelope, error=_error_text(run._exception))

    def _emit_before(self, signal: str, run: Run) -> None:
        try:
            self._broker.emit_before(signal, run)
        except MiddlewareError as e:  # there is nothing left to veto: what happened has happened
            logger.warning(
                "before_%s of message %s raised %s: %s",
                signal,
                one_line(run.message_id, 255),
                type_name(e),
                message_of(e),
            )


class _ArmedSteps(Steps):
    """The same with the failpoints around the call, of which some are armed."""

    __slots__ = ()

    def begin(self, run: Run) -> bool:
        failpoints.hit("start.after_attempt_persist")
        return super().begin(run)

    def call(self, run: Run) -> tuple[Any, BaseException | None]:
        failpoints.hit("exec.enter")
        answer = super().call(run)
        failpoints.hit("exec.after_user_return")
        return answer

    async def acall(self, run: Run) -> Any:
        failpoints.hit("exec.enter")
        result = await super().acall(run)
        failpoints.hit("exec.after_user_return")
        return result


def compile_steps(broker: Any) -> Steps:
    """The steps for the hooks that a broker has now."""
    return _ArmedSteps(broker) if failpoints.armed else Steps(broker)


def run_sync(steps: Steps, run: Run, clock: Callable[[], float]) -> None:
    """Takes a sync actor's message through all steps; leaves the settlement on the run, whatever happens."""
    try:
        if steps.begin(run):
            slot = run.slot
            started_s = clock()
            result, exception = steps.call(run)
            if not steps.home[0]:
                leave(run, exception)
            slot.busy_s += clock() - started_s
            slot.runs += 1
            steps.finish(run, result, exception)
            exception = None  # or its traceback would keep this frame, and all that it refers to, in a cycle
        else:
            run.slot.forget_policies()
        run.settlement = steps.settle(run)
    except BaseException as e:  # noqa: BLE001  # a hook's SystemExit must cost neither the thread nor the message
        steps.rescue(run, e)
    run._exception = None


def _outcome_of(run: Run, settlement: Settlement) -> Outcome:
    verdict = settlement.verdict
    if verdict is Verdict.RELEASE:
        return Outcome.RELEASED
    if verdict is Verdict.RETRY or run.sent_again_ms is not None:
        return Outcome.RETRIED
    if run.skipped:
        return Outcome.EXPIRED if run.failed else Outcome.SKIPPED
    return Outcome.FAILED if run.failed or run._exception is not None else Outcome.DONE


def _error_text(exception: BaseException | None) -> ErrorText | None:
    if exception is None:
        return None
    return ErrorText(type_name(exception), message_of(exception), traceback_of(exception))


def _log_failure(run: Run, exception: BaseException) -> None:
    throws = run.options.get("throws") or run.actor.options.get("throws")
    if isinstance(exception, RateLimitExceeded):
        logger.debug("Rate limit exceeded in message %s: %s.", one_line(run), one_line(exception))
    elif is_expected(exception, throws):
        logger.info("Failed to process message %s with expected exception %s.", one_line(run), type_name(exception))
    elif not isinstance(exception, Retry):
        logger.error("Failed to process message %s with unhandled exception.", one_line(run), exc_info=exception)
