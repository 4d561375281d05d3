"""Where the messages of a storm are: what can go wrong there, how its end is seen, and what that leaves behind."""

from __future__ import annotations

import threading
from collections.abc import Collection
from pathlib import Path

from greenroom.brokers.engine import EngineBroker
from greenroom.engines.rabbitmq.connection import Link, Targets
from greenroom.engines.rabbitmq.delays import digits
from greenroom.engines.rabbitmq.topology import Declarer, Layout
from greenroom.errors import BrokerError
from scripts.servers import RabbitMQ, Redis
from tests.chaos.history import Fault, read_events
from tests.chaos.rabbitmq_kit import cut_since
from tests.runtime.engine_kit import check_nothing_is_left, is_empty, owners_of

#: Seconds that a server does not answer: less than a lease.
PAUSE_S = 1.0
#: RabbitMQ 3.10 forgets queues, and what is in them, if it is killed within a second of their declaration.
UNSAFE_S = 2.0
PATIENCE_S = 60.0


class Place:
    """A queue file. Nothing but the workers can be troubled.

    Parameters:
      url: For the broker.
    """

    #: What can be done to the place, by the names of the methods ``trouble_<kind>``.
    kinds: tuple[str, ...] = ()
    #: What a sender may be told while it is done; the messages may have arrived all the same.
    refusals: tuple[type[Exception], ...] = ()

    def __init__(self, url: str) -> None:
        self.url = url

    def prepare(self, longest_delay_ms: int) -> None:
        """Makes ready for messages."""

    def killed(self, pid: int, at_s: float) -> list[Fault]:
        """What the death of a process means here."""
        return [Fault("kill", pid, at_s)]

    def trouble(self, kind: str) -> None:
        """Does it."""
        getattr(self, f"trouble_{kind}")()

    def troubled(self, pids: Collection[int], from_s: float) -> list[Fault]:
        """What trouble that has come since ``from_s`` means for the processes of workers."""
        return []

    def is_quiet(self, broker: EngineBroker, folder: Path) -> bool:
        """Whether all messages have come to an end."""
        return is_empty(broker)

    def owners(self, broker: EngineBroker) -> set[int]:
        """The processes that the engine takes for workers: also those that have died, until somebody has noticed."""
        return {pid for _, pid in owners_of(broker)}

    def check_nothing_is_left(self, broker: EngineBroker) -> None:
        """To be called after the workers have ended."""
        check_nothing_is_left(broker)


class RedisPlace(Place):
    """A Redis server of our own."""

    kinds = ("cut", "pause")
    refusals = (BrokerError,)

    def __init__(self, server: Redis) -> None:
        super().__init__(server.url)
        self._server = server

    def trouble_cut(self) -> None:
        """All connections end."""
        self._server.cli("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

    def trouble_pause(self) -> None:
        """The server stands still."""
        self._server.pause()
        threading.Event().wait(PAUSE_S)
        self._server.resume()


class RabbitmqPlace(Place):
    """A virtual host of a RabbitMQ. It tells nobody what runs, and confirms no settlement.

    Parameters:
      server: The server.
      vhost: The name of the virtual host.
      is_ours: Whether the server may be killed.
    """

    refusals = (BrokerError,)

    def __init__(self, server: RabbitMQ, vhost: str, *, is_ours: bool = False) -> None:
        super().__init__(server.url_of(vhost))
        self._server = server
        self._vhost = vhost
        self.kinds = ("cut", "crash") if is_ours else ("cut",)

    def prepare(self, longest_delay_ms: int) -> None:
        if "crash" not in self.kinds:
            return
        link = Link(Targets(self.url), "storm")
        try:
            link.connect(PATIENCE_S)
            declarer = Declarer(link, Layout())
            names = [declarer.levels.queue(0, digit) for digit in range(1, digits(longest_delay_ms)[0] + 1)]
            declarer.run(["default", declarer.levels.base, *names], PATIENCE_S)
        finally:
            link.close()
        threading.Event().wait(UNSAFE_S)

    def killed(self, pid: int, at_s: float) -> list[Fault]:
        return [Fault("kill", pid, at_s), Fault("cut", pid, at_s)]

    def troubled(self, pids: Collection[int], from_s: float) -> list[Fault]:
        return [fault for pid in pids for fault in cut_since(pid, from_s)]

    def trouble_cut(self) -> None:
        """An operator closes all connections."""
        self._server.ctl("close_all_connections", "--vhost", self._vhost, "a storm")

    def trouble_crash(self) -> None:
        """The server is killed, and comes back."""
        self._server.kill()
        self._server.start()

    def is_quiet(self, broker: EngineBroker, folder: Path) -> bool:
        events = read_events(folder)
        accepted = {event.id for event in events if event.kind == "accepted"}
        ended = {event.id for event in events if event.kind == "end"}
        return not (accepted - ended) and not self._messages()

    def owners(self, broker: EngineBroker) -> set[int]:
        return set()

    def check_nothing_is_left(self, broker: EngineBroker) -> None:
        assert self._messages() == {}

    def _messages(self) -> dict[str, int]:
        """What waits, is delayed, or is held, by queue; dead letters are left out."""
        table = self._server.ctl("list_queues", "-p", self._vhost, "--no-table-headers", "name", "messages")
        counts = {name: int(count) for name, _, count in (line.rpartition("\t") for line in table.splitlines())}
        return {name: count for name, count in counts.items() if count and not name.endswith(".XQ")}
