"""Delays that the broker keeps: a message waits in queues whose messages all live equally long.

A queue of RabbitMQ looks at the age of the message at its head alone, so one queue can serve one delay only. A delay is
therefore written in digits of base 32, in units of 32 ms, and there is a queue for each digit of each level, made when
it is needed first::

    delay = 90 s = 2813 units = 2 * 32^2 + 23 * 32 + 29        greenroom.delay.quorum.0.29    0.9 s
                                                               greenroom.delay.quorum.1.23   23.6 s
                                                               greenroom.delay.quorum.2.2    65.5 s

A message goes through one queue a level at the most, the shortest first. When its time there is over the broker moves
it to the exchange of the next level, which reads the next digit in its headers; a digit of 0 is passed by, and the end
of the digits leads to the exchange ``due``, which knows the queues by their names. Level 0 has the digits 1 to 32, so
every message goes through it. Nobody has to be there while that happens.

The shortest first: what is sent in a burst would leave the queue of its highest digit as that burst. (Measured with
30 000 messages sent within 3 s, due over a minute: with the longest first half of them were 2 s late, some 5 s.) And a
server that was down in the longest stretch of a delay does not prolong it.

All queues share the levels: 191 queues at the most, 32 for delays below a second, 95 for those below 17 minutes.

* **Never early; late by 32 ms at the most**, and by what the broker needs for a step. A year fits. What is longer
  carries the rest along (``Meta.rest_ms``), and whoever receives it delays it again.
* **Nothing is lost on the way**, where the server can move messages between quorum queues with confirms (3.10 and
  later). Between classic queues it moves them without: what is on its way between two of them is lost if the server is
  killed in that moment. A quorum queue that the server has made within the last second is not safe either: a
  ``kill -9`` of RabbitMQ 3.10.8 then forgets it, with what is in it (in 5 of 5 kills right after the first delayed
  messages that a virtual host ever saw, in none of 2 a second later).
* A message whose queue was deleted meanwhile goes to ``stray``, and from there on when the queue is declared again.
"""

from __future__ import annotations

from typing import Any, NamedTuple

_BITS = 5
_BASE = 1 << _BITS
UNIT_MS = 32
LEVELS = 6
#: The longest delay of one passage: 397 days.
LONGEST_MS = UNIT_MS * _BASE**LEVELS
PREFIX = "greenroom."
#: Stands where the digit of the next level would: there is none.
_END = -1

#: Since this version messages are moved between quorum queues with confirms.
SAFE_SINCE = (3, 10)


class Step(NamedTuple):
    """One call of a pika channel that makes a part of the topology."""

    method: str
    arguments: dict[str, Any]


