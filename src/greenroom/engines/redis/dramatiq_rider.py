"""The cheap look at Dramatiq's layout, as a part of a trip that is made anyway: it costs no command of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from .connection import Argument, Connection
from .dramatiq_layout import DramatiqLayout, Look, look_of
from .scripts import Script, load_alone


class Rider:
    """Owned by the pump.

    Parameters:
      layout: Dramatiq's keys.
      wants: Asked before each trip: the queues to look at, none for no look.
      told: Called with what was seen.
    """

    def __init__(
        self, layout: DramatiqLayout, wants: Callable[[], Sequence[str]], told: Callable[[Look], object]
    ) -> None:
        self._layout = layout
        self._wants = wants
        self._told = told

    def run(self, script: Script, connection: Connection, keys: Sequence[bytes], args: Sequence[Argument]) -> Any:
        """Runs a trip's script, with a look behind it if one is wanted; the script's own answer."""
        queues = self._wants()
        if not queues:
            return script.run(connection, keys, args)
        more = self._layout.look_keys(queues)
        reply = _with_look(script, len(more)).run(connection, [*keys, *more], args)
        assert isinstance(reply, list)
        self._told(look_of(queues, reply.pop()))
        return reply


@lru_cache(maxsize=64)
def _with_look(script: Script, count: int) -> Script:
    look = load_alone("dramatiq_look").text.decode()
    parts = (
        "local function trip()\n",
        script.text.decode(),
        "\nend\nlocal function look(KEYS)\n",
        look,
        "\nend\nlocal reply = trip()\n",
        f"reply[#reply + 1] = look({{unpack(KEYS, #KEYS - {count - 1})}})\n",
        "return reply\n",
    )
    return Script("".join(parts))
