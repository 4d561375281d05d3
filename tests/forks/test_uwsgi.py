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


#: What is tried on a server, too.
WITH_AND_WITHOUT_THREADS = (["--master"], ["--master", "--enable-threads"])


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
    check_that_all_is_stored(tmp_path, "", options)


@pytest.mark.parametrize("options", WITH_AND_WITHOUT_THREADS, ids=" ".join)
@pytest.mark.parametrize("engine", ["redis", "rabbitmq"])
def test_f112_a_broker_on_a_server_was_used_before_the_fork(
    tmp_path: Path, request: pytest.FixtureRequest, engine: str, options: list[str]
) -> None:
    """The same with a broker on a server: no connection is used by two processes."""
    check_that_all_is_stored(tmp_path, request.getfixturevalue(f"{engine}_url"), options)


def check_that_all_is_stored(folder: Path, url: str, options: list[str]) -> None:
    """Runs the server, and asks it."""
    write_program(folder, USE, WSGI, url=url)
    with serve(folder, *COMMAND, *options, listens=LISTENS) as server:
        answers = server.ask(REQUESTS)
        server.stop()
    assert answers.errors == {}, server.text
    assert len(set(answers.pids.values())) > 1
    assert stored(folder, url) == once({*REQUESTS, *BEFORE})
    assert "Traceback" not in server.text
