"""The broker under gunicorn, with and without preloading."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.forks.kit import ASGI, USE, WSGI, once, serve, stored, write_program
from tests.runtime.cli_kit import wait_until

pytest.importorskip("gunicorn", reason="gunicorn is not installed: pip install gunicorn")

LISTENS = r"Listening at: http://127\.0\.0\.1:(\d+)"
COMMAND = ("-m", "gunicorn", "app:application", "--bind", "127.0.0.1:0", "--workers", "4")
BEFORE = {-1, -2}
REQUESTS = range(500)


@pytest.mark.parametrize("worker", ["sync", "gthread", "uvicorn"])
def test_f111_preloading_after_the_broker_was_used(tmp_path: Path, url: str, worker: str) -> None:
    """The application sends while it is loaded, then gunicorn forks four workers: each request of 500 stores one
    message, none is lost and none is doubled, with every kind of worker."""
    write_program(tmp_path, USE, ASGI if worker == "uvicorn" else WSGI, url=url)
    kind = {"sync": ["sync"], "gthread": ["gthread", "--threads", "4"], "uvicorn": ["uvicorn_worker.UvicornWorker"]}
    if worker == "uvicorn":
        pytest.importorskip("uvicorn_worker", reason="it is not installed: pip install uvicorn uvicorn-worker")
    with serve(tmp_path, *COMMAND, "--preload", "--worker-class", *kind[worker], listens=LISTENS) as server:
        wait_until(lambda: len(server.children()) == 4, "four workers run")
        workers = server.children()
        answers = server.ask(REQUESTS)
        server.stop()
    assert answers.errors == {}
    assert "Traceback" not in server.text
    assert set(answers.pids.values()) <= workers
    assert stored(tmp_path, url) == once({*REQUESTS, *BEFORE})


def test_without_preloading(tmp_path: Path) -> None:
    """Each of four workers loads the application, and sends while it does."""
    write_program(tmp_path, "send(-os.getpid())\n", WSGI)
    with serve(tmp_path, *COMMAND, listens=LISTENS) as server:
        wait_until(lambda: len(server.children()) == 4, "four workers run")
        loaded = once(-pid for pid in server.children())
        wait_until(lambda: stored(tmp_path) == loaded, "each has loaded the application")
        answers = server.ask(REQUESTS)
        server.stop()
    assert answers.errors == {}
    assert stored(tmp_path) == once(REQUESTS) + loaded


def test_workers_are_recycled(tmp_path: Path) -> None:
    """Workers that end after some requests, and those that take their place, lose and double nothing."""
    write_program(tmp_path, USE, WSGI)
    with serve(tmp_path, *COMMAND, "--preload", "--max-requests", "100", listens=LISTENS) as server:
        answers = server.ask(REQUESTS)
        server.stop()
    assert answers.errors == {}
    assert len(set(answers.pids.values())) > 4
    assert stored(tmp_path) == once({*REQUESTS, *BEFORE})


@pytest.mark.parametrize("preload", [False, True])
def test_a_reload_under_load(tmp_path: Path, preload: bool) -> None:
    """``SIGHUP`` replaces all workers while requests come in: whatever was answered is stored, once."""
    write_program(tmp_path, "send(-os.getpid())\n", WSGI)
    with serve(tmp_path, *COMMAND, *["--preload"] * preload, listens=LISTENS) as server:
        wait_until(lambda: len(server.children()) == 4, "four workers run")
        old = server.children()

        def reload() -> None:
            server.process.send_signal(signal.SIGHUP)
            wait_until(lambda: len(server.children()) == 4 and not server.children() & old, "all workers are new")

        answers = server.ask(range(600), while_asking=reload)
        after = server.ask(range(600, 650))
        server.stop()
    found = stored(tmp_path)
    assert answers.errors == after.errors == {}
    assert {number: found[number] for number in range(650)} == dict.fromkeys(range(650), 1)
    assert set(after.pids.values()).isdisjoint(old)
