"""The environment of the peers: made on demand beside the project, never mixed with its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from ..harness import CannotRun

FOLDER = Path(__file__).resolve().parent.parent.parent / ".venv-peers"
PYTHON = FOLDER / "bin" / "python"
#: By the name of the module that is imported: what pip is asked for.
PEERS = {
    "huey": ["huey>=3.1,<4"],
    "celery": ["celery>=5.4,<6"],
    "taskiq": ["taskiq>=0.11", "taskiq-aio-pika>=0.4"],
}
INSTALL_LIMIT_S = 300


def peer_python(peer: str) -> tuple[str, str]:
    """The Python that has the peer, and the peer's version; makes the environment first if need be.

    Raises:
      CannotRun: It could not be made; the message is pip's last line.
    """
    version = peer_version(peer)
    if version is None:
        print(f"installing {peer} into {FOLDER.name}", flush=True)
        if not PYTHON.exists():
            run(peer, [sys.executable, "-m", "venv", str(FOLDER)])
        run(peer, [str(PYTHON), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *PEERS[peer]])
        version = peer_version(peer)
    if version is None:
        raise CannotRun(f"{peer} cannot be imported in {FOLDER.name}; delete that folder and try again")
    return str(PYTHON), version


def peer_version(peer: str) -> str | None:
    """The peer's version in the environment of the peers, or None."""
    if not PYTHON.exists():
        return None
    code = f"from importlib.metadata import version; import {peer}; print(version({peer!r}))"
    done = subprocess.run([str(PYTHON), "-c", code], capture_output=True, text=True, timeout=60, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def run(peer: str, command: list[str]) -> None:
    """Runs one step of the installation, quietly."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_LIMIT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise CannotRun(f"installing {peer} took more than {INSTALL_LIMIT_S} s") from error
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no output"]
        raise CannotRun(f"{peer} could not be installed: {lines[-1]}")
