"""The pytest plugin. It is loaded as soon as Greenroom is installed, and until a fixture is used it imports nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from ..brokers.stub import StubBroker
    from ..middleware import Middleware
    from ..worker import Worker
    from .clock import ManualClock

_MARKER = "greenroom"
_OPTIONS = ("retries", "fail_fast", "inline", "strict")


def pytest_configure(config: pytest.Config) -> None:
    """Declares the marker."""
    config.addinivalue_line(
        "markers",
        "greenroom(retries=0, fail_fast=True, inline=False, strict=False): how `greenroom_broker` behaves in a test. "
        "retries: attempts after the first; fail_fast: join raises what killed a message; inline: messages run where "
        "they are sent; strict: unknown message options raise.",
    )


@pytest.fixture
def greenroom_clock() -> ManualClock:
    """A clock that stands still until it is told otherwise: ``greenroom_clock.tick("1h30m")``. Asking for it puts
    ``greenroom_broker`` and ``greenroom_worker`` on it, too."""
    from .clock import ManualClock

    return ManualClock()


@pytest.fixture
def greenroom_middleware() -> list[Middleware]:
    """Middleware that ``greenroom_broker`` has after the default ones: none. Override this fixture to add yours."""
    return []


@pytest.fixture
def greenroom_broker(request: pytest.FixtureRequest) -> Iterator[StubBroker]:
    """A fresh ``StubBroker``, the default broker during the test. Actors without ``broker=`` are declared on it,
    wherever they were declared before. Nothing is retried unless the marker, the actor or the message says so."""
    from ..brokers.stub import StubBroker
    from ..clock import SYSTEM_CLOCK
    from .default_broker import use_broker
    from .inline import InlineBroker

    options = _options_of(request)
    kind = InlineBroker if options["inline"] else StubBroker
    broker = kind(
        _middleware(options["retries"], request.getfixturevalue("greenroom_middleware")),
        fail_fast_default=options["fail_fast"],
        strict_options=options["strict"],
        clock=request.getfixturevalue("greenroom_clock") if _is_requested(request, "greenroom_clock") else SYSTEM_CLOCK,
    )
    with use_broker(broker):
        broker.emit_after("process_boot")
        yield broker
        broker.close()


@pytest.fixture
def greenroom_worker(greenroom_broker: StubBroker) -> Iterator[Worker]:
    """A running worker of ``greenroom_broker`` with one thread. It is stopped after the test."""
    from ..worker import Worker
    from .inline import InlineBroker

    if isinstance(greenroom_broker, InlineBroker):
        pytest.fail("With @pytest.mark.greenroom(inline=True) messages run where they are sent: use no worker.")
    worker = Worker(greenroom_broker, worker_timeout=100, worker_threads=1)
    worker.start()
    yield worker
    worker.stop(timeout=5_000)


def _options_of(request: pytest.FixtureRequest) -> dict[str, Any]:
    """What the markers say, the nearest last."""
    options: dict[str, Any] = {"retries": 0, "fail_fast": True, "inline": False, "strict": False}
    for marker in reversed(list(request.node.iter_markers(_MARKER))):
        unknown = sorted(set(marker.kwargs) - set(_OPTIONS))
        if marker.args or unknown:
            what = f"unknown: {', '.join(unknown)}" if unknown else "it takes keywords only"
            raise pytest.UsageError(f"@pytest.mark.greenroom: {what}. Known are {', '.join(_OPTIONS)}.")
        options.update(marker.kwargs)
    return options


def _middleware(retries: int | None, more: list[Middleware]) -> list[Middleware]:
    from ..middleware import Retries, default_middleware

    return [Retries(max_retries=retries) if kind is Retries else kind() for kind in default_middleware] + more


def _is_requested(request: pytest.FixtureRequest, name: str) -> bool:
    return name in request.fixturenames
