"""One owner of claimed messages on RabbitMQ: the port on a connection that pushes.

The broker sends what a queue holds as soon as there is room, so a claim takes from what has arrived. The connection
lives on a loop that somebody has to drive: the pump does, inside its trips and waits; and once a second, while the pump
is elsewhere, the ticker's ``extend`` does, so that heartbeats are answered and confirmed settlements leave while all
threads are busy.

When the connection or its channel ends, all that was claimed is lost: the broker hands it out again. What has not
started is thrown away (``Exchange.reset``); what runs finishes, and is answered as lost.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Collection, Iterable, Sequence
from collections.abc import Set as AbstractSet
from time import monotonic
from typing import Any

from ... import failpoints
from ...board import Board
from ...host.deaths import EVIDENCE_STEP_S
from ...logging import get_logger
from ...ports.passing import pass_after, pass_before
from ...ports.transport import MAX_TRIP, ConsumerClosed, Delivery, Exchange, Incident, Settlement
from .ledger import Ledger
from .line import Line
from .moves import Moves
from .neighbours import Neighbours, Place
from .prefetch import Prefetch
from .reading import Past, Reader, is_plain, plain
from .settling import Settler
from .tap import Arrived, Tap
from .topology import delay_queue

#: Seconds between two looks at a publisher that cannot be waited for.
BLIND_LOOK_S = 0.005

logger = get_logger(__name__)


class RabbitmqConsumer:
    """Belongs to the process that made it. Any thread may call ``wake``, ``extend``, ``reap_soon`` and ``close``; all
    else is the pump's.

    Parameters:
      transport: The transport that makes it.
      owner: A name for people.
    """

    def __init__(self, transport: Any, owner: str) -> None:
        self.owner = owner
        self._transport = transport
        self._pid = os.getpid()
        # guards: one thread at a time drives the loop and all below. The pump holds it while it waits, for then it
        # drives; the ticker only tries, and never waits inside.
        self._turn = threading.RLock()
        self._neighbours = self._meet()
        self._prefetch = Prefetch()
        self._line = Line(transport, self._prefetch, self._lost_all)
        self._settler = Settler(transport, self._line, self.wake, self._returned)
        self._moves = Moves(transport, self._line, self._settler)
        self._place: Place | None = None
        self._reader = Reader(self._neighbours)
        self._subscribed: dict[str, None] = {}  # a dict, for its order
        self._paused: set[str] = set()
        self._skip: AbstractSet[str] = frozenset()
        self._aside: list[tuple[Tap, Arrived]] = []  # handed out before, and it is not known yet whether it crashed
        self._publisher_fd = -1
        self._woken = False
        self._wakes = 0
        self._left = False  # a queue may hold more than the last trip has claimed
        self._reset = False
        self._closed = False

    def _meet(self) -> Neighbours | None:
        try:
            ledger = self._transport.ledger
            return Neighbours(self._transport.clock, Ledger(ledger) if ledger is not None else None)
        except OSError as e:
            logger.warning(
                "Crashes are not counted: %s cannot be used: %s.", e.filename or "the run folder", e.strerror
            )
            return None

    # --- what to claim

    def subscribe(self, queues: Collection[str]) -> None:
        """Adds queues to claim from; ends a pause of theirs."""
        self._check_usable()
        self._subscribed.update(dict.fromkeys(queues))
        self._paused.difference_update(queues)

    def pause(self, queues: Collection[str]) -> None:
        """Stops claiming from these queues, and gives back what was fetched of them."""
        self._check_usable()
        self._paused.update(queues)
        with self._turn:
            for queue in queues:
                self._stop(queue)

    def _stop(self, queue: str) -> None:
        if self._line.epoch is not None:
            self._line.stop(queue)
            self._line.stop(delay_queue(queue))
            self._line.loop.flush()

    def _active(self) -> list[str]:
        return [queue for queue in self._subscribed if queue not in self._paused]

    # --- the trip

    def exchange(self, settle: Sequence[Settlement], limit: int, skip: AbstractSet[str] = frozenset()) -> Exchange:
        """One trip: settles, and claims of what has arrived. See the port."""
        if len(settle) > MAX_TRIP:
            raise ValueError(f"A trip carries at most {MAX_TRIP} settlements, not {len(settle)}.")
        with self._turn:
            self._check_usable()
            if failpoints.armed:
                pass_before(settle, limit)
            self._skip = skip
            self._run(0.0)
            self._settler.settle(settle)
            if self._line.epoch is None and not self._go_on():
                return self._answer((), more=False)
            deliveries, more = self._claim(min(limit, MAX_TRIP), skip) if limit > 0 else ((), False)
            self._line.loop.flush()
            if failpoints.armed:
                pass_after(settle, deliveries)
            self._left = more
            return self._answer(deliveries, more=more)

    def _answer(self, deliveries: Sequence[Delivery], *, more: bool) -> Exchange:
        reset, self._reset = self._reset, False
        return self._settler.answers(deliveries, more=more, reset=reset)

    def _go_on(self) -> bool:
        """Connects anew, unless there is something to answer first."""
        if self._settler.has_answers or self._reset:
            return False
        self._connect()
        return self._line.epoch is not None

    def _connect(self) -> None:
        before = self._wakes
        self._line.open(lambda: self._wakes == before)

    def _run(self, timeout_s: float) -> None:
        """Drives the loop for a step, and does what has become possible by it."""
        again_s = self._settler.collect()
        if self._settler.is_busy:
            timeout_s = min(timeout_s, BLIND_LOOK_S if not self._watch_publisher() else timeout_s)
            self._transport.publisher.turn()
            if again_s is not None:
                timeout_s = min(timeout_s, again_s)
        if self._aside:
            timeout_s = min(timeout_s, EVIDENCE_STEP_S)
        self._line.loop.run_once(timeout_s)
        if self._settler.is_busy:
            self._transport.publisher.turn()
            self._settler.collect()
            self._line.loop.flush()

    def _watch_publisher(self) -> bool:
        fd: int = self._transport.publisher.fileno()
        if fd != self._publisher_fd:
            if self._publisher_fd >= 0:
                self._line.loop.remove_handler(self._publisher_fd)
            self._publisher_fd = fd
            if fd >= 0:
                loop = self._line.loop
                loop.add_handler(fd, lambda _fd, _events: self._transport.publisher.turn(), loop.READ)
        return fd >= 0

    # --- claiming

    def _claim(self, limit: int, skip: AbstractSet[str]) -> tuple[list[Delivery], bool]:
        line = self._line
        queues = [queue for queue in self._active() if queue not in skip]
        held = self._held()
        line.serve(queues, held + limit, enough=lambda: self._count(queues) >= limit)
        self._moves.serve(queues)
        deliveries: list[Delivery] = []
        if line.epoch is None:
            return deliveries, False
        self._take_aside(deliveries, limit, queues)
        taps = [tap for queue in queues if (tap := line.taps.get(queue)) is not None]
        for tap in taps:
            if tap.arrived:
                self._take(tap, limit, deliveries)
        if len(taps) > 1 and len(deliveries) == limit and self._subscribed:  # the next one begins elsewhere
            first = next(iter(self._subscribed))
            self._subscribed[first] = self._subscribed.pop(first)
        if deliveries:
            self._prefetch.saw(len(deliveries), sum([len(delivery.body) for delivery in deliveries]))
        return deliveries, len(deliveries) == limit or any(tap.arrived for tap in taps)

    def _held(self) -> int:
        """How many messages are claimed and not settled."""
        return len(self._line.unacked) - len(self._aside) - sum([len(tap.arrived) for tap in self._line.taps.values()])

    def _count(self, queues: Iterable[str]) -> int:
        taps = self._line.taps
        return sum([len(taps[queue].arrived) for queue in queues if queue in taps])

    def _take(self, tap: Tap, limit: int, deliveries: list[Delivery]) -> None:
        queue, arrived, epoch = tap.queue, tap.arrived, self._line.epoch
        assert epoch is not None
        while arrived and len(deliveries) < limit:
            message = arrived.popleft()
            if is_plain(message):
                deliveries.append(plain(queue, epoch, message))
            else:
                self._take_special(tap, message, deliveries)

    def _take_special(self, tap: Tap, message: Arrived, deliveries: list[Delivery]) -> None:
        """One that was handed out before, or that carries something along."""
        epoch = self._line.epoch
        assert epoch is not None
        past = self._reader.past_of(message)
        if past is None:
            self._aside.append((tap, message))
        elif past.meta.rest_ms > 0:
            self._moves.delay_again(tap.queue, message, past.meta)
        else:
            self._line.unacked[message.tag] = past
            deliveries.append(self._reader.delivery(tap.queue, epoch, message, past))

    def _take_aside(self, deliveries: list[Delivery], limit: int, queues: Collection[str]) -> None:
        """Asks again for those of which it was not known whether they had crashed."""
        aside, self._aside = self._aside, []
        for tap, message in aside:
            if len(deliveries) < limit and tap.queue in queues:
                self._take_special(tap, message, deliveries)
            else:
                self._aside.append((tap, message))

    # --- what came too late

    @property
    def stale(self) -> int:
        """How many settlements came too late: their connection had ended (``stale_ack``)."""
        return self._settler.stale

    # --- losing everything

    def _lost_all(self) -> None:
        self._settler.forget()
        self._aside.clear()
        self._reset = True
        self._left = True  # the next trip connects anew

    # --- waiting

    def wait(self, timeout_s: float) -> None:
        """Returns when something may be ready, when a settlement is answered, after ``wake`` or ``timeout_s``."""
        with self._turn:
            self._check_usable()
            if self._line.epoch is None and not (self._reset or self._woken):
                self._connect()
                self._left = True  # the next trip begins to consume
            deadline_s = monotonic() + timeout_s
            while not self._is_over():
                left_s = deadline_s - monotonic()
                if left_s <= 0:
                    break
                self._run(left_s)
                self._line.look()
                self._moves.serve([queue for queue in self._active() if queue not in self._skip])
                if self._aside and self._neighbours is not None:
                    self._left = True  # the next trip asks again
                    break
            self._woken = self._left = False
        if self._closed:
            raise ConsumerClosed("This consumer was closed.")

    def _is_over(self) -> bool:
        if self._woken or self._left or self._closed or self._line.epoch is None or self._settler.has_answers:
            return True
        if self._line.wants_trip:
            self._line.wants_trip = False
            return True
        taps = self._line.taps
        for queue in self._active():
            if queue not in self._skip and (tap := taps.get(queue)) is not None and tap.arrived:
                return True
        return False

    def wake(self) -> None:
        """Any thread, signal-safe: ends a wait, or the next one."""
        self._woken = True
        self._wakes += 1
        self._line.loop.wake()

    # --- living and dying

    def board(self, places: int, *, parent_pid: int = 0) -> Board:
        """Where the executors say what they run. See the port."""
        with self._turn:
            self._check_usable()
            self._prefetch.set_places(places)
            if self._neighbours is None:
                return Board.in_memory(places)
            if self._place is None:
                self._place = self._neighbours.place(self.owner)
            try:
                return self._place.board(places, parent_pid)
            except OSError as e:
                logger.warning("Crashes of this process are not counted: %s: %s.", e.filename, e.strerror)
                return Board.in_memory(places)

    def history(self, delivery: Delivery) -> Sequence[Incident]:
        """What befell a delivery before, the oldest first; nothing if it is not held any more."""
        with self._turn:
            self._check_usable()
            epoch, tag = delivery.token
            past = self._line.unacked.get(tag) if epoch is self._line.epoch else None
            return past.history if isinstance(past, Past) else ()

    def reap_soon(self) -> None:
        """Any thread: a process of this host has died. What was set aside is looked at anew."""
        if self._neighbours is not None:
            self._neighbours.look_again()
        self.wake()

    def is_cut_off(self) -> bool:
        """Any thread: True without a connection. The server has given back all that was claimed on the last one."""
        return self._line.epoch is None

    def extend(self) -> None:
        """Any thread, about once a second: keeps the connections alive while nobody else does, and settles what is
        confirmed by now."""
        if self._closed or os.getpid() != self._pid or not self._turn.acquire(blocking=False):
            return  # who has the turn drives the loop
        try:
            self._keep_place()
            self._run(0.0)
            self._line.look()
            if self._line.epoch is not None:
                self._line.step_down(self._held())
                self._line.loop.flush()
            self._transport.publisher.beat()
        finally:
            self._turn.release()

    def _returned(self, delivery: Delivery) -> None:
        if self._place is not None:
            self._place.clear(delivery.mark)

    def _keep_place(self) -> None:
        try:
            if self._place is not None:
                self._place.keep()
            if self._neighbours is not None:
                self._neighbours.tell()
        except OSError as e:
            logger.warning("The board of this process cannot be kept: %s.", e.strerror)

    def close(self) -> None:
        """Gives back what was claimed and not settled, and ends the owner."""
        if self._closed or os.getpid() != self._pid:
            return
        self._closed = True
        self.wake()
        with self._turn:
            self._transport.share.consumers.discard(self)
            self._settler.forget()
            self._line.close()
            if self._place is not None:
                self._place.leave()
            if self._neighbours is not None:
                self._neighbours.close()

    def abandon(self) -> None:
        """For tests: what happens to it when its process dies, a moment after its last settlement."""
        with self._turn:
            self._line.arrive()
            if self._place is not None:
                self._place.unlock()
            self._line.drop()

    def _check_usable(self) -> None:
        if self._closed:
            raise ConsumerClosed("This consumer was closed.")
        if os.getpid() != self._pid:
            raise ConsumerClosed("This consumer belongs to the process that made it, not to its fork.")
