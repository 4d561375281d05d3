"""The wheel, installed where nothing else is, on the oldest and the newest Python of this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
OLDEST = (3, 11)

#: What a Python must have to run the test; prints its version.
PROBE = """
import sqlite3, ssl, sys, venv
assert sqlite3.sqlite_version_info >= (3, 35) and sys.implementation.name == "cpython"
print(sys.version_info[0], sys.version_info[1])
"""

#: A user's program: sends a message through a SQLite file, runs it, and tells which foreign modules that loaded.
PROGRAM = """
import json, sys, threading
before = set(sys.modules)  # a distribution's Python may load a module of its own at start
import greenroom
from greenroom.brokers.sqlite import SqliteBroker

broker = SqliteBroker(path=sys.argv[1])
greenroom.set_broker(broker)
sums, done = [], threading.Event()

@greenroom.actor
def add(x, y):
    sums.append(x + y)
    done.set()

add.send(1, 2)
worker = greenroom.Worker(broker, worker_threads=2)
worker.start()
was_done = done.wait(20)
broker.join("default", timeout=20_000)
worker.stop()
broker.close()
loaded = {name.partition(".")[0] for name in set(sys.modules) - before} - sys.stdlib_module_names
print(json.dumps({"done": was_done, "sums": sums, "loaded": sorted(loaded), "version": greenroom.__version__}))
"""


class Python(NamedTuple):
    version: tuple[int, int]
    path: str


def run(*command: str | Path, **keywords: object) -> str:
    """The program's output; fails the test with all that it said if it failed."""
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, timeout=100, check=False, **keywords
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def found_pythons() -> Iterator[Python]:
    """Every working Python that is new enough: this one, those on PATH, those of pyenv."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    folders = [*map(Path, os.get_exec_path()), *sorted(pyenv.glob("*/bin"))]
    candidates = [Path(sys.executable)]
    for minor in range(OLDEST[1], OLDEST[1] + 10):
        candidates += [folder / f"python3.{minor}" for folder in folders]
    for candidate in candidates:
        if os.access(candidate, os.X_OK):
            probe = subprocess.run([candidate, "-c", PROBE], capture_output=True, text=True, timeout=30, check=False)
            if probe.returncode == 0:
                major, minor = map(int, probe.stdout.split())
                if (major, minor) >= OLDEST:
                    yield Python((major, minor), str(candidate))


@pytest.fixture(scope="module")
def pythons() -> dict[str, Python]:
    found = list(found_pythons())
    return {"oldest": min(found), "newest": max(found)}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module", params=["oldest", "newest"])
def installed(
    request: pytest.FixtureRequest, pythons: dict[str, Python], wheel: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The programs folder of a fresh environment that holds the wheel and what it needs, nothing else."""
    python = pythons[request.param]
    if request.param == "newest" and python.version == pythons["oldest"].version:
        pytest.skip("only one Python was found; it has been tested as the oldest")
    folder = tmp_path_factory.mktemp(request.param)
    run(python.path, "-m", "venv", "--without-pip", folder)
    run(sys.executable, "-m", "pip", "--python", folder / "bin" / "python", "install", "--quiet", "--no-input", wheel)
    return folder / "bin"


def test_a_program_runs_on_the_installed_wheel(installed: Path, tmp_path: Path) -> None:
    """With no extras, outside the repository: a message is sent, run and done, and only msgspec was loaded besides."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    said = json.loads(run(installed / "python", "-I", program, tmp_path / "queue.db", cwd=tmp_path))
    version = said.pop("version")
    assert said == {"done": True, "sums": [3], "loaded": ["greenroom", "msgspec"]}
    assert version in run(installed / "greenroom", "--version", cwd=tmp_path)


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    """Types, SQL and licence travel in the wheel; tests and examples do not."""
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    source = ROOT / "src"
    expected = {
        path.relative_to(source).as_posix()
        for path in source.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {"greenroom/py.typed", "greenroom/engines/sqlite/schema.sql"} <= names
    assert {name for name in names if ".dist-info/" not in name} == expected
    assert any(name.endswith("/licenses/LICENSE") for name in names)


def test_the_wheel_tells_what_it_needs(wheel: Path) -> None:
    """The core needs msgspec alone; everything else is an extra."""
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        lines = archive.read(metadata).decode().splitlines()
    needs = [line.removeprefix("Requires-Dist: ") for line in lines if line.startswith("Requires-Dist: ")]
    assert [need for need in needs if "extra ==" not in need] == ["msgspec>=0.19"]
    extras = {line.removeprefix("Provides-Extra: ") for line in lines if line.startswith("Provides-Extra: ")}
    assert extras >= {"all", "cli", "gevent", "memcached", "postgres", "prometheus", "rabbitmq", "redis", "test"}
    assert extras >= {"uvloop", "watch"}
    assert "License-Expression: MIT" in lines