def digits(delay_ms: int) -> list[int]:
    """The digits of a delay, that of level 0 (1 to 32) first; as many as there are levels."""
    units = max(1, -(-min(delay_ms, LONGEST_MS) // UNIT_MS)) - 1
    found = [(units & (_BASE - 1)) + 1]
    for level in range(1, LEVELS):
        found.append((units >> (_BITS * level)) & (_BASE - 1))
    return found


def ttl_ms(level: int, digit: int) -> int:
    """How long a message stays in the queue of a digit."""
    return digit * UNIT_MS << (_BITS * level)


class Passage(NamedTuple):
    """How a message gets into the levels: where it is published to, with which headers, and what has to be there."""

    exchange: str
    headers: dict[str, int]
    needs: tuple[str, ...]


class Levels:
    """Names and declarations of the levels. Immutable.

    Parameters:
      kind: The type of their queues: ``"quorum"`` or ``"classic"``.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        #: Stands for the exchanges, and what they have in common.
        self.base = f"{PREFIX}delay.{kind}"
        #: Where messages come out, by the name of their queue.
        self.due = f"{PREFIX}due.{kind}"
        #: Where those go whose queue is not there.
        self.stray = f"{PREFIX}stray.{kind}"

    def passage(self, delay_ms: int) -> Passage:
        """How a message gets in that is to come out after ``delay_ms``."""
        found = digits(delay_ms)
        top = max(level for level in range(LEVELS) if found[level])
        headers = {_header(level): found[level] for level in range(top + 1)}
        headers[_header(top + 1)] = _END
        queues = tuple(self.queue(level, found[level]) for level in range(top + 1) if found[level])
        return Passage(self._exchange(0), headers, (self.base, *queues))

    def queue(self, level: int, digit: int) -> str:
        """The name of the queue of a digit."""
        return f"{self.base}.{level}.{digit}"

    def queues(self) -> list[str]:
        """The names of all queues in which delayed messages may be."""
        below = [self.queue(0, digit) for digit in range(1, _BASE + 1)]
        above = [self.queue(level, digit) for level in range(1, LEVELS) for digit in range(1, _BASE)]
        return [*below, *above]

    def owns(self, name: str) -> bool:
        """Whether ``steps`` knows what ``name`` is."""
        return name == self.base or name.startswith(self.base + ".")

    def steps(self, name: str) -> list[Step]:
        """What makes ``base``, or a queue of the levels."""
        if name == self.base:
            return self._base_steps()
        level, digit = map(int, name.rsplit(".", 2)[1:])
        arguments = {
            "x-message-ttl": ttl_ms(level, digit),
            "x-dead-letter-exchange": self._exchange(level + 1),
            **self._kind_arguments(),
        }
        match = {"x-match": "all", _header(level): digit}
        return [
            Step("queue_declare", {"queue": name, "durable": True, "arguments": arguments}),
            Step(
                "queue_bind", {"queue": name, "exchange": self._exchange(level), "routing_key": "", "arguments": match}
            ),
        ]

    def due_steps(self) -> list[Step]:
        """What makes the exchange where messages come out."""
        stray = {"x-queue-type": self.kind} if self.kind == "quorum" else {}
        return [
            _exchange_step(self.stray, "fanout"),
            _exchange_step(self.due, "direct", {"alternate-exchange": self.stray}),
            Step("queue_declare", {"queue": self.stray, "durable": True, "arguments": stray}),
            Step("queue_bind", {"queue": self.stray, "exchange": self.stray, "routing_key": "", "arguments": {}}),
        ]

    def exit_steps(self, queue: str) -> list[Step]:
        """What lets delayed messages out into a queue."""
        bind = {"queue": queue, "exchange": self.due, "routing_key": queue, "arguments": {}}
        return [Step("queue_bind", bind)]

    def _base_steps(self) -> list[Step]:
        steps = [_exchange_step(self._exchange(level), "headers") for level in range(LEVELS)]
        for level in range(1, LEVELS):
            steps.append(self._pass(level, _END, self.due))
            if level < LEVELS - 1:
                steps.append(self._pass(level, 0, self._exchange(level + 1)))
        return steps

    def _pass(self, level: int, digit: int, destination: str) -> Step:
        """What lets messages with this digit pass a level by."""
        match = {"x-match": "all", _header(level): digit}
        source = self._exchange(level)
        bind = {"destination": destination, "source": source, "routing_key": "", "arguments": match}
        return Step("exchange_bind", bind)

    def _kind_arguments(self) -> dict[str, Any]:
        if self.kind != "quorum":
            return {}
        return {
            "x-queue-type": "quorum",
            "x-dead-letter-strategy": "at-least-once",
            "x-overflow": "reject-publish",  # without it the server moves at most once, and says so in its log only
        }

    def _exchange(self, level: int) -> str:
        return f"{self.base}.{level}" if level < LEVELS else self.due


def _header(level: int) -> str:
    return f"greenroom-{level}"


def _exchange_step(name: str, kind: str, arguments: dict[str, Any] | None = None) -> Step:
    declaration = {"exchange": name, "exchange_type": kind, "durable": True, "arguments": arguments or {}}
    return Step("exchange_declare", declaration)
