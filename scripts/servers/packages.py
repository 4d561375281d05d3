"""Which program belongs to which server, where it may be, and how to get it."""

from __future__ import annotations

import glob
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

POLICY = Path("/usr/sbin/policy-rc.d")
#: Beside PATH: where distributions and brew put servers. A user's PATH often has no sbin.
FOLDERS = ("/usr/lib/rabbitmq/bin", "/usr/lib/postgresql/*/bin", "/usr/sbin", "/usr/local/sbin", "/opt/homebrew/sbin")


class Missing(Exception):
    """A server's program is not on this machine; the text says how to get it."""


class Package(NamedTuple):
    """A package of Debian's: its programs (any of a group will do), and the services that its installation starts."""

    name: str
    programs: tuple[tuple[str, ...], ...]
    services: tuple[str, ...]


PACKAGES = {
    "redis": Package("redis-server", (("redis-server", "valkey-server"),), ("redis-server",)),
    "rabbitmq": Package(
        "rabbitmq-server",
        (("rabbitmq-server",), ("rabbitmqctl",), ("rabbitmq-diagnostics",), ("epmd",)),
        ("rabbitmq-server", "epmd.socket", "epmd"),
    ),
    "memcached": Package("memcached", (("memcached",),), ("memcached",)),
}


def which(program: str) -> str | None:
    """Where a program is, on PATH or where servers use to be; None if nowhere.

    Debian puts scripts before RabbitMQ's programs that insist on a user of their own, so those folders come first.
    """
    folders = [folder for pattern in FOLDERS for folder in sorted(glob.glob(pattern), reverse=True)]
    own = [folder for folder in folders if folder.startswith("/usr/lib")]
    path = os.pathsep.join([*own, os.environ.get("PATH", os.defpath), *folders])
    return shutil.which(program, path=path)


def find(*programs: str) -> str:
    """The first of these programs that is there.

    Raises:
      Missing: None is. The text says how to get it.
    """
    for program in programs:
        found = which(program)
        if found:
            return found
    raise Missing(f"{programs[0]} is not installed")


def is_there(kind: str) -> bool:
    """Whether a kind of server has all of its programs."""
    return all(any(map(which, group)) for group in PACKAGES[kind].programs)


def how_to_get(kind: str) -> str:
    """A line for people: how to install a kind of server."""
    return f"install it with: sudo apt install {PACKAGES[kind].name} (or start a docker engine)"


def install(kinds: Sequence[str], say: Callable[[str], None]) -> None:
    """Installs what is missing, if that is allowed without asking: to root, or under CI=true with sudo.

    Says first what it does; says nothing if there is nothing to do.

    Raises:
      Missing: apt could not do it. The text has its last words.
    """
    wanted = [PACKAGES[kind] for kind in kinds if not is_there(kind)]
    as_root = rights()
    if not wanted or as_root is None or not shutil.which("apt-get"):
        return
    names = [package.name for package in wanted]
    had_epmd = epmd_runs()
    say(f"installing {', '.join(names)} with apt for the tests (SERVICES=skip refuses); no service of it stays running")
    with_policy = not POLICY.exists()
    if with_policy:  # so asks Debian whoever may start services: nobody, for as long as we install
        as_root_write(as_root, "#!/bin/sh\nexit 101\n")
    try:
        apt(as_root, "update")
        apt(as_root, "install", "-y", "--no-install-recommends", *names)
    finally:
        if with_policy:
            subprocess.run([*as_root, "rm", "-f", str(POLICY)], check=False)
    stop_services(as_root, [service for package in wanted for service in package.services])
    if not had_epmd and epmd_runs():  # RabbitMQ's installation starts one, past all policies
        subprocess.run([*as_root, "epmd", "-kill"], stdin=subprocess.DEVNULL, capture_output=True, check=False)


def epmd_runs() -> bool:
    """Whether somebody listens where the system's epmd would."""
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(("127.0.0.1", 4369)) == 0


def rights() -> list[str] | None:
    """What goes before a command that needs root's rights; None if we may not."""
    if os.geteuid() == 0:
        return []
    if os.environ.get("CI") != "true" or not shutil.which("sudo"):
        return None
    asks_nobody = subprocess.run(["sudo", "-n", "true"], capture_output=True, check=False).returncode == 0
    return ["sudo", "-n"] if asks_nobody else None


def as_root_write(as_root: list[str], text: str) -> None:
    """Writes the policy file."""
    script = f"cat >{POLICY} && chmod 755 {POLICY}"
    subprocess.run([*as_root, "sh", "-c", script], input=text, text=True, check=True)


def apt(as_root: list[str], *words: str) -> None:
    """Runs apt-get.

    Raises:
      Missing: It failed.
    """
    done = subprocess.run(
        [*as_root, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode:
        last = " | ".join((done.stdout + done.stderr).strip().splitlines()[-3:])
        raise Missing(f"apt-get {words[0]} failed: {last}")


def stop_services(as_root: list[str], services: Sequence[str]) -> None:
    """Stops what an installation may have started all the same, where a policy of the machine's own allows it."""
    for service in services:
        if Path("/run/systemd/system").exists():
            command = ["systemctl", "stop", service]
        elif Path(f"/etc/init.d/{service}").exists():
            command = ["service", service, "stop"]
        else:
            continue
        subprocess.run([*as_root, *command], stdin=subprocess.DEVNULL, capture_output=True, check=False)


def tell(text: str) -> None:
    """Says something to a person."""
    print(f"greenroom: {text}", file=sys.stderr, flush=True)
