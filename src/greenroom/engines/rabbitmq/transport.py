"""The transport on RabbitMQ: sending, and what this process shares of the connections."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

from ... import failpoints
from ...clock import SYSTEM_CLOCK, Clock
from ...errors import BrokerError, BrokerTimeout, ConnectionFailed, MessageTooLarge
from ...forksafe import PerProcess
from ...logging import get_logger
from ...ports.transport import Consumer, Envelope, Features
from .admin import RabbitmqAdmin
from .connection import Link, Targets
from .delays import Levels
from .publisher import Publisher
from .routes import Routes
from .share import ProcessShare
from .strays import rescue_strays
from .topology import Declarer, Layout
from .wire import Publication

logger = get_logger(__name__)

#: What RabbitMQ takes from version 4.0 on, if nothing is said; earlier ones take more.
MAX_BODY_BYTES = 16 * 1024 * 1024
#: Seconds after which what was not accepted is not accepted any more.
PUBLISH_TIMEOUT_S = 10.0


class RabbitmqTransport(RabbitmqAdmin):
    """Keeps messages in the queues of a RabbitMQ. Thread-safe and fork-safe; connects at its first use in a process.

    Parameters:
      targets: The servers.
      layout: How queues are declared.
      confirm: Whether ``push`` waits until the broker says that it keeps the messages.
      dramatiq: Whether what is sent must be understood by Dramatiq's workers in every respect.
      publish_timeout_s: Seconds after which ``push`` gives up.
      clock: What due times are told by. The broker counts down a delay by its own.
      max_body: The largest body in bytes.
      ledger: A ``Store`` that keeps what RabbitMQ cannot: exact counts of crashes; None for none.
      delay: False for a clock that is not the machine's: delays pass in real time.
    """

    def __init__(  # noqa: PLR0913  # keywords, each by itself
        self,
        targets: Targets,
        *,
        layout: Layout = Layout(),  # noqa: B008  # frozen
        confirm: bool = True,
        dramatiq: bool = False,
        publish_timeout_s: float = PUBLISH_TIMEOUT_S,
        clock: Clock = SYSTEM_CLOCK,
        max_body: int = MAX_BODY_BYTES,
        ledger: Any = None,
        delay: bool = True,
    ) -> None:
        self.targets = targets
        self.layout = layout
        self.clock = clock
        self.ledger = ledger
        self.max_body = max_body
        self.features = Features(
            delay=delay,
            priority=False,
            lease=False,
            wakes=True,
            counts_crashes=True,
            counts_attempts=False,
            history=True,
            counts_delayed=False,
            counts_claimed=False,
            lists_queues=False,
            max_body=max_body,
        )
        self.routes = Routes(self._ask_for_levels, dramatiq=dramatiq)
        self._levels: Levels | None = None
        self._confirm = confirm
        self._publish_timeout_s = publish_timeout_s
        self._queues: set[str] = set()
        self._present_levels: set[str] = set()
        self._absent_until_s = 0.0
        self._process: PerProcess[ProcessShare] = PerProcess(self._open)

    def _open(self) -> ProcessShare:
        failpoints.arm()
        return ProcessShare(self.targets, self.layout, confirm=self._confirm)

    @property
    def share(self) -> ProcessShare:
        """What this process has open."""
        return self._process.get()

    @property
    def publisher(self) -> Publisher:
        """The connection that sends."""
        return self._process.get().publisher

    @property
    def levels(self) -> Levels:
        """The levels of delay."""
        return self._ask_for_levels()

    def _ask_for_levels(self) -> Levels:
        if self._levels is None:
            is_known = self.layout.delay_type is not None
            version = () if is_known else self.publisher.server_version(self._publish_timeout_s)
            self._levels = self.layout.levels(version)
        return self._levels

    def learn(self, version: tuple[int, ...]) -> None:
        """Whoever has a connection tells the server's version, so that nobody need ask."""
        if self._levels is None:
            self._levels = self.layout.levels(version)

    def link(
        self,
        name: str,
        *,
        on_open: Callable[[Link], object] | None = None,
        on_lost: Callable[[Link, BrokerError], object] | None = None,
    ) -> Link:
        """A new connection with a loop of its own, not opened yet; for one thread. It belongs to whoever asked."""
        return Link(self.targets, name, on_open=on_open, on_lost=on_lost)

    def declarer(self, link: Link) -> Declarer:
        """Declares queues on a connection."""
        return Declarer(link, self.layout)

    def declare(self, queues: Collection[str]) -> None:
        """Makes queues known to this process. They are declared in the broker when they are needed first, or by
        ``ensure``."""
        self._queues.update(queues)

    def ensure(self, queues: Collection[str]) -> None:
        """Declares queues in the broker now.

        Raises:
          QueueMismatch: If one exists with other arguments.
          BrokerError: If that cannot be done.
        """
        self._queues.update(queues)
        self.share.control.declare(queues)

    def push(self, batch: Sequence[Envelope]) -> None:
        """Returns once the broker keeps the batch. If it raises, some of it may be kept: see ``Publisher.push``."""
        publisher = self._process.get().publisher  # first: opening it arms failpoints
        queues = self._queues
        for envelope in batch:
            self.check_size(envelope)
            if envelope.queue not in queues:
                queues.add(envelope.queue)
        now_ms = self.clock.now_ms()
        of = self.routes.of
        publications = [of(envelope, now_ms) for envelope in batch]
        if failpoints.armed:
            failpoints.hit("enq.before_send")
        publisher.push(publications, self._publish_timeout_s)
        if failpoints.armed:
            failpoints.hit("enq.after_commit")

    def publish(self, publications: Collection[Publication]) -> None:
        """Sends publications. Raises as ``push``."""
        self._process.get().publisher.push(list(publications), self._publish_timeout_s)

    def check_size(self, envelope: Envelope) -> None:
        """Raises ``MessageTooLarge`` if a body is too large."""
        size = len(envelope.body)
        if size > self.max_body:
            raise MessageTooLarge(
                f"A body of {size} bytes is too large: at most {self.max_body} are allowed.",
                size=size,
                limit=self.max_body,
            )

    def consumer(self, owner: str) -> Consumer:
        """A new owner of claims, with a connection of its own.

        Raises:
          ConnectionFailed: If the broker cannot be reached, or refuses the user.
          BrokerTimeout: If it does not answer.
        """
        from .consumer import RabbitmqConsumer  # who only sends does without

        self._look_for_strays()
        consumer = RabbitmqConsumer(self, owner)
        self.share.consumers.add(consumer)
        return consumer

    def _look_for_strays(self) -> None:
        try:
            if number := self.rescue():
                logger.warning("%d delayed messages whose queue had been deleted were sent on.", number)
        except (ConnectionFailed, BrokerTimeout):
            raise
        except BrokerError as e:  # they wait for the next worker that starts
            logger.warning("Nobody looked for messages without a queue: %s", e)
        finally:
            self.share.control.hang_up()

    def inspect(self) -> dict[str, object]:
        """What there is to know of the server.

        Raises:
          BrokerError: If it cannot be reached.
        """
        version = ".".join(map(str, self.share.control.version()))
        return {"broker": "RabbitMQ", "version": version, "address": self.targets.shown}

    def disconnect(self) -> None:
        """Closes the connection that sends, if there is one. The next ``push`` opens another."""
        share = self._process.peek()
        if share is not None:
            share.publisher.disconnect()

    def rescue(self) -> int:
        """Sends on the delayed messages whose queue was deleted before they were due, and that this process knows of;
        returns how many. Each is taken away once the broker keeps its copy.

        Raises:
          BrokerError: If that could not be done.
        """
        return rescue_strays(self.share.control, self.levels.stray, self._queues, self.publish, self.routes)

    def close(self) -> None:
        """Closes what this process has open. The next use opens it again."""
        self._process.close(ProcessShare.close)

    def _now_ms(self) -> int:
        return self.clock.now_ms()
