"""For all tests."""

from __future__ import annotations

import signal
from collections.abc import Generator, Iterator

import pytest

from tests.services import (  # noqa: F401  # fixtures of real servers, found by their names here
    memcached_shared,
    memcached_url,
    nest,
    rabbitmq_server,
    rabbitmq_shared,
    rabbitmq_troubled,
    rabbitmq_url,
    redis_server,
    redis_shared,
    redis_url,
    start_rabbitmq,
    start_redis,
    start_server,
)


def pytest_configure() -> None:
    """Ctrl-C stops what the tests start, even if a shell has started them in the background, where it is ignored."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Where workers on a server meet, those that tests start as well: no folder of this user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(tmp_path_factory.mktemp("run")))
        yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Reports travel between the processes that run the tests, and half of a surrogate pair cannot travel: some tests
    log just that."""
    report = yield
    report.sections = [(name, text.encode("utf-8", "replace").decode("utf-8")) for name, text in report.sections]
    return report
