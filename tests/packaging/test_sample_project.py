"""The sample project, as its README runs it: its tests under both libraries, and the shop itself."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PYTEST = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "examples/bookshop"]

#: The sample project's own switches, which must not leak in from the caller.
SWITCHES = ("BOOKSHOP_BROKER", "BOOKSHOP_DATA", "BOOKSHOP_LIBRARY", "GREENROOM_URL", "PYTHONPATH")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A repository of its own that holds the sample project alone."""
    repository = tmp_path / "repository"
    shutil.copytree(
        ROOT / "examples" / "bookshop",
        repository / "examples" / "bookshop",
        ignore=shutil.ignore_patterns("__pycache__", ".greenroom"),
    )
    return repository


@pytest.fixture(scope="module")
def dramatiq_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python that has the real Dramatiq and pytest, and no Greenroom."""
    folder = tmp_path_factory.mktemp("dramatiq")
    made = subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], capture_output=True, check=False)
    assert made.returncode == 0, made.stderr
    python = folder / "bin" / "python"
    install = ["-m", "pip", "--python", str(python), "install", "--quiet", "--no-input", "--timeout=10", "--retries=1"]
    wanted = ["dramatiq>=2,<3", "pytest>=8"]
    done = subprocess.run([sys.executable, *install, *wanted], capture_output=True, text=True, timeout=90, check=False)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or ["no reason given"]
        pytest.skip(f"pip could not install the real Dramatiq: {lines[-1]}")
    return python


def environment(**switches: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in SWITCHES}
    return {**kept, "PYTHONDONTWRITEBYTECODE": "1", **switches}


def passed_tests(python: Path | str, copy: Path, **switches: str) -> int:
    """Runs the project's tests, all of which must pass; returns how many there were."""
    done = subprocess.run(
        [str(python), *PYTEST], cwd=copy, env=environment(**switches), capture_output=True, text=True, timeout=100,
        check=False,
    )  # fmt: skip
    summary = re.search(r"^(?P<passed>\d+) passed in ", done.stdout, re.MULTILINE)
    assert done.returncode == 0, done.stdout + done.stderr
    assert summary, done.stdout
    return int(summary["passed"])


def test_its_tests_pass_under_greenroom(copy: Path) -> None:
    """All of them, those that need the testing kit too; one of them holds twenty retries to less than a second."""
    assert passed_tests(sys.executable, copy) >= 20


def test_its_portable_tests_pass_under_the_real_dramatiq(copy: Path, dramatiq_python: Path) -> None:
    """The same files run as a Dramatiq program, where Greenroom is not even installed."""
    probe = subprocess.run([dramatiq_python, "-c", "import greenroom"], cwd=copy, capture_output=True, check=False)
    assert probe.returncode != 0
    assert passed_tests(dramatiq_python, copy, BOOKSHOP_LIBRARY="dramatiq") >= 12


@contextmanager
def program(copy: Path, *words: str) -> Iterator[subprocess.Popen[str]]:
    """A program of the shop's, ended at the end."""
    command = [sys.executable, "-m", *words]
    with subprocess.Popen(
        command, cwd=copy, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as started:
        try:
            yield started
        finally:
            started.terminate()
            try:
                started.communicate(timeout=20)
            except subprocess.TimeoutExpired:
                started.kill()


def ask(url: str, **fields: Any) -> Any:
    """Posts the fields, or gets the URL if there are none."""
    request = urllib.request.Request(url, json.dumps(fields).encode() if fields else None)
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.load(answer)


def test_the_shop_sells_a_book(copy: Path) -> None:
    """The web application answers an order, and a worker beside it has it paid."""
    with (
        program(copy, "examples.bookshop", "web", "--port", "0") as web,
        program(copy, "greenroom", "worker", "examples.bookshop.tasks", "-p", "1", "-t", "2"),
    ):
        assert web.stdout is not None
        url = web.stdout.readline().split()[0]
        assert ask(f"{url}orders", book=1, address="ada@example.org") == {"order": 1}
        deadline_s = time.monotonic() + 30
        while (order := ask(f"{url}orders/1"))["state"] != "paid" and time.monotonic() < deadline_s:
            threading.Event().wait(0.05)
    assert order["state"] == "paid"


def test_a_web_server_says_what_is_wrong(copy: Path) -> None:
    """What is not there is a 404 for the browser, not a traceback."""
    with program(copy, "examples.bookshop", "web", "--port", "0") as web:
        assert web.stdout is not None
        url = web.stdout.readline().split()[0]
        with pytest.raises(urllib.error.HTTPError) as wrong:
            ask(f"{url}orders/7")
        with wrong.value:
            assert wrong.value.code == 404
