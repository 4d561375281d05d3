"""The broker under uWSGI, which forks from C: unless it is told to, it tells Python nothing of it."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.forks.kit import USE, WSGI, once, serve, stored, write_program

pytestmark = pytest.mark.skipif(find_spec("pyuwsgi") is None, reason="uWSGI is not installed: pip install pyuwsgi")

LISTENS = r"bound to TCP address 127\.0\.0\.1:(\d+)"
COMMAND = (
    "-c",
    "import pyuwsgi; pyuwsgi.run()",
    *("--http-socket", "127.0.0.1:0", "--wsgi-file", "app.py", "--need-app", "--die-on-term"),
    *("--processes", "4", "--disable-logging"),
)
BEFORE = {-1, -2}
REQUESTS = range(500)


@pytest.mark.parametrize(
    "options",
    [
        ["--master"],
        ["--master", "--enable-threads"],
        ["--master", "--threads", "2"],
        ["--master", "--max-requests", "100"],
        ["--master", "--py-call-uwsgi-fork-hooks", "--enable-threads"],
        pytest.param(
            ["--master", "--py-call-osafterfork"],
            marks=pytest.mark.skipif(sys.version_info >= (3, 13), reason="uWSGI's workers hang, whatever they serve"),
        ),
        [],
    ],
    ids=lambda options: " ".join(options) or "without a master",
)
def test_f112_the_broker_was_used_before_the_fork(tmp_path: Path, options: list[str]) -> None:
    """The application is loaded once, sends meanwhile, and uWSGI forks four workers: each request of 500 stores one
    message, none is lost and none is doubled, with and without threads, with and without Python's hooks."""
    write_program(tmp_path, USE, WSGI)
    with serve(tmp_path, *COMMAND, *options, listens=LISTENS) as server:
        answers = server.ask(REQUESTS)
        server.stop()
    assert answers.errors == {}, server.text
    assert len(set(answers.pids.values())) > 1
    assert stored(tmp_path) == once({*REQUESTS, *BEFORE})
    assert "Traceback" not in server.text
