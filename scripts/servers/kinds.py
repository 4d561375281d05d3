"""How each kind of server is started, and asked whether it is ready."""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from .packages import find
from .process import HOST, Server, ServerFailed, free_port, wait_for


def ask(port: int, question: bytes, size: int) -> bytes:
    """The first bytes that a server answers; none if it does not, within a second."""
    answer = b""
    with suppress(OSError), socket.create_connection((HOST, port), 1.0) as connection:
        connection.settimeout(1.0)
        connection.sendall(question)
        while len(answer) < size:
            part = connection.recv(size - len(answer))
            if not part:
                break
            answer += part
    return answer


class Redis(Server):
    """A redis-server or valkey-server that keeps nothing on disk, unless its settings say so.

    ``Redis(folder, appendonly="yes", maxmemory="8mb", tls_port=...)``: settings are those of redis.conf.
    """

    kind = "redis"

    @property
    def url(self) -> str:
        return f"redis://{HOST}:{self.port}/0"

    def command(self) -> list[str]:
        program = find("redis-server", "valkey-server")
        settings: dict[str, object] = {"port": self.port, "bind": HOST, "dir": self.folder, "save": ""}
        settings |= {name.replace("_", "-"): value for name, value in self.settings.items()}
        return [program, *(word for name, value in settings.items() for word in (f"--{name}", str(value)))]

    def answers(self) -> bool:
        return ask(self.port, b"PING\r\n", 5) in (b"+PONG", b"-NOAU")

    def cli(self, *words: str | bytes | float) -> Any:
        """Runs a command on a connection of its own; the answer as redis-py has it. Needs redis-py."""
        import redis

        with redis.Redis(host=HOST, port=self.port, socket_timeout=10, password=self._password()) as client:
            return client.execute_command(*words)

    def _password(self) -> str | None:
        password = self.settings.get("requirepass")
        return None if password is None else str(password)


class Memcached(Server):
    """A memcached; its settings are the letters of its options: ``Memcached(folder, m=8)``."""

    kind = "memcached"

    @property
    def url(self) -> str:
        """The address, ``host:port``: memcached has no URLs."""
        return f"{HOST}:{self.port}"

    def command(self) -> list[str]:
        settings = {"l": HOST, "p": self.port, "U": 0, **self.settings}
        user = ["-u", "root"] if os.geteuid() == 0 else []
        return [
            find("memcached"),
            *user,
            *(word for key, value in settings.items() for word in (f"-{key}", str(value))),
        ]

    def answers(self) -> bool:
        return ask(self.port, b"version\r\n", 7) == b"VERSION"


