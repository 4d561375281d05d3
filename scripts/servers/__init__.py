"""Private servers for tests, benchmarks and people: Redis (or Valkey), RabbitMQ, memcached.

Each runs in a folder of its own, on free ports of the loopback, without a configuration of the system's. Needs nothing
but the standard library. ``scripts/services`` is the command, ``tests/services.py`` the fixtures.

* ``process``: what all servers have in common: start, stop, kill, pause, resume, restart.
* ``kinds``: how each of them is started and asked whether it is ready.
* ``nest``: a folder of servers that die with the processes that use them, even if those are killed.
* ``compose``: the same servers as containers, where the programs are not installed.
* ``packages``: which package brings which program, and its installation by apt.
"""

from .compose import Container
from .kinds import KINDS, Memcached, RabbitMQ, Redis
from .nest import Nest
from .packages import Missing, find
from .process import Server, ServerFailed, free_port

__all__ = [
    "KINDS",
    "Container",
    "Memcached",
    "Missing",
    "Nest",
    "RabbitMQ",
    "Redis",
    "Server",
    "ServerFailed",
    "find",
    "free_port",
]
