"""The same servers as containers, by ``compose.yaml``, for machines that have a docker engine and no server."""

from __future__ import annotations

import functools
import os
import subprocess
from pathlib import Path
from typing import Any

from .kinds import Memcached, RabbitMQ, Redis
from .process import Process, Server, ServerFailed, free_port, wait_for

ROOT = Path(__file__).resolve().parents[2]


@functools.cache
def is_there() -> bool:
    """Whether a docker engine runs, and knows compose."""
    try:
        for words in (("compose", "version"), ("info",)):
            subprocess.run(["docker", *words], capture_output=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return False
    return True


class Container(Server):
    """What a server in a container does differently. Mixed in before the kind of server."""

    patience_s = 300.0  # the image may have to be fetched

    @property
    def project(self) -> str:
        """How compose calls it: one project a server."""
        return f"greenroom-{self.kind}-{self.port}"

    def options(self) -> str:
        """The settings as words of the server's command line."""
        if self.settings:
            raise ServerFailed(f"{self.kind} in a container takes no settings")
        return ""

    def compose(self, *words: str, check: bool = True) -> str:
        """Runs ``docker compose`` for this server.

        Raises:
          ServerFailed: It failed.
        """
        name = self.kind.upper()
        done = subprocess.run(
            ["docker", "compose", "-f", str(ROOT / "compose.yaml"), "-p", self.project, *words],
            env={**os.environ, f"{name}_PORT": str(self.port), f"{name}_OPTIONS": self.options()},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if check and done.returncode:
            raise ServerFailed(f"docker compose {' '.join(words)}: {done.stderr.strip()[-500:]}")
        return done.stdout

    def is_running(self) -> bool:
        return self.kind in self.compose("ps", "--services", "--filter", "status=running", check=False).split()

    def start(self) -> Any:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.port = self.port or free_port()
        self.record()
        self.compose("up", "--detach", self.kind)
        if not wait_for(self.answers, self.patience_s):
            raise ServerFailed(f"{self.kind} in a container does not answer: {self.log[-500:]}")
        return self

    @property
    def log(self) -> str:
        return self.compose("logs", "--no-color", self.kind, check=False)

    def stop(self, grace_s: float = 10.0) -> None:
        self.end()

    def kill(self) -> None:
        self.compose("kill", "--signal", "SIGKILL", self.kind, check=False)

    def end(self) -> None:
        self.compose("down", "--volumes", "--timeout", "0", check=False)
        (self.folder / "record.json").unlink(missing_ok=True)

    def pause(self) -> None:
        self.compose("pause", self.kind)

    def resume(self) -> None:
        self.compose("unpause", self.kind)

    def restart(self) -> None:
        self.compose("stop", self.kind, check=False)
        self.start()

    def to_record(self) -> dict[str, Any]:
        file = str(ROOT / "compose.yaml")
        end_command = ["docker", "compose", "-f", file, "-p", self.project, "down", "--volumes", "--timeout", "0"]
        processes: list[Process] = []
        return {**super().to_record(), "processes": processes, "end_command": end_command, "container": True}


class RedisContainer(Container, Redis):
    """Redis in a container."""

    def options(self) -> str:
        return " ".join(f"--{name.replace('_', '-')} {value}" for name, value in self.settings.items())


class MemcachedContainer(Container, Memcached):
    """memcached in a container."""


class RabbitMQContainer(Container, RabbitMQ):
    """RabbitMQ in a container."""

    def start(self) -> Any:
        super().start()
        self.add_vhosts([f"t{number}" for number in range(self.vhosts)])
        return self

    def choose_ports(self) -> None:
        self.port = free_port()

    def ctl(self, *words: str, program: str = "rabbitmqctl", timeout_s: float = 120.0) -> str:
        return self.compose("exec", "-T", "rabbitmq", program, "--quiet", *words)


CONTAINERS: dict[str, type[Server]] = {
    kind.kind: kind for kind in (RedisContainer, RabbitMQContainer, MemcachedContainer)
}
