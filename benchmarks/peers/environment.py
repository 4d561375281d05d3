"""The environment of the peers: made on demand beside the project, never mixed with its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from ..harness import CannotRun

FOLDER = Path(__file__).resolve().parent.parent.parent / ".venv-peers"
PYTHON = FOLDER / "bin" / "python"
HUEY = "huey>=3.1,<4"
INSTALL_LIMIT_S = 300


def huey_python() -> tuple[str, str]:
    """The Python that has Huey, and Huey's version; makes the environment first if need be.

    Raises:
      CannotRun: It could not be made; the message is pip's last line.
    """
    version = huey_version()
    if version is None:
        print(f"making {FOLDER.name} and installing Huey into it", flush=True)
        run([sys.executable, "-m", "venv", str(FOLDER)])
        run([str(PYTHON), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", HUEY])
        version = huey_version()
    if version is None:
        raise CannotRun(f"Huey cannot be imported in {FOLDER.name}; delete that folder and try again")
    return str(PYTHON), version


def huey_version() -> str | None:
    """Huey's version in the environment of the peers, or None."""
    if not PYTHON.exists():
        return None
    code = "import huey; print(huey.__version__)"
    done = subprocess.run([str(PYTHON), "-c", code], capture_output=True, text=True, timeout=60, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def run(command: list[str]) -> None:
    """Runs one step of the installation, quietly."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_LIMIT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise CannotRun(f"installing Huey took more than {INSTALL_LIMIT_S} s") from error
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no output"]
        raise CannotRun(f"Huey could not be installed: {lines[-1]}")