class RabbitMQ(Server):
    """A RabbitMQ node with an epmd, a cookie, a name and folders of its own, and no plug-in.

    ``RabbitMQ(folder, channel_tick_interval=1000, consumer_timeout=5000)``: settings are those of rabbitmq.conf, with
    ``__`` for a dot.

    Parameters:
      vhosts: How many virtual hosts, ``t0``, ``t1`` and so on, are there from the start, beside ``/``.
    """

    kind = "rabbitmq"
    patience_s = 120.0  # 8 s on an idle machine

    def __init__(self, folder: Path, *, vhosts: int = 0, **settings: object) -> None:
        super().__init__(folder, **settings)
        self.vhosts = vhosts
        self._epmd_port = 0
        self._distribution_port = 0
        self._name = f"greenroom-{secrets.token_hex(4)}@localhost"

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@{HOST}:{self.port}/%2F"

    def url_of(self, vhost: str) -> str:
        """The URL of a virtual host with a plain name."""
        return f"amqp://guest:guest@{HOST}:{self.port}/{vhost}"

    def choose_ports(self) -> None:
        self.port, self._epmd_port, self._distribution_port = free_port(), free_port(), free_port()

    def prepare(self) -> None:
        cookie = self.folder / ".erlang.cookie"
        if not cookie.exists():
            cookie.write_text(secrets.token_hex(16))
            cookie.chmod(0o400)
            (self.folder / "plugins").write_text("[].")
            (self.folder / "empty").touch()
        (self.folder / "definitions.json").write_text(json.dumps(self._definitions()))
        (self.folder / "rabbitmq.conf").write_text(self._configuration())
        if not self.processes:
            self.spawn([find("epmd"), "-port", str(self._epmd_port), "-address", HOST])
            if not wait_for(lambda: self._is_open(self._epmd_port), 10.0):
                raise ServerFailed(f"epmd did not start: {self.last_words()}")

    def _definitions(self) -> dict[str, Any]:
        names = ["/", *(f"t{number}" for number in range(self.vhosts))]
        everything = {"user": "guest", "configure": ".*", "write": ".*", "read": ".*"}
        guest = {"name": "guest", "password": "guest", "tags": "administrator"}
        return {
            "vhosts": [{"name": name} for name in names],
            "users": [guest],
            "permissions": [{"vhost": name, **everything} for name in names],
        }

    def _configuration(self) -> str:
        settings = {
            "listeners.tcp.default": f"{HOST}:{self.port}",
            "load_definitions": self.folder / "definitions.json",
            "log.console": "true",
            "log.console.level": "warning",
            "log.file": "false",
            "disk_free_limit.absolute": "1MB",  # a full disk is a test's own wish
            **{name.replace("__", "."): value for name, value in self.settings.items()},
        }
        return "".join(f"{name} = {value}\n" for name, value in settings.items())

    def command(self) -> list[str]:
        return [find("rabbitmq-server")]

    def environment(self) -> dict[str, str]:
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(("RABBITMQ_", "ERL_"))}
        folder = str(self.folder)
        return {
            **inherited,
            "HOME": folder,
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_EPMD_ADDRESS": HOST,
            "ERL_CRASH_DUMP_SECONDS": "0",
            "RABBITMQ_NODENAME": self._name,
            "RABBITMQ_DIST_PORT": str(self._distribution_port),
            "RABBITMQ_CONFIG_FILE": f"{folder}/rabbitmq.conf",
            "RABBITMQ_ADVANCED_CONFIG_FILE": f"{folder}/none.config",
            "RABBITMQ_CONF_ENV_FILE": f"{folder}/empty",
            "RABBITMQ_ENABLED_PLUGINS_FILE": f"{folder}/plugins",
            "RABBITMQ_MNESIA_BASE": f"{folder}/data",
            "RABBITMQ_SCHEMA_DIR": f"{folder}/schema",
            "RABBITMQ_GENERATED_CONFIG_DIR": f"{folder}/generated",
            "RABBITMQ_LOG_BASE": f"{folder}/log",
            "RABBITMQ_PID_FILE": f"{folder}/pid",
            # No schedulers that spin while there is nothing to do; the server is the process that we start.
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 2:2 +sbwt none +sbwtdcpu none +sbwtdio none",
            "RUNNING_UNDER_SYSTEMD": "true",
        }

    @staticmethod
    def _is_open(port: int) -> bool:
        with suppress(OSError), socket.create_connection((HOST, port), 1.0):
            return True
        return False

    def answers(self) -> bool:
        return ask(self.port, b"AMQP\x00\x00\x09\x01", 7)[:1] == b"\x01"

    def ctl(self, *words: str, program: str = "rabbitmqctl", timeout_s: float = 120.0) -> str:
        """What ``rabbitmqctl`` (or another program of RabbitMQ's) says. Takes a second or two of a processor's time.

        Raises:
          ServerFailed: It failed.
        """
        done = subprocess.run(
            [find(program), "--quiet", *words],
            env=self.environment(),
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        if done.returncode:
            raise ServerFailed(f"{program} {' '.join(words)}: {done.stdout}{done.stderr}")
        return done.stdout

    def add_vhosts(self, names: list[str]) -> None:
        """Makes virtual hosts that ``guest`` may use, in one go."""
        erlang = "[begin rabbit_vhost:add(N, <<>>), rabbit_auth_backend_internal:set_permissions("
        erlang += '<<"guest">>, N, <<".*">>, <<".*">>, <<".*">>, <<"tests">>) end || N <- [%s]].'
        self.ctl("eval", erlang % ", ".join(f'<<"{name}">>' for name in names))

    def to_record(self) -> dict[str, Any]:
        ports = {"epmd_port": self._epmd_port, "distribution_port": self._distribution_port}
        return {**super().to_record(), **ports, "name": self._name}

    def attach(self, record: Mapping[str, Any]) -> Any:
        super().attach(record)
        self._epmd_port, self._distribution_port = record["epmd_port"], record["distribution_port"]
        self._name = record["name"]
        return self


KINDS: dict[str, type[Server]] = {kind.kind: kind for kind in (Redis, RabbitMQ, Memcached)}
